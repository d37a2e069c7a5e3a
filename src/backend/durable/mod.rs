//! What the durable planes have in common: the queue before the writers, what the operator sees of it, what a doctor says, and words as columns.

pub(super) mod doctor;
pub(super) mod fanout;
pub(super) mod forms;
pub(super) mod metrics;
pub(super) mod queue;
pub(super) mod recipients;
