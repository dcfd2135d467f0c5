//! Names and files, durable and current, and every operation on them.
//!
//! A crash replays an arbitrary part of the unsynced changes over what is durable.

use super::fault::{Effect, Fault, Operation, Rng};
use super::file::{Change, File, overlay};
use crate::OpenMode;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, IoSlice};

const RECORDS_MAX: usize = 100_000;

/// One operation, as kept for tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What.
    pub operation: Operation,
    /// Where.
    pub path: String,
    /// Position or length, in bytes, where that means something.
    pub at: u64,
    /// Bytes read or written.
    pub bytes: u64,
    /// Whether it succeeded.
    pub ok: bool,
}

#[derive(Clone, Debug)]
enum NameChange {
    Add(String, u64),
    Remove(String),
    Rename(String, String, u64),
}

#[derive(Debug, Default)]
pub(super) struct State {
    files: BTreeMap<u64, File>,
    next_inode: u64,
    dirs: BTreeSet<String>,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    unsynced_names: Vec<NameChange>,
    pub(super) epoch: u64,
    pub(super) down: bool,
    pub(super) changes: u64,
    pub(super) dies_at: Option<(u64, bool)>,
    pub(super) faults: Vec<Fault>,
    pub(super) struck: u64,
    pub(super) capacity: Option<u64>,
    pub(super) keep_records: bool,
    pub(super) records: VecDeque<Record>,
    pub(super) rng: Rng,
}

fn dir_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

fn dead() -> io::Error {
    io::Error::other("the disk died")
}

fn not_found(path: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{path} does not exist"))
}

impl State {
    pub(super) fn up(&self) -> io::Result<()> {
        if self.down { Err(dead()) } else { Ok(()) }
    }

    pub(super) fn file(&self, inode: u64) -> io::Result<&File> {
        self.files.get(&inode).ok_or_else(|| io::Error::other("the file is gone"))
    }

    fn file_mut(&mut self, inode: u64) -> io::Result<&mut File> {
        self.files.get_mut(&inode).ok_or_else(|| io::Error::other("the file is gone"))
    }

    pub(super) fn used_bytes(&self) -> u64 {
        self.names.values().filter_map(|inode| self.files.get(inode)).map(File::taken).sum()
    }

    fn record(&mut self, operation: Operation, path: &str, at: u64, bytes: u64, ok: bool) {
        if self.keep_records {
            if self.records.len() >= RECORDS_MAX {
                self.records.pop_front();
            }
            self.records.push_back(Record { operation, path: path.to_owned(), at, bytes, ok });
        }
    }

    /// The fault that strikes this operation, if any.
    fn strike(&mut self, operation: Operation, path: &str) -> Option<Effect> {
        let mut hit = None;
        for (place, fault) in self.faults.iter_mut().enumerate() {
            if fault.operation == operation && path.starts_with(&fault.path_prefix) {
                if fault.after == 0 && hit.is_none() {
                    hit = Some(place);
                }
                fault.after = fault.after.saturating_sub(1);
            }
        }
        let fault = self.faults.remove(hit?);
        self.struck += 1;
        Some(fault.effect)
    }

    /// Counts a change. `Ok(true)`: the disk dies inside it; `Err`: it died before.
    fn change(&mut self) -> io::Result<bool> {
        self.up()?;
        let number = self.changes;
        self.changes += 1;
        match self.dies_at {
            Some((at, inside)) if at == number => {
                self.down = true;
                if inside { Ok(true) } else { Err(dead()) }
            }
            _ => Ok(false),
        }
    }

    /// Counts a change that is done as a whole or not at all, and lets faults strike it.
    fn whole_change(&mut self, operation: Operation, path: &str) -> io::Result<()> {
        let dies_inside = self.change()?;
        if dies_inside && self.rng.one_in(2) {
            return Err(dead());
        }
        match self.strike(operation, path) {
            None => Ok(()),
            Some(effect) => {
                self.record(operation, path, 0, 0, false);
                Err(effect.error())
            }
        }
    }

    /// What a change answers: the caller never learns of one that the disk died in.
    fn answer(&self) -> io::Result<()> {
        self.up()
    }

