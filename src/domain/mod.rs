//! Floor 0: the words of the contract as types. Pure: no I/O, no clock but where one is handed in.

pub mod by_user;
pub mod callback;
pub mod finding;
pub mod message;
pub mod retry;
pub mod seat;
pub mod time;
pub mod trace;
