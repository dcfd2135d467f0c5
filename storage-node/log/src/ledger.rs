//! Which durable records still need their segment.
//!
//! Duty: decide when the oldest segment can be retired, as far as its durable records are concerned
//! ([`crate::NodeLog::compact`] and [`crate::NodeLog::compactable`] see to the rest). Danger: it must follow the disk, not the memory: only what
//! is durable is noted here, in the order of writing, so that retiring a segment never undoes a later, unsynced change.
//! Called by [`crate::NodeLog::completed`], and by recovery for each record that it reads.

use crate::types::SegmentId;
use crate::writer::{Effect, Written};
use longshore_wire::ShardId;
use std::collections::BTreeMap;

/// Where a group's newest durable records lie.
#[derive(Clone, Debug, Default)]
struct Kept {
    hard_state: Option<SegmentId>,
    conf: Option<SegmentId>,
    mark: Option<SegmentId>,
    aside: Option<SegmentId>,
    /// Durable first index.
    first: u64,
    /// Highest index of an entry that counts.
    highest: u64,
}

/// What stands between the oldest segment and its retirement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Entries of these groups are at or above the group's durable first index.
    Pinned(Vec<ShardId>),
    /// The newest small state of these groups (and the flag that every other is set aside) lies in it: write it again.
    Rewrite { groups: Vec<ShardId>, every_other: bool },
    /// Nothing.
    Retire,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    /// Per segment and group the highest index of an entry that counts.
    entries: BTreeMap<SegmentId, BTreeMap<ShardId, u64>>,
    groups: BTreeMap<ShardId, Kept>,
    every_other_aside: Option<SegmentId>,
}

impl Ledger {
    /// Notes a durable record.
    pub(crate) fn note(&mut self, written: &Written) {
        let Written { group, segment, effect, .. } = *written;
        match effect {
            Effect::Entry { index, .. } => {
                let kept = self.groups.entry(group).or_default();
                let overwrites = index.0 <= kept.highest;
                kept.highest = index.0;
                if overwrites {
                    self.discard_from(group, index.0);
                }
                self.entries.entry(segment).or_default().insert(group, index.0);
            }
            Effect::HardState => self.groups.entry(group).or_default().hard_state = Some(segment),
            Effect::Conf => self.groups.entry(group).or_default().conf = Some(segment),
            Effect::Compact(mark) => {
                let kept = self.groups.entry(group).or_default();
                kept.mark = Some(segment);
                kept.first = kept.first.max(mark.index.0 + 1);
            }
            Effect::Snapshot(mark) => {
                let kept = self.groups.entry(group).or_default();
                kept.mark = Some(segment);
                kept.first = mark.index.0 + 1;
                kept.highest = mark.index.0;
                self.discard_from(group, mark.index.0 + 1);
            }
            Effect::Reset => {
                self.forget(group);
                self.groups.insert(group, Kept { mark: Some(segment), first: 1, ..Kept::default() });
            }
            Effect::Remove => self.forget(group),
            Effect::Aside => {
                self.forget(group);
                self.groups.insert(group, Kept { aside: Some(segment), ..Kept::default() });
            }
            Effect::EveryOtherAside => self.every_other_aside = Some(segment),
            Effect::State(mark) => {
                let kept = self.groups.entry(group).or_default();
                kept.hard_state = Some(segment);
                kept.conf = Some(segment);
                kept.mark = Some(segment);
                kept.first = kept.first.max(mark.index.0 + 1);
            }
        }
    }

    /// Entries of the group at and above `index` count no more.
    fn discard_from(&mut self, group: ShardId, index: u64) {
        for counted in self.entries.values_mut() {
            if let Some(highest) = counted.get_mut(&group).filter(|highest| **highest >= index) {
                *highest = index - 1;
            }
        }
    }

    /// Nothing of the group counts any more.
    pub(crate) fn forget(&mut self, group: ShardId) {
        self.groups.remove(&group);
        self.entries.values_mut().for_each(|counted| {
            counted.remove(&group);
        });
    }

    /// Nothing of any group counts any more.
    pub(crate) fn forget_all(&mut self) {
        self.groups.clear();
        self.entries.clear();
    }

    /// Whether a durable record says that the group was given up, or that it began anew since.
    pub(crate) fn knows(&self, group: ShardId) -> bool {
        self.groups.contains_key(&group)
    }

    /// Whether a durable record says that every other group is set aside.
    pub(crate) fn knows_every_other(&self) -> bool {
        self.every_other_aside.is_some()
    }

    /// Whether `segment`, the oldest one, can be retired.
    pub(crate) fn judge(&self, segment: SegmentId) -> Verdict {
        let first = |group: &ShardId| self.groups.get(group).map_or(u64::MAX, |kept| kept.first.max(1));
        let counted = self.entries.get(&segment);
        let pinned: Vec<ShardId> = counted
            .into_iter()
            .flatten()
            .filter(|(g, highest)| **highest >= first(g))
            .map(|(g, _)| *g)
            .collect();
        if !pinned.is_empty() {
            return Verdict::Pinned(pinned);
        }
        let here = |place: &Option<SegmentId>| *place == Some(segment);
        let groups: Vec<ShardId> = self
            .groups
            .iter()
            .filter(|(_, kept)| [&kept.hard_state, &kept.conf, &kept.mark, &kept.aside].into_iter().any(here))
            .map(|(group, _)| *group)
            .collect();
        let every_other = here(&self.every_other_aside);
        if groups.is_empty() && !every_other {
            Verdict::Retire
        } else {
            Verdict::Rewrite { groups, every_other }
        }
    }

    /// The segment is retired.
    pub(crate) fn retired(&mut self, segment: SegmentId) {
        self.entries.remove(&segment);
    }
}
