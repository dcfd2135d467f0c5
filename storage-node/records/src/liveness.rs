//! What is still needed, in pointers: settled offsets, dropped logs, pieces without a record, and which segment may go.
//!
//! Danger: an offset that is called dead by mistake is a message thrown away; nothing here is undone. Live counts are exact:
//! they are (held offsets) less (held offsets that are dead), and both sets are kept.

use crate::file::{DataKey, FileKey};
use crate::logs::LogState;
use crate::store::{Records, is_part_log, part_floor, part_key, part_log};
use crate::types::{Garbage, PinId, SegmentId};
use longshore_wire::{Index, LogId, OffsetRange, ShardId};
use std::collections::BTreeSet;
use std::sync::Arc;

impl Records {
    /// Nothing needs these offsets any more: settled and not rewindable, or beyond retention. Call it after
    /// [`Records::applied`] of the records. What is dead already is ignored; so is an unknown log.
    pub fn settled(&mut self, log: LogId, ranges: &[OffsetRange]) {
        for range in ranges {
            self.bury(log, range.first.0, range.last.0);
        }
    }

    /// Marks [first, last] of a log dead.
    fn bury(&mut self, log: LogId, first: u64, last: u64) {
        let Some(state) = self.logs.get_mut(&log) else { return };
        let mut newly: Vec<(u64, u64)> = Vec::new();
        let low = first.max(state.floor);
        // Above what is held there is nothing to mark; a later range covers it when it exists.
        let high = last.min(state.reach());
        if low <= high && !state.sections().is_empty() {
            state.dead.insert(low, high, &mut |a, b| newly.push((a, b)));
        }
        if first <= state.floor {
            state.floor = state.floor.max(high.saturating_add(1));
        }
        state.floor = state.dead.advance(state.floor);
        let state = &self.logs[&log];
        let mut gone: Vec<(u64, u64)> = Vec::new();
        for (a, b) in newly {
            for at in state.touching(a, b) {
                let Some(file) = self.files.get_mut(&at.key) else { continue };
                let Some(section) = file.sections.get_mut(at.slot as usize) else { continue };
                section.live = section.live.saturating_sub(section.held_in(a, b));
            }
            gone.push((a, b));
        }
        if !self.large.is_empty() {
            for (a, b) in gone {
                self.release_parts(log, a, b);
            }
        }
    }

    /// Records of [first, last] are dead: so are the pieces that only they used. A record of several offsets goes with
    /// its last one.
    fn release_parts(&mut self, log: LogId, first: u64, last: u64) {
        // The one before may reach into the range.
        let before = self.large.range((log, 0)..(log, first)).next_back();
        let within = self.large.range((log, first)..=(log, last));
        let all_dead = |at: u64, count: u32| match self.logs.get(&log) {
            None => true,
            Some(state) => state.next_live(at).is_none_or(|live| live >= at.saturating_add(u64::from(count))),
        };
        let dead: Vec<u64> = before
            .into_iter()
            .chain(within)
            .filter(|((_, at), large)| all_dead(*at, large.count))
            .map(|((_, at), _)| *at)
            .collect();
        for offset in dead {
            let Some(large) = self.large.remove(&(log, offset)) else { continue };
            for part in large.parts.iter() {
                self.release_part(large.group, part_key(part));
            }
        }
    }

    fn release_part(&mut self, group: ShardId, key: u64) {
        let log = part_log(group);
        if let Some(users) = self.part_users.get_mut(&(log, key)) {
            *users = users.saturating_sub(1);
            if *users > 0 {
                return;
            }
            self.part_users.remove(&(log, key));
        }
        let from = self.groups.get(&group).map_or(Index(0), |group| group.uploads_from);
        if key < part_floor(from) {
            self.bury(log, key, key);
        }
    }

    /// The oldest piece of an upload without an end has this index (without one: the index after the applied one).
    /// Pieces below it that no record uses are garbage. Call it now and then, at least with each checkpoint.
    pub fn uploads_from(&mut self, group: ShardId, index: Index) {
        self.groups.entry(group).or_default().uploads_from = index;
        let log = part_log(group);
        let Some(state) = self.logs.get(&log) else { return };
        let end = part_floor(index);
        let mut orphans = Vec::new();
        for at in state.sections() {
            let Some(section) = self.section(at.key, at.slot) else { continue };
            section.held_runs(section.first, end.saturating_sub(1), &mut |first, last| {
                let used = |key: &u64| self.part_users.contains_key(&(log, *key));
                orphans.extend((first..=last).filter(|key| !state.is_dead(*key) && !used(key)));
            });
        }
        orphans.into_iter().for_each(|key| self.bury(log, key, key));
    }

    /// The log is gone for ever (its tombstone was applied).
    pub fn dropped(&mut self, log: LogId) {
        let Some(state) = self.logs.remove(&log) else { return };
        self.abandon(log, &state);
    }

