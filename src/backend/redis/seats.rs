//! The directory: who is online where.

use super::link::Link;
use super::lua::{SEAT, TAKE_DEPARTURE, TOUCH, UNSEAT};
use super::names::{SHARDS, shard};
use super::{Plane, away};
use crate::domain::seat::{DeviceId, DeviceState, NodeId, Presence, SeatInfo, UserId};
use crate::domain::time::Timestamp;
use crate::ports::{Away, SeatError, Seated, Unseated};
use redis::RedisResult;
use std::collections::HashMap;
use std::time::Duration;

/// A user's version is remembered for so long after the last device has gone. It is made from the time, so it would grow all the same.
const VERSION_KEPT: Duration = Duration::from_hours(24);

/// So many users are asked for at once, lest the answer take too long.
const LOCATED_AT_ONCE: usize = 1_000;
/// So many sets of who is online; of a group of 100,000, some hundred members are looked for in each.
const SETS_AT_ONCE: usize = 128;

/// What the hash of a user holds.
pub(super) type Fields = HashMap<String, String>;

/// As it stands in Redis: see the text of `lua`.
pub(super) fn encode(seat: &SeatInfo) -> String {
    let state = state_word(seat.state);
    let (connected, active) = (seat.connected_at.as_ms(), seat.last_active_at.as_ms());
    format!("{}{state}\n{connected}\n{active}", holder(&seat.node, seat.connection))
}

/// The part of it that says whose it is.
pub(super) fn holder(node: &NodeId, connection: u64) -> String {
    format!("{connection}\n{node}\n")
}

fn state_word(state: DeviceState) -> &'static str {
    match state {
        DeviceState::Active => "active",
        DeviceState::Background => "background",
    }
}

/// `None` if it isn't what this version writes.
pub(super) fn decode(user: &UserId, device: &str, text: &str) -> Option<SeatInfo> {
    let mut lines = text.split('\n');
    let connection = lines.next()?.parse().ok()?;
    let node = NodeId::parse(lines.next()?).ok()?;
    let state = if lines.next()? == "background" { DeviceState::Background } else { DeviceState::Active };
    let mut time = || Some(Timestamp::from_ms(lines.next()?.parse().ok()?));
    let (connected_at, last_active_at) = (time()?, time()?);
    let (user, device) = (user.clone(), DeviceId::parse(device).ok()?);
    Some(SeatInfo { user, device, node, connection, state, connected_at, last_active_at })
}

fn presence_of(user: &UserId, fields: &Fields) -> Presence {
    let mut seats: Vec<_> = fields.iter().filter_map(|(device, text)| decode(user, device, text)).collect();
    seats.sort_by_key(|seat| (seat.connected_at, seat.connection));
    let version = fields.get("").and_then(|text| text.split(' ').next()?.parse().ok()).unwrap_or(0);
    Presence { version, seats }
}

impl Plane {
    /// First into the list of what this node has seated, then into the user's hash: so a crash in between leaves a surplus entry of the list,
    /// and never a seat that nobody will withdraw.
    pub(super) async fn seat(&self, seat: &SeatInfo, max_devices: usize) -> Result<Seated, SeatError> {
        let link = self.link()?;
        let noted = self.note_held(&link, std::slice::from_ref(seat)).await;
        let seated = match noted.map_err(away) {
            Ok(()) => self.seat_noted(&link, seat, max_devices).await,
            Err(away) => Err(away.into()),
        };
        match &seated {
            Ok(_) => {}
            Err(SeatError::TooManyDevices(_)) => {
                let forgotten = self.forget_held(&link, &seat.node, &[seat.connection]).await;
                forgotten.map_err(away)?;
            }
            // It may be there or not.
            Err(SeatError::Away(_)) => self.reconcile.notify_one(),
        }
        seated
    }

