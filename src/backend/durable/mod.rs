//! What the durable planes have in common: the queue before the writers, what the operator sees of it, what a doctor says, and words as columns.

pub(super) mod doctor;
#[cfg_attr(not(test), expect(dead_code, reason = "neither store hands its large sends to it yet"))]
pub(super) mod fanout;
pub(super) mod forms;
pub(super) mod metrics;
pub(super) mod queue;
pub(super) mod recipients;
