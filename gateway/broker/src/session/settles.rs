//! Settlements gathered per (log, cursor, term) until the next batch goes.

use super::work::Tag;
use longshore_wire::batch::{DeadReason, Item, Returned, Settle};
use longshore_wire::{CursorId, LeaseId, LogId, Offset, OffsetRange, Term};
use std::collections::BTreeMap;

/// Offsets that one settle item carries at most; more go into further items.
pub const OFFSETS_PER_ITEM_MAX: usize = 16_384;
/// Encoded bytes of the largest settle item: a return takes the most, 17 bytes.
pub const ITEM_BYTES_MAX: usize = OFFSETS_PER_ITEM_MAX * 17 + 64;

/// One end of one delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Done with.
    Acked,
    /// Given back.
    Returned {
        /// Its delivery count grows.
        counted: bool,
    },
    /// Refused for good.
    Dead(DeadReason),
}

type Key = (LogId, CursorId, Term);

#[derive(Debug)]
struct Pending<T> {
    /// By lease, too: a message may be out again before the end of an earlier lease was sent.
    ends: BTreeMap<(Offset, LeaseId), End>,
    tags: Vec<T>,
}

/// What waits to be settled. Bounded by what is out with consumers.
#[derive(Debug)]
pub struct Settles<T> {
    pending: BTreeMap<Key, Pending<T>>,
    offsets: usize,
}

impl<T> Default for Settles<T> {
    fn default() -> Self {
        Settles { pending: BTreeMap::new(), offsets: 0 }
    }
}

impl<T> Settles<T> {
    /// How many offsets wait.
    pub fn offsets(&self) -> usize {
        self.offsets
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Adds ends of deliveries of one cursor and term; the first word on a lease stands. `tag` is resolved with
    /// the last of them.
    pub fn add(&mut self, key: Key, ends: impl IntoIterator<Item = (Offset, LeaseId, End)>, tag: Option<T>) {
        let pending =
            self.pending.entry(key).or_insert_with(|| Pending { ends: BTreeMap::new(), tags: Vec::new() });
        for (offset, lease, end) in ends {
            if let std::collections::btree_map::Entry::Vacant(entry) = pending.ends.entry((offset, lease)) {
                entry.insert(end);
                self.offsets += 1;
            }
        }
        pending.tags.extend(tag);
    }

    /// Adds the contents of an item that never counted.
    pub fn put_back(&mut self, settle: Settle, tags: Vec<T>) {
        let key = (settle.log, settle.cursor, settle.term);
        let acked = settle.acked.iter().flat_map(|range| range.first.0..=range.last.0);
        // Only returns are sent with their leases.
        let acked = acked.map(|offset| (Offset(offset), LeaseId(0), End::Acked));
        let returned =
            settle.returned.iter().map(|r| (r.offset, r.lease, End::Returned { counted: r.counted }));
        let dead = settle.dead.iter().map(|(offset, reason)| (*offset, LeaseId(0), End::Dead(*reason)));
        self.add(key, acked.chain(returned).chain(dead), None);
        if let Some(pending) = self.pending.get_mut(&key) {
            pending.tags.extend(tags);
        }
    }

    /// The next item, or `None` if nothing waits.
    pub fn take(&mut self) -> Option<(Item, Tag<T>)> {
        let mut entry = self.pending.first_entry()?;
        let (log, cursor, term) = *entry.key();
        let ends = &mut entry.get_mut().ends;
        let rest = match ends.keys().nth(OFFSETS_PER_ITEM_MAX).copied() {
            Some(at) => ends.split_off(&at),
            None => BTreeMap::new(),
        };
        let ends = std::mem::replace(ends, rest);
        let tags = if entry.get().ends.is_empty() { entry.remove().tags } else { Vec::new() };
        self.offsets -= ends.len();
        let mut settle =
            Settle { log, cursor, term, acked: Vec::new(), returned: Vec::new(), dead: Vec::new() };
        for ((offset, lease), end) in ends {
            match end {
                End::Acked => push_acked(&mut settle.acked, offset),
                End::Returned { counted } => settle.returned.push(Returned { offset, lease, counted }),
                End::Dead(reason) => settle.dead.push((offset, reason)),
            }
        }
        Some((Item::Settle(settle), Tag::Settle(tags)))
    }

    /// Everything that waits for an outcome.
    pub fn into_tags(self) -> Vec<T> {
        self.pending.into_values().flat_map(|pending| pending.tags).collect()
    }
}

fn push_acked(ranges: &mut Vec<OffsetRange>, offset: Offset) {
    match ranges.last_mut() {
        Some(range) if range.last == offset => {}
        Some(range) if range.last.0.checked_add(1) == Some(offset.0) => range.last = offset,
        _ => ranges.push(OffsetRange::one(offset)),
    }
}
