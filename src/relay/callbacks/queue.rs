//! The rows that a dispatcher holds in memory, in the order in which they are due.

use crate::domain::callback::Callback;
use crate::domain::time::Timestamp;
use std::collections::BTreeMap;
use tokio::sync::OwnedSemaphorePermit;
use uuid::Uuid;

/// A leased callback in memory.
#[derive(Debug)]
pub struct Row {
    /// As it was leased.
    pub callback: Callback,
    /// Its place in memory, given back when the row's settlement is durable.
    pub room: Option<OwnedSemaphorePermit>,
    /// Never in a batch with others: it has failed before, and may have been the cause.
    pub alone: bool,
    /// Its turn: when it is due, or later if it was put behind others.
    turn: Timestamp,
}

impl Row {
    /// A row that was just leased. One that has failed before is sent alone, so that one poisonous message can't drag others down.
    pub fn new(callback: Callback, room: Option<OwnedSemaphorePermit>) -> Self {
        let (alone, turn) = (callback.attempts > 0, callback.due_at);
        Self { callback, room, alone, turn }
    }

    /// Puts it behind those that are due by now.
    #[must_use]
    pub fn behind(mut self, now: Timestamp) -> Self {
        self.turn = self.turn.max(now);
        self
    }

    /// From now on it is sent alone.
    #[must_use]
    pub fn alone(mut self) -> Self {
        self.alone = true;
        self
    }
}

/// Rows by their turn. Its size is bounded by the rooms that rows hold.
#[derive(Debug, Default)]
pub struct Queue(BTreeMap<(Timestamp, Uuid), Row>);

impl Queue {
    /// Adds a row.
    pub fn push(&mut self, row: Row) {
        self.0.insert((row.turn, row.callback.id), row);
    }

    /// Takes the rows of one event: the first that is due, and up to `most` in all if they may go together.
    pub fn take(&mut self, now: Timestamp, most: usize) -> Vec<Row> {
        let mut rows: Vec<Row> = Vec::new();
        while let Some(next) = self.0.first_entry() {
            let together = rows.is_empty() || !(rows[0].alone || next.get().alone);
            if next.key().0 > now || rows.len() >= most.max(1) || !together {
                break;
            }
            rows.push(next.remove());
        }
        rows
    }

    /// Takes the row to probe an endpoint with: one that has not failed yet, if there is one, as those that have may be why it seems down.
    pub fn take_probe(&mut self, now: Timestamp) -> Option<Row> {
        let mut due = self.0.iter().take_while(|(key, _)| key.0 <= now);
        match due.find(|(_, row)| !row.alone).map(|(&key, _)| key) {
            Some(fresh) => self.0.remove(&fresh),
            None => self.take(now, 1).pop(),
        }
    }

    /// When the first row's turn is.
    pub fn next_turn(&self) -> Option<Timestamp> {
        self.0.keys().next().map(|&(turn, _)| turn)
    }

    /// Takes all rows.
    pub fn take_all(&mut self) -> impl Iterator<Item = Row> {
        std::mem::take(&mut self.0).into_values()
    }
}
