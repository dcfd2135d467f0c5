//! Reading off the store thread: the rows that are wanted, from index blocks, then their bytes.
//!
//! Danger: what this returns is delivered; see [`crate::fetch`] for what is checked. A task keeps the files that it reads
//! by holding their guards.

use crate::block::{self, Located};
use crate::cache::Block;
use crate::directory::read_exact;
use crate::fetch::fetch;
use crate::file::{BlockRef, DataKey, FileKey};
use crate::types::{ReadError, Segments, StoredRecord};
use crate::{is_part_log, part_key, part_log};
use bytes::Bytes;
use longshore_io::{Disk, DiskFile, OpenMode};
use longshore_wire::row::{Row, Source};
use longshore_wire::{LogId, Offset, OffsetRange, ShardId};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

/// What every task needs.
pub(crate) struct Io {
    pub disk: Arc<dyn Disk>,
    pub segments: Arc<dyn Segments>,
    pub dir: String,
}

impl Io {
    pub fn path(&self, key: FileKey) -> String {
        format!("{}/{}", self.dir, key.name())
    }

    /// What errors call the file that holds the records.
    pub fn data_name(&self, data: DataKey) -> String {
        match data {
            DataKey::Segment(segment) => format!("segment {}", segment.0),
            DataKey::Store(store) => self.path(FileKey::Store(store)),
        }
    }
}

/// Blocks of one section, or rows that are known.
pub(crate) enum WantRows {
    Known(Vec<Located>),
    /// Number, place, last offset that it may name, and the block if it is in the cache.
    Blocks(Vec<(u32, BlockRef, u64, Option<Block>)>),
}

/// What is wanted from one section.
pub(crate) struct Want {
    pub key: FileKey,
    pub group: ShardId,
    pub log: LogId,
    /// Offsets that are wanted, ascending.
    pub ranges: Vec<OffsetRange>,
    pub rows: WantRows,
    /// Read ahead: only after everything else, and not part of the answer.
    pub ahead: bool,
}

/// A row that was found, and for whom.
pub(crate) struct Found {
    pub key: FileKey,
    pub group: ShardId,
    pub located: Located,
    pub ahead: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Rows {
        rows_max: usize,
    },
    Records {
        parts: bool,
    },
    Pieces,
    /// Pieces that no record names yet, as records.
    Alone,
}

/// A read of the disk: run it on a thread that may block, and give the result to [`crate::Records::read_done`].
pub struct ReadTask {
    pub(crate) id: u64,
    pub(crate) io: Arc<Io>,
    pub(crate) kind: Kind,
    pub(crate) bytes_max: usize,
    pub(crate) wants: Vec<Want>,
    /// Keep the files that are read.
    pub(crate) guards: Vec<Arc<()>>,
}

impl std::fmt::Debug for ReadTask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReadTask").field("id", &self.id).field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// A finished read.
#[derive(Default)]
pub struct ReadDone {
    pub(crate) id: u64,
    pub(crate) rows: Vec<Row>,
    pub(crate) records: Vec<StoredRecord>,
    pub(crate) ahead: Vec<StoredRecord>,
    pub(crate) ahead_bytes: usize,
    /// The logs that were read ahead, also those for which nothing was found.
    pub(crate) ahead_logs: Vec<LogId>,
    pub(crate) parts: Vec<(Source, Bytes)>,
    pub(crate) blocks: Vec<(FileKey, u32, Block)>,
    pub(crate) failed: Vec<ReadError>,
    /// Damaged blocks, to be let go of: file, log, offsets.
    pub(crate) bad_blocks: Vec<(FileKey, LogId, OffsetRange)>,
}

impl std::fmt::Debug for ReadDone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReadDone")
            .field("id", &self.id)
            .field("records", &self.records.len())
            .finish_non_exhaustive()
    }
}

impl ReadDone {
    /// The number of the task that this is the result of.
    pub fn id(&self) -> u64 {
        self.id
    }
}

impl ReadTask {
    /// The task's number: comes back in [`crate::Answer::id`].
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Reads. Blocks. The files are kept until this returns.
    pub fn run(self) -> ReadDone {
        let mut done = ReadDone { id: self.id, ..ReadDone::default() };
        done.ahead_logs.extend(self.wants.iter().filter(|want| want.ahead).map(|want| want.log));
        let mut found = resolve(&self.io, self.wants, &mut done);
        match self.kind {
            Kind::Rows { rows_max } => {
                found.sort_by_key(|found| found.located.row.offset);
                found.dedup_by_key(|found| found.located.row.offset);
                done.rows = found.into_iter().take(rows_max).map(|found| found.located.row).collect();
            }
            Kind::Pieces => {
                for (row, bytes, _) in fetch(&self.io, &found, &mut done.failed) {
                    done.parts.push((row.record, bytes));
                }
            }
            Kind::Alone => alone(&self.io, found, self.bytes_max, &mut done),
            Kind::Records { parts } => records(&self.io, found, parts, self.bytes_max, &mut done),
        }
        drop(self.guards);
        done
    }
}

