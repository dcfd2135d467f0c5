//! Reading off the store thread: index blocks, then bodies in few large reads, each checked.
//!
//! Danger: what this returns is delivered. A record counts only if the entry's local header names (group, index, term), or
//! the store file's header names (group, index, start) and (log, offset), and the record's own checksum fits.

use crate::block::{self, Located};
use crate::cache::Block;
use crate::directory::read_exact;
use crate::file::{BlockRef, DataKey, FileKey};
use crate::store_file;
use crate::types::{EntryKey, ReadError, Segments, StoredRecord};
use crate::{is_part_log, part_key, part_log};
use bytes::Bytes;
use longshore_io::{Disk, DiskFile, OpenMode};
use longshore_wire::record::Record;
use longshore_wire::row::{Row, Source};
use longshore_wire::{LogId, Offset, OffsetRange, ShardId};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

/// Bytes that nobody wants are read along if there are fewer between two wanted pieces.
const GAP_BYTES_MAX: u64 = 32 << 10;
/// Largest read of several pieces.
const READ_BYTES: u64 = 1 << 20;
/// In a batch, a part's checksum stands right before its bytes.
const PART_CRC_BYTES: u64 = 4;

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
    Rows { rows_max: usize },
    Records { parts: bool },
    Pieces,
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
    pub(crate) parts: Vec<(Source, Bytes)>,
    pub(crate) blocks: Vec<(FileKey, u32, Block)>,
    pub(crate) failed: Vec<ReadError>,
    /// Damaged blocks, to be let go of: file, log, offsets.
    pub(crate) bad_blocks: Vec<(FileKey, LogId, OffsetRange)>,
}

impl std::fmt::Debug for ReadDone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReadDone").field("id", &self.id).field("records", &self.records.len()).finish_non_exhaustive()
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

/// Reads records and sorts them into the answer and what was read ahead.
fn records(io: &Io, found: Vec<Found>, with_parts: bool, bytes_max: usize, done: &mut ReadDone) {
    let (pieces, mut wanted): (Vec<Found>, Vec<Found>) =
        found.into_iter().partition(|found| is_part_log(found.located.row.log));
    wanted.sort_by_key(|found| (found.ahead, found.located.row.log, found.located.row.offset));
    wanted.dedup_by_key(|found| (found.located.row.log, found.located.row.offset));
    let asked: BTreeSet<(LogId, Offset)> = wanted
        .iter()
        .filter(|found| !found.ahead)
        .map(|found| (found.located.row.log, found.located.row.offset))
        .collect();
    wanted.retain(|found| {
        let row = &found.located.row;
        !found.ahead || row.parts.is_empty() && !asked.contains(&(row.log, row.offset))
    });
    let mut bytes = 0;
    let mut any = false;
    wanted.retain(|found| {
        let row = &found.located.row;
        bytes += if with_parts { row.bytes() as usize } else { row.record.len as usize };
        let fits = !any || bytes <= bytes_max;
        any = true;
        fits
    });
    let needed: BTreeSet<(LogId, u64)> = match with_parts {
        false => BTreeSet::new(),
        true => wanted
            .iter()
            .flat_map(|found| {
                found.located.row.parts.iter().map(|part| (part_log(found.group), part_key(part)))
            })
            .collect(),
    };
    let ahead: BTreeSet<(LogId, u64)> = wanted
        .iter()
        .filter(|found| found.ahead)
        .map(|found| (found.located.row.log, found.located.row.offset.0))
        .collect();
    wanted.extend(pieces.into_iter().filter(|found| {
        needed.contains(&(found.located.row.log, found.located.row.offset.0))
    }));
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
        if with_parts {
            let log = part_log(group);
            let found: Option<Vec<Bytes>> =
                stored.row.parts.iter().map(|part| parts.get(&(log, part_key(part))).cloned()).collect();
            match found {
                Some(found) => stored.parts = found,
                None => {
                    let (log, offset) = (stored.row.log, stored.row.offset);
                    done.failed.push(ReadError::Corrupt { group, log, offset });
                    continue;
                }
            }
        }
        if ahead.contains(&(stored.row.log, stored.row.offset.0)) {
            done.ahead_bytes += stored.bytes();
            done.ahead.push(stored);
        } else {
            done.records.push(stored);
        }
    }
}

/// A piece of a file that is wanted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Extent {
    data: DataKey,
    start: u64,
    end: u64,
}

/// What must be in memory to check and return a row: its bytes with what stands right before them, and in a segment the
/// local header of its entry.
fn extents(found: &Found) -> (Extent, Option<Extent>) {
    let (located, data) = (&found.located, found.key.data());
    let end = located.position.saturating_add(u64::from(located.row.record.len));
    let head_start = located.position.saturating_sub(u64::from(located.head));
    match data {
        DataKey::Store(_) => (Extent { data, start: head_start, end }, None),
        DataKey::Segment(_) => {
            let before = if is_part_log(located.row.log) { PART_CRC_BYTES } else { 0 };
            let head_end = located.position.saturating_sub(u64::from(located.row.record.start)).max(head_start);
            let body = Extent { data, start: located.position.saturating_sub(before), end };
            (body, Some(Extent { data, start: head_start, end: head_end }))
        }
    }
}

/// Bytes of files, in few reads.
struct Buffers {
    read: BTreeMap<(DataKey, u64), Bytes>,
    failed: BTreeMap<(DataKey, u64), (String, io::ErrorKind, String)>,
    /// Where the read that covers each extent starts.
    covered_by: BTreeMap<Extent, u64>,
}