    fn abandon(&mut self, log: LogId, state: &LogState) {
        for at in state.sections() {
            let Some(file) = self.files.get_mut(&at.key) else { continue };
            if let Some(section) = file.sections.get_mut(at.slot as usize) {
                section.live = 0;
            }
        }
        self.release_parts(log, 0, u64::MAX);
    }

    /// Forgets a group that left this node, when a new replica will not start from its records either.
    pub fn forget(&mut self, group: ShardId) {
        let logs: Vec<LogId> =
            self.logs.iter().filter(|(_, state)| state.group == group).map(|(log, _)| *log).collect();
        let (parts, records): (Vec<LogId>, Vec<LogId>) = logs.into_iter().partition(|log| is_part_log(*log));
        for log in records.into_iter().chain(parts) {
            self.dropped(log);
        }
        self.groups.remove(&group);
    }

    /// The parts of a segment's index that are known.
    pub(crate) fn parts_of(&self, segment: SegmentId) -> impl Iterator<Item = FileKey> + '_ {
        let range = FileKey::Segment(segment, 0)..=FileKey::Segment(segment, u32::MAX);
        self.files.range(range).map(|(key, _)| *key)
    }

    pub(crate) fn is_read(&self, data: DataKey) -> bool {
        self.guards.get(&data).is_some_and(|guard| Arc::strong_count(guard) > 1)
    }

    /// Whether the segment must stay: a task reads it, a snapshot has it pinned, or it has records and no rewrite has replaced
    /// it yet. Records that are all dead do not free it by themselves: a state that a restart goes back to may still call
    /// them live, unless the manifest says how far it must go on ([`crate::Opened::reached`]).
    pub fn holds(&self, segment: SegmentId) -> bool {
        self.is_read(DataKey::Segment(segment)) || self.parts_of(segment).next().is_some()
    }

    /// The retired segments that are not held: release them to the node log, and call
    /// [`Records::segment_removed`] when it has freed them.
    pub fn removable(&self) -> Vec<SegmentId> {
        let retired = self.segments.iter().filter(|(_, state)| state.retired);
        retired.map(|(segment, _)| *segment).filter(|segment| !self.holds(*segment)).collect()
    }

    /// The node log has freed the segment (or released it for good). Its index files go with the next job.
    pub fn segment_removed(&mut self, segment: SegmentId) {
        let keys: Vec<FileKey> = self.parts_of(segment).collect();
        for key in keys {
            self.remove_file(key);
        }
        if self.segments.remove(&segment).is_some_and(|state| state.replaced) {
            self.freed.insert(segment);
        }
    }

    /// Forgets a file; its name is removed by a later job, when nobody reads it any more.
    pub(crate) fn remove_file(&mut self, key: FileKey) {
        let Some(file) = self.files.remove(&key) else { return };
        self.blocks.forget(key);
        let logs: BTreeSet<LogId> = file.sections.iter().map(|section| section.log).collect();
        for log in &logs {
            if let Some(state) = self.logs.get_mut(log) {
                state.remove(key);
            }
        }
        // Keys of pieces never come close together: without this their dead set would only grow.
        for section in file.sections.iter().filter(|section| is_part_log(section.log)) {
            let mut runs = Vec::new();
            section.held_runs(section.first, section.last, &mut |a, b| runs.push((a, b)));
            runs.retain(|(a, _)| !self.is_held(section.log, *a));
            if let Some(state) = self.logs.get_mut(&section.log) {
                runs.into_iter().for_each(|(a, b)| state.dead.remove(a, b));
            }
        }
        for group in self.groups.values_mut() {
            group.unwritten.remove(&key);
        }
        self.leaving.entry(key.data()).or_default().push(key.name());
    }

    /// Keeps every segment and store file that exists now, until [`Records::unpin`]. Settling and rewriting go on.
    pub fn pin(&mut self) -> PinId {
        let pin = PinId(self.next_pin);
        self.next_pin += 1;
        self.pins.insert(pin, self.guards.values().cloned().collect());
        pin
    }

    /// Ends a pin.
    pub fn unpin(&mut self, pin: PinId) {
        self.pins.remove(&pin);
    }

    /// How much of the files is needed.
    pub fn garbage(&self) -> Garbage {
        let mut garbage = Garbage { tail_bytes: self.tail.bytes() as u64, ..Garbage::default() };
        garbage.bytes = self.segments.values().map(|segment| segment.bytes).sum();
        garbage.segments = self.segments.len() as u64;
        for (key, file) in &self.files {
            garbage.bytes += file.bytes;
            garbage.live_bytes += file.live_bytes();
            garbage.live_pointers += file.live();
            if matches!(key, FileKey::Store(_)) {
                garbage.stores += 1;
                garbage.store_bytes += file.bytes;
            }
        }
        garbage
    }
}
