//! What memory holds of one log: which sections have its rows, and which of its offsets are dead.

use crate::file::FileKey;
use crate::set::OffsetSet;
use longshore_wire::ShardId;

/// A section of the log, by its place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SectionRef {
    pub first: u64,
    pub last: u64,
    /// The highest `last` of this and all before it.
    reach: u64,
    pub key: FileKey,
    pub slot: u32,
}

/// One log.
#[derive(Debug)]
pub(crate) struct LogState {
    pub group: ShardId,
    /// Everything below is dead.
    pub floor: u64,
    /// What is dead above the floor.
    pub dead: OffsetSet,
    /// By first offset.
    sections: Vec<SectionRef>,
    /// Where a sequential reader would go on.
    pub next_read: u64,
    /// The last offset that was asked for ahead of it, and whether that read is under way.
    pub ahead_until: u64,
    pub ahead_runs: bool,
}

impl LogState {
    pub fn new(group: ShardId) -> LogState {
        LogState {
            group,
            floor: 0,
            dead: OffsetSet::default(),
            sections: Vec::new(),
            next_read: u64::MAX,
            ahead_until: 0,
            ahead_runs: false,
        }
    }

    pub fn is_dead(&self, offset: u64) -> bool {
        offset < self.floor || self.dead.contains(offset)
    }

    /// The first offset at or above `from` that is not dead.
    pub fn next_live(&self, from: u64) -> Option<u64> {
        self.dead.next_absent(from.max(self.floor))
    }

    /// How many of the held offsets in [first, last] are dead, given what holds them.
    pub fn dead_of(&self, section: &crate::file::Section) -> u64 {
        let below = match self.floor.checked_sub(1) {
            Some(last) => section.held_in(section.first, last),
            None => 0,
        };
        let first = section.first.max(self.floor);
        let above = match &section.held {
            _ if first > section.last => 0,
            None => self.dead.count(first, section.last),
            Some(held) => held.count_common(&self.dead, first, section.last),
        };
        below + above
    }

    /// The last offset that any section holds, and 0 if there is none.
    pub fn reach(&self) -> u64 {
        self.sections.last().map_or(0, |section| section.reach)
    }

    pub fn sections(&self) -> &[SectionRef] {
        &self.sections
    }

    fn set_reach(&mut self, from: usize) {
        let mut reach = from.checked_sub(1).and_then(|i| self.sections.get(i)).map_or(0, |s| s.reach);
        for section in self.sections.iter_mut().skip(from) {
            reach = reach.max(section.last);
            section.reach = reach;
        }
    }

    pub fn add(&mut self, key: FileKey, slot: u32, first: u64, last: u64) {
        let at = self.sections.partition_point(|section| section.first <= first);
        self.sections.insert(at, SectionRef { first, last, reach: last, key, slot });
        self.set_reach(at);
    }

    /// The section grew.
    pub fn grow(&mut self, key: FileKey, slot: u32, last: u64) {
        // Rows come in order, so it is the last one or close to it.
        let at = self.sections.iter().rposition(|section| section.key == key && section.slot == slot);
        if let Some(at) = at {
            self.sections[at].last = last;
            self.set_reach(at);
        }
    }

    /// The file is gone.
    pub fn remove(&mut self, key: FileKey) {
        self.sections.retain(|section| section.key != key);
        self.set_reach(0);
    }

    /// The sections whose bounds touch [first, last]; the latest first offset comes first.
    pub fn touching(&self, first: u64, last: u64) -> impl Iterator<Item = SectionRef> + '_ {
        let end = self.sections.partition_point(|section| section.first <= last);
        self.sections[..end]
            .iter()
            .rev()
            .take_while(move |section| section.reach >= first)
            .filter(move |section| section.last >= first)
            .copied()
    }

    /// The sections that begin above `offset`.
    pub fn above(&self, offset: u64) -> impl Iterator<Item = SectionRef> + '_ {
        let start = self.sections.partition_point(|section| section.first <= offset);
        self.sections[start..].iter().copied()
    }
}
