//! Users as the writer knows them: their row ids and the newest numbers given out, cached, so that a message updates no user row.

use super::writer::Writing;
use crate::domain::message::Cursor;
use crate::domain::seat::UserId;
use rusqlite::OptionalExtension;
use std::collections::HashMap;

/// Users remembered at most; then all are forgotten, which costs a lookup each.
const REMEMBERED: usize = 200_000;

/// The newest number of the user with the row id `u.id`: the part of it that the inbox has lost is in the row.
pub(super) const NEWEST: &str = "max(u.newest, coalesce((SELECT max(n.cursor) FROM inbox n WHERE n.user = u.id), 0))";

/// A user's row id and newest number.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub id: i64,
    pub newest: Cursor,
}

/// The cache. It shows what the open transaction has written, so it is forgotten when that is rolled back.
#[derive(Default)]
pub(super) struct Users(HashMap<UserId, Known>);

impl Users {
    pub fn forget(&mut self) {
        self.0.clear();
    }

    fn remember(&mut self, user: &UserId, known: Known) {
        if self.0.len() >= REMEMBERED {
            self.0.clear();
        }
        self.0.insert(user.clone(), known);
    }
}

impl Writing<'_> {
    /// The user, if there is one.
    pub fn user(&mut self, user: &UserId) -> rusqlite::Result<Option<Known>> {
        if let Some(known) = self.users.0.get(user) {
            return Ok(Some(*known));
        }
        let mut query = self.db.prepare_cached(&format!("SELECT u.id, {NEWEST} FROM user u WHERE u.name = ?1"))?;
        let known = query
            .query_row([user.as_str()], |row| Ok(Known { id: row.get(0)?, newest: super::columns::cursor(row, 1)? }))
            .optional()?;
        if let Some(known) = known {
            self.users.remember(user, known);
        }
        Ok(known)
    }

    /// The user, made if there is none.
    pub fn user_or_new(&mut self, user: &UserId) -> rusqlite::Result<Known> {
        if let Some(known) = self.user(user)? {
            return Ok(known);
        }
        self.db.prepare_cached("INSERT INTO user (name) VALUES (?1)")?.execute([user.as_str()])?;
        let known = Known { id: self.db.last_insert_rowid(), newest: Cursor::START };
        self.users.remember(user, known);
        Ok(known)
    }

    /// Gives out the user's next number. In the order of committing, as only this thread gives them out (CONTRACT.md 10.5).
    pub fn draw(&mut self, user: &UserId) -> rusqlite::Result<(i64, Cursor)> {
        if let Some(known) = self.users.0.get_mut(user) {
            known.newest = known.newest.next();
            return Ok((known.id, known.newest));
        }
        let known = self.user_or_new(user)?;
        let newest = known.newest.next();
        self.users.remember(user, Known { newest, ..known });
        Ok((known.id, newest))
    }
}
