//! The bus of one process: a list of doors.

use crate::domain::seat::NodeId;
use crate::ports::NodeDoor;
use parking_lot::RwLock;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

/// The nodes of this process.
#[derive(Default)]
pub(super) struct Doors(RwLock<HashMap<NodeId, Arc<dyn NodeDoor>>>);

impl Doors {
    pub(super) fn open(&self, node: NodeId, door: Arc<dyn NodeDoor>) {
        self.0.write().insert(node, door);
    }

    pub(super) fn close(&self, node: &NodeId) {
        self.0.write().remove(node);
    }

    pub(super) fn len(&self) -> usize {
        self.0.read().len()
    }

    pub(super) fn of(&self, node: &NodeId) -> Option<Arc<dyn NodeDoor>> {
        self.0.read().get(node).cloned()
    }
}

impl fmt::Debug for Doors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.read().keys()).finish()
    }
}
