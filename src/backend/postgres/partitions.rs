//! Spans of time, each with a partition of messages and one of inbox rows: made ahead, and dropped as a whole when all in them is beyond the
//! retention.

use super::columns::Result;
use super::connect::end;
use crate::backend::durable::forms::first_id;
use crate::domain::time::Timestamp;
use parking_lot::Mutex;
use std::time::Duration;
use tokio_postgres::Client;

/// Of the lock under which spans are made and dropped.
const LOCK: i64 = 0x7370_616e;
/// So many spans make up the retention: what has expired is gone for good a span later at the latest, and a look into an inbox
/// passes by so many partitions, and two or three more.
const SPANS: u32 = 7;
/// The least that a span lasts, and a multiple of which it lasts.
const UNIT: Duration = Duration::from_secs(3600);
/// Of all partitions: inbox rows and messages are updated once or twice, when their callbacks are done with.
const STORAGE: &str = "fillfactor = 90, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0, \
     autovacuum_analyze_scale_factor = 0.05";
/// Time that a change of the tables may wait for readers and writers, who wait behind it.
const PATIENCE: &str = "SET LOCAL lock_timeout = '2s'";

/// From its start, to its end exclusively.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Span {
    starts_at: i64,
    ends_at: i64,
}

impl Span {
    fn holds(self, at: Timestamp) -> bool {
        (self.starts_at..self.ends_at).contains(&at.as_ms())
    }

    /// The one of this width that holds `at`, cut so that it overlaps none of those that there are: another retention made other widths.
    fn around(at: Timestamp, width: Duration, others: &[Self]) -> Self {
        let width = i64::try_from(width.as_millis()).unwrap_or(i64::MAX);
        let start = at.as_ms().div_euclid(width) * width;
        let before = others.iter().map(|other| other.ends_at).filter(|&end| end <= at.as_ms());
        let after = others.iter().map(|other| other.starts_at).filter(|&start| start > at.as_ms());
        Self { starts_at: before.fold(start, i64::max), ends_at: after.fold(start.saturating_add(width), i64::min) }
    }
}

/// The spans that are known to have partitions.
pub(super) struct Partitions {
    width: Duration,
    known: Mutex<Vec<Span>>,
}

impl Partitions {
    pub fn new(retention: Duration) -> Self {
        let units = (retention / SPANS).as_secs().div_ceil(UNIT.as_secs()).max(1);
        Self { width: UNIT * u32::try_from(units).unwrap_or(u32::MAX), known: Mutex::default() }
    }

    /// Makes partitions for messages of these times, as far as there are none.
    pub async fn ensure(&self, db: &Client, times: impl IntoIterator<Item = Timestamp>) -> Result<()> {
        for at in times {
            let known = self.known.lock().iter().any(|span| span.holds(at));
            if !known {
                db.batch_execute("BEGIN").await?;
                let all = end(db, self.make(db, at).await).await?;
                *self.known.lock() = all;
            }
        }
        Ok(())
    }

    /// For now and for what comes next.
    pub async fn ensure_ahead(&self, db: &Client, now: Timestamp) -> Result<()> {
        self.ensure(db, [now, now.plus(self.width)]).await
    }

    /// Another node may have dropped some.
    pub fn forget(&self) {
        self.known.lock().clear();
    }

    async fn make(&self, db: &Client, at: Timestamp) -> Result<Vec<Span>> {
        db.batch_execute(PATIENCE).await?;
        db.execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK]).await?;
        let mut all = spans(db).await?;
        if !all.iter().any(|span| span.holds(at)) {
            let span = Span::around(at, self.width, &all);
            // A table is made first and attached then, as that lets others go on reading and writing meanwhile.
            let Span { starts_at, ends_at } = span;
            let bound = |ms| first_id(Timestamp::from_ms(ms));
            for table in ["message", "inbox"] {
                db.batch_execute(&format!(
                    "CREATE TABLE {table}_p{starts_at} (LIKE {table} INCLUDING DEFAULTS) WITH ({STORAGE});
                     ALTER TABLE {table} ATTACH PARTITION {table}_p{starts_at}
                     FOR VALUES FROM ('{}') TO ('{}')",
                    bound(starts_at),
                    bound(ends_at),
                ))
                .await?;
            }
            db.execute("INSERT INTO span VALUES ($1, $2)", &[&starts_at, &ends_at]).await?;
            all.push(span);
        }
        Ok(all)
    }

    /// Drops the oldest span if it ended before `aged`; whether it did. Each table in a transaction of its own, so that none waits for the
    /// locks of the other.
    pub async fn drop_oldest(&self, db: &Client, aged: Timestamp) -> Result<bool> {
        let oldest = db
            .query_opt("SELECT starts_at FROM span WHERE ends_at <= $1 ORDER BY starts_at LIMIT 1", &[&aged.as_ms()])
            .await?;
        let Some(row) = oldest else { return Ok(false) };
        let starts_at: i64 = row.try_get(0)?;
        self.forget();
        for change in [
            format!("DROP TABLE IF EXISTS inbox_p{starts_at}"),
            format!("DROP TABLE IF EXISTS message_p{starts_at}"),
            format!("DELETE FROM span WHERE starts_at = {starts_at}"),
        ] {
            db.batch_execute("BEGIN").await?;
            let done = end(db, change_if_free(db, &change).await).await?;
            if !done {
                return Ok(false);
            }
        }
        tracing::info!(starts_at = %Timestamp::from_ms(starts_at), "messages beyond the retention were dropped");
        Ok(true)
    }
}

/// Makes a change of the tables, unless another node makes one; whether it did.
async fn change_if_free(db: &Client, change: &str) -> Result<bool> {
    db.batch_execute(PATIENCE).await?;
    let free = db.query_one("SELECT pg_try_advisory_xact_lock($1)", &[&LOCK]).await?.try_get(0)?;
    if free {
        db.batch_execute(change).await?;
    }
    Ok(free)
}

async fn spans(db: &Client) -> Result<Vec<Span>> {
    let rows = db.query("SELECT starts_at, ends_at FROM span", &[]).await?;
    rows.iter().map(|row| Ok(Span { starts_at: row.try_get(0)?, ends_at: row.try_get(1)? })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOUR: i64 = 3_600_000;

    #[test]
    fn a_span_is_a_seventh_of_the_retention_in_whole_hours() {
        for (retention_h, width_h) in [(7 * 24, 24), (1, 1), (24, 4), (365 * 24, 1252)] {
            let partitions = Partitions::new(Duration::from_secs(retention_h * 3600));
            assert_eq!(partitions.width, Duration::from_secs(width_h * 3600), "{retention_h} h");
        }
    }

    proptest! {
        #[test]
        fn spans_of_any_widths_never_overlap(wanted in prop::collection::vec((0..1000 * HOUR, 1..50u64), 0..40)) {
            let mut all: Vec<Span> = Vec::new();
            for (ms, hours) in wanted {
                let at = Timestamp::from_ms(ms);
                if all.iter().any(|span| span.holds(at)) {
                    continue;
                }
                let span = Span::around(at, Duration::from_secs(hours * 3600), &all);
                prop_assert!(span.holds(at));
                prop_assert!(all.iter().all(|o| o.ends_at <= span.starts_at || span.ends_at <= o.starts_at));
                all.push(span);
            }
        }
    }
}
