//! Which job is due, and what a finished one changes.
//!
//! Danger: what a job wrote counts from [`Records::job_done`] on; until then every answer comes from the sources. Settlements
//! that came meanwhile are honoured, because live counts are computed against the dead sets of *that* moment.

use crate::file::{Content, DataKey, FileKey, FileState};
use crate::job::{Done, Job, JobDone, JobOutcome, PendingFile, What, Work, Written};
use crate::logs::LogState;
use crate::read::Want;
use crate::store::Records;
use crate::types::{ReadError, RecordsError, SegmentId, StoreId};
use longshore_wire::{Index, LogId, ShardId};
use std::collections::{BTreeMap, BTreeSet};

/// A store file below this many bytes is small.
const SMALL_STORE_BYTES: u64 = 4 << 20;
/// This many small store files are copied into one.
const SMALL_STORES_MAX: usize = 8;

impl Records {
    pub(crate) fn job(&mut self, work: Work) -> Job {
        let job = Job { io: self.io.clone(), manifest: self.manifest.clone(), work };
        self.running.insert(job.what());
        job
    }

    /// A job that writes every row that no index file has yet; `None` if there is none, or while an earlier one runs (ask
    /// again after it). When it is done, [`Records::rows_durable`] is at least what was applied at this moment.
    pub fn flush(&mut self) -> Option<Job> {
        let pending = |file: &FileState| matches!(file.content, Content::Pending { .. });
        let keys: Vec<FileKey> =
            self.files.iter().filter(|(_, file)| pending(file)).map(|(key, _)| *key).collect();
        let upto = self.groups.iter().map(|(group, state)| (*group, state.applied)).collect();
        self.index_job(keys, upto)
    }

    fn index_job(&mut self, keys: Vec<FileKey>, upto: BTreeMap<ShardId, Index>) -> Option<Job> {
        if keys.is_empty() || self.running.contains(&What::Index) {
            return None;
        }
        let mut files = Vec::with_capacity(keys.len());
        for key in keys {
            let Some(file) = self.files.get(&key) else { continue };
            let Content::Pending { rows, .. } = &file.content else { continue };
            let sections = file.sections.iter().map(|section| (section.group, section.log)).collect();
            files.push(PendingFile { key, sections, rows: rows.clone() });
            if let FileKey::Segment(segment, part) = key
                && let Some(segment) = self.segments.get_mut(&segment)
            {
                segment.open_part = segment.open_part.filter(|open| *open != part);
            }
        }
        Some(self.job(Work::Index { files, upto }))
    }

    /// The most useful job that is due now, one of each kind at a time: removing what left, writing the index of a sealed
    /// segment whose entries are all applied, rewriting what is mostly or all dead. Call it after each finished job and about once
    /// a second; a rewrite copies at most `rewrite_bytes_per_run`, so the calls set its rate.
    pub fn next_job(&mut self) -> Option<Job> {
        self.removal().or_else(|| self.sealed_index()).or_else(|| self.rewrite())
    }

    fn removal(&mut self) -> Option<Job> {
        if self.running.contains(&What::Remove) {
            return None;
        }
        let idle: Vec<DataKey> = self.leaving.keys().filter(|data| !self.is_read(**data)).copied().collect();
        let mut names = Vec::new();
        for data in idle {
            names.extend(self.leaving.remove(&data).unwrap_or_default());
            let gone = match data {
                DataKey::Store(_) => true,
                DataKey::Segment(segment) => !self.segments.contains_key(&segment),
            };
            if gone {
                self.guards.remove(&data);
            }
        }
        let left: Vec<SegmentId> = self
            .freed
            .iter()
            .filter(|segment| !self.leaving.contains_key(&DataKey::Segment(**segment)))
            .copied()
            .collect();
        left.iter().for_each(|segment| {
            self.freed.remove(segment);
        });
        if names.is_empty() && left.is_empty() {
            return None;
        }
        Some(self.job(Work::Remove { names, forgotten: left }))
    }

