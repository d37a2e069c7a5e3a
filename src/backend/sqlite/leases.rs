//! Who holds which callback. This process holds the data directory alone, so leases live in memory and die with it.

use crate::domain::callback::Callback;
use parking_lot::Mutex;
use std::collections::HashSet;
use std::sync::Arc;
use uuid::Uuid;

/// The ids of all leased callbacks.
#[derive(Debug, Default)]
pub(super) struct Leases(Mutex<HashSet<Uuid>>);

impl Leases {
    /// Whether somebody holds it.
    pub fn holds(&self, id: Uuid) -> bool {
        self.0.lock().contains(&id)
    }
}

/// Leased callbacks. What is not taken out is given back on drop: a commit that failed, or an answer that nobody waits for any more, leaves
/// no callback behind that is never tried again (CONTRACT.md 10.6).
#[derive(Debug)]
pub(super) struct Leased {
    leases: Arc<Leases>,
    callbacks: Vec<Callback>,
}

impl Leased {
    /// Leases them.
    pub fn new(leases: &Arc<Leases>, callbacks: Vec<Callback>) -> Self {
        if !callbacks.is_empty() {
            leases.0.lock().extend(callbacks.iter().map(|c| c.id));
        }
        Self { leases: Arc::clone(leases), callbacks }
    }

    /// Hands them to their holder, who ends the leases by settling.
    pub fn take(mut self) -> Vec<Callback> {
        std::mem::take(&mut self.callbacks)
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        if self.callbacks.is_empty() {
            return;
        }
        let mut held = self.leases.0.lock();
        for callback in &self.callbacks {
            held.remove(&callback.id);
        }
    }
}
