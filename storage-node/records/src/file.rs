//! What memory holds of one file: its sections (one per log) and where their rows are.
//!
//! A file is one part of a segment's index, or a store file. While its rows are not on disk yet they are kept here, encoded
//! ([`PendingRows`]). Danger: `Section::live` is what removal is decided by; it is only changed together with the log's dead set.

use crate::block::{self, BLOCK_ROWS_MAX, Located};
use crate::set::OffsetSet;
use crate::types::{SegmentId, StoreId};
use longshore_wire::{LogId, ShardId};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// Rows that are kept decoded before they become a block in memory.
const PENDING_BLOCK_ROWS: usize = 32;

/// The file whose bytes a position counts in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum DataKey {
    Segment(SegmentId),
    Store(StoreId),
}

/// An index: a part of a segment's, or the one at the end of a store file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum FileKey {
    Segment(SegmentId, u32),
    Store(StoreId),
}

impl FileKey {
    /// The file that the rows' positions count in.
    pub fn data(self) -> DataKey {
        match self {
            FileKey::Segment(segment, _) => DataKey::Segment(segment),
            FileKey::Store(store) => DataKey::Store(store),
        }
    }

    /// The name of the file that holds the index, without directory.
    pub fn name(self) -> String {
        match self {
            FileKey::Segment(segment, part) => format!("{:016x}-{part:08x}.index", segment.0),
            FileKey::Store(store) => format!("{:016x}.store", store.0),
        }
    }

    /// The inverse of [`FileKey::name`].
    pub fn parse(name: &str) -> Option<FileKey> {
        let hex = |text: &str| u64::from_str_radix(text, 16).ok();
        if let Some(stem) = name.strip_suffix(".index") {
            let (segment, part) = stem.split_once('-')?;
            return Some(FileKey::Segment(SegmentId(hex(segment)?), u32::from_str_radix(part, 16).ok()?));
        }
        Some(FileKey::Store(StoreId(hex(name.strip_suffix(".store")?)?)))
    }
}

/// Where one block lies in its index file, and the first offset in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockRef {
    pub first: u64,
    pub position: u64,
    pub len: u32,
    /// Whether a row in it has parts.
    pub parts: bool,
}

/// The rows of one log in one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Section {
    pub group: ShardId,
    pub log: LogId,
    /// First offset held.
    pub first: u64,
    /// Last offset held.
    pub last: u64,
    /// Bytes of the records that the rows point to.
    pub bytes: u64,
    /// Highest Raft index of a row.
    pub index_last: u64,
    /// Which offsets are held; `None`: every one from first to last.
    pub held: Option<OffsetSet>,
    /// How many held offsets something needs.
    pub live: u64,
    /// Its blocks among the file's.
    pub blocks: Range<u32>,
}

impl Section {
    /// A section that so far has one row.
    pub fn begin(group: ShardId, located: &Located, block: u32) -> Section {
        let row = &located.row;
        Section {
            group,
            log: row.log,
            first: row.offset.0,
            last: row.end().0 - 1,
            bytes: u64::from(row.record.len),
            index_last: row.record.index.0,
            held: None,
            live: u64::from(row.count),
            blocks: block..block,
        }
    }

    /// Takes one more row, above all that it has.
    pub fn extend(&mut self, located: &Located) {
        let row = &located.row;
        let (first, last) = (row.offset.0, row.end().0 - 1);
        if first != self.last + 1 && self.held.is_none() {
            let mut held = OffsetSet::default();
            held.insert(self.first, self.last, &mut |_, _| {});
            self.held = Some(held);
        }
        if let Some(held) = &mut self.held {
            held.insert(first, last, &mut |_, _| {});
        }
        self.last = last;
        self.bytes += u64::from(row.record.len);
        self.index_last = self.index_last.max(row.record.index.0);
        self.live += u64::from(row.count);
    }

    /// How many offsets it holds.
    pub fn held_count(&self) -> u64 {
        self.held.as_ref().map_or_else(|| (self.last + 1).saturating_sub(self.first), OffsetSet::len)
    }

    /// How many offsets of [first, last] it holds.
    pub fn held_in(&self, first: u64, last: u64) -> u64 {
        let (first, last) = (first.max(self.first), last.min(self.last));
        match &self.held {
            _ if first > last => 0,
            None => last - first + 1,
            Some(held) => held.count(first, last),
        }
    }

    /// The first offset at or above `from` that it holds.
    pub fn next_held(&self, from: u64) -> Option<u64> {
        let from = from.max(self.first);
        match &self.held {
            _ if from > self.last => None,
            None => Some(from),
            Some(held) => held.next(from).filter(|at| *at <= self.last),
        }
    }

    /// Calls `run` for the runs that it holds within [first, last].
    pub fn held_runs(&self, first: u64, last: u64, run: &mut dyn FnMut(u64, u64)) {
        let (first, last) = (first.max(self.first), last.min(self.last));
        match &self.held {
            _ if first > last => {}
            None => run(first, last),
            Some(held) => held.runs(first, last, run),
        }
    }