impl Buffers {
    fn fill(io: &Io, mut extents: Vec<Extent>) -> Buffers {
        extents.sort_unstable();
        extents.dedup();
        let mut buffers = Buffers { read: BTreeMap::new(), failed: BTreeMap::new(), covered_by: BTreeMap::new() };
        let mut open: Option<Extent> = None;
        let mut stores: BTreeMap<DataKey, Arc<dyn DiskFile>> = BTreeMap::new();
        for extent in extents {
            open = match open {
                Some(mut run)
                    if run.data == extent.data
                        && extent.start <= run.end.saturating_add(GAP_BYTES_MAX)
                        && (extent.end <= run.end || extent.end - run.start <= READ_BYTES) =>
                {
                    run.end = run.end.max(extent.end);
                    Some(run)
                }
                other => {
                    if let Some(run) = other {
                        buffers.read_run(io, &mut stores, run);
                    }
                    Some(extent)
                }
            };
            if let Some(run) = open {
                buffers.covered_by.insert(extent, run.start);
            }
        }
        if let Some(run) = open {
            buffers.read_run(io, &mut stores, run);
        }
        buffers
    }

    fn read_run(&mut self, io: &Io, stores: &mut BTreeMap<DataKey, Arc<dyn DiskFile>>, run: Extent) {
        let len = (run.end - run.start) as usize;
        let (file, bytes) = match run.data {
            DataKey::Segment(segment) => {
                (format!("segment {}", segment.0), io.segments.read(segment, run.start, len))
            }
            DataKey::Store(store) => {
                let path = io.path(FileKey::Store(store));
                let file = match stores.get(&run.data) {
                    Some(file) => Ok(file.clone()),
                    None => io.disk.open(&path, OpenMode::Read),
                };
                let bytes = file.and_then(|file| {
                    stores.insert(run.data, file.clone());
                    read_exact(&*file, run.start, len).map(Bytes::from)
                });
                (path, bytes)
            }
        };
        match bytes {
            Ok(bytes) => {
                self.read.insert((run.data, run.start), bytes);
            }
            Err(error) => {
                self.failed.insert((run.data, run.start), (file, error.kind(), error.to_string()));
            }
        }
    }

    fn get(&self, extent: &Extent) -> Result<Bytes, Option<ReadError>> {
        let start = *self.covered_by.get(extent).ok_or(None)?;
        if let Some((file, kind, text)) = self.failed.get(&(extent.data, start)) {
            // A file that ends too early is corrupt, not unreadable.
            if *kind == io::ErrorKind::UnexpectedEof {
                return Err(None);
            }
            let error = io::Error::new(*kind, text.clone());
            return Err(Some(ReadError::Io { file: file.clone(), error }));
        }
        let bytes = self.read.get(&(extent.data, start)).ok_or(None)?;
        let (from, to) = ((extent.start - start) as usize, (extent.end - start) as usize);
        if to <= bytes.len() { Ok(bytes.slice(from..to)) } else { Err(None) }
    }
}

/// Reads and checks the bytes of rows, in their order. What is not right goes to `failed`.
pub(crate) fn fetch(io: &Io, found: &[Found], failed: &mut Vec<ReadError>) -> Vec<(Row, Bytes, ShardId)> {
    let mut wanted = Vec::with_capacity(found.len());
    for found in found {
        let (body, head) = extents(found);
        wanted.push(body);
        wanted.extend(head);
    }
    let buffers = Buffers::fill(io, wanted);
    let mut headers: BTreeMap<Extent, bool> = BTreeMap::new();
    let mut result = Vec::with_capacity(found.len());
    for found in found {
        let row = &found.located.row;
        match checked(io, &buffers, &mut headers, found) {
            Ok(bytes) => result.push((row.clone(), bytes, found.group)),
            Err(Some(error)) => failed.push(error),
            Err(None) => {
                failed.push(ReadError::Corrupt { group: found.group, log: row.log, offset: row.offset });
            }
        }
    }
    result
}

/// The bytes of one row if everything about them is right. `Err(None)`: corrupt.
fn checked(
    io: &Io,
    buffers: &Buffers,
    headers: &mut BTreeMap<Extent, bool>,
    found: &Found,
) -> Result<Bytes, Option<ReadError>> {
    let (row, group) = (&found.located.row, found.group);
    let (body, head) = extents(found);
    let read = buffers.get(&body)?;
    let bytes = match (found.key.data(), head) {
        (DataKey::Segment(segment), Some(head)) => {
            let right = match headers.get(&head) {
                Some(right) => *right,
                None => {
                    let entry = EntryKey { group, index: row.record.index, term: found.located.term };
                    let right = io.segments.check(segment, &buffers.get(&head)?, &entry);
                    headers.insert(head, right);
                    right
                }
            };
            if !right {
                return Err(None);
            }
            if is_part_log(row.log) {
                let crc = read.first_chunk::<4>().map(|crc| u32::from_le_bytes(*crc));
                let bytes = read.slice(read.len().min(PART_CRC_BYTES as usize)..);
                if crc != Some(crc32c::crc32c(&bytes)) {
                    return Err(None);
                }
                bytes
            } else {
                read
            }
        }
        _ => {
            let head = (found.located.head as usize).min(read.len());
            if !store_file::check(&read[..head], &read[head..], group, row) {
                return Err(None);
            }
            read.slice(head..)
        }
    };
    if is_part_log(row.log) || is_record_of(&bytes, row) { Ok(bytes) } else { Err(None) }
}

/// Whether these bytes are a record that is stored in the row's log and takes as many offsets.
pub(crate) fn is_record_of(bytes: &Bytes, row: &Row) -> bool {
    bytes.len() == row.record.len as usize
        && Record::parse(bytes.clone()).is_ok_and(|record| {
            record.verify().is_ok() && record.count() == row.count && record.targets().any(|log| log == row.log)
        })
}