    async fn seat_noted(&self, link: &Link, seat: &SeatInfo, max_devices: usize) -> Result<Seated, SeatError> {
        for is_last_try in [false, true] {
            let call = SEAT.on_user(&self.names, &seat.user).arg(seat.device.as_str()).arg(encode(seat));
            let (is_full, found, arrival): (bool, redis::Value, Option<u64>) =
                call.arg(max_devices).run_joining(link).await.map_err(away)?;
            if !is_full {
                let older: Option<String> = redis::from_redis_value(found).map_err(away)?;
                let replaced = older.and_then(|text| decode(&seat.user, seat.device.as_str(), &text));
                return Ok(Seated { replaced, arrival });
            }
            if is_last_try {
                break;
            }
            // Devices of a node that is gone are not online, and may not have been withdrawn yet.
            let fields: Fields = redis::from_redis_value(found).map_err(away)?;
            let all = presence_of(&seat.user, &fields).seats;
            self.know_nodes(all.iter().map(|seat| &seat.node)).await?;
            let dead: Vec<_> = all.iter().filter(|seat| !self.is_live(&seat.node)).collect();
            if dead.is_empty() {
                break;
            }
            for dead in dead {
                self.unseat_of(link, &dead.node, &dead.user, dead.device.as_str(), dead.connection)
                    .await
                    .map_err(away)?;
            }
        }
        Err(SeatError::TooManyDevices(max_devices))
    }

    pub(super) async fn unseat(&self, seat: &SeatInfo) -> Result<Unseated, Away> {
        let link = self.link()?;
        let SeatInfo { user, device, node, connection, .. } = seat;
        let unseated = async {
            let was_there = self.unseat_of(&link, node, user, device.as_str(), *connection).await?;
            self.forget_held(&link, node, &[*connection]).await?;
            Ok(was_there)
        };
        unseated.await.map_err(|error: redis::RedisError| {
            self.reconcile.notify_one();
            away(error)
        })
    }

    /// Removes one node's seat from the user's hash.
    pub(super) async fn unseat_of(
        &self,
        link: &Link,
        node: &NodeId,
        user: &UserId,
        device: &str,
        connection: u64,
    ) -> RedisResult<Unseated> {
        let kept = u64::try_from(VERSION_KEPT.as_millis()).unwrap_or(u64::MAX);
        let call = UNSEAT.on_user(&self.names, user).arg(device).arg(holder(node, connection)).arg(kept);
        Ok(match call.run_leaving(link).await? {
            0 => Unseated::Absent,
            1 => Unseated::One,
            version => Unseated::Last(version),
        })
    }

    pub(super) async fn take_departure(&self, user: &UserId, version: u64) -> Result<bool, Away> {
        TAKE_DEPARTURE.on(self.names.user(user)).arg(version).run(&self.link()?).await.map_err(away)
    }

    /// Puts seats on the list of what their node, which is one, has seated.
    pub(super) async fn note_held(&self, link: &Link, seats: &[SeatInfo]) -> RedisResult<()> {
        let Some(first) = seats.first() else { return Ok(()) };
        let mut command = redis::cmd("HSET");
        command.arg(self.names.held(&first.node));
        for seat in seats {
            command.arg(seat.connection).arg(format!("{}\n{}", seat.user, seat.device));
        }
        link.run(&command).await
    }

    pub(super) async fn forget_held(&self, link: &Link, node: &NodeId, connections: &[u64]) -> RedisResult<()> {
        if connections.is_empty() {
            return Ok(());
        }
        link.run(redis::cmd("HDEL").arg(self.names.held(node)).arg(connections)).await
    }

    pub(super) async fn touch(
        &self,
        user: &UserId,
        device: &DeviceId,
        state: Option<DeviceState>,
        at: Timestamp,
    ) -> Result<Option<SeatInfo>, Away> {
        let link = self.link()?;
        let call = TOUCH.on(self.names.user(user)).arg(device.as_str()).arg(state.map_or("", state_word));
        let found: Option<String> = call.arg(at.as_ms()).run(&link).await.map_err(away)?;
        Ok(found.and_then(|text| decode(user, device.as_str(), &text)))
    }

