//! Copies of groups' members in memory, for those who send to a group often.

use crate::domain::seat::{GroupId, UserId};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

/// All copies together hold so many members; beyond it, those that were used least lately go.
const COPIED_MAX: usize = 1_000_000;

/// Copies of groups as they were at a version. The store tells the version in force at every send, so a stale copy is never used.
#[derive(Debug, Default)]
pub struct Copies(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    groups: HashMap<GroupId, Copy>,
    members: usize,
    clock: u64,
}

#[derive(Debug)]
struct Copy {
    version: u64,
    members: Arc<[UserId]>,
    used: u64,
}

impl Copies {
    /// The members at this version, if they are held.
    pub fn get(&self, group: &GroupId, version: u64) -> Option<Arc<[UserId]>> {
        let mut held = self.0.lock();
        held.clock += 1;
        let now = held.clock;
        let copy = held.groups.get_mut(group).filter(|copy| copy.version == version)?;
        copy.used = now;
        Some(Arc::clone(&copy.members))
    }

    /// Keeps the members at this version.
    pub fn put(&self, group: &GroupId, version: u64, members: &Arc<[UserId]>) {
        let mut held = self.0.lock();
        held.clock += 1;
        let copy = Copy { version, members: Arc::clone(members), used: held.clock };
        held.members += members.len();
        if let Some(older) = held.groups.insert(group.clone(), copy) {
            held.members -= older.members.len();
        }
        while held.members > COPIED_MAX
            && let Some(oldest) = held.groups.iter().min_by_key(|(_, copy)| copy.used).map(|(name, _)| name.clone())
            && let Some(gone) = held.groups.remove(&oldest)
        {
            held.members -= gone.members.len();
        }
    }
}