    /// Lets go of [first, last]: damaged, or held elsewhere now. `live` is set anew by the caller.
    pub fn let_go(&mut self, first: u64, last: u64) {
        let (low, high) = (self.first, self.last);
        let held = self.held.get_or_insert_with(|| {
            let mut all = OffsetSet::default();
            all.insert(low, high, &mut |_, _| {});
            all
        });
        held.remove(first, last);
    }

    /// Live bytes, estimated by the share of live pointers.
    pub fn live_bytes(&self) -> u64 {
        let held = self.held_count().max(1);
        (u128::from(self.bytes) * u128::from(self.live.min(held)) / u128::from(held)) as u64
    }
}

/// Rows of one log that no index file has yet: encoded in small blocks, the last few decoded.
#[derive(Clone, Debug, Default)]
pub(crate) struct PendingRows {
    encoded: Vec<u8>,
    /// First offset and start of each encoded block.
    starts: Vec<(u64, u32)>,
    recent: Vec<Located>,
}

impl PendingRows {
    /// Adds a row above all that are here.
    pub fn push(&mut self, located: Located) {
        self.recent.push(located);
        if self.recent.len() >= PENDING_BLOCK_ROWS {
            self.starts.push((self.recent[0].row.offset.0, self.encoded.len() as u32));
            self.encoded.extend(block::encode(&self.recent));
            self.recent.clear();
        }
    }

    /// All rows in order, block by block.
    pub fn each(&self, log: LogId, take: &mut dyn FnMut(Located)) {
        for (i, (_, start)) in self.starts.iter().enumerate() {
            let end = self.starts.get(i + 1).map_or(self.encoded.len(), |(_, next)| *next as usize);
            let bytes = &self.encoded[*start as usize..end];
            block::decode(log, bytes).unwrap_or_default().into_iter().for_each(&mut *take);
        }
        self.recent.iter().cloned().for_each(take);
    }

    /// The rows that reach to `from` or above, in order, at least `rows_min` of them if there are as many.
    pub fn read(&self, log: LogId, from: u64, rows_min: usize) -> Vec<Located> {
        let start = self.starts.partition_point(|(first, _)| *first <= from).saturating_sub(1);
        let mut rows = Vec::new();
        for i in start..self.starts.len() {
            if rows.len() >= rows_min {
                return rows;
            }
            let end = self.starts.get(i + 1).map_or(self.encoded.len(), |(_, next)| *next as usize);
            let bytes = &self.encoded[self.starts[i].1 as usize..end];
            // Written by this process a moment ago: a block that does not decode would be a bug of the codec.
            let block = block::decode(log, bytes).unwrap_or_default();
            rows.extend(block.into_iter().filter(|located| located.row.end().0 > from));
        }
        rows.extend(self.recent.iter().filter(|located| located.row.end().0 > from).cloned());
        rows
    }
}

/// Where a file's rows are.
#[derive(Debug)]
pub(crate) enum Content {
    /// In memory, shared with the job that writes them. One [`PendingRows`] per section.
    Pending { rows: Arc<Vec<PendingRows>>, by_log: BTreeMap<LogId, u32> },
    /// In the index file.
    Written(Vec<BlockRef>),
}

/// What memory holds of one file.
#[derive(Debug)]
pub(crate) struct FileState {
    pub sections: Vec<Section>,
    pub content: Content,
    /// Bytes on disk that removing the file frees (0 for a segment's index: the segment counts itself).
    pub bytes: u64,
}

impl FileState {
    /// A file whose rows are still to come.
    pub fn pending() -> FileState {
        let content = Content::Pending { rows: Arc::default(), by_log: BTreeMap::new() };
        FileState { sections: Vec::new(), content, bytes: 0 }
    }

    /// How many live pointers lead into it.
    pub fn live(&self) -> u64 {
        self.sections.iter().map(|section| section.live).sum()
    }

    /// Live bytes, estimated.
    pub fn live_bytes(&self) -> u64 {
        self.sections.iter().map(Section::live_bytes).sum()
    }

    /// The numbers of the blocks of a section that may have offsets in [first, last].
    pub fn blocks_of(&self, section: &Section, first: u64, last: u64) -> Range<u32> {
        let Content::Written(blocks) = &self.content else { return 0..0 };
        let range = section.blocks.start as usize..section.blocks.end as usize;
        let Some(of_section) = blocks.get(range) else { return 0..0 };
        let from = of_section.partition_point(|block| block.first <= first).saturating_sub(1);
        let to = of_section.partition_point(|block| block.first <= last).max(from);
        section.blocks.start + from as u32..section.blocks.start + to as u32
    }
}

/// Splits rows into blocks of legal size.
pub(crate) fn block_is_full(rows: &[Located], next: &Located) -> bool {
    let parts: usize = rows.iter().map(|located| located.row.parts.len()).sum();
    rows.len() >= BLOCK_ROWS_MAX || parts + next.row.parts.len() > block::BLOCK_PARTS_MAX
}
