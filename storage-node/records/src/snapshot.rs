//! Snapshots: what a receiver lacks, what a sender gives, and storing what was fetched.
//!
//! Danger: a snapshot is acknowledged only after [`Records::missing`] names nothing of it any more, and what was imported
//! counts only once its job is done. Called by the node's snapshot sender and receiver, and to repair corrupt records.

use crate::fetch::is_record_of;
use crate::file::FileKey;
use crate::is_part_log;
use crate::job::{ImportRow, Job, Work, Written};
use crate::logs::LogState;
use crate::lookup::WINDOW_OFFSETS_MAX;
use crate::read::Kind;
use crate::set::OffsetSet;
use crate::store::{Records, part_key, part_log, part_row};
use crate::types::{Import, ImportFor, Lookup, Parts, RecordsError, StoreId, StoredRecord};
use bytes::Bytes;
use longshore_wire::row::Source;
use longshore_wire::{LogId, Offset, OffsetRange, ShardId};

impl Records {
    /// The live records of [from, until) in order, as many as fit into `read_bytes_max`, at least one. Ask again from the
    /// last one's end; `Ready` without records means that there are no more. Of a [`crate::part_log`]: its pieces, each
    /// as a record.
    pub fn export(
        &mut self,
        log: LogId,
        from: Offset,
        until: Offset,
        parts: Parts,
    ) -> Lookup<Vec<StoredRecord>> {
        match self.next_window(log, from.0, crate::block::BLOCK_ROWS_MAX) {
            Some((first, last)) if first < until.0 => {
                let last = last.min(until.0 - 1);
                let mut wants = self.window(log, first, last, false);
                for (group, key) in self.parts_in(log, first, last, parts) {
                    if let Some(at) = self.holder(part_log(group), key) {
                        wants.extend(self.want(at, vec![OffsetRange::one(Offset(key))], false));
                    }
                }
                if is_part_log(log) {
                    return Lookup::Task(self.task(Kind::Alone, wants));
                }
                Lookup::Task(self.task(Kind::Records { parts: parts == Parts::All }, wants))
            }
            _ => Lookup::Ready(Vec::new()),
        }
    }

    /// Which offsets of `ranges` this node does not hold: what a snapshot must still bring. Pieces of uploads are asked for
    /// under [`crate::part_log`] and [`Records::missing_parts`].
    pub fn missing(&self, log: LogId, ranges: &[OffsetRange]) -> Vec<OffsetRange> {
        let mut missing: Vec<OffsetRange> = Vec::new();
        let mut push = |first: u64, last: u64| match missing.last_mut() {
            Some(run) if run.last.0.checked_add(1) == Some(first) => run.last = Offset(last),
            _ => missing.push(OffsetRange { first: Offset(first), last: Offset(last) }),
        };
        for range in ranges {
            match self.logs.get(&log) {
                None => push(range.first.0, range.last.0),
                Some(state) => self.missing_in(state, range, &mut push),
            }
        }
        missing
    }

    fn missing_in(&self, state: &LogState, range: &OffsetRange, push: &mut dyn FnMut(u64, u64)) {
        let (mut at, last) = (range.first.0, range.last.0.min(u64::MAX - 1));
        while at <= last {
            if state.touching(at, at).next().is_none() {
                let next = state.above(at).next().map_or(u64::MAX, |section| section.first);
                push(at, last.min(next.saturating_sub(1)));
                at = next;
                continue;
            }
            let end = last.min(at.saturating_add(WINDOW_OFFSETS_MAX - 1));
            let mut held = OffsetSet::default();
            for touching in state.touching(at, end) {
                if let Some(section) = self.section(touching.key, touching.slot) {
                    section.held_runs(at, end, &mut |a, b| held.insert(a, b, &mut |_, _| {}));
                }
            }
            while let Some(absent) = held.next_absent(at).filter(|absent| *absent <= end) {
                let to = held.next(absent).map_or(end, |held| end.min(held - 1));
                push(absent, to);
                at = to + 1;
                if at > end {
                    break;
                }
            }
            at = end.saturating_add(1);
        }
    }

