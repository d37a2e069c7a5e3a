//! Groups and their members (CONTRACT.md 6).

use super::columns::name;
use super::writer::Writing;
use crate::domain::seat::{GroupId, UserId};
use crate::ports::{Changed, GroupState, MemberChange};
use rusqlite::{Connection, OptionalExtension, Result, params};

impl Writing<'_> {
    /// See [`crate::ports::Store::change_members`].
    pub fn change_members(&self, group: &GroupId, change: &MemberChange, max: usize) -> Result<Changed> {
        let before = state(self.db, group)?.map_or(0, |state| state.members);
        let is_member = |user: &UserId| {
            self.db
                .prepare_cached("SELECT 1 FROM member WHERE grp = ?1 AND user = ?2")?
                .exists(params![group.as_str(), user.as_str()])
        };
        // Counted before anything is written: the transaction is shared with others and can't be rolled back for this.
        let (mut added, mut removed) = (0, 0);
        for user in &change.remove {
            removed += usize::from(is_member(user)?);
        }
        for user in &change.add {
            added += usize::from(!is_member(user)?);
        }
        let members = before - removed + added;
        if members > max && added > 0 {
            return Ok(Changed::TooMany);
        }
        if added + removed > 0 {
            self.write_members(group, change, members)?;
        }
        Ok(Changed::Done { added, removed, members })
    }

    fn write_members(&self, group: &GroupId, change: &MemberChange, members: usize) -> Result<()> {
        for (sql, users) in [
            ("DELETE FROM member WHERE grp = ?1 AND user = ?2", &change.remove),
            ("INSERT OR IGNORE INTO member (grp, user) VALUES (?1, ?2)", &change.add),
        ] {
            let mut statement = self.db.prepare_cached(sql)?;
            for user in users {
                statement.execute(params![group.as_str(), user.as_str()])?;
            }
        }
        self.db.prepare_cached("UPDATE grp_version SET latest = latest + 1")?.execute([])?;
        let sql = if members == 0 {
            "DELETE FROM grp WHERE name = ?1 AND ?2 = 0"
        } else {
            "INSERT INTO grp (name, members, version) SELECT ?1, ?2, latest FROM grp_version WHERE true
             ON CONFLICT DO UPDATE SET members = excluded.members, version = excluded.version"
        };
        self.db.prepare_cached(sql)?.execute(params![group.as_str(), members])?;
        Ok(())
    }

    /// See [`crate::ports::Store::delete_group`].
    pub fn delete_group(&self, group: &GroupId) -> Result<bool> {
        let gone = self.db.prepare_cached("DELETE FROM grp WHERE name = ?1")?.execute([group.as_str()])?;
        self.db.prepare_cached("DELETE FROM member WHERE grp = ?1")?.execute([group.as_str()])?;
        Ok(gone > 0)
    }
}

/// See [`crate::ports::Store::group`].
pub(super) fn state(db: &Connection, group: &GroupId) -> Result<Option<GroupState>> {
    db.prepare_cached("SELECT version, members FROM grp WHERE name = ?1")?
        .query_row([group.as_str()], |row| Ok(GroupState { version: row.get(0)?, members: row.get(1)? }))
        .optional()
}

/// See [`crate::ports::Store::members`].
pub(super) fn members(db: &Connection, group: &GroupId, after: Option<&UserId>, limit: usize) -> Result<Vec<UserId>> {
    let after = after.map_or("", UserId::as_str);
    db.prepare_cached("SELECT user FROM member WHERE grp = ?1 AND user > ?2 ORDER BY user LIMIT ?3")?
        .query_map(params![group.as_str(), after, i64::try_from(limit).unwrap_or(i64::MAX)], |row| {
            name(row, 0, UserId::parse)
        })?
        .collect()
}
