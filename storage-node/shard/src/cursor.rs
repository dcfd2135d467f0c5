//! A settlement cursor: which messages of a log are still to be delivered.
//!
//! Danger: an offset that is settled by mistake is a message lost; one that is not is delivered twice. All numbers are
//! maintained, none is counted on demand. Changed by `apply` through [`crate::Log`]; read by delivery.
//!
//! Below `floor` all is settled; above it `settled` has a bit per acked message. Invariant: `floor` itself is
//! unsettled or the log's end, and `settled` holds only offsets between the two; so equal states are equal bytes.
//! Tables beside the bitmap (returns, takes, delays) hold unsettled messages only.

use crate::bounds::{DELAYED_MAX, DUE_SWEPT_MAX, RETURNS_MAX, TAKEN_MAX};
use crate::offset_set::{OffsetSet, chunk_of, complement, merged, push_range};
use crate::rewindable::Rewindable;
use longshore_wire::outcome::Refusal;
use longshore_wire::{LeaseId, LogTime, Offset, OffsetRange};
use std::collections::{BTreeMap, BTreeSet};

mod page;

/// A replicated lease on a message: its holder has no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The lease's id.
    pub lease: LeaseId,
    /// The message is visible again at this log time, unless it is settled or taken again before.
    pub until: LogTime,
}

/// A settlement cursor of a log; see the views below.
#[derive(Clone, Debug, Default)]
pub struct Cursor {
    floor: u64,
    /// The log's next offset.
    end: u64,
    settled: OffsetSet,
    rewindable: Rewindable,
    returns: BTreeMap<u64, u32>,
    taken: BTreeMap<u64, Taken>,
    delayed: BTreeMap<u64, LogTime>,
    by_due: BTreeSet<(LogTime, u64)>,
    dirty_chunks: BTreeSet<u64>,
}

/// What delivery, the record store and admin calls read.
impl Cursor {
    /// Everything below is settled; this offset is not (or it is the log's end).
    pub fn floor(&self) -> Offset {
        Offset(self.floor)
    }

    /// The first unsettled offset at or after `from`; skips whole chunks.
    pub fn next_unsettled(&self, from: Offset) -> Option<Offset> {
        let at = self.settled.next_absent(from.0.max(self.floor));
        (at < self.end).then_some(Offset(at))
    }

    /// The unsettled runs at or after `from`, ascending.
    pub fn unsettled_ranges(&self, from: Offset) -> impl Iterator<Item = OffsetRange> + '_ {
        let mut at = from;
        std::iter::from_fn(move || {
            let first = self.next_unsettled(at)?;
            let next = self.settled.next_present(first.0).unwrap_or(self.end);
            at = Offset(next);
            Some(OffsetRange { first, last: Offset(next - 1) })
        })
    }

    /// Whether this offset is settled (rewindable or gone). False for offsets that do not exist yet.
    pub fn is_settled(&self, offset: Offset) -> bool {
        offset.0 < self.floor || self.settled.contains(offset.0)
    }

    /// Whether it is settled, but a rewind still brings it back.
    pub fn is_rewindable(&self, offset: Offset) -> bool {
        self.rewindable.contains(offset.0)
    }

    /// How many messages are unsettled; maintained, not counted.
    pub fn unsettled_count(&self) -> u64 {
        self.end - self.floor - self.settled.count()
    }

    /// How many messages are settled but rewindable.
    pub fn rewindable_count(&self) -> u64 {
        self.rewindable.count()
    }

    /// How often an unsettled message was returned with its count raised.
    pub fn returns(&self, offset: Offset) -> u32 {
        self.returns.get(&offset.0).copied().unwrap_or(0)
    }

    /// Whether an unsettled message was returned at all, counted or not: its next delivery is a redelivery.
    pub fn redelivered(&self, offset: Offset) -> bool {
        self.returns.contains_key(&offset.0)
    }

    /// Returned messages that are still unsettled, with their counts, ascending.
    pub fn returned(&self) -> impl Iterator<Item = (Offset, u32)> + '_ {
        self.returns.iter().map(|(offset, count)| (Offset(*offset), *count))
    }

    /// The replicated lease of an unsettled message; also one whose time has passed, until the leader
    /// proposes the return.
    pub fn taken(&self, offset: Offset) -> Option<Taken> {
        self.taken.get(&offset.0).copied()
    }

    /// All replicated leases, ascending by offset.
    pub fn takes(&self) -> impl Iterator<Item = (Offset, Taken)> + '_ {
        self.taken.iter().map(|(offset, taken)| (Offset(*offset), *taken))
    }

    /// Until which log time an unsettled message is held back; `None` if it never was or has been due for a while.
    pub fn delayed_until(&self, offset: Offset) -> Option<LogTime> {
        self.delayed.get(&offset.0).copied()
    }

    /// Unsettled delayed messages by due time, then offset; the first ones may be due already.
    pub fn delayed(&self) -> impl Iterator<Item = (LogTime, Offset)> + '_ {
        self.by_due.iter().map(|(due, offset)| (*due, Offset(*offset)))
    }

    pub(crate) fn first_live(&self) -> u64 {
        self.rewindable.first().map_or(self.floor, |first| first.min(self.floor))
    }

    pub(crate) fn has_rewindable(&self) -> bool {
        !self.rewindable.is_empty()
    }

    pub(crate) fn next_release(&self, rewind_ms: u64) -> Option<LogTime> {
        self.rewindable.next_release(rewind_ms)
    }

    /// Unsettled and rewindable runs together, ascending.
    pub(crate) fn live_ranges(&self) -> Vec<OffsetRange> {
        let slots = self.rewindable.slots().flat_map(|(_, set)| set.ranges());
        merged(self.unsettled_ranges(Offset(0)).chain(slots).collect())
    }
}

