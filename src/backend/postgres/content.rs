//! What callbacks have to say at the moment of their attempt (CONTRACT.md 8): made from the rows each time, never kept.

use super::columns::{MESSAGE_COLUMNS, Result, message, message_columns, name, push, spots, time, trace};
use super::read::{kept, names_of, with_names};
use super::writer::Rules;
use crate::backend::durable::forms::number;
use crate::domain::callback::{Callback, Endpoint};
use crate::domain::message::PushWish;
use crate::domain::seat::DeviceId;
use crate::domain::time::Timestamp;
use crate::ports::CallbackContent;
use deadpool_postgres::Object;
use std::collections::HashMap;
use uuid::Uuid;

/// See [`crate::ports::Store::content`].
pub(super) async fn content(
    db: &Object,
    callbacks: &[Callback],
    (rules, now): (Rules, Timestamp),
) -> Result<Vec<CallbackContent>> {
    let of = |endpoint| callbacks.iter().filter(move |callback| callback.endpoint == endpoint && !callback.recalled);
    let recalled = callbacks.iter().filter(|callback| callback.recalled);
    let mut found: HashMap<Uuid, CallbackContent> =
        recalled.map(|callback| (callback.id, CallbackContent::Recalled)).collect();
    stored(db, &of(Endpoint::Storage).collect::<Vec<_>>(), (rules, now), &mut found).await?;
    pushed(db, &of(Endpoint::Push).collect::<Vec<_>>(), (rules, now), &mut found).await?;
    Ok(callbacks.iter().map(|callback| found.remove(&callback.id).unwrap_or(CallbackContent::NotNeeded)).collect())
}

/// Also of messages that have left the inboxes.
async fn stored(
    db: &Object,
    callbacks: &[&Callback],
    (rules, now): (Rules, Timestamp),
    found: &mut HashMap<Uuid, CallbackContent>,
) -> Result<()> {
    if callbacks.is_empty() {
        return Ok(());
    }
    let query = db
        .prepare_cached(concat!(
            "SELECT ",
            message_columns!(),
            ", m.expires_at, m.recipients, m.synced, m.trace FROM message m WHERE m.id = ANY($1) AND m.sent_at > $2"
        ))
        .await?;
    let ids: Vec<Uuid> = callbacks.iter().map(|callback| callback.message).collect();
    let rows = db.query(&query, &[&ids, &now.minus(rules.retention).as_ms()]).await?;
    let mut messages = HashMap::new();
    let mut users = Vec::new();
    for row in &rows {
        let spots = spots(row, MESSAGE_COLUMNS + 1)?;
        users.extend(spots.iter().map(|spot| spot.0));
        messages.insert(row.try_get::<_, Uuid>(0)?, (row, spots));
    }
    let names = names_of(db, &users).await?;
    for callback in callbacks {
        if let Some((row, spots)) = messages.get(&callback.message) {
            let content = CallbackContent::Stored {
                message: message(row, 0)?,
                expires_at: time(row, MESSAGE_COLUMNS)?,
                synced: row.try_get(MESSAGE_COLUMNS + 2)?,
                trace: trace(row, MESSAGE_COLUMNS + 3)?,
                recipients: with_names(spots, &names)?,
            };
            found.insert(callback.id, content);
        }
    }
    Ok(())
}

/// Those that a device has taken or that have left the inbox aren't found.
async fn pushed(
    db: &Object,
    callbacks: &[&Callback],
    (rules, now): (Rules, Timestamp),
    found: &mut HashMap<Uuid, CallbackContent>,
) -> Result<()> {
    let (mut ids, mut messages, mut names, mut cursors) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for callback in callbacks {
        if let Some((user, cursor)) = &callback.recipient {
            ids.push(callback.id);
            messages.push(callback.message);
            names.push(user.as_str());
            cursors.push(number(*cursor));
        }
    }
    if ids.is_empty() {
        return Ok(());
    }
    let query = db
        .prepare_cached(concat!(
            "SELECT ",
            message_columns!(),
            ", m.expires_at, m.push, t.callback, u.id,
               (SELECT count(*) FROM inbox x WHERE x.user_id = u.id AND x.expires_at > $6
                AND x.cursor > greatest(u.newest - $5, (SELECT max(d.acked) FROM device d WHERE d.user_id = u.id))), m.trace
             FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::bigint[]) AS t (callback, message, name, cursor)
             JOIN users u ON u.name = t.name
             JOIN message m ON m.id = t.message
             JOIN inbox i ON i.user_id = u.id AND i.cursor = t.cursor AND i.message = t.message
             WHERE i.expires_at > $6 AND i.cursor > u.newest - $5 AND m.push IS NOT NULL
             AND NOT EXISTS (SELECT 1 FROM device d WHERE d.user_id = u.id AND d.acked >= t.cursor)
             AND NOT EXISTS (SELECT 1 FROM delivery d
                             WHERE d.user_id = u.id AND d.first <= t.cursor AND d.last >= t.cursor)"
        ))
        .await?;
    let rows = db.query(&query, &[&ids, &messages, &names, &cursors, &kept(rules), &now.as_ms()]).await?;
    let users: Vec<i64> =
        rows.iter().map(|row| row.try_get(MESSAGE_COLUMNS + 3)).collect::<std::result::Result<_, _>>()?;
    let devices = devices_of(db, &users).await?;
    for (row, user) in rows.iter().zip(users) {
        let push = push(row, MESSAGE_COLUMNS + 1)?;
        if push == PushWish::Off {
            continue;
        }
        let content = CallbackContent::Push {
            message: message(row, 0)?,
            expires_at: time(row, MESSAGE_COLUMNS)?,
            push,
            unread: row.try_get::<_, i64>(MESSAGE_COLUMNS + 4)?.unsigned_abs(),
            devices: devices.get(&user).cloned().unwrap_or_default(),
            trace: trace(row, MESSAGE_COLUMNS + 5)?,
        };
        found.insert(row.try_get(MESSAGE_COLUMNS + 2)?, content);
    }
    Ok(())
}

/// Users' devices, and when each was last online.
async fn devices_of(db: &Object, users: &[i64]) -> Result<HashMap<i64, Vec<(DeviceId, Timestamp)>>> {
    let query = db
        .prepare_cached("SELECT user_id, device, seen_at FROM device WHERE user_id = ANY($1) ORDER BY user_id, device")
        .await?;
    let mut devices: HashMap<i64, Vec<_>> = HashMap::new();
    for row in db.query(&query, &[&users]).await? {
        devices.entry(row.try_get(0)?).or_default().push((name(&row, 1, DeviceId::parse)?, time(&row, 2)?));
    }
    Ok(devices)
}
