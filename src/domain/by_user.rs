//! A map by user for many threads: so many locks share the users between them that threads rarely meet at one.

use super::seat::UserId;
use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

/// A power of two.
const SHARDS: usize = 64;

type Shard<V> = RwLock<HashMap<UserId, V>>;

/// See the module's text. A guard locks one share of the users, so it is held for a few lines and never across an `.await`.
#[derive(Debug)]
pub struct ByUser<V> {
    shards: Vec<Shard<V>>,
    hasher: RandomState,
}

impl<V> Default for ByUser<V> {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| Shard::default()).collect(), hasher: RandomState::new() }
    }
}

impl<V> ByUser<V> {
    /// The share that this user is in, to look at.
    pub fn read(&self, user: &UserId) -> RwLockReadGuard<'_, HashMap<UserId, V>> {
        self.shard(user).read()
    }

    /// The share that this user is in, to change.
    pub fn write(&self, user: &UserId) -> RwLockWriteGuard<'_, HashMap<UserId, V>> {
        self.shard(user).write()
    }

    /// One share after the other.
    pub fn shares(&self) -> impl Iterator<Item = RwLockReadGuard<'_, HashMap<UserId, V>>> {
        self.shards.iter().map(RwLock::read)
    }

    fn shard(&self, user: &UserId) -> &Shard<V> {
        let hash = self.hasher.hash_one(user);
        // The low bits are as good as any; the mask keeps it within bounds.
        &self.shards[usize::try_from(hash & (SHARDS as u64 - 1)).unwrap_or(0)]
    }
}
