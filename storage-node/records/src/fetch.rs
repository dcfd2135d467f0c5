//! The bytes of rows: in few large reads, each row checked.
//!
//! Danger: what this returns is delivered, copied, and sent to other replicas. A record counts only if the entry's local
//! header names (group, index, term), or the store file's header names (group, index, start) and (log, offset), if it says
//! that it belongs into the row's log, and if its own checksum fits. Called by read tasks and by rewriting.

use crate::directory::read_exact;
use crate::file::DataKey;
use crate::is_part_log;
use crate::read::{Found, Io};
use crate::store_file;
use crate::types::{EntryKey, ReadError};
use bytes::Bytes;
use longshore_io::{DiskFile, OpenMode};
use longshore_wire::ShardId;
use longshore_wire::record::Record;
use longshore_wire::row::Row;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

/// Bytes that nobody wants are read along if there are fewer between two wanted pieces.
const GAP_BYTES_MAX: u64 = 32 << 10;
/// Largest read of several pieces.
const READ_BYTES: u64 = 1 << 20;
/// In a batch, a part's checksum stands right before its bytes.
const PART_CRC_BYTES: u64 = 4;

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
            let head_end =
                located.position.saturating_sub(u64::from(located.row.record.start)).max(head_start);
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
        let mut buffers =
            Buffers { read: BTreeMap::new(), failed: BTreeMap::new(), covered_by: BTreeMap::new() };
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
        let name = io.data_name(run.data);
        let bytes = match run.data {
            DataKey::Segment(segment) => io.segments.read(segment, run.start, len),
            DataKey::Store(_) => {
                let file = match stores.get(&run.data) {
                    Some(file) => Ok(file.clone()),
                    None => io.disk.open(&name, OpenMode::Read),
                };
                file.and_then(|file| {
                    stores.insert(run.data, file.clone());
                    read_exact(&*file, run.start, len).map(Bytes::from)
                })
            }
        };
        match bytes {
            Ok(bytes) => {
                self.read.insert((run.data, run.start), bytes);
            }
            Err(error) => {
                self.failed.insert((run.data, run.start), (name, error.kind(), error.to_string()));
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
            record.verify().is_ok()
                && record.count() == row.count
                && record.targets().any(|log| log == row.log)
        })
}
