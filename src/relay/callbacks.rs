//! stub
#![expect(missing_docs)]
use crate::domain::callback::{Callback, Endpoint};
pub struct Callbacks;
pub struct Room;
impl Room {
    pub fn hand_over(self, _rows: Vec<Callback>) {}
}
impl Callbacks {
    pub fn is_configured(&self, _e: Endpoint) -> bool {
        false
    }
    pub fn push_grace(&self) -> std::time::Duration {
        std::time::Duration::ZERO
    }
    pub fn reserve(&self, _e: Endpoint, _n: usize) -> Option<Room> {
        None
    }
    pub fn overflowed(&self, _e: Endpoint) {}
    pub fn wake(&self, _e: Endpoint) {}
}
