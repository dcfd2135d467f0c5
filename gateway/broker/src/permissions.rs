//! What a user may do in a namespace: RabbitMQ's three regular expressions.

use crate::api::{PermissionPatterns, Right};
use longshore_proto::v1;
use longshore_wire::NamespaceId;
use regex::{Regex, RegexBuilder};
use std::collections::HashMap;

/// Compiled size of one pattern, in bytes; a larger one is refused.
const PATTERN_BYTES_MAX: usize = 1 << 20;
/// Decisions that a connection remembers.
const REMEMBERED_MAX: usize = 1024;

/// The compiled permission of one user in one namespace.
#[derive(Debug)]
pub(crate) struct Permissions {
    /// As meta has them.
    pub patterns: PermissionPatterns,
    configure: Option<Regex>,
    write: Option<Regex>,
    read: Option<Regex>,
}

/// Compiles a pattern as RabbitMQ reads it: searched anywhere in the name; an empty one matches the empty name only.
pub(crate) fn compile(pattern: &str) -> Result<Regex, regex::Error> {
    let pattern = if pattern.is_empty() { "^$" } else { pattern };
    RegexBuilder::new(pattern).size_limit(PATTERN_BYTES_MAX).build()
}

impl Permissions {
    /// The user's permission in a namespace, if it has one. A pattern that does not compile allows nothing.
    pub fn of(user: &v1::User, namespace: NamespaceId) -> Option<Permissions> {
        let found = user.permissions.iter().find(|p| p.namespace == namespace.0)?;
        Some(Permissions {
            patterns: PermissionPatterns {
                configure: found.configure.clone(),
                write: found.write.clone(),
                read: found.read.clone(),
            },
            configure: compile(&found.configure).ok(),
            write: compile(&found.write).ok(),
            read: compile(&found.read).ok(),
        })
    }

    /// Whether `name` is allowed.
    pub fn permit(&self, right: Right, name: &str) -> bool {
        let pattern = match right {
            Right::Configure => &self.configure,
            Right::Write => &self.write,
            Right::Read => &self.read,
        };
        pattern.as_ref().is_some_and(|pattern| pattern.is_match(name))
    }

    /// Whether `new` may forbid something that this allows. Patterns cannot be compared, so any other change counts,
    /// unless the new one allows everything.
    pub fn is_narrowed_by(&self, new: &Permissions) -> bool {
        let narrowed = |old: &str, new: &str| old != new && new != ".*";
        let (old, new) = (&self.patterns, &new.patterns);
        narrowed(&old.configure, &new.configure)
            || narrowed(&old.write, &new.write)
            || narrowed(&old.read, &new.read)
    }
}

/// Decisions of one connection, as long as the permissions stay the same.
#[derive(Debug, Default)]
pub(crate) struct Remembered {
    names: HashMap<Box<str>, [Option<bool>; 3]>,
}

impl Remembered {
    /// The remembered decision, or the one that `decide` makes now.
    pub fn permit(&mut self, right: Right, name: &str, decide: impl FnOnce() -> bool) -> bool {
        let at = right as usize;
        if let Some(known) = self.names.get(name).and_then(|rights| rights[at]) {
            return known;
        }
        if self.names.len() >= REMEMBERED_MAX {
            self.names.clear();
        }
        let decision = decide();
        self.names.entry(name.into()).or_default()[at] = Some(decision);
        decision
    }

    /// The permissions changed.
    pub fn clear(&mut self) {
        self.names.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(configure: &str, write: &str, read: &str) -> v1::User {
        let permission = v1::Permission {
            namespace: 1,
            configure: configure.into(),
            write: write.into(),
            read: read.into(),
        };
        v1::User { name: "u".into(), permissions: vec![permission], ..v1::User::default() }
    }

    #[test]
    fn patterns_are_searched_as_rabbitmq_does() {
        let permissions = Permissions::of(&user("^mine-", "", ".*"), NamespaceId(1)).unwrap();
        assert!(permissions.permit(Right::Configure, "mine-1"));
        assert!(!permissions.permit(Right::Configure, "not-mine-1"));
        assert!(!permissions.permit(Right::Write, "a") && permissions.permit(Right::Write, ""));
        assert!(permissions.permit(Right::Read, "anything"));
        assert!(Permissions::of(&user("", "", ""), NamespaceId(2)).is_none());
    }

    #[test]
    fn a_pattern_that_is_no_pattern_allows_nothing() {
        let permissions = Permissions::of(&user("(", "a{1000}{1000}{1000}", ".*"), NamespaceId(1)).unwrap();
        assert!(!permissions.permit(Right::Configure, "(") && !permissions.permit(Right::Write, "a"));
    }

    #[test]
    fn narrowing_is_told_from_widening() {
        let of = |user| Permissions::of(&user, NamespaceId(1)).unwrap();
        let old = of(user("^a", ".*", ".*"));
        assert!(!old.is_narrowed_by(&of(user(".*", ".*", ".*"))));
        assert!(old.is_narrowed_by(&of(user("^a", ".*", "^b"))));
    }
}
