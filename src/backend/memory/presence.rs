//! Who is online, with a version per user that never goes back while the user is remembered.

use crate::domain::by_user::ByUser;
use crate::domain::seat::{DeviceId, DeviceState, Presence, SeatInfo, UserId};
use crate::domain::time::Timestamp;
use crate::ports::{SeatError, Seated, Unseated};
use parking_lot::Mutex;
use std::collections::VecDeque;

/// Versions of so many users who went offline last are remembered.
const OFFLINE_REMEMBERED: usize = 200_000;

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct PresenceTable {
    users: ByUser<Entry>,
    offline: Mutex<VecDeque<(UserId, u64)>>,
}

#[derive(Debug, Default)]
struct Entry {
    presence: Presence,
    /// The operator was told that the user is here, or is about to be.
    announced: bool,
}

/// The greater of the last one + 1 and the time in microseconds, so that it goes on growing after a user was forgotten.
fn next_version(last: u64) -> u64 {
    let micros = u64::try_from(Timestamp::now().as_ms()).unwrap_or(0) * 1000;
    micros.max(last + 1)
}

impl PresenceTable {
    pub(super) fn seat(&self, seat: SeatInfo, max_devices: usize) -> Result<Seated, SeatError> {
        let mut users = self.users.write(&seat.user);
        let Entry { presence, announced } = users.entry(seat.user.clone()).or_default();
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
        let arrival = (!std::mem::replace(announced, true)).then_some(presence.version);
        Ok(Seated { replaced, arrival })
    }

    pub(super) fn unseat(&self, seat: &SeatInfo) -> Unseated {
        let user = &seat.user;
        let mut users = self.users.write(user);
        let Some(Entry { presence, .. }) = users.get_mut(user) else { return Unseated::Absent };
        let before = presence.seats.len();
        presence.seats.retain(|s| (&s.device, &s.node, s.connection) != (&seat.device, &seat.node, seat.connection));
        if presence.seats.len() == before {
            return Unseated::Absent;
        }
        presence.version = next_version(presence.version);
        let gone = presence.seats.is_empty().then_some(presence.version);
        drop(users);
        let Some(version) = gone else { return Unseated::One };
        self.remember_offline(&seat.user, version);
        Unseated::Last(version)
    }

    pub(super) fn take_departure(&self, user: &UserId, version: u64) -> bool {
        let mut users = self.users.write(user);
        let Some(Entry { presence, announced }) = users.get_mut(user) else { return false };
        presence.seats.is_empty() && presence.version == version && std::mem::take(announced)
    }

    /// Forgets the users who have been offline for longest, beyond the bound.
    fn remember_offline(&self, user: &UserId, version: u64) {
        let mut offline = self.offline.lock();
        offline.push_back((user.clone(), version));
        let oldest = if offline.len() > OFFLINE_REMEMBERED { offline.pop_front() } else { None };
        drop(offline);
        if let Some((user, version)) = oldest {
            let mut users = self.users.write(&user);
            // A later version means that the user was here since: another entry of the list stands for that.
            if users.get(&user).is_some_and(|e| e.presence.seats.is_empty() && e.presence.version == version) {
                users.remove(&user);
            }
        }
    }

    pub(super) fn touch(
        &self,
        user: &UserId,
        device: &DeviceId,
        state: Option<DeviceState>,
        at: Timestamp,
    ) -> Option<SeatInfo> {
        let mut users = self.users.write(user);
        let Entry { presence, .. } = users.get_mut(user)?;
        let seat = presence.seats.iter_mut().find(|s| s.device == *device)?;
        seat.last_active_at = seat.last_active_at.max(at);
        seat.state = state.unwrap_or(seat.state);
        presence.version = next_version(presence.version);
        Some(seat.clone())
    }

    pub(super) fn locate(&self, user: &UserId) -> Presence {
        self.users.read(user).get(user).map(|entry| entry.presence.clone()).unwrap_or_default()
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