/// Finds the rows that are wanted.
pub(crate) fn resolve(io: &Io, wants: Vec<Want>, done: &mut ReadDone) -> Vec<Found> {
    let mut files: BTreeMap<FileKey, Arc<dyn DiskFile>> = BTreeMap::new();
    let mut decoded: BTreeMap<(FileKey, u32), Block> = BTreeMap::new();
    let mut found = Vec::new();
    for want in wants {
        let mut take = |located: &Located| {
            let row = &located.row;
            let at = want.ranges.partition_point(|range| range.last < row.offset);
            if want.ranges.get(at).is_some_and(|range| range.first < row.end()) {
                let (key, group, ahead) = (want.key, want.group, want.ahead);
                found.push(Found { key, group, located: located.clone(), ahead });
            }
        };
        let blocks = match want.rows {
            WantRows::Known(rows) => {
                rows.iter().for_each(take);
                continue;
            }
            WantRows::Blocks(blocks) => blocks,
        };
        for (number, at, last, cached) in blocks {
            let known = cached.or_else(|| decoded.get(&(want.key, number)).cloned());
            let block = match known {
                Some(block) => block,
                None => match read_block(io, &mut files, want.key, want.log, &at) {
                    Ok(rows) => {
                        let block = Arc::new(rows);
                        done.blocks.push((want.key, number, block.clone()));
                        decoded.insert((want.key, number), block.clone());
                        block
                    }
                    Err(Some(error)) => {
                        done.failed.push(ReadError::Io { file: io.path(want.key), error });
                        continue;
                    }
                    Err(None) => {
                        let range = OffsetRange { first: Offset(at.first), last: Offset(last) };
                        done.bad_blocks.push((want.key, want.log, range));
                        done.failed.push(ReadError::CorruptIndex { group: want.group, log: want.log, range });
                        continue;
                    }
                },
            };
            block.iter().for_each(&mut take);
        }
    }
    found
}

/// The rows of a block. `Err(None)`: damaged.
fn read_block(
    io: &Io,
    files: &mut BTreeMap<FileKey, Arc<dyn DiskFile>>,
    key: FileKey,
    log: LogId,
    at: &BlockRef,
) -> Result<Vec<Located>, Option<io::Error>> {
    let file = match files.get(&key) {
        Some(file) => file.clone(),
        None => {
            let file = io.disk.open(&io.path(key), OpenMode::Read).map_err(Some)?;
            files.insert(key, file.clone());
            file
        }
    };
    match read_exact(&*file, at.position, at.len as usize) {
        Ok(bytes) => block::decode(log, &bytes).map_err(|_| None),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(None),
        Err(error) => Err(Some(error)),
    }
}

/// Orders what was found, records that were asked for first. Drops duplicates and what may not be read ahead, and keeps as
/// much as fits into `bytes_max`, but always the first one.
fn choose(mut wanted: Vec<Found>, with_parts: bool, bytes_max: usize) -> Vec<Found> {
    wanted.sort_by_key(|found| (found.ahead, found.located.row.log, found.located.row.offset));
    wanted.dedup_by_key(|found| (found.located.row.log, found.located.row.offset));
    let asked: BTreeSet<(LogId, Offset)> = wanted
        .iter()
        .filter(|found| !found.ahead)
        .map(|found| (found.located.row.log, found.located.row.offset))
        .collect();
    let mut bytes = 0;
    let mut any = false;
    wanted.retain(|found| {
        let row = &found.located.row;
        if found.ahead && (!row.parts.is_empty() || asked.contains(&(row.log, row.offset))) {
            return false;
        }
        bytes += if with_parts { row.bytes() as usize } else { row.record.len as usize };
        let fits = !any || bytes <= bytes_max;
        any = true;
        fits
    });
    wanted
}

/// Reads pieces of uploads that have no end yet, as records of their pseudo log.
fn alone(io: &Io, found: Vec<Found>, bytes_max: usize, done: &mut ReadDone) {
    let wanted = choose(found, false, bytes_max);
    for (row, record, _) in fetch(io, &wanted, &mut done.failed) {
        done.records.push(StoredRecord { row, record, parts: Vec::new() });
    }
}

/// Reads records, with their pieces if they are wanted, and sorts them into the answer and what was read ahead.
fn records(io: &Io, found: Vec<Found>, with_parts: bool, bytes_max: usize, done: &mut ReadDone) {
    let (pieces, records): (Vec<Found>, Vec<Found>) =
        found.into_iter().partition(|found| is_part_log(found.located.row.log));
    let mut wanted = choose(records, with_parts, bytes_max);
    let mut needed: BTreeSet<(LogId, u64)> = BTreeSet::new();
    let mut ahead: BTreeSet<(LogId, Offset)> = BTreeSet::new();
    for found in &wanted {
        let row = &found.located.row;
        if with_parts {
            needed.extend(row.parts.iter().map(|part| (part_log(found.group), part_key(part))));
        }
        if found.ahead {
            ahead.insert((row.log, row.offset));
        }
    }
    let key = |found: &Found| (found.located.row.log, found.located.row.offset.0);
    wanted.extend(pieces.into_iter().filter(|found| needed.contains(&key(found))));
    let mut parts: BTreeMap<(LogId, u64), Bytes> = BTreeMap::new();
    let mut whole = Vec::new();
    for (row, bytes, group) in fetch(io, &wanted, &mut done.failed) {
        if is_part_log(row.log) {
            parts.insert((row.log, row.offset.0), bytes);
        } else {
            whole.push((row, bytes, group));
        }
    }
    for (row, record, group) in whole {
        let mut stored = StoredRecord { row, record, parts: Vec::new() };
        let (log, offset) = (stored.row.log, stored.row.offset);
        if with_parts {
            let piece = |part: &Source| parts.get(&(part_log(group), part_key(part))).cloned();
            match stored.row.parts.iter().map(piece).collect() {
                Some(found) => stored.parts = found,
                None => {
                    done.failed.push(ReadError::Corrupt { group, log, offset });
                    continue;
                }
            }
        }
        if ahead.contains(&(log, offset)) {
            done.ahead_bytes += stored.bytes();
            done.ahead.push(stored);
        } else {
            done.records.push(stored);
        }
    }
}
