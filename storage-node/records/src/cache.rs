//! Two bounded caches: decoded index blocks, and records that were read ahead of a sequential reader.

use crate::block::{LOCATED_BYTES, Located};
use crate::file::FileKey;
use crate::types::StoredRecord;
use longshore_wire::{LogId, Offset};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// A decoded block, shared with the tasks that use it.
pub(crate) type Block = Arc<Vec<Located>>;

/// Decoded index blocks; the least recently used goes first.
#[derive(Debug)]
pub(crate) struct BlockCache {
    bytes_max: usize,
    bytes: usize,
    used: u64,
    blocks: BTreeMap<(FileKey, u32), (Block, u64)>,
}

fn block_bytes(block: &Block) -> usize {
    block.iter().map(|located| LOCATED_BYTES + 16 * located.row.parts.len()).sum()
}

impl BlockCache {
    pub fn new(bytes_max: usize) -> BlockCache {
        BlockCache { bytes_max, bytes: 0, used: 0, blocks: BTreeMap::new() }
    }

    pub fn get(&mut self, key: FileKey, number: u32) -> Option<Block> {
        let (block, used) = self.blocks.get_mut(&(key, number))?;
        self.used += 1;
        *used = self.used;
        Some(block.clone())
    }

    pub fn put(&mut self, key: FileKey, number: u32, block: Block) {
        self.used += 1;
        self.bytes += block_bytes(&block);
        if let Some((old, _)) = self.blocks.insert((key, number), (block, self.used)) {
            self.bytes -= block_bytes(&old);
        }
        while self.bytes > self.bytes_max {
            // A few hundred blocks: looking at each is cheaper than keeping them in order.
            let Some(oldest) = self.blocks.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| *key)
            else {
                return;
            };
            self.remove(oldest);
        }
    }

    fn remove(&mut self, key: (FileKey, u32)) {
        if let Some((block, _)) = self.blocks.remove(&key) {
            self.bytes -= block_bytes(&block);
        }
    }

    /// Forgets the blocks of a file that is gone.
    pub fn forget(&mut self, file: FileKey) {
        let keys: Vec<_> = self.blocks.range((file, 0)..=(file, u32::MAX)).map(|(key, _)| *key).collect();
        keys.into_iter().for_each(|key| self.remove(key));
    }
}

#[derive(Debug)]
struct Chunk {
    number: u64,
    log: LogId,
    records: Vec<StoredRecord>,
    bytes: usize,
}

/// Records read ahead; the oldest go first, and a chunk goes when its last record was taken.
#[derive(Debug)]
pub(crate) struct AheadCache {
    bytes_max: usize,
    bytes: usize,
    next: u64,
    chunks: VecDeque<Chunk>,
    by_first: BTreeMap<(LogId, u64), u64>,
}

impl AheadCache {
    pub fn new(bytes_max: usize) -> AheadCache {
        AheadCache { bytes_max, bytes: 0, next: 0, chunks: VecDeque::new(), by_first: BTreeMap::new() }
    }

    /// Takes records of one log, ascending; `bytes` is what they pin.
    pub fn put(&mut self, records: Vec<StoredRecord>, bytes: usize) {
        let Some(first) = records.first() else { return };
        let (log, offset) = (first.row.log, first.row.offset.0);
        let bytes = bytes + records.len() * size_of::<StoredRecord>();
        let number = self.next;
        self.next += 1;
        if let Some(old) = self.by_first.insert((log, offset), number) {
            self.drop_chunk(old);
        }
        self.bytes += bytes;
        self.chunks.push_back(Chunk { number, log, records, bytes });
        while self.bytes > self.bytes_max {
            let Some(oldest) = self.chunks.front().map(|chunk| chunk.number) else { return };
            self.drop_chunk(oldest);
        }
    }

    fn drop_chunk(&mut self, number: u64) {
        let Ok(at) = self.chunks.binary_search_by_key(&number, |chunk| chunk.number) else { return };
        let Some(chunk) = self.chunks.remove(at) else { return };
        self.bytes -= chunk.bytes;
        if let Some(first) = chunk.records.first() {
            let key = (chunk.log, first.row.offset.0);
            if self.by_first.get(&key) == Some(&number) {
                self.by_first.remove(&key);
            }
        }
    }

    /// The record that holds `offset`.
    pub fn get(&mut self, log: LogId, offset: Offset) -> Option<StoredRecord> {
        let (_, number) = self.by_first.range((log, 0)..=(log, offset.0)).next_back()?;
        let number = *number;
        let at = self.chunks.binary_search_by_key(&number, |chunk| chunk.number).ok()?;
        let records = &self.chunks.get(at)?.records;
        let at = records.partition_point(|record| record.row.offset <= offset).checked_sub(1)?;
        let record = records.get(at).filter(|record| offset < record.row.end())?.clone();
        if at + 1 == records.len() && offset.plus(1) >= record.row.end() {
            self.drop_chunk(number);
        }
        Some(record)
    }
}
