//! A counted set of destinations: two bindings to one queue are one destination until both are gone.

use std::sync::Arc;

/// What a binding leads to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dest {
    /// A queue, by name.
    Queue(Arc<str>),
    /// Another exchange, by name.
    Exchange(Arc<str>),
}

/// Sorted by destination, with how many bindings lead there. Small for most keys, so a vector.
#[derive(Debug, Default)]
pub struct DestinationSet {
    entries: Vec<(Dest, u32)>,
}

impl DestinationSet {
    /// One more binding to `dest`.
    pub fn add(&mut self, dest: Dest) {
        match self.entries.binary_search_by(|(d, _)| d.cmp(&dest)) {
            Ok(at) => self.entries[at].1 += 1,
            Err(at) => self.entries.insert(at, (dest, 1)),
        }
    }

    /// One binding to `dest` less.
    pub fn remove(&mut self, dest: &Dest) {
        if let Ok(at) = self.entries.binary_search_by(|(d, _)| d.cmp(dest)) {
            self.entries[at].1 -= 1;
            if self.entries[at].1 == 0 {
                self.entries.remove(at);
            }
        }
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The destinations, sorted.
    pub fn iter(&self) -> impl Iterator<Item = &Dest> {
        self.entries.iter().map(|(dest, _)| dest)
    }
}