/// What commands do. All of them accept any offset.
impl Cursor {
    /// A cursor of a log whose next offset is `end`, with nothing to deliver yet.
    pub(crate) fn new(end: u64) -> Cursor {
        Cursor { floor: end, end, ..Cursor::default() }
    }

    fn is_unsettled(&self, offset: u64) -> bool {
        self.floor <= offset && offset < self.end && !self.settled.contains(offset)
    }

    pub(crate) fn has_room_for_delayed(&self, count: u32) -> bool {
        self.delayed.len().saturating_add(count as usize) <= DELAYED_MAX
    }

    /// New messages `first..next`.
    pub(crate) fn append(&mut self, next: u64, due: Option<LogTime>, now: LogTime) {
        self.sweep_due(now);
        if let Some(due) = due {
            for offset in self.end..next {
                self.delayed.insert(offset, due);
                self.by_due.insert((due, offset));
                self.dirty_chunks.insert(chunk_of(offset));
            }
        }
        self.end = next;
    }

    /// Forgets delays that are over, a few at a time.
    fn sweep_due(&mut self, now: LogTime) {
        for _ in 0..DUE_SWEPT_MAX {
            match self.by_due.first() {
                Some((due, offset)) if *due <= now => {
                    self.dirty_chunks.insert(chunk_of(*offset));
                    self.delayed.remove(offset);
                    self.by_due.pop_first();
                }
                _ => return,
            }
        }
    }

    /// Settles what is unsettled of `ranges` and tells what that was. With `keep` (now, rewind time) it stays
    /// rewindable.
    pub(crate) fn settle(
        &mut self,
        ranges: &[OffsetRange],
        keep: Option<(LogTime, u64)>,
    ) -> Vec<OffsetRange> {
        let mut new = Vec::new();
        for range in ranges {
            let first = range.first.0.max(self.floor);
            let Some(last) = self.end.checked_sub(1).map(|last| last.min(range.last.0)) else { continue };
            if first <= last {
                self.settle_run(first, last, &mut new);
            }
        }
        self.forget(&new);
        if let Some((now, rewind_ms)) = keep {
            self.rewindable.insert(now, rewind_ms, &new);
            new.iter().for_each(|range| self.mark(range.first.0, range.last.0));
        }
        new
    }

    /// `first..=last` lies between the floor and the end.
    fn settle_run(&mut self, first: u64, last: u64, new: &mut Vec<OffsetRange>) {
        if first > self.floor {
            let before = self.settled.count();
            self.settled.insert(first, last, new);
            if self.settled.count() > before {
                self.mark(first, last);
            }
            return;
        }
        let mut at = first;
        while at <= last {
            let end = self.settled.next_present(at).map_or(last, |next| last.min(next - 1));
            push_range(new, at, end);
            at = self.settled.next_absent(end + 1);
        }
        self.raise_floor(self.settled.next_absent(last + 1));
    }

    /// Moves the floor on; what is below it needs no bits.
    fn raise_floor(&mut self, floor: u64) {
        if !self.settled.is_empty() && floor > self.floor {
            let dirty = &mut self.dirty_chunks;
            self.settled.remove(self.floor, floor - 1, &mut |n| {
                dirty.insert(n);
            });
        }
        self.floor = floor;
    }

    fn mark(&mut self, first: u64, last: u64) {
        for n in chunk_of(first)..=chunk_of(last) {
            self.dirty_chunks.insert(n);
        }
    }

    /// Drops what the tables know of messages that are settled now.
    fn forget(&mut self, ranges: &[OffsetRange]) {
        if self.returns.is_empty() && self.taken.is_empty() && self.delayed.is_empty() {
            return;
        }
        for range in ranges {
            let span = range.first.0..=range.last.0;
            while let Some(at) = self.returns.range(span.clone()).next().map(|(at, _)| *at) {
                self.returns.remove(&at);
                self.dirty_chunks.insert(chunk_of(at));
            }
            while let Some(at) = self.taken.range(span.clone()).next().map(|(at, _)| *at) {
                self.taken.remove(&at);
                self.dirty_chunks.insert(chunk_of(at));
            }
            while let Some((at, due)) = self.delayed.range(span.clone()).next().map(|(at, due)| (*at, *due)) {
                self.delayed.remove(&at);
                self.by_due.remove(&(due, at));
                self.dirty_chunks.insert(chunk_of(at));
            }
        }
    }

