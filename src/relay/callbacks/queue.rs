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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::callback::Endpoint;

    /// Rows whose ids are their numbers, due at the given milliseconds after so many attempts.
    fn queue(rows: &[(u128, i64, u32)]) -> Queue {
        let mut queue = Queue::default();
        for &(n, due_ms, attempts) in rows {
            let (id, due_at) = (Uuid::from_u128(n), Timestamp::from_ms(due_ms));
            let callback = Callback {
                id,
                endpoint: Endpoint::Storage,
                message: id,
                recalled: false,
                recipient: None,
                attempts,
                due_at,
            };
            queue.push(Row::new(callback, None));
        }
        queue
    }

    fn taken(queue: &mut Queue, now_ms: i64, most: usize) -> Vec<u128> {
        queue.take(Timestamp::from_ms(now_ms), most).iter().map(|row| row.callback.id.as_u128()).collect()
    }

    #[test]
    fn rows_are_taken_in_the_order_of_their_turns_and_not_before() {
        let mut queue = queue(&[(1, 30, 0), (2, 10, 0), (3, 10, 0), (4, 20, 0)]);
        assert_eq!(queue.next_turn(), Some(Timestamp::from_ms(10)));
        assert!(taken(&mut queue, 9, 10).is_empty());
        assert_eq!(taken(&mut queue, 25, 2), [2, 3]);
        assert_eq!(taken(&mut queue, 25, 10), [4]);
        assert_eq!(taken(&mut queue, 30, 0), [1], "one at least");
    }

    #[test]
    fn what_has_failed_before_goes_alone() {
        let mut queue = queue(&[(1, 1, 0), (2, 2, 0), (3, 3, 1), (4, 4, 2), (5, 5, 0)]);
        let events: Vec<_> = (0..4).map(|_| taken(&mut queue, 9, 10)).collect();
        assert_eq!(events, [vec![1, 2], vec![3], vec![4], vec![5]]);
    }

    #[test]
    fn a_probe_is_the_first_that_has_not_failed_or_else_the_first() {
        let mut queue = queue(&[(1, 1, 1), (2, 2, 0), (3, 3, 0), (4, 99, 0)]);
        let mut probe = || queue.take_probe(Timestamp::from_ms(9)).map(|row| row.callback.id.as_u128());
        assert_eq!([probe(), probe(), probe(), probe()], [Some(2), Some(3), Some(1), None]);
    }

    #[test]
    fn a_row_behind_others_waits_for_those_that_are_due_by_then() {
        let mut queue = queue(&[(1, 1, 0), (2, 5, 0), (3, 20, 0)]);
        let first = queue.take(Timestamp::from_ms(10), 1).remove(0);
        queue.push(first.behind(Timestamp::from_ms(10)));
        assert_eq!(taken(&mut queue, 30, 10), [2, 1, 3]);
    }
}