    /// Which of these pieces this node does not hold.
    pub fn missing_parts(&self, group: ShardId, parts: &[Source]) -> Vec<Source> {
        let log = part_log(group);
        parts.iter().filter(|part| !self.is_held(log, part_key(part))).copied().collect()
    }

    /// A job that stores what was fetched from a peer; records that are held already are left out. Each job makes a file, so
    /// give it 16 MiB or more at a time. When it is done, the records are durable and readable. After a failure nothing was
    /// stored: fetch and import again.
    ///
    /// Errors: [`RecordsError::Mismatch`]: bytes do not fit their row or checksum; nothing is taken.
    pub fn import(&mut self, owner: ImportFor, batch: Vec<Import>) -> Result<Job, RecordsError> {
        self.import_job(batch, Some(owner))
    }

    /// As [`Records::import`], for a record that a read found corrupt (or one of whose pieces was): what is held is replaced.
    pub fn repair(&mut self, group: ShardId, stored: StoredRecord) -> Result<Job, RecordsError> {
        self.import_job(vec![Import::Record { group, stored }], None)
    }

    /// Without an owner it is a repair: what is held is replaced.
    fn import_job(&mut self, batch: Vec<Import>, owner: Option<ImportFor>) -> Result<Job, RecordsError> {
        let replaces = owner.is_none();
        let mut rows = Vec::new();
        let mut take = |held: bool, import: ImportRow| {
            if replaces || !held {
                rows.push(import);
            }
        };
        for import in batch {
            match import {
                Import::Part { group, source, bytes } => {
                    let row = part_row(group, source);
                    if bytes.len() != source.len as usize {
                        return Err(RecordsError::Mismatch { log: row.log, offset: row.offset });
                    }
                    take(self.is_held(row.log, row.offset.0), ImportRow { group, row, bytes });
                }
                Import::Record { group, stored } => {
                    let StoredRecord { row, record, parts } = stored;
                    let lengths = row.parts.iter().map(|part| part.len as usize);
                    let ends = row.offset.0.checked_add(u64::from(row.count)).is_some();
                    if !ends || !is_record_of(&record, &row) || !lengths.eq(parts.iter().map(Bytes::len)) {
                        return Err(RecordsError::Mismatch { log: row.log, offset: row.offset });
                    }
                    for (part, bytes) in row.parts.iter().zip(parts) {
                        let row = part_row(group, *part);
                        take(self.is_held(row.log, row.offset.0), ImportRow { group, row, bytes });
                    }
                    if !row.parts.is_empty() {
                        self.use_parts(group, &row);
                    }
                    take(self.is_held(row.log, row.offset.0), ImportRow { group, row, bytes: record });
                }
            }
        }
        self.next_store += 1;
        let store = StoreId(self.next_store - 1);
        Ok(self.job(Work::Import { rows, store, owner }))
    }

    pub(crate) fn imported(&mut self, written: Written, replaces: bool) {
        let key = FileKey::Store(written.store);
        let bounds: Vec<(LogId, u64, u64)> =
            written.directory.sections.iter().map(|s| (s.log, s.first, s.last)).collect();
        self.add_store(written, true);
        if !replaces {
            return;
        }
        for (slot, (log, first, last)) in bounds.into_iter().enumerate() {
            let mut runs = Vec::new();
            if let Some(section) = self.section(key, slot as u32) {
                section.held_runs(first, last, &mut |a, b| runs.push((a, b)));
            }
            let Some(state) = self.logs.get(&log) else { continue };
            let others: Vec<_> = state.touching(first, last).filter(|at| at.key != key).collect();
            for at in others {
                self.suspect.remove(&at.key.data());
                let Some(file) = self.files.get_mut(&at.key) else { continue };
                let Some(old) = file.sections.get_mut(at.slot as usize) else { continue };
                runs.iter().for_each(|(a, b)| old.let_go(*a, *b));
                old.live = old.held_count().saturating_sub(state.dead_of(old));
            }
        }
    }
}
