//! What the directory says of a node's seats, put right: this node's after it may have been forgotten, a dead one's for good.

use super::lease::Run;
use super::link::{Link, LinkError};
use super::lua::{SEAT_AGAIN, STILL_LOCKED, STRIKE_OFF, UNLOCK};
use super::seats::{decode, encode, holder};
use super::{Plane, away};
use crate::domain::seat::{DeviceId, DeviceState, NodeId, SeatInfo, UserId};
use crate::domain::time::Timestamp;
use crate::ports::{Away, Bye, Departure, NodeDoor, Notice, Unseated};
use futures_util::future::try_join_all;
use rand::RngExt;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// So many seats are worked on at once, with a pause after them: a node with many takes some seconds, and Redis goes on serving others.
const BITE: usize = 256;
const PAUSE_AT_MOST: Duration = Duration::from_millis(20);
/// Between two rounds at least.
const REST: Duration = Duration::from_secs(1);
const REST_AFTER_FAILURE: Duration = Duration::from_millis(300);
/// How often dead nodes are looked for.
const LOOK: Duration = Duration::from_secs(1);
/// Whoever withdraws a dead node's seats, or seats its own anew, and dies doing so, is waited for so long.
const LOCK: Duration = Duration::from_secs(10);
const LOCK_PAUSE: Duration = Duration::from_millis(200);
/// A device that two nodes say is theirs changes hands so often at most before it is left for the next round.
const CONTESTS: u32 = 8;

/// What one node has seated, by its own list.
struct Held {
    connection: u64,
    user: UserId,
    device: DeviceId,
}

/// The right to work on all of a node's seats.
struct Lock {
    key: String,
    token: u64,
}

impl Plane {
    /// Puts this node's seats right whenever that is wanted.
    pub(super) async fn keep_seats(self: Arc<Self>) {
        loop {
            tokio::select! {
                biased;
                () = self.ended() => return,
                () = self.reconcile.notified() => {}
            }
            let rest = tokio::select! {
                biased;
                () = self.ended() => return,
                done = self.reconcile() => match done {
                    Ok(()) => REST,
                    Err(error) => {
                        tracing::debug!(%error, "seats could not be compared with the directory and will be again");
                        self.reconcile.notify_one();
                        REST_AFTER_FAILURE
                    }
                }
            };
            tokio::select! {
                biased;
                () = self.ended() => return,
                () = sleep(rest.mul_f64(rand::rng().random_range(0.8..=1.2))) => {}
            }
        }
    }

    /// Afterwards the directory has all streams that this node holds, and no others of its.
    pub(super) async fn reconcile(self: &Arc<Self>) -> Result<(), Away> {
        let (Some(door), link) = (self.door(), self.link()?) else { return Ok(()) };
        let (begun, is_seated) = {
            let standing = self.standing.lock();
            (standing.begun, standing.is_seated())
        };
        // After its lease ran out somebody may be withdrawing this node's seats.
        let lock = if is_seated { None } else { Some(self.lock_in_time(&link, &self.run.node, LOCK + LOCK).await?) };
        let done = self.compare_seats(&link, &door).await;
        if let Some(lock) = lock {
            self.unlock(&link, lock).await;
        }
        done.map_err(away)?;
        self.standing.lock().seated(begun);
        self.seated.notify_waiters();
        self.metrics.reconciles.inc();
        door.resumed();
        self.tell_late_fates(&link).await.map_err(away)
    }

    async fn compare_seats(self: &Arc<Self>, link: &Link, door: &Arc<dyn NodeDoor>) -> Result<(), LinkError> {
        let node = &self.run.node;
        let mut cursor = 0;
        loop {
            let (next, held) = self.held_from(link, node, cursor).await?;
            let gone: Vec<_> = held.into_iter().filter(|held| !door.holds(&self.shown(held))).collect();
            self.withdraw(link, node, &gone, Some(Departure::Closed)).await?;
            if next == 0 {
                break;
            }
            cursor = next;
        }
        let seats = door.seats();
        for bite in seats.chunks(BITE) {
            self.note_held(link, bite).await?;
            try_join_all(bite.iter().map(|seat| self.seat_again(link, door, seat))).await?;
            // A stream that ended meanwhile may have been withdrawn before it was seated.
            let gone = bite.iter().filter(|seat| !door.holds(seat)).map(|seat| Held {
                connection: seat.connection,
                user: seat.user.clone(),
                device: seat.device.clone(),
            });
            self.withdraw(link, node, &gone.collect::<Vec<_>>(), Some(Departure::Closed)).await?;
            if seats.len() > BITE {
                sleep(PAUSE_AT_MOST.mul_f64(rand::random())).await;
            }
        }
        Ok(())
    }

