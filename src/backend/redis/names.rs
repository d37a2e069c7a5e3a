//! The names of keys and channels. In a Cluster, the braces keep what belongs to one shard of the users, or to one node, in one slot.

use crate::domain::seat::{NodeId, UserId};
use std::borrow::Cow;
use std::fmt::Write;

/// Users are spread over so many shards by their names, for ever: another number has every seat under another key. So many are enough to be
/// spread evenly over the masters of a large Cluster, and few enough to be asked about all of a large group in one command each.
pub(super) const SHARDS: usize = 1_024;

/// See the module's text.
#[derive(Clone, Debug)]
pub(super) struct Names {
    prefix: String,
}

impl Names {
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// Hash: device → seat, and the version under the empty name.
    pub fn user(&self, user: &UserId) -> String {
        format!("{}:{{s{:03x}}}:seats:{user}", self.prefix, shard(user))
    }

    /// A pattern of those of all users.
    pub fn all_users(&self) -> String {
        format!("{}:{{s*}}:seats:*", self.prefix)
    }

    /// Whose it is.
    pub fn user_of(&self, key: &str) -> Option<UserId> {
        let (_, name) = key.split_once("}:seats:")?;
        UserId::parse(name).ok().filter(|user| self.user(user) == key)
    }

    /// Set: the users of a shard that have a seat, in the slot of their hashes.
    pub fn online(&self, user: &UserId) -> String {
        self.online_in(shard(user))
    }

    /// The same, by the number of the shard.
    pub fn online_in(&self, shard: usize) -> String {
        format!("{}:{{s{shard:03x}}}:online", self.prefix)
    }

    /// A pattern of those of all shards.
    pub fn all_online(&self) -> String {
        format!("{}:{{s*}}:online", self.prefix)
    }

    /// Hash: connection → user and device, of all that the node has seated.
    pub fn held(&self, node: &NodeId) -> String {
        format!("{}:{{node:{}}}:held", self.prefix, tag(node.as_str()))
    }

    /// A pattern of those of all nodes.
    pub fn all_lists(&self) -> String {
        format!("{}:{{node:*}}:held", self.prefix)
    }

    /// Whose it is.
    pub fn node_of(&self, key: &str) -> Option<NodeId> {
        NodeId::parse(&untag(self.tag_of(key, "{node:", "}:held")?)).ok()
    }

    fn tag_of<'a>(&self, key: &'a str, before: &str, after: &str) -> Option<&'a str> {
        key.strip_prefix(&*self.prefix)?.strip_prefix(':')?.strip_prefix(before)?.strip_suffix(after)
    }

    /// The channel that the node listens on.
    pub fn channel(&self, node: &NodeId) -> String {
        format!("{}:{{node:{}}}:bus", self.prefix, tag(node.as_str()))
    }

    /// Held by whoever seats or withdraws all of a node's seats.
    pub fn lock(&self, node: &NodeId) -> String {
        format!("{}:{{node:{}}}:lock", self.prefix, tag(node.as_str()))
    }

    /// Sorted set: node → end of its lease.
    pub fn nodes(&self) -> String {
        format!("{}:nodes", self.prefix)
    }

    /// An idempotency key of an online-only send.
    pub fn key(&self, key: &str) -> String {
        format!("{}:key:{key}", self.prefix)
    }

    /// A ticket, by the digest of its text.
    pub fn ticket(&self, digest: &[u8; 32]) -> String {
        digest.iter().fold(format!("{}:ticket:", self.prefix), |mut name, byte| {
            // Writing to a string doesn't fail.
            let _ = write!(name, "{byte:02x}");
            name
        })
    }
}

/// The number of the shard, below [`SHARDS`]: FNV-1a of the name, folded.
pub(super) fn shard(user: &UserId) -> usize {
    let hash = user
        .as_str()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let folded = hash ^ (hash >> 32);
    usize::try_from(folded % SHARDS as u64).unwrap_or_default()
}

/// A brace in a name would end the hash tag early, and an empty tag is none.
fn tag(name: &str) -> Cow<'_, str> {
    if name.contains(['{', '}', '%']) {
        name.replace('%', "%25").replace('{', "%7B").replace('}', "%7D").into()
    } else {
        name.into()
    }
}

fn untag(tag: &str) -> String {
    tag.replace("%7B", "{").replace("%7D", "}").replace("%25", "%")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str) -> UserId {
        UserId::parse(name).unwrap()
    }

    #[test]
    fn braces_in_names_neither_end_the_tag_nor_make_two_one() {
        let names = Names::new("h");
        let node = |name: &str| NodeId::parse(name).unwrap();
        assert_eq!(names.held(&node("}{x")), "h:{node:%7D%7Bx}:held");
        assert_ne!(names.held(&node("}")), names.held(&node("%7D")));
        for name in ["bob", "}{x", "%7D", "%257B{", "node:a", "}:seats:", "a:online"] {
            assert_eq!(names.user_of(&names.user(&user(name))), Some(user(name)));
            assert_eq!(names.node_of(&names.held(&node(name))), Some(node(name)));
        }
    }

    /// Nodes of different versions have to agree, so these never change.
    #[test]
    fn the_keys_of_a_user_have_one_tag_and_stay_as_they_are() {
        let names = Names::new("h");
        assert_eq!(names.user(&user("bob")), "h:{s24d}:seats:bob");
        assert_eq!(names.online(&user("bob")), "h:{s24d}:online");
        assert_eq!(names.user_of("other:{s24d}:seats:bob"), None);
        assert_eq!(names.user_of("h:{s000}:seats:bob"), None, "of another shard");
    }

    #[test]
    fn users_are_spread_evenly() {
        let mut counts = [0; SHARDS];
        for n in 0..100_000 {
            counts[shard(&user(&format!("user-{n:06}")))] += 1;
        }
        assert!(counts.iter().all(|count| (49..=196).contains(count)), "about 98 each: {counts:?}");
    }
}