    /// The rows of sealed segments whose entries are all applied or overwritten.
    fn sealed_index(&mut self) -> Option<Job> {
        let applied = |group: &ShardId| self.groups.get(group).map_or(Index(0), |g| g.applied);
        let complete: BTreeSet<SegmentId> = self
            .segments
            .iter()
            .filter(|(_, state)| {
                state.sealed && state.last.iter().all(|(group, last)| applied(group) >= *last)
            })
            .map(|(segment, _)| *segment)
            .collect();
        let keys: Vec<FileKey> = self
            .files
            .iter()
            .filter(|(key, file)| {
                let sealed = matches!(key, FileKey::Segment(segment, _) if complete.contains(segment));
                sealed && matches!(file.content, Content::Pending { .. })
            })
            .map(|(key, _)| *key)
            .collect();
        self.index_job(keys, BTreeMap::new())
    }

    /// Files that are worth rewriting, with their live bytes; those with the fewest first.
    fn mostly_dead(&self) -> Vec<(u64, Vec<FileKey>)> {
        let share = u64::from(self.config.rewrite_live_percent_max.min(100));
        let few = |live: u64, bytes: u64| live.saturating_mul(100) < bytes.saturating_mul(share);
        let mut sources = Vec::new();
        for (segment, state) in &self.segments {
            let keys: Vec<FileKey> = self.parts_of(*segment).collect();
            let files = || keys.iter().filter_map(|key| self.files.get(key));
            let written = files().all(|file| matches!(file.content, Content::Written(_)));
            let live: u64 = files().map(FileState::live_bytes).sum();
            let pointers: u64 = files().map(FileState::live).sum();
            let sound = !self.suspect.contains(&DataKey::Segment(*segment));
            // Also what holds nothing live: it may go only once the manifest says on whose word.
            let dead = pointers == 0 && !keys.is_empty();
            let worth = pointers > 0 && written && few(live, state.bytes) && sound;
            if state.retired && !state.replaced && (dead || worth) {
                sources.push((live, keys));
            }
        }
        let stores = self.files.iter().filter(|(key, _)| match key {
            FileKey::Store(store) => !self.suspect.contains(&DataKey::Store(*store)),
            FileKey::Segment(..) => false,
        });
        // At least four of them fit into one run, so that copying them makes them fewer.
        let small_bytes = SMALL_STORE_BYTES.min(self.config.rewrite_bytes_per_run / 4);
        let (small, large): (Vec<_>, Vec<_>) = stores.partition(|(_, file)| file.bytes < small_bytes);
        let many = small.len() >= SMALL_STORES_MAX;
        for (small, (key, file)) in
            small.into_iter().map(|s| (true, s)).chain(large.into_iter().map(|l| (false, l)))
        {
            let live = file.live_bytes();
            // Not of the file's size: headers and index would make a file of tiny records look dead for ever.
            let bytes = file.sections.iter().map(|section| section.bytes).sum();
            if file.live() == 0 || few(live, bytes) || small && many {
                sources.push((live, vec![*key]));
            }
        }
        sources.sort();
        sources
    }

    fn rewrite(&mut self) -> Option<Job> {
        if self.running.contains(&What::Rewrite) {
            return None;
        }
        let mut bytes = 0;
        let mut sources: Vec<FileKey> = Vec::new();
        let mut only_dead = false;
        for (live, keys) in self.mostly_dead() {
            bytes += live;
            // What holds nothing live is let go without a copy, and so before anything that a read or a full disk may fail.
            let copies = bytes > 0;
            if !sources.is_empty() && (bytes > self.config.rewrite_bytes_per_run || only_dead && copies) {
                break;
            }
            only_dead = !copies;
            sources.extend(keys);
        }
        if sources.is_empty() {
            return None;
        }
        let wants = sources.iter().flat_map(|key| self.live_wants(*key)).collect();
        let guards = sources.iter().filter_map(|key| self.guard(key.data())).collect();
        self.next_store += 1;
        let store = StoreId(self.next_store - 1);
        let reached = self.groups.iter().map(|(group, state)| (*group, state.applied)).collect();
        Some(self.job(Work::Rewrite { wants, sources, store, guards, reached }))
    }

    /// Wants of everything live in a file.
    fn live_wants(&mut self, key: FileKey) -> Vec<Want> {
        let Some(file) = self.files.get(&key) else { return Vec::new() };
        let live: Vec<(LogId, u64, u64)> = file
            .sections
            .iter()
            .filter(|section| section.live > 0)
            .map(|section| (section.log, section.first, section.last))
            .collect();
        let windows = live.into_iter().flat_map(|(log, first, last)| self.window_of(key, log, first, last));
        windows.collect()
    }

