//! Groups (CONTRACT.md 6): who is in one.

use super::handle::{Error, Relay};
use crate::domain::seat::{GroupId, UserId};
use crate::ports::{Changed, MemberChange};
use std::sync::Arc;

/// Members are read from the store so many at a time.
const READ_AT_ONCE: usize = 10_000;

impl Relay {
    /// Changes a group's members, all or nothing; returns how many were added, removed, and are there now.
    pub async fn change_members(&self, group: &GroupId, change: MemberChange) -> Result<(usize, usize, usize), Error> {
        let max = self.limits().group_members;
        match self.0.store.change_members(group, change, max).await? {
            Changed::Done { added, removed, members } => Ok((added, removed, members)),
            Changed::TooMany => Err(Error::GroupFull(max)),
        }
    }

    /// At most so many of a group's members, in the order of their names, after this one.
    pub async fn members(&self, group: &GroupId, after: Option<&UserId>, limit: usize) -> Result<Vec<UserId>, Error> {
        Ok(self.0.store.members(group, after, limit).await?)
    }

    /// Removes all members.
    pub async fn delete_group(&self, group: &GroupId) -> Result<(), Error> {
        if self.0.store.delete_group(group).await? { Ok(()) } else { Err(Error::NotFound(NO_GROUP)) }
    }

    /// All members but one.
    pub(super) async fn members_but(&self, group: &GroupId, sender: &UserId) -> Result<Arc<[UserId]>, Error> {
        let state = self.0.store.group(group).await?.ok_or(Error::NotFound(NO_GROUP))?;
        let members = if let Some(members) = self.0.groups.get(group, state.version) {
            members
        } else {
            let members = self.read_members(group).await?;
            // Changes while it was read are not in the version that was read before: the next send reads anew.
            self.0.groups.put(group, state.version, &members);
            members
        };
        match members.binary_search(sender) {
            Ok(at) => Ok(members[..at].iter().chain(&members[at + 1..]).cloned().collect()),
            Err(_) => Ok(members),
        }
    }

    async fn read_members(&self, group: &GroupId) -> Result<Arc<[UserId]>, Error> {
        let mut members: Vec<UserId> = Vec::new();
        loop {
            let page = self.0.store.members(group, members.last(), READ_AT_ONCE).await?;
            let is_last = page.len() < READ_AT_ONCE;
            members.extend(page);
            if is_last {
                return Ok(members.into());
            }
        }
    }
}

const NO_GROUP: &str = "no such group: a group exists while it has members";
