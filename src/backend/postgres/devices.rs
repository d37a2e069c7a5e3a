//! What devices have acknowledged, when they were last online, and what was handed to their streams.

use super::columns::{Result, cursor};
use super::connect::Failure;
use crate::backend::durable::forms::number;
use crate::domain::message::Cursor;
use crate::domain::seat::{DeviceId, UserId};
use crate::domain::time::Timestamp;
use crate::ports::{Acked, DeviceNote};
use deadpool_postgres::Object;
use std::collections::BTreeMap;

/// An ack is tried so often when its user has just come into being, or its number has just been given out.
const TRIES: usize = 3;

/// Adds users that there aren't yet. `names` in order, as two nodes may add the same.
pub(super) async fn add_users(db: &Object, names: &[&str]) -> Result<()> {
    let add = db
        .prepare_cached(
            "INSERT INTO users (name) SELECT n FROM unnest($1::text[]) n
             WHERE NOT EXISTS (SELECT 1 FROM users WHERE name = n) ORDER BY n COLLATE \"C\" ON CONFLICT DO NOTHING",
        )
        .await?;
    db.execute(&add, &[&names]).await?;
    Ok(())
}

/// See [`crate::ports::Store::ack`].
pub(super) async fn ack(db: &Object, user: &UserId, device: &DeviceId, acked: Cursor, now: Timestamp) -> Result<Acked> {
    let ack = db
        .prepare_cached(
            "INSERT INTO device AS d (user_id, device, acked, seen_at)
             SELECT id, $2, $3, $4 FROM users WHERE name = $1 AND newest >= $3
             ON CONFLICT (user_id, device) DO UPDATE SET acked = greatest(d.acked, excluded.acked),
                                                         seen_at = greatest(d.seen_at, excluded.seen_at)",
        )
        .await?;
    let (name, device, number) = (user.as_str(), device.as_str(), number(acked));
    let at = now.as_ms();
    for _ in 0..TRIES {
        if db.execute(&ack, &[&name, &device, &number, &at]).await? > 0 {
            return Ok(Acked::Done);
        }
        let newest = db.prepare_cached("SELECT newest FROM users WHERE name = $1").await?;
        let newest = match db.query_opt(&newest, &[&name]).await? {
            Some(row) => cursor(&row, 0)?,
            None if acked == Cursor::START => {
                add_users(db, &[name]).await?;
                continue;
            }
            None => Cursor::START,
        };
        if acked > newest {
            return Ok(Acked::Ahead { newest });
        }
        // It was given out between the two statements.
    }
    Err(Failure::Overtaken)
}

/// What the notes say of one device.
struct Noted {
    seen_at: i64,
    /// Runs of cursors, from the first to the last, neither overlapping nor adjacent.
    runs: Vec<(i64, i64)>,
}

/// Gathers notes per user and device, in the order in which their rows are locked.
fn gather(notes: &[DeviceNote]) -> BTreeMap<(&str, &str), Noted> {
    let mut gathered: BTreeMap<_, Noted> = BTreeMap::new();
    for note in notes {
        let noted = gathered
            .entry((note.user.as_str(), note.device.as_str()))
            .or_insert(Noted { seen_at: 0, runs: Vec::new() });
        noted.seen_at = noted.seen_at.max(note.seen_at.as_ms());
        if let Some((after, to)) = note.delivered.filter(|(after, to)| to > after) {
            noted.runs.push((number(after.next()), number(to)));
        }
    }
    for noted in gathered.values_mut() {
        noted.runs = joined(std::mem::take(&mut noted.runs));
    }
    gathered
}

/// The index by time is to be touched once a day, not with each note.
fn end_of_day(ms: i64) -> i64 {
    const DAY: i64 = 24 * 3600 * 1000;
    (ms / DAY + 1) * DAY
}

