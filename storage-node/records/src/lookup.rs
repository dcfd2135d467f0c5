//! Finding rows and records: in the tail, among what was read ahead, in cached blocks; else by a task.
//!
//! Danger: a row is found through the sections that say they hold its offset; several may touch one window (after an import
//! into gaps), so a window asks all of them. Called by delivery's glue and by whoever sends a snapshot.

use crate::cache::Block;
use crate::file::{Content, DataKey, FileKey};
use crate::logs::{LogState, SectionRef};
use crate::read::{Kind, ReadDone, ReadTask, Want, WantRows, resolve};
use crate::store::{Records, part_key, part_log};
use crate::types::{Answer, Lookup, Many, Parts, ReadError, StoredRecord};
use bytes::Bytes;
use longshore_wire::row::{Row, Source};
use longshore_wire::{LogId, Offset, OffsetRange, ShardId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Most offsets that one window of rows spans.
pub(crate) const WINDOW_OFFSETS_MAX: u64 = 1 << 16;
/// A reader that skips no more than this many offsets counts as sequential.
const SEQUENTIAL_GAP: u64 = 4096;

/// The runs of offsets in [first, last] that are not dead.
fn live_ranges(state: &LogState, first: u64, last: u64) -> Vec<OffsetRange> {
    let mut ranges = Vec::new();
    let mut at = first;
    while let Some(live) = state.next_live(at).filter(|live| *live <= last) {
        let end = state.dead.next(live).map_or(last, |dead| (dead - 1).min(last));
        ranges.push(OffsetRange { first: Offset(live), last: Offset(end) });
        match end.checked_add(1) {
            Some(next) if end < last => at = next,
            _ => break,
        }
    }
    ranges
}

impl Records {
    /// What a task needs of one section to find `ranges`.
    pub(crate) fn want(&mut self, at: SectionRef, ranges: Vec<OffsetRange>, ahead: bool) -> Option<Want> {
        let file = self.files.get(&at.key)?;
        let section = file.sections.get(at.slot as usize)?;
        let (first, last) = (ranges.first()?.first.0, ranges.last()?.last.0);
        let (group, log) = (section.group, section.log);
        let rows = match &file.content {
            Content::Pending { rows, .. } => {
                let span = (last - first + 1).min(WINDOW_OFFSETS_MAX) as usize;
                WantRows::Known(rows.get(at.slot as usize)?.read(log, first, span))
            }
            Content::Written(refs) => {
                let mut numbers = BTreeSet::new();
                for range in &ranges {
                    numbers.extend(file.blocks_of(section, range.first.0, range.last.0));
                }
                let blocks = numbers.into_iter().filter_map(|number| {
                    let block = *refs.get(number as usize)?;
                    let next = number + 1;
                    let end = match refs.get(next as usize) {
                        Some(after) if next < section.blocks.end => after.first - 1,
                        _ => section.last,
                    };
                    Some((number, block, end, self.blocks.get(at.key, number)))
                });
                WantRows::Blocks(blocks.collect())
            }
        };
        Some(Want { key: at.key, group, log, ranges, rows, ahead })
    }

    /// Wants of every section that touches [first, last] of a log, live offsets only.
    pub(crate) fn window(&mut self, log: LogId, first: u64, last: u64, ahead: bool) -> Vec<Want> {
        let Some(state) = self.logs.get(&log) else { return Vec::new() };
        let ranges = live_ranges(state, first, last);
        let sections: Vec<SectionRef> = state.touching(first, last).collect();
        let wants = sections.into_iter().filter_map(|at| {
            let section = self.section(at.key, at.slot)?;
            let mut inside = Vec::new();
            for range in ranges.iter().filter(|range| range.first.0 <= at.last && range.last.0 >= at.first) {
                section.held_runs(range.first.0, range.last.0, &mut |first, last| {
                    inside.push(OffsetRange { first: Offset(first), last: Offset(last) });
                });
            }
            self.want(at, inside, ahead)
        });
        wants.collect()
    }

    /// The first live offset at or above `from` that is held, and the end of a window of about `rows` rows from there.
    pub(crate) fn next_window(&self, log: LogId, from: u64, rows: usize) -> Option<(u64, u64)> {
        let state = self.logs.get(&log)?;
        let mut at = state.next_live(from)?;
        loop {
            let mut best: Option<(u64, SectionRef)> = None;
            for section in state.touching(at, at).chain(state.above(at)) {
                if best.is_some_and(|(held, _)| section.first >= held) {
                    break;
                }
                let held = self.section(section.key, section.slot).and_then(|known| known.next_held(at));
                if let Some(held) = held.filter(|held| best.is_none_or(|(least, _)| *held < least)) {
                    best = Some((held, section));
                }
            }
            let (held, section) = best?;
            let live = state.next_live(held)?;
            if live == held {
                return Some((held, self.window_end(&section, held, rows)));
            }
            at = live;
        }
    }

    /// The end of the block with `at`, or of a later one if `rows` need it.
    fn window_end(&self, section: &SectionRef, at: u64, rows: usize) -> u64 {
        let limit = at.saturating_add(WINDOW_OFFSETS_MAX - 1).min(section.last);
        let Some(file) = self.files.get(&section.key) else { return limit };
        let (Some(known), Content::Written(refs)) = (file.sections.get(section.slot as usize), &file.content)
        else {
            return limit.min(at.saturating_add((rows as u64).saturating_mul(4).max(256)));
        };
        let first = file.blocks_of(known, at, at).start;
        let after = first + 1 + (rows / crate::block::BLOCK_ROWS_MAX) as u32;
        match refs.get(after as usize) {
            Some(next) if after < known.blocks.end => limit.min(next.first - 1),
            _ => limit,
        }
    }

    pub(crate) fn task(&mut self, kind: Kind, wants: Vec<Want>) -> ReadTask {
        self.next_task += 1;
        let data: BTreeSet<DataKey> = wants.iter().map(|want| want.key.data()).collect();
        let guards = data.iter().filter_map(|data| self.guards.get(data).cloned()).collect();
        let (id, io, bytes_max) = (self.next_task, self.io.clone(), self.config.read_bytes_max);
        ReadTask { id, io, kind, bytes_max, wants, guards }
    }

    /// The rows of a log from the one that has `from` on, ascending, live ones only, at most `rows_max`. Fewer do not mean
    /// the end: ask again from the last one's end until nothing comes. An unknown log has no rows.
    pub fn rows(&mut self, log: LogId, from: Offset, rows_max: usize) -> Lookup<Vec<Row>> {
        let Some(state) = self.logs.get(&log) else { return Lookup::Ready(Vec::new()) };
        let start = state.next_live(from.0).unwrap_or(u64::MAX);
        let recent = self.recent_rows(log, state, start, rows_max);
        if !recent.is_empty() {
            return Lookup::Ready(recent);
        }
        let Some((first, last)) = self.next_window(log, start, rows_max) else {
            return Lookup::Ready(Vec::new());
        };
        let wants = self.window(log, first, last, false);
        let known = |want: &Want| match &want.rows {
            WantRows::Known(_) => true,
            WantRows::Blocks(blocks) => blocks.iter().all(|(_, _, _, block)| block.is_some()),
        };
        if !wants.iter().all(known) {
            return Lookup::Task(self.task(Kind::Rows { rows_max }, wants));
        }
        // Every block is in memory: this touches no disk.
        let found = resolve(&self.io, wants, &mut ReadDone::default());
        let mut rows: Vec<Row> = found.into_iter().map(|found| found.located.row).collect();
        rows.sort_by_key(|row| row.offset);
        rows.dedup_by_key(|row| row.offset);
        rows.truncate(rows_max);
        Lookup::Ready(rows)
    }

    /// Live rows of the tail from the one that holds `start` on, up to the first live offset that the tail does not have:
    /// what a given up installation has brought lies in files behind or between what passed through the tail.
    fn recent_rows(&self, log: LogId, state: &LogState, start: u64, rows_max: usize) -> Vec<Row> {
        let (mut rows, mut at) = (Vec::new(), start);
        for row in self.tail.rows_from(log, Offset(start)) {
            if row.end().0 <= at {
                continue;
            }
            if row.offset.0 > at || rows.len() == rows_max {
                break;
            }
            rows.push(row.clone());
            at = state.next_live(row.end().0).unwrap_or(u64::MAX);
        }
        rows
    }

    /// Rows that are in memory already, with their records: the way of a fresh message from apply to a consumer.
    fn in_memory(&mut self, log: LogId, offset: Offset, parts: Parts) -> Option<StoredRecord> {
        if let Some((row, record)) = self.tail.get(log, offset) {
            let row = row.clone();
            if row.parts.is_empty() || parts == Parts::None {
                return Some(StoredRecord { row, record, parts: Vec::new() });
            }
            let pieces = part_log(self.logs.get(&log)?.group);
            let piece = |part: &Source| Some(self.tail.get(pieces, Offset(part_key(part)))?.1);
            let parts: Option<Vec<Bytes>> = row.parts.iter().map(piece).collect();
            return Some(StoredRecord { parts: parts?, record, row });
        }
        // What was read ahead has no parts.
        self.ahead.get(log, offset)
    }

    /// Reads the record that holds an offset. Also a settled one may be found, as long as its bytes exist.
    pub fn read(&mut self, log: LogId, offset: Offset, parts: Parts) -> Lookup<StoredRecord> {
        let mut many = self.read_many(&[(log, offset)], parts);
        match (many.ready.pop(), many.task) {
            (Some(record), _) => Lookup::Ready(record),
            (None, Some(task)) => Lookup::Task(task),
            (None, None) => Lookup::Missing,
        }
    }

    /// Reads several records at once; neighbours are read together, and a log that is read in order is read ahead: there
    /// may be a task although everything was in memory; run it too. Ask for no more than fits into `read_bytes_max`; what
    /// does not fit is in no list of the answer.
    pub fn read_many(&mut self, wanted: &[(LogId, Offset)], parts: Parts) -> Many {
        let mut many = Many::default();
        let mut by_section: BTreeMap<(FileKey, u32), (SectionRef, BTreeSet<u64>)> = BTreeMap::new();
        // The last offset of each log that is read in order, and whether one was not in memory.
        let mut sequential: BTreeMap<LogId, (u64, bool)> = BTreeMap::new();
        for (log, offset) in wanted {
            let mut expected = u64::MAX;
            if let Some(state) = self.logs.get_mut(log) {
                expected = std::mem::replace(&mut state.next_read, offset.0.saturating_add(1));
            }
            let found = self.in_memory(*log, *offset, parts);
            if offset.0 >= expected && offset.0 - expected <= SEQUENTIAL_GAP {
                let (last, missed) = sequential.entry(*log).or_default();
                *last = offset.0.max(*last);
                *missed |= found.is_none();
            }
            if let Some(record) = found {
                many.ready.push(record);
                continue;
            }
            let Some(at) = self.holder(*log, offset.0) else {
                many.missing.push((*log, *offset));
                continue;
            };
            by_section.entry((at.key, at.slot)).or_insert((at, BTreeSet::new())).1.insert(offset.0);
            for (group, key) in self.parts_in(*log, offset.0, offset.0, parts) {
                if let Some(at) = self.holder(part_log(group), key) {
                    by_section.entry((at.key, at.slot)).or_insert((at, BTreeSet::new())).1.insert(key);
                }
            }
        }
        let mut wants = Vec::new();
        for (at, offsets) in by_section.into_values() {
            let ranges = offsets.into_iter().map(|offset| OffsetRange::one(Offset(offset))).collect();
            wants.extend(self.want(at, ranges, false));
        }
        for (log, (last, missed)) in sequential {
            wants.extend(self.read_ahead(log, last, missed));
        }
        if !wants.is_empty() {
            many.task = Some(self.task(Kind::Records { parts: parts == Parts::All }, wants));
        }
        many
    }

    /// Group and key of the pieces of the records in [first, last] of a log, if they are wanted.
    pub(crate) fn parts_in(&self, log: LogId, first: u64, last: u64, parts: Parts) -> Vec<(ShardId, u64)> {
        if parts == Parts::None {
            return Vec::new();
        }
        let large = self.large.range((log, first)..=(log, last));
        large.flat_map(|(_, large)| large.parts.iter().map(|part| (large.group, part_key(part)))).collect()
    }

    /// The section that holds an offset; the one that begins latest if there are two.
    pub(crate) fn holder(&self, log: LogId, offset: u64) -> Option<SectionRef> {
        self.logs.get(&log)?.touching(offset, offset).find(|at| {
            self.section(at.key, at.slot).is_some_and(|section| section.held_in(offset, offset) > 0)
        })
    }

    /// What to read ahead after `last`, about `read_ahead_bytes` of it. After a miss it reads ahead at once, else when half of
    /// the last read-ahead is used up. Each log has at most one read-ahead under way.
    fn read_ahead(&mut self, log: LogId, last: u64, missed: bool) -> Vec<Want> {
        let Some(at) = self.holder(log, last) else { return Vec::new() };
        let Some(section) = self.section(at.key, at.slot) else { return Vec::new() };
        let each = (section.bytes / section.held_count().max(1)).max(1);
        let n = (self.config.read_ahead_bytes as u64 / each).min(WINDOW_OFFSETS_MAX);
        let Some(state) = self.logs.get(&log) else { return Vec::new() };
        let behind = if missed { last } else { state.ahead_until.max(last) };
        let recent = self.tail.first_of(log).is_some_and(|first| first <= behind.saturating_add(1));
        if n == 0 || state.ahead_runs || recent || behind - last > n / 2 {
            return Vec::new();
        }
        let until = behind.saturating_add(n);
        let wants = self.window(log, behind.saturating_add(1), until, true);
        if let Some(state) = self.logs.get_mut(&log).filter(|_| !wants.is_empty()) {
            state.ahead_runs = true;
            state.ahead_until = until;
        }
        wants
    }

    /// Reads pieces of a large body by their identity, for a body that must not be in memory whole.
    pub fn read_parts(&mut self, group: ShardId, parts: &[Source]) -> Lookup<Vec<Bytes>> {
        let log = part_log(group);
        let recent = |part: &Source| Some(self.tail.get(log, Offset(part_key(part)))?.1);
        if let Some(found) = parts.iter().map(recent).collect::<Option<Vec<Bytes>>>() {
            return Lookup::Ready(found);
        }
        let mut wants = Vec::new();
        for key in parts.iter().map(part_key) {
            let Some(at) = self.holder(log, key) else { return Lookup::Missing };
            wants.extend(self.want(at, vec![OffsetRange::one(Offset(key))], false));
        }
        Lookup::Task(self.task(Kind::Pieces, wants))
    }

    /// Takes the result of a task: caches what is useful and hands out the answer.
    pub fn read_done(&mut self, done: ReadDone) -> Answer {
        for (key, number, block) in done.blocks {
            self.cache_block(key, number, block);
        }
        for (key, log, range) in done.bad_blocks {
            self.lose_block(key, log, range);
        }
        for log in done.ahead_logs {
            if let Some(state) = self.logs.get_mut(&log) {
                state.ahead_runs = false;
            }
        }
        let each = done.ahead_bytes / done.ahead.len().max(1);
        let mut ahead: Vec<StoredRecord> =
            done.ahead.into_iter().filter(|stored| stored.row.parts.is_empty()).collect();
        while let Some(first) = ahead.first() {
            let log = first.row.log;
            let rest = ahead.split_off(ahead.partition_point(|stored| stored.row.log <= log));
            let bytes = each * ahead.len();
            self.ahead.put(std::mem::replace(&mut ahead, rest), bytes);
        }
        for error in &done.failed {
            if let ReadError::Corrupt { log, offset, .. } = error
                && let Some(at) = self.holder(*log, offset.0)
            {
                self.suspect.insert(at.key.data());
            }
        }
        Answer { id: done.id, rows: done.rows, records: done.records, parts: done.parts, failed: done.failed }
    }

    fn cache_block(&mut self, key: FileKey, number: u32, block: Block) {
        if self.files.contains_key(&key) {
            self.blocks.put(key, number, block);
        }
    }

    /// The rows of a damaged block count as missing.
    pub(crate) fn lose_block(&mut self, key: FileKey, log: LogId, range: OffsetRange) {
        let Some(state) = self.logs.get(&log) else { return };
        let Some(file) = self.files.get_mut(&key) else { return };
        for section in file.sections.iter_mut().filter(|section| section.log == log) {
            section.let_go(range.first.0, range.last.0);
            section.live = section.held_count().saturating_sub(state.dead_of(section));
        }
    }

    /// Clones the guard of a file for a job.
    pub(crate) fn guard(&self, data: DataKey) -> Option<Arc<()>> {
        self.guards.get(&data).cloned()
    }
}
