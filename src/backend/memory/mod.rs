//! The ephemeral plane of one process: presence, keys, tickets and the bus in its memory.

mod bus;
mod keys;
mod presence;

use crate::domain::seat::{DeviceId, DeviceState, NodeId, Presence, SeatInfo, UserId};
use crate::domain::time::Timestamp;
use crate::ports::{
    Away, BodyHash, Bus, Claimed, Directory, KeyClaim, KeyError, NodeDoor, Notice, OfferError, RemoteOffer, SeatError,
    Seated, Ticket, TicketError, Unseated, Verdict,
};
use async_trait::async_trait;
use bytes::Bytes;
use keys::{Keys, Tickets};
use parking_lot::Mutex;
use std::sync::Arc;

/// See the module's text. Several nodes of one process may share one, as tests do.
#[derive(Debug, Default)]
pub struct MemoryPlane {
    presence: presence::PresenceTable,
    keys: Mutex<Keys>,
    tickets: Mutex<Tickets>,
    doors: bus::Doors,
}

#[async_trait]
impl Directory for MemoryPlane {
    async fn seat(&self, seat: SeatInfo, max_devices: usize) -> Result<Seated, SeatError> {
        self.presence.seat(seat, max_devices)
    }

    async fn unseat(&self, seat: &SeatInfo) -> Result<Unseated, Away> {
        Ok(self.presence.unseat(seat))
    }

    async fn take_departure(&self, user: &UserId, version: u64) -> Result<bool, Away> {
        Ok(self.presence.take_departure(user, version))
    }

    async fn touch(
        &self,
        user: &UserId,
        device: &DeviceId,
        state: Option<DeviceState>,
        at: Timestamp,
    ) -> Result<Option<SeatInfo>, Away> {
        Ok(self.presence.touch(user, device, state, at))
    }

    async fn locate(&self, users: &[UserId]) -> Result<Vec<Presence>, Away> {
        Ok(users.iter().map(|user| self.presence.locate(user)).collect())
    }

    fn knows_all(&self) -> bool {
        true
    }

    async fn claim_key(&self, key: &str, claim: KeyClaim) -> Result<Claimed, KeyError> {
        self.keys.lock().claim(key, &claim)
    }

    async fn settle_key(&self, key: &str, answer: Option<Bytes>) -> Result<(), Away> {
        self.keys.lock().settle(key, answer);
        Ok(())
    }

    async fn peek_key(&self, key: &str) -> Result<Option<BodyHash>, Away> {
        Ok(self.keys.lock().peek(key, Timestamp::now()))
    }

    async fn put_ticket(&self, digest: [u8; 32], ticket: Ticket) -> Result<(), TicketError> {
        self.tickets.lock().put(digest, ticket)
    }

    async fn take_ticket(&self, digest: [u8; 32], now: Timestamp) -> Result<Option<Ticket>, Away> {
        Ok(self.tickets.lock().take(&digest, now))
    }

    async fn check(&self) -> Result<(), Away> {
        Ok(())
    }
}

#[async_trait]
impl Bus for MemoryPlane {
    async fn offer(&self, node: &NodeId, offer: RemoteOffer) -> Result<Verdict, OfferError> {
        // A node that isn't in this process isn't anywhere.
        let door = self.doors.of(node).ok_or(OfferError::NotTaken)?;
        door.offered(offer).await
    }

    async fn tell(&self, node: &NodeId, notice: Notice) -> Result<(), Away> {
        if let Some(door) = self.doors.of(node) {
            door.noticed(notice).await;
        }
        Ok(())
    }

    fn has_other_nodes(&self) -> bool {
        self.doors.len() > 1
    }

    async fn listen(&self, node: &NodeId, door: Arc<dyn NodeDoor>) -> Result<(), Away> {
        self.doors.open(node.clone(), door);
        Ok(())
    }

    async fn leave(&self, node: &NodeId) {
        self.doors.close(node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::conformance::directory;

    #[tokio::test]
    async fn keeps_the_promises_of_a_directory() {
        directory::all(|| async { MemoryPlane::default() }).await;
    }
}