fn joined(mut runs: Vec<(i64, i64)>) -> Vec<(i64, i64)> {
    runs.sort_unstable();
    let mut joined: Vec<(i64, i64)> = Vec::new();
    for (first, last) in runs {
        match joined.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => joined.push((first, last)),
        }
    }
    joined
}

/// See [`crate::ports::Store::note_devices`].
pub(super) async fn note(db: &Object, notes: &[DeviceNote]) -> Result<()> {
    let gathered = gather(notes);
    let (mut names, mut devices, mut seen) = (Vec::new(), Vec::new(), Vec::new());
    let (mut run_names, mut run_devices, mut firsts, mut lasts, mut noted) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (&(name, device), of_device) in &gathered {
        names.push(name);
        devices.push(device);
        seen.push(of_device.seen_at);
        for &(first, last) in &of_device.runs {
            run_names.push(name);
            run_devices.push(device);
            firsts.push(first);
            lasts.push(last);
            noted.push(end_of_day(of_device.seen_at));
        }
    }
    add_users(db, &names).await?;
    let see = db
        .prepare_cached(
            "INSERT INTO device AS d (user_id, device, seen_at)
             SELECT u.id, t.device, t.seen_at
             FROM unnest($1::text[], $2::text[], $3::bigint[]) WITH ORDINALITY AS t (name, device, seen_at, n)
             JOIN users u ON u.name = t.name ORDER BY t.n
             ON CONFLICT (user_id, device) DO UPDATE SET seen_at = greatest(d.seen_at, excluded.seen_at)",
        )
        .await?;
    db.execute(&see, &[&names, &devices, &seen]).await?;
    if firsts.is_empty() {
        return Ok(());
    }
    // Streams go forward, so a run nearly always continues the one before it, which then grows in its place. Else those that it
    // touches are replaced by one. Two that still touch each other do no harm: they are only read.
    let deliver = db
        .prepare_cached(
            "WITH t AS MATERIALIZED (
                 SELECT u.id AS user_id, t.device, t.first, t.last, t.noted_at, t.n
                 FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[])
                      WITH ORDINALITY AS t (name, device, first, last, noted_at, n)
                 JOIN users u ON u.name = t.name),
             grown AS (
                 UPDATE delivery d SET last = greatest(d.last, t.last), noted_at = greatest(d.noted_at, t.noted_at)
                 FROM t WHERE d.user_id = t.user_id AND d.device = t.device
                          AND d.first <= t.first AND d.last >= t.first - 1
                 RETURNING t.n),
             rest AS (SELECT * FROM t WHERE n NOT IN (SELECT n FROM grown)),
             gone AS (
                 DELETE FROM delivery d USING rest r
                 WHERE d.user_id = r.user_id AND d.device = r.device AND d.first > r.first AND d.first <= r.last + 1
                 RETURNING r.n, d.last)
             INSERT INTO delivery AS d (user_id, device, first, last, noted_at)
             SELECT r.user_id, r.device, r.first, greatest(r.last, max(g.last)), r.noted_at
             FROM rest r LEFT JOIN gone g ON g.n = r.n
             GROUP BY r.user_id, r.device, r.first, r.last, r.noted_at
             ORDER BY r.user_id, r.device, r.first
             ON CONFLICT (user_id, device, first)
             DO UPDATE SET last = greatest(d.last, excluded.last), noted_at = greatest(d.noted_at, excluded.noted_at)",
        )
        .await?;
    db.execute(&deliver, &[&run_names, &run_devices, &firsts, &lasts, &noted]).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_joined_where_they_touch() {
        for (runs, expected) in [
            (vec![], vec![]),
            (vec![(4, 4), (1, 2)], vec![(1, 2), (4, 4)]),
            (vec![(3, 4), (1, 2)], vec![(1, 4)]),
            (vec![(1, 9), (2, 3), (5, 12)], vec![(1, 12)]),
        ] {
            assert_eq!(joined(runs), expected);
        }
    }
}