    pub(super) fn open(&mut self, path: &str, mode: OpenMode) -> io::Result<u64> {
        self.up()?;
        let dir = dir_of(path);
        if path.is_empty()
            || path.split('/').count() > 2
            || path.split('/').any(|p| p.is_empty() || p == "." || p == "..")
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("not a path in a data directory: {path:?}"),
            ));
        }
        match (mode, self.names.get(path)) {
            (OpenMode::Create, Some(_)) => {
                Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{path} exists")))
            }
            (OpenMode::Create, None) => {
                if !dir.is_empty() && !self.dirs.contains(dir) {
                    return Err(not_found(dir));
                }
                self.whole_change(Operation::Create, path)?;
                let inode = self.next_inode;
                self.next_inode += 1;
                self.files.insert(inode, File::default());
                self.names.insert(path.to_owned(), inode);
                self.unsynced_names.push(NameChange::Add(path.to_owned(), inode));
                self.record(Operation::Create, path, 0, 0, true);
                self.answer()?;
                Ok(inode)
            }
            (_, Some(inode)) => Ok(*inode),
            (_, None) => Err(not_found(path)),
        }
    }

    pub(super) fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.up()?;
        if !dir.is_empty() && !self.dirs.contains(dir) {
            return Err(not_found(dir));
        }
        Ok(self
            .names
            .keys()
            .filter(|path| dir_of(path) == dir)
            .map(|path| path.rsplit_once('/').map_or(path.as_str(), |(_, name)| name).to_owned())
            .collect())
    }

    pub(super) fn create_dir(&mut self, dir: &str) -> io::Result<()> {
        if self.dirs.contains(dir) {
            return self.up();
        }
        self.whole_change(Operation::Create, dir)?;
        // Directories are few and made at the first start: durable at once, so that names below them have a home.
        self.dirs.insert(dir.to_owned());
        self.answer()
    }

    pub(super) fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.up()?;
        let inode = *self.names.get(from).ok_or_else(|| not_found(from))?;
        self.whole_change(Operation::Rename, from)?;
        self.names.remove(from);
        self.names.insert(to.to_owned(), inode);
        self.unsynced_names.push(NameChange::Rename(from.to_owned(), to.to_owned(), inode));
        self.record(Operation::Rename, to, 0, 0, true);
        self.answer()
    }

    pub(super) fn remove(&mut self, path: &str) -> io::Result<()> {
        self.up()?;
        if !self.names.contains_key(path) {
            return Err(not_found(path));
        }
        self.whole_change(Operation::Remove, path)?;
        self.names.remove(path);
        self.unsynced_names.push(NameChange::Remove(path.to_owned()));
        self.record(Operation::Remove, path, 0, 0, true);
        self.answer()
    }

    pub(super) fn sync_dir(&mut self, dir: &str) -> io::Result<()> {
        self.whole_change(Operation::SyncDir, dir)?;
        for change in std::mem::take(&mut self.unsynced_names) {
            let here = match &change {
                NameChange::Add(path, _) | NameChange::Remove(path) => dir_of(path) == dir,
                NameChange::Rename(from, to, _) => dir_of(from) == dir || dir_of(to) == dir,
            };
            if here {
                self.make_durable(&change);
            } else {
                self.unsynced_names.push(change);
            }
        }
        self.record(Operation::SyncDir, dir, 0, 0, true);
        self.answer()
    }

    fn make_durable(&mut self, change: &NameChange) {
        match change {
            NameChange::Add(path, inode) => {
                self.durable_names.insert(path.clone(), *inode);
            }
            NameChange::Remove(path) => {
                self.durable_names.remove(path);
            }
            NameChange::Rename(from, to, inode) => {
                if self.durable_names.get(from) == Some(inode) {
                    self.durable_names.remove(from);
                }
                self.durable_names.insert(to.clone(), *inode);
            }
        }
    }

    pub(super) fn read_at(&mut self, inode: u64, path: &str, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let effect = self.strike(Operation::Read, path);
        if let Some(effect) = effect.filter(|e| *e != Effect::FlipRead) {
            self.record(Operation::Read, path, at, 0, false);
            return Err(effect.error());
        }
        let content = &self.file(inode)?.current;
        let rest = content.get(at as usize..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        if effect.is_some() && n > 0 {
            let choice = self.rng.next_u64();
            buf[(choice >> 3) as usize % n] ^= 1 << (choice & 7);
        }
        self.record(Operation::Read, path, at, n as u64, true);
        Ok(n)
    }

    pub(super) fn write_at(
        &mut self,
        inode: u64,
        path: &str,
        slices: &[IoSlice<'_>],
        at: u64,
    ) -> io::Result<()> {
        let mut bytes: Vec<u8> = Vec::with_capacity(slices.iter().map(|s| s.len()).sum());
        slices.iter().for_each(|s| bytes.extend_from_slice(s));
        let dies_inside = self.change()?;
        let effect = self.strike(Operation::Write, path);
        let grows = (at + bytes.len() as u64).saturating_sub(self.file(inode)?.taken());
        let full = self.capacity.is_some_and(|c| self.used_bytes().saturating_add(grows) > c);
        let (done, error) = match effect {
            Some(Effect::Short(n)) => (n.min(bytes.len()), Some(Effect::Eio.error())),
            Some(other) => (0, Some(other.error())),
            None if full => (0, Some(Effect::NoSpace.error())),
            None if dies_inside => (self.rng.below(bytes.len() as u64 + 1) as usize, Some(dead())),
            None => (bytes.len(), None),
        };
        self.record(Operation::Write, path, at, done as u64, error.is_none());
        bytes.truncate(done);
        if done > 0 {
            let file = self.file_mut(inode)?;
            overlay(&mut file.current, at, &bytes);
            file.unsynced.push(Change::Write { at, bytes });
        }
        error.map_or_else(|| self.answer(), Err)
    }

    pub(super) fn sync_data(&mut self, inode: u64, path: &str) -> io::Result<()> {
        let dies_inside = self.change()?;
        if dies_inside && self.rng.one_in(2) {
            return Err(dead());
        }
        let effect = self.strike(Operation::Sync, path);
        self.record(Operation::Sync, path, 0, 0, effect.is_none());
        let file = self.file_mut(inode)?;
        match effect {
            Some(Effect::LostSync) => {
                file.unsynced.clear();
                Err(Effect::Eio.error())
            }
            Some(other) => Err(other.error()),
            None => {
                for change in std::mem::take(&mut file.unsynced) {
                    File::apply(&change, &mut file.durable);
                }
                self.answer()
            }
        }
    }

    pub(super) fn set_len(&mut self, inode: u64, path: &str, len: u64) -> io::Result<()> {
        self.whole_change(Operation::SetLen, path)?;
        let grows = len.saturating_sub(self.file(inode)?.taken());
        if self.capacity.is_some_and(|c| self.used_bytes().saturating_add(grows) > c) {
            return Err(Effect::NoSpace.error());
        }
        let file = self.file_mut(inode)?;
        file.current.resize(len as usize, 0);
        file.unsynced.push(Change::SetLen(len));
        self.record(Operation::SetLen, path, len, 0, true);
        self.answer()
    }

    pub(super) fn allocate(&mut self, inode: u64, path: &str, len: u64) -> io::Result<()> {
        self.whole_change(Operation::Allocate, path)?;
        let grows = len.saturating_sub(self.file(inode)?.taken());
        if self.capacity.is_some_and(|c| self.used_bytes().saturating_add(grows) > c) {
            return Err(Effect::NoSpace.error());
        }
        let file = self.file_mut(inode)?;
        file.reserved = file.reserved.max(len);
        self.record(Operation::Allocate, path, len, 0, true);
        self.answer()
    }

    pub(super) fn flip(&mut self, path: &str, at: u64, bit: u8) -> bool {
        let Some(file) = self.names.get(path).and_then(|inode| self.files.get_mut(inode)) else {
            return false;
        };
        let mut found = false;
        for bytes in [&mut file.durable, &mut file.current] {
            if let Some(byte) = bytes.get_mut(at as usize) {
                *byte ^= 1 << (bit & 7);
                found = true;
            }
        }
        found
    }

    pub(super) fn content(&self, path: &str) -> Option<Vec<u8>> {
        self.names.get(path).and_then(|inode| self.files.get(inode)).map(|file| file.current.clone())
    }

    pub(super) fn crash(&mut self, rng: &mut Rng) {
        let changes = std::mem::take(&mut self.unsynced_names);
        // Journals keep names in order, so mostly a prefix survives; now and then any of them.
        let prefix = rng.below(changes.len() as u64 + 1) as usize;
        let any = rng.one_in(4);
        for (place, change) in changes.iter().enumerate() {
            if if any { rng.one_in(2) } else { place < prefix } {
                self.make_durable(change);
            }
        }
        self.names = self.durable_names.clone();
        let named: BTreeSet<u64> = self.names.values().copied().collect();
        self.files.retain(|inode, _| named.contains(inode));
        self.files.values_mut().for_each(|file| file.crash(rng));
        self.begin_again();
    }

    pub(super) fn restart(&mut self) {
        // A name whose removal is not durable may come back with the next crash, so its file must still be there.
        let pending = self.unsynced_names.iter().filter_map(|change| match change {
            NameChange::Add(_, inode) | NameChange::Rename(_, _, inode) => Some(inode),
            NameChange::Remove(_) => None,
        });
        let names = self.names.values().chain(self.durable_names.values());
        let named: BTreeSet<u64> = names.chain(pending).copied().collect();
        self.files.retain(|inode, _| named.contains(inode));
        self.begin_again();
    }

    fn begin_again(&mut self) {
        self.epoch += 1;
        self.down = false;
        self.dies_at = None;
        self.faults.clear();
    }
}
