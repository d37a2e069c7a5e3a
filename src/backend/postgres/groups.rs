//! Groups and their members (CONTRACT.md 6).

use super::columns::{Result, name};
use super::connect::{Failure, end};
use crate::domain::seat::{GroupId, UserId};
use crate::ports::{Changed, GroupState, MemberChange};
use deadpool_postgres::Object;

/// See [`crate::ports::Store::change_members`].
pub(super) async fn change_members(db: &Object, group: &GroupId, change: &MemberChange, max: usize) -> Result<Changed> {
    begin(db, group).await?;
    end(db, change_locked(db, group.as_str(), change, max).await).await
}

/// Begins a transaction that changes this group, after those before it. There may be no row to lock.
async fn begin(db: &Object, group: &GroupId) -> Result<()> {
    db.batch_execute("BEGIN").await?;
    let lock = db.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", &[&group.as_str()]).await;
    if let Err(failed) = lock {
        return end(db, Err(Failure::from(failed))).await;
    }
    Ok(())
}

async fn change_locked(db: &Object, group: &str, change: &MemberChange, max: usize) -> Result<Changed> {
    let names = |users: &[UserId]| users.iter().map(|user| user.as_str().to_owned()).collect::<Vec<_>>();
    let (add, remove) = (names(&change.add), names(&change.remove));
    let counts = db
        .query_one(
            "SELECT coalesce((SELECT members FROM grp WHERE name = $1), 0),
                    (SELECT count(*) FROM member WHERE grp = $1 AND name = ANY($2)),
                    (SELECT count(*) FROM member WHERE grp = $1 AND name = ANY($3))",
            &[&group, &add, &remove],
        )
        .await?;
    let count = |column| Ok::<_, Failure>(usize::try_from(counts.try_get::<_, i64>(column)?).unwrap_or(usize::MAX));
    let (before, added, removed) = (count(0)?, add.len() - count(1)?.min(add.len()), count(2)?);
    let members = (before + added).saturating_sub(removed);
    if members > max && added > 0 {
        return Ok(Changed::TooMany);
    }
    if added + removed > 0 {
        db.execute("DELETE FROM member WHERE grp = $1 AND name = ANY($2)", &[&group, &remove]).await?;
        db.execute(
            "INSERT INTO member (grp, name) SELECT $1, n FROM unnest($2::text[]) n ON CONFLICT DO NOTHING",
            &[&group, &add],
        )
        .await?;
        if members == 0 {
            db.execute("DELETE FROM grp WHERE name = $1", &[&group]).await?;
        } else {
            db.execute(
                "INSERT INTO grp (name, members, version) VALUES ($1, $2, nextval('grp_version'))
                 ON CONFLICT (name) DO UPDATE SET members = excluded.members, version = excluded.version",
                &[&group, &i64::try_from(members).unwrap_or(i64::MAX)],
            )
            .await?;
        }
    }
    Ok(Changed::Done { added, removed, members })
}

/// See [`crate::ports::Store::delete_group`].
pub(super) async fn delete_group(db: &Object, group: &GroupId) -> Result<bool> {
    begin(db, group).await?;
    end(db, delete_locked(db, group.as_str()).await).await
}

async fn delete_locked(db: &Object, group: &str) -> Result<bool> {
    let gone = db.execute("DELETE FROM grp WHERE name = $1", &[&group]).await?;
    db.execute("DELETE FROM member WHERE grp = $1", &[&group]).await?;
    Ok(gone > 0)
}

/// See [`crate::ports::Store::group`].
pub(super) async fn group(db: &Object, group: &GroupId) -> Result<Option<GroupState>> {
    let query = db.prepare_cached("SELECT version, members FROM grp WHERE name = $1").await?;
    let Some(row) = db.query_opt(&query, &[&group.as_str()]).await? else { return Ok(None) };
    Ok(Some(GroupState {
        version: row.try_get::<_, i64>(0)?.unsigned_abs(),
        members: usize::try_from(row.try_get::<_, i64>(1)?).unwrap_or(usize::MAX),
    }))
}

/// See [`crate::ports::Store::members`].
pub(super) async fn members(db: &Object, group: &GroupId, after: Option<&UserId>, limit: usize) -> Result<Vec<UserId>> {
    let query =
        db.prepare_cached("SELECT name FROM member WHERE grp = $1 AND name > $2 ORDER BY name LIMIT $3").await?;
    let after = after.map_or("", UserId::as_str);
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = db.query(&query, &[&group.as_str(), &after, &limit]).await?;
    rows.iter().map(|row| name(row, 0, UserId::parse)).collect()
}
