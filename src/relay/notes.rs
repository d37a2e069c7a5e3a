//! What streams have seen of their devices, gathered so that one write to the store serves many streams.

use crate::domain::message::Cursor;
use crate::domain::seat::{DeviceId, UserId};
use crate::domain::time::Timestamp;
use crate::ports::{DeviceNote, Store};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long a note waits for others. Far below `callbacks.push.grace_ms`, whose decision reads the notes.
const GATHER: Duration = Duration::from_millis(200);
/// One write takes so many at most.
const NOTES_PER_WRITE: usize = 1_000;
/// While the store is away, so many devices' notes are kept. Beyond it they are lost: a push may then be made that wasn't needed.
const NOTES_MAX: usize = 500_000;

/// See the module's text.
#[derive(Debug, Default)]
pub struct Notes(Mutex<HashMap<(UserId, DeviceId), Note>>);

#[derive(Debug, Clone)]
struct Note {
    seen_at: Timestamp,
    /// Runs `(after, to]` of delivered messages; one but for streams that skipped some.
    delivered: Vec<(Cursor, Cursor)>,
}

impl Notes {
    /// The device is, or was until now, online.
    pub fn seen(&self, user: &UserId, device: &DeviceId, at: Timestamp) {
        self.add(user, device, at, None);
    }

    /// Messages `(after, to]` were handed to the device's stream.
    pub fn delivered(&self, user: &UserId, device: &DeviceId, after: Cursor, to: Cursor, at: Timestamp) {
        self.add(user, device, at, Some((after, to)));
    }

    fn add(&self, user: &UserId, device: &DeviceId, at: Timestamp, run: Option<(Cursor, Cursor)>) {
        let mut notes = self.0.lock();
        let is_full = notes.len() >= NOTES_MAX;
        match notes.entry((user.clone(), device.clone())) {
            Entry::Occupied(mut note) => note.get_mut().add(at, run),
            Entry::Vacant(place) if !is_full => {
                place.insert(Note { seen_at: at, delivered: run.into_iter().collect() });
            }
            Entry::Vacant(_) => {}
        }
    }

    /// Writes what has been gathered, again and again until `stop`.
    pub async fn run(&self, store: &dyn Store, stop: CancellationToken) {
        while !stop.is_cancelled() {
            tokio::select! {
                () = tokio::time::sleep(GATHER) => {}
                () = stop.cancelled() => {}
            }
            self.flush(store).await;
        }
    }

    /// Writes all that has been gathered so far. What can't be written is kept for the next time.
    pub async fn flush(&self, store: &dyn Store) {
        let gathered = std::mem::take(&mut *self.0.lock());
        let mut waiting = gathered.into_iter().peekable();
        while waiting.peek().is_some() {
            let part: Vec<_> = waiting.by_ref().take(NOTES_PER_WRITE).collect();
            if store.note_devices(part.iter().flat_map(rows).collect()).await.is_err() {
                self.put_back(part.into_iter().chain(waiting));
                return;
            }
        }
    }

    fn put_back(&self, unwritten: impl Iterator<Item = ((UserId, DeviceId), Note)>) {
        for ((user, device), note) in unwritten {
            for run in note.delivered.iter().copied().map(Some).chain(note.delivered.is_empty().then_some(None)) {
                self.add(&user, &device, note.seen_at, run);
            }
        }
    }
}

impl Note {
    fn add(&mut self, at: Timestamp, run: Option<(Cursor, Cursor)>) {
        self.seen_at = self.seen_at.max(at);
        let Some((after, to)) = run else { return };
        match self.delivered.iter_mut().find(|(a, t)| after <= *t && to >= *a) {
            Some((a, t)) => (*a, *t) = ((*a).min(after), (*t).max(to)),
            None => self.delivered.push((after, to)),
        }
    }
}

fn rows(((user, device), note): &((UserId, DeviceId), Note)) -> Vec<DeviceNote> {
    let row = |delivered| DeviceNote { user: user.clone(), device: device.clone(), seen_at: note.seen_at, delivered };
    if note.delivered.is_empty() {
        return vec![row(None)];
    }
    note.delivered.iter().map(|run| row(Some(*run))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_that_touch_become_one() {
        let mut note = Note { seen_at: Timestamp::from_ms(1), delivered: vec![] };
        for (after, to) in [(3, 4), (4, 7), (9, 10), (7, 8)] {
            note.add(Timestamp::from_ms(2), Some((Cursor::new(after), Cursor::new(to))));
        }
        assert_eq!(note.delivered, [(Cursor::new(3), Cursor::new(8)), (Cursor::new(9), Cursor::new(10))]);
    }
}