    /// The part of a seat that a list holds.
    fn shown(&self, held: &Held) -> SeatInfo {
        SeatInfo {
            user: held.user.clone(),
            device: held.device.clone(),
            node: self.run.node.clone(),
            connection: held.connection,
            state: DeviceState::default(),
            connected_at: Timestamp::default(),
            last_active_at: Timestamp::default(),
        }
    }

    /// Seats a stream of this node, unless the same device has a later one. The earlier one of the two is ended.
    async fn seat_again(
        self: &Arc<Self>,
        link: &Link,
        door: &Arc<dyn NodeDoor>,
        seat: &SeatInfo,
    ) -> Result<(), LinkError> {
        let mut beaten: Option<(SeatInfo, String)> = None;
        for _ in 0..CONTESTS {
            let call = SEAT_AGAIN.on_user(&self.names, &seat.user).arg(seat.device.as_str()).arg(encode(seat));
            let call = call.arg(holder(&seat.node, seat.connection)).arg(beaten.as_ref().map_or("", |(_, text)| text));
            let found: Option<String> = call.run_joining(link).await?;
            let Some(text) = found else {
                if let Some((rival, _)) = beaten {
                    self.close(door, rival).await;
                }
                return Ok(());
            };
            // What can't be read is no seat, and is replaced.
            let rival = decode(&seat.user, seat.device.as_str(), &text).unwrap_or_else(|| seat.clone());
            let is_open =
                if rival.node == self.run.node { door.holds(&rival) } else { self.roll.borrow().is_live(&rival.node) };
            if is_open && order(&rival) > order(seat) {
                self.forget_held(link, &seat.node, &[seat.connection]).await?;
                self.close(door, seat.clone()).await;
                return Ok(());
            }
            beaten = Some((rival, text));
        }
        Err(LinkError::Unfit("a device is being seated by several nodes again and again".to_owned()))
    }

    /// Best effort: a stream that goes on without a seat is one that nobody offers anything to.
    async fn close(self: &Arc<Self>, door: &Arc<dyn NodeDoor>, seat: SeatInfo) {
        let node = seat.node.clone();
        let notice = Notice::Close(seat, Bye::Replaced);
        if node == self.run.node {
            door.noticed(notice).await;
        } else if let Err(error) = self.tell(&node, notice) {
            tracing::debug!(node.id = %node, %error, "another node could not be told that a stream was replaced");
        }
    }

    /// A part of what a node has seated, and where the next begins; that is 0 at the end.
    async fn held_from(&self, link: &Link, node: &NodeId, cursor: u64) -> Result<(u64, Vec<Held>), LinkError> {
        let mut command = redis::cmd("HSCAN");
        command.arg(self.names.held(node)).arg(cursor).arg("COUNT").arg(BITE);
        let (next, entries): (u64, HashMap<u64, String>) = link.run(&command).await?;
        let held = entries.into_iter().filter_map(|(connection, text)| {
            let (user, device) = text.split_once('\n')?;
            Some(Held { connection, user: UserId::parse(user).ok()?, device: DeviceId::parse(device).ok()? })
        });
        Ok((next, held.collect()))
    }

    /// Takes seats out of the directory. `why`, if they are no news to the operator already.
    async fn withdraw(
        &self,
        link: &Link,
        node: &NodeId,
        held: &[Held],
        why: Option<Departure>,
    ) -> Result<(), LinkError> {
        for bite in held.chunks(BITE) {
            let unseat = bite.iter().map(|held| {
                let Held { connection, user, device } = held;
                self.unseat_of(link, node, user, device.as_str(), *connection)
            });
            let unseated = try_join_all(unseat).await?;
            if let (Some(door), Some(why)) = (self.door(), why) {
                for (held, unseated) in bite.iter().zip(unseated) {
                    if let Unseated::Last(version) = unseated {
                        door.departed(&held.user, &held.device, version, why);
                    }
                }
            }
            let connections: Vec<_> = bite.iter().map(|held| held.connection).collect();
            self.forget_held(link, node, &connections).await?;
        }
        Ok(())
    }

    /// Withdraws all that a node has seated, for as long as the lock is held and, if it is another node, it isn't back. False if that ended.
    async fn withdraw_all(&self, link: &Link, node: &NodeId, lock: Option<&Lock>) -> Result<bool, LinkError> {
        // Without a lock this node gives its own back, whose streams have ended in order.
        let why = lock.map(|_| Departure::LeaseExpired);
        let mut cursor = 0;
        loop {
            if *node != self.run.node {
                self.call_the_roll(link, Duration::ZERO).await?;
                if self.roll.borrow().is_live(node) {
                    return Ok(false);
                }
            }
            if let Some(lock) = lock
                && !self.still_locked(link, lock).await?
            {
                return Ok(false);
            }
            let (next, held) = self.held_from(link, node, cursor).await?;
            self.withdraw(link, node, &held, why).await?;
            if next == 0 {
                return Ok(true);
            }
            cursor = next;
        }
    }