    /// In one round trip, if they aren't very many. A seat counts only while its node's lease does.
    pub(super) async fn locate(&self, users: &[UserId]) -> Result<Vec<Presence>, Away> {
        let link = self.link()?;
        let mut presences = Vec::with_capacity(users.len());
        for bite in users.chunks(LOCATED_AT_ONCE) {
            let keys: Vec<_> = bite.iter().map(|user| self.names.user(user)).collect();
            let found = link.hashes(&keys).await.map_err(away)?;
            presences.extend(bite.iter().zip(&found).map(|(user, fields)| presence_of(user, fields)));
        }
        let nodes = presences.iter().flat_map(|presence| &presence.seats).map(|seat| &seat.node);
        self.know_nodes(nodes).await?;
        let roll = self.roll.borrow();
        for presence in &mut presences {
            presence.seats.retain(|seat| roll.is_live(&seat.node));
        }
        Ok(presences)
    }

    /// Of many users most are away: the sets of who is online tell whom to look for.
    pub(super) async fn seats(&self, users: &[UserId]) -> Result<Vec<Vec<SeatInfo>>, Away> {
        if users.len() <= LOCATED_AT_ONCE {
            return Ok(self.locate(users).await?.into_iter().map(|presence| presence.seats).collect());
        }
        let places = self.online_among(users).await?;
        let online: Vec<_> = places.iter().map(|place| users[*place].clone()).collect();
        let mut seats = vec![vec![]; users.len()];
        for (place, presence) in places.into_iter().zip(self.locate(&online).await?) {
            seats[place] = presence.seats;
        }
        Ok(seats)
    }

    /// The places in the list of those who may have a seat; the others have none.
    async fn online_among(&self, users: &[UserId]) -> Result<Vec<usize>, Away> {
        let link = self.link()?;
        let mut shards = vec![vec![]; SHARDS];
        for (place, user) in users.iter().enumerate() {
            shards[shard(user)].push(place);
        }
        let asked: Vec<_> = shards.into_iter().enumerate().filter(|(_, places)| !places.is_empty()).collect();
        let mut online = vec![];
        for bite in asked.chunks(SETS_AT_ONCE) {
            let wanted = |(shard, places): &(usize, Vec<usize>)| {
                (self.names.online_in(*shard), places.iter().map(|place| users[*place].as_str()).collect())
            };
            let found = link.members(&bite.iter().map(wanted).collect::<Vec<_>>()).await.map_err(away)?;
            let answers = bite.iter().zip(found).flat_map(|((_, places), are_in)| places.iter().zip(are_in));
            online.extend(answers.filter_map(|(place, is_in)| is_in.then_some(*place)));
        }
        Ok(online)
    }

    fn is_live(&self, node: &NodeId) -> bool {
        self.roll.borrow().is_live(node)
    }

    /// Asks Redis for the nodes, if one of these is not known as living: it may be new, or back.
    async fn know_nodes<'a>(&self, mut nodes: impl Iterator<Item = &'a NodeId>) -> Result<(), Away> {
        let is_known = {
            let roll = self.roll.borrow();
            nodes.all(|node| roll.is_live(node))
        };
        if is_known { Ok(()) } else { self.ask_for_nodes().await }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seat_is_read_as_it_is_written() {
        let seat = SeatInfo {
            user: UserId::parse("bob").unwrap(),
            device: DeviceId::parse("a phone").unwrap(),
            node: NodeId::parse("node 1").unwrap(),
            connection: u64::MAX,
            state: DeviceState::Background,
            connected_at: Timestamp::from_ms(1),
            last_active_at: Timestamp::from_ms(2),
        };
        let text = encode(&seat);
        assert!(text.starts_with(&holder(&seat.node, seat.connection)));
        assert_eq!(decode(&seat.user, "a phone", &text), Some(seat.clone()));
        assert_eq!(decode(&seat.user, "a phone", "7"), None);
        assert_eq!(decode(&seat.user, "", &text), None, "the version's field is no device");
    }
}
