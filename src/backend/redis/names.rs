//! The names of keys and channels. In a Cluster, the braces keep what belongs to one user or one node in one slot.

use crate::domain::seat::{NodeId, UserId};
use std::borrow::Cow;
use std::fmt::Write;

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
        format!("{}:{{{}}}:seats", self.prefix, tag(user.as_str()))
    }

    /// A pattern of those of all users.
    pub fn all_users(&self) -> String {
        format!("{}:{{*}}:seats", self.prefix)
    }

    /// Whose it is.
    pub fn user_of(&self, key: &str) -> Option<UserId> {
        UserId::parse(&untag(self.tag_of(key, "{", "}:seats")?)).ok()
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

    #[test]
    fn braces_in_names_neither_end_the_tag_nor_make_two_users_one() {
        let names = Names::new("h");
        let key = |user: &str| names.user(&UserId::parse(user).unwrap());
        assert_eq!(key("bob"), "h:{bob}:seats");
        assert_eq!(key("}{x"), "h:{%7D%7Bx}:seats");
        assert_ne!(key("}"), key("%7D"));
        assert_ne!(key("node:a"), names.held(&NodeId::parse("a").unwrap()));
        for name in ["bob", "}{x", "%7D", "%257B{", "node:a"] {
            let (user, node) = (UserId::parse(name).unwrap(), NodeId::parse(name).unwrap());
            assert_eq!(names.user_of(&names.user(&user)), Some(user));
            assert_eq!(names.node_of(&names.held(&node)), Some(node));
        }
        assert_eq!(names.user_of("other:{bob}:seats"), None);
    }
}
