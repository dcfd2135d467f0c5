//! Store files: live records copied together in (log, offset) order, and records fetched from peers.
//!
//! ```text
//! header (see directory), records, index at the end (see directory)
//! record: u32 crc of the header's rest, u32 crc of the bytes, u32 length, u32 group, u64 index, u32 start,
//!         u16 pointers, u8 version = 1, u8 0, then (u64 log, u64 offset) for each pointer, then the bytes
//! ```
//! A body that several logs share lies here once and names them all. (group, index, start) is where it lay in the Raft
//! entry: its identity on every replica. Danger: nothing in here counts before the manifest names the file.

use crate::block::Located;
use crate::directory::{self, Directory, IndexWriter};
use crate::file::FileKey;
use crate::manifest::create;
use crate::types::{RecordsError, StoreId};
use bytes::{BufMut, Bytes};
use longshore_io::{Disk, DiskFile};
use longshore_wire::row::{Row, Source};
use longshore_wire::{Index, LogId, Offset, ShardId, Term};
use std::collections::BTreeMap;
use std::io::IoSlice;
use std::sync::Arc;

const VERSION: u8 = 1;
const FIXED_BYTES: usize = 32;
const WRITE_BYTES: usize = 1 << 20;

/// What a body is called on every replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Identity {
    pub group: ShardId,
    pub index: Index,
    pub start: u32,
}

impl Identity {
    pub fn of(group: ShardId, source: &Source) -> Identity {
        Identity { group, index: source.index, start: source.start }
    }
}

fn local_header(id: Identity, pointers: &[(LogId, Offset)], bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(FIXED_BYTES + 16 * pointers.len());
    out.put_u32_le(0);
    out.put_u32_le(crc32c::crc32c(bytes));
    out.put_u32_le(bytes.len() as u32);
    out.put_u32_le(id.group.0);
    out.put_u64_le(id.index.0);
    out.put_u32_le(id.start);
    out.put_u16_le(pointers.len() as u16);
    out.put_u8(VERSION);
    out.put_u8(0);
    for (log, offset) in pointers {
        out.put_u64_le(log.0);
        out.put_u64_le(offset.0);
    }
    let crc = crc32c::crc32c(&out[4..]);
    out[..4].copy_from_slice(&crc.to_le_bytes());
    out
}

/// Whether `head` is the local header of `row` of `group`, and `bytes` are what it names.
pub(crate) fn check(head: &[u8], bytes: &[u8], group: ShardId, row: &Row) -> bool {
    let u32_at = |at: usize| head.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    let u64_at = |at: usize| head.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
    let whole = head.len() >= FIXED_BYTES
        && u32_at(0) == Some(crc32c::crc32c(&head[4..]))
        && u32_at(4) == Some(crc32c::crc32c(bytes))
        && u32_at(8) == Some(bytes.len() as u32);
    let same = u32_at(12) == Some(group.0)
        && u64_at(16) == Some(row.record.index.0)
        && u32_at(24) == Some(row.record.start)
        && bytes.len() == row.record.len as usize;
    let named = (FIXED_BYTES..head.len())
        .step_by(16)
        .any(|at| u64_at(at) == Some(row.log.0) && u64_at(at + 8) == Some(row.offset.0));
    whole && same && named
}

/// Writes one store file.
pub(crate) struct StoreWriter {
    file: Arc<dyn DiskFile>,
    path: String,
    written: u64,
    buffer: Vec<u8>,
    index: IndexWriter,
    /// Every pointer of the bodies that have more than one.
    pointers: BTreeMap<Identity, Vec<(LogId, Offset)>>,
    /// Where a shared body was put.
    placed: BTreeMap<Identity, (u64, u32)>,
}

impl StoreWriter {
    /// Begins a file for exactly these rows; they come in this order, which is by (log, offset).
    pub fn new<'a>(
        disk: &dyn Disk,
        dir: &str,
        store: StoreId,
        rows: impl Iterator<Item = (ShardId, &'a Row)>,
    ) -> Result<StoreWriter, RecordsError> {
        let key = FileKey::Store(store);
        let path = format!("{dir}/{}", key.name());
        let mut all: Vec<(Identity, LogId, Offset)> =
            rows.map(|(group, row)| (Identity::of(group, &row.record), row.log, row.offset)).collect();
        all.sort_unstable();
        let mut pointers: BTreeMap<Identity, Vec<(LogId, Offset)>> = BTreeMap::new();
        for same in all.chunk_by(|a, b| a.0 == b.0).filter(|same| same.len() > 1) {
            pointers.insert(same[0].0, same.iter().map(|(_, log, offset)| (*log, *offset)).collect());
        }
        Ok(StoreWriter {
            file: create(disk, &path)?,
            path,
            written: 0,
            buffer: directory::header(key),
            index: IndexWriter::default(),
            pointers,
            placed: BTreeMap::new(),
        })
    }

    /// Adds a row. Its bytes are written unless another log that shares them came before.
    pub fn push(&mut self, group: ShardId, row: Row, bytes: &Bytes) -> Result<(), RecordsError> {
        let id = Identity::of(group, &row.record);
        let (position, head) = match self.placed.get(&id) {
            Some(placed) => *placed,
            None => {
                let alone = [(row.log, row.offset)];
                let shared = self.pointers.get(&id);
                let header = local_header(id, shared.map_or(&alone[..], Vec::as_slice), bytes);
                let position = self.written + (self.buffer.len() + header.len()) as u64;
                let placed = (position, header.len() as u32);
                if shared.is_some() {
                    self.placed.insert(id, placed);
                }
                self.buffer.extend(header);
                if self.buffer.len() + bytes.len() > WRITE_BYTES {
                    self.write(bytes)?;
                } else {
                    self.buffer.extend_from_slice(bytes);
                }
                placed
            }
        };
        self.index.push(group, Located { row, term: Term(0), position, head });
        Ok(())
    }

    fn write(&mut self, more: &[u8]) -> Result<(), RecordsError> {
        let failed = |error| RecordsError::Io { what: "write", file: self.path.clone(), error };
        let slices = [IoSlice::new(&self.buffer), IoSlice::new(more)];
        self.file.write_at(&slices, self.written).map_err(failed)?;
        self.written += (self.buffer.len() + more.len()) as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Writes the index and syncs. The name is durable only after the directory is synced.
    pub fn finish(mut self) -> Result<(Directory, u64), RecordsError> {
        let base = self.written + self.buffer.len() as u64;
        let (bytes, directory) = std::mem::take(&mut self.index).finish(base);
        self.write(&bytes)?;
        self.file.sync_data().map_err(|error| RecordsError::Io {
            what: "sync",
            file: self.path.clone(),
            error,
        })?;
        Ok((directory, self.written))
    }
}