    /// Takes a finished job's result. What it wrote is used from now on.
    pub fn job_done(&mut self, done: JobDone) -> JobOutcome {
        match done.done {
            Done::Index { files, upto } => {
                self.running.remove(&What::Index);
                for (key, directory) in files {
                    self.index_written(key, directory);
                }
                for (group, index) in upto {
                    let state = self.groups.entry(group).or_default();
                    state.durable = state.durable.max(index);
                }
                JobOutcome::Indexed
            }
            Done::Rewritten { sources, written } => {
                self.running.remove(&What::Rewrite);
                if let Some(written) = written {
                    self.add_store(written, false);
                }
                for key in sources {
                    if let FileKey::Segment(segment, _) = key
                        && let Some(segment) = self.segments.get_mut(&segment)
                    {
                        segment.replaced = true;
                    }
                    self.remove_file(key);
                }
                JobOutcome::Rewritten
            }
            Done::Imported { written, owner } => {
                self.running.remove(&What::Import);
                // The tail must have everything from its oldest record on.
                self.tail.clear();
                if let Some(written) = written {
                    self.imported(written, owner.is_none());
                }
                JobOutcome::Imported(owner)
            }
            Done::ImportFailed { owner, names, error } => {
                self.running.remove(&What::Import);
                self.leave(names);
                JobOutcome::ImportFailed(owner, error)
            }
            Done::Removed => {
                self.running.remove(&What::Remove);
                JobOutcome::Removed
            }
            Done::Failed { was, names, forgotten, error, .. } => {
                self.running.remove(&was);
                self.freed.extend(forgotten);
                self.leave(names);
                if let RecordsError::Corrupt(error) = &error {
                    self.note_corrupt(error);
                }
                JobOutcome::Failed(was, error)
            }
        }
    }

    /// Names that could not be removed, for the next job that removes.
    fn leave(&mut self, names: Vec<String>) {
        for name in names {
            if let Some(key) = FileKey::parse(&name) {
                self.leaving.entry(key.data()).or_default().push(name);
            }
        }
    }

    fn index_written(&mut self, key: FileKey, directory: crate::directory::Directory) {
        let Some(file) = self.files.get_mut(&key) else {
            // Its segment went meanwhile.
            self.leaving.entry(key.data()).or_default().push(key.name());
            return;
        };
        for (known, written) in file.sections.iter_mut().zip(&directory.sections) {
            known.blocks = written.blocks.clone();
        }
        file.content = Content::Written(directory.blocks);
        for group in self.groups.values_mut() {
            group.unwritten.remove(&key);
        }
    }

    /// Makes a store file's sections known. Offsets that died while it was written are dead in it.
    pub(crate) fn add_store(&mut self, written: Written, new_logs: bool) {
        let key = FileKey::Store(written.store);
        let mut sections = written.directory.sections;
        for (slot, section) in sections.iter_mut().enumerate() {
            if new_logs {
                self.logs.entry(section.log).or_insert_with(|| LogState::new(section.group));
            }
            section.live = match self.logs.get_mut(&section.log) {
                None => 0,
                Some(state) => {
                    state.add(key, slot as u32, section.first, section.last);
                    section.held_count().saturating_sub(state.dead_of(section))
                }
            };
        }
        self.guards.entry(key.data()).or_default();
        let content = Content::Written(written.directory.blocks);
        self.files.insert(key, FileState { sections, content, bytes: written.bytes });
    }

    fn note_corrupt(&mut self, error: &ReadError) {
        match error {
            ReadError::Corrupt { log, offset, .. } => {
                if let Some(at) = self.holder(*log, offset.0) {
                    self.suspect.insert(at.key.data());
                }
            }
            ReadError::CorruptIndex { log, range, .. } => {
                if let Some(at) = self.holder(*log, range.first.0) {
                    self.lose_block(at.key, *log, *range);
                }
            }
            ReadError::Io { file, .. } => {
                // Its rewriting would fail again; the others' goes on. Until the next start.
                let is_it =
                    |key: &FileKey| self.io.path(*key) == *file || self.io.data_name(key.data()) == *file;
                self.suspect.extend(self.files.keys().copied().find(is_it).map(FileKey::data));
            }
        }
    }

    /// Wants of the live offsets that one file has of a log in [first, last].
    fn window_of(&mut self, key: FileKey, log: LogId, first: u64, last: u64) -> Vec<Want> {
        self.window(log, first, last, false).into_iter().filter(|want| want.key == key).collect()
    }
}
