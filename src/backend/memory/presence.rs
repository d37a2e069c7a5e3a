//! Who is online, with a version per user that never goes back while the user is remembered.

use crate::domain::seat::{DeviceId, DeviceState, Presence, SeatInfo, UserId};
use crate::domain::time::Timestamp;
use crate::ports::SeatError;
use parking_lot::{Mutex, RwLock};
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};

/// So many locks share the users between them.
const SHARDS: usize = 64;
/// Versions of so many users who went offline last are remembered.
const OFFLINE_REMEMBERED: usize = 200_000;

/// See the module's text.
#[derive(Debug)]
pub(super) struct PresenceTable {
    shards: Vec<RwLock<HashMap<UserId, Presence>>>,
    hasher: RandomState,
    offline: Mutex<VecDeque<(UserId, u64)>>,
}

impl Default for PresenceTable {
    fn default() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            hasher: RandomState::new(),
            offline: Mutex::default(),
        }
    }
}

/// The greater of the last one + 1 and the time in microseconds, so that it goes on growing after a user was forgotten.
fn next_version(last: u64) -> u64 {
    let micros = u64::try_from(Timestamp::now().as_ms()).unwrap_or(0) * 1000;
    micros.max(last + 1)
}

impl PresenceTable {
    pub(super) fn seat(&self, seat: SeatInfo, max_devices: usize) -> Result<Option<SeatInfo>, SeatError> {
        let mut users = self.shard(&seat.user).write();
        let presence = users.entry(seat.user.clone()).or_default();
        let is_full = presence.seats.len() >= max_devices;
        let same_device = presence.seats.iter_mut().find(|s| s.device == seat.device);
        let replaced = match same_device {
            Some(older) => Some(std::mem::replace(older, seat)),
            None if is_full => return Err(SeatError::TooManyDevices(max_devices)),
            None => {
                presence.seats.push(seat);
                None
            }
        };
        presence.version = next_version(presence.version);
        Ok(replaced)
    }

    pub(super) fn unseat(&self, user: &UserId, device: &DeviceId, connection: u64) -> bool {
        let mut users = self.shard(user).write();
        let Some(presence) = users.get_mut(user) else { return false };
        let before = presence.seats.len();
        presence.seats.retain(|s| !(s.device == *device && s.connection == connection));
        if presence.seats.len() == before {
            return false;
        }
        presence.version = next_version(presence.version);
        let gone = presence.seats.is_empty().then_some(presence.version);
        drop(users);
        if let Some(version) = gone {
            self.remember_offline(user, version);
        }
        true
    }

    /// Forgets the users who have been offline for longest, beyond the bound.
    fn remember_offline(&self, user: &UserId, version: u64) {
        let mut offline = self.offline.lock();
        offline.push_back((user.clone(), version));
        let oldest = if offline.len() > OFFLINE_REMEMBERED { offline.pop_front() } else { None };
        drop(offline);
        if let Some((user, version)) = oldest {
            let mut users = self.shard(&user).write();
            // A later version means that the user was here since: another entry of the list stands for that.
            if users.get(&user).is_some_and(|p| p.seats.is_empty() && p.version == version) {
                users.remove(&user);
            }
        }
    }

    pub(super) fn touch(&self, user: &UserId, device: &DeviceId, state: Option<DeviceState>, at: Timestamp) -> bool {
        let mut users = self.shard(user).write();
        let Some(presence) = users.get_mut(user) else { return false };
        let Some(seat) = presence.seats.iter_mut().find(|s| s.device == *device) else { return false };
        seat.last_active_at = seat.last_active_at.max(at);
        seat.state = state.unwrap_or(seat.state);
        presence.version = next_version(presence.version);
        true
    }

    pub(super) fn locate(&self, user: &UserId) -> Presence {
        self.shard(user).read().get(user).cloned().unwrap_or_default()
    }

    fn shard(&self, user: &UserId) -> &RwLock<HashMap<UserId, Presence>> {
        let hash = self.hasher.hash_one(user);
        &self.shards[usize::try_from(hash & (SHARDS as u64 - 1)).unwrap_or(0)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_grows_though_the_clock_stands_still_or_goes_back() {
        let far = next_version(0) + 10_000_000_000;
        assert_eq!(next_version(far), far + 1);
    }
}