    /// A message comes back unsettled; false if it was settled meanwhile or never existed.
    pub(crate) fn give_back(&mut self, offset: Offset, counted: bool) -> bool {
        if !self.is_unsettled(offset.0) {
            return false;
        }
        self.taken.remove(&offset.0);
        let count = self.returns.entry(offset.0).or_insert(0);
        *count = count.saturating_add(u32::from(counted));
        self.dirty_chunks.insert(chunk_of(offset.0));
        if self.returns.len() > RETURNS_MAX
            && let Some((youngest, _)) = self.returns.pop_last()
        {
            self.dirty_chunks.insert(chunk_of(youngest));
        }
        true
    }

    /// Takes a message, or prolongs the same lease. False if it is settled, does not exist or is someone else's.
    pub(crate) fn take(&mut self, offset: Offset, taken: Taken, now: LogTime) -> Result<bool, Refusal> {
        if !self.is_unsettled(offset.0) {
            return Ok(false);
        }
        match self.taken.get(&offset.0) {
            Some(held) if held.lease != taken.lease && held.until > now => return Ok(false),
            None if self.taken.len() >= TAKEN_MAX => return Err(Refusal::LimitReached),
            _ => {}
        }
        self.taken.insert(offset.0, taken);
        self.dirty_chunks.insert(chunk_of(offset.0));
        Ok(true)
    }

    /// Settles everything below `end` but what is leased or taken. Tells how many messages that were, and which
    /// offsets may be freed (among them ones that were freed before).
    pub(crate) fn purge(
        &mut self,
        end: Offset,
        leased: &[OffsetRange],
        now: LogTime,
    ) -> (u64, Vec<OffsetRange>) {
        let (floor, end) = (self.floor, end.0.min(self.end));
        if end <= floor {
            return (0, Vec::new());
        }
        let spared = self.spared(end, leased, now);
        let unsettled = end - floor - self.settled.count_below(end);
        let gaps = complement(floor, end, &spared);
        self.settle_all(&gaps);
        let count = unsettled - spared.iter().map(OffsetRange::count).sum::<u64>();
        if self.rewindable.is_empty() {
            return (count, gaps);
        }
        let kept = self.rewindable.slots().flat_map(|(_, set)| set.ranges());
        (count, complement(floor, end, &merged(spared.into_iter().chain(kept).collect())))
    }

    /// Settles all of `runs`, which begin at or above the floor and end below the end. O(chunks), whatever was
    /// settled in them before.
    fn settle_all(&mut self, runs: &[OffsetRange]) {
        for run in runs {
            self.settled.cover(run.first.0, run.last.0);
            self.mark(run.first.0, run.last.0);
        }
        self.forget(runs);
        self.raise_floor(self.settled.next_absent(self.floor));
    }

    /// The unsettled messages below `end` that are out with someone, as merged runs.
    fn spared(&self, end: u64, leased: &[OffsetRange], now: LogTime) -> Vec<OffsetRange> {
        let out = self.taken.range(..end).filter(|(_, taken)| taken.until > now);
        let mut spared: Vec<_> = out.map(|(at, _)| OffsetRange::one(Offset(*at))).collect();
        for range in merged(leased.to_vec()) {
            let last = range.last.0.min(end - 1);
            let runs = self.unsettled_ranges(range.first).take_while(|run| run.first.0 <= last);
            spared
                .extend(runs.map(|run| OffsetRange { first: run.first, last: Offset(run.last.0.min(last)) }));
        }
        merged(spared)
    }

    /// Sets the cursor to `to`: all below is settled, everything retained from there on unsettled. Tells how many
    /// messages came back, and what is settled below; without `keep` that names some that were settled before.
    pub(crate) fn rewind(&mut self, to: Offset, keep: Option<(LogTime, u64)>) -> (u64, Vec<OffsetRange>) {
        let to = to.0.min(self.end);
        let count = self.bring_back(to);
        if to <= self.floor {
            return (count, Vec::new());
        }
        let below = [OffsetRange { first: Offset(self.floor), last: Offset(to - 1) }];
        if keep.is_some() {
            return (count, self.settle(&below, keep));
        }
        self.settle_all(&below);
        (count, below.to_vec())
    }

    /// Makes everything rewindable at or above `from` unsettled; how many messages that are. O(chunks).
    fn bring_back(&mut self, from: u64) -> u64 {
        let mut count = 0;
        for set in self.rewindable.take_from(from) {
            count += set.count();
            self.dirty_chunks.extend(set.chunk_numbers());
            if let Some(lowest) = set.first().filter(|lowest| *lowest < self.floor) {
                self.settled.cover(lowest, self.floor - 1);
                self.mark(lowest, self.floor - 1);
                self.floor = lowest;
            }
            self.settled.subtract(&set);
        }
        count
    }

    /// Lets go of rewindable messages whose time is over.
    pub(crate) fn release(&mut self, now: LogTime, rewind_ms: u64) -> Vec<OffsetRange> {
        let mut released = Vec::new();
        while let Some(set) = self.rewindable.release(now, rewind_ms) {
            self.dirty_chunks.extend(set.chunk_numbers());
            released.extend(set.ranges());
        }
        merged(released)
    }
}