    /// What an earlier run of this node's name has left is withdrawn, before this one takes its lease.
    pub(super) async fn clear_the_name(&self, link: &Link) -> Result<(), Away> {
        let node = &self.run.node;
        let lock = self.lock_in_time(link, node, LOCK + LOCK).await?;
        let cleared = async {
            self.withdraw_all(link, node, Some(&lock)).await?;
            self.call_the_roll(link, Duration::ZERO).await?;
            let earlier: Vec<_> = self.roll.borrow().runs_of(node).map(ToString::to_string).collect();
            self.strike_off(link, &earlier).await
        }
        .await;
        self.unlock(link, lock).await;
        cleared.map_err(away)
    }

    /// What this node has in the directory is given back, and its lease.
    pub(super) async fn give_all_back(&self, link: &Link) -> Result<(), LinkError> {
        self.withdraw_all(link, &self.run.node, None).await?;
        self.strike_off(link, &[self.run.to_string()]).await
    }

    async fn strike_off(&self, link: &Link, runs: &[String]) -> Result<(), LinkError> {
        if runs.is_empty() {
            return Ok(());
        }
        Ok(link.run(redis::cmd("ZREM").arg(self.names.nodes()).arg(runs)).await?)
    }

    /// Looks for nodes whose lease has run out.
    pub(super) async fn keep_watch(self: Arc<Self>) {
        loop {
            tokio::select! {
                biased;
                () = self.ended() => return,
                () = sleep(LOOK.mul_f64(rand::rng().random_range(0.8..=1.2))) => {}
            }
            let lapsed = self.roll.borrow().lapsed();
            for run in lapsed.iter().filter(|run| **run != self.run) {
                let Ok(link) = self.link() else { break };
                let bury = tokio::select! {
                    biased;
                    () = self.ended() => return,
                    bury = self.bury(&link, run) => bury,
                };
                if let Err(error) = bury {
                    tracing::debug!(node.id = %run.node, %error, "a dead node's seats could not be withdrawn yet");
                }
            }
        }
    }

    /// The node is dead: its seats are withdrawn, by one of those that noticed, and it is struck off the list. It may come back at any moment,
    /// as it may only have been paused; then it is left alone, and waits for the lock before it seats its streams anew.
    async fn bury(&self, link: &Link, run: &Run) -> Result<(), LinkError> {
        let Some(lock) = self.lock(link, &run.node).await? else { return Ok(()) };
        let result = async {
            // The name may have a later run, which has withdrawn what this one had.
            if self.withdraw_all(link, &run.node, Some(&lock)).await? {
                tracing::info!(node.id = %run.node, "the seats of a dead node were withdrawn");
            }
            Ok(STRIKE_OFF.on(self.names.nodes()).arg(run.to_string()).run::<()>(link).await?)
        }
        .await;
        self.unlock(link, lock).await;
        result
    }

    async fn lock_in_time(&self, link: &Link, node: &NodeId, patience: Duration) -> Result<Lock, Away> {
        let until = Instant::now() + patience;
        loop {
            match self.lock(link, node).await.map_err(away)? {
                Some(lock) => return Ok(lock),
                None if Instant::now() > until => return Err(away("the seats of this node are being worked on")),
                None => sleep(LOCK_PAUSE).await,
            }
        }
    }

    /// `None`: somebody else has it.
    async fn lock(&self, link: &Link, node: &NodeId) -> Result<Option<Lock>, LinkError> {
        let lock = Lock { key: self.names.lock(node), token: rand::random() };
        let mut command = redis::cmd("SET");
        command.arg(&lock.key).arg(lock.token).arg("NX").arg("PX").arg(millis(LOCK));
        let is_mine: bool = link.run(&command).await?;
        Ok(is_mine.then_some(lock))
    }

    async fn still_locked(&self, link: &Link, lock: &Lock) -> Result<bool, LinkError> {
        Ok(STILL_LOCKED.on(lock.key.clone()).arg(lock.token).arg(millis(LOCK)).run(link).await?)
    }

    /// If it can't be given back, it runs out.
    async fn unlock(&self, link: &Link, lock: Lock) {
        if let Err(error) = UNLOCK.on(lock.key).arg(lock.token).run::<()>(link).await {
            tracing::debug!(%error, "a lock could not be given back");
        }
    }
}

/// Of two streams of one device the greater one stays.
fn order(seat: &SeatInfo) -> (Timestamp, &NodeId, u64) {
    (seat.connected_at, &seat.node, seat.connection)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
