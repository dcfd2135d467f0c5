//! Reading old entries off the store thread.
//!
//! Danger: what is read is checked against checksum, group, index and term; a mismatch is corruption and never given
//! out. Tasks are made by [`crate::NodeLog`] on the store thread and run anywhere.

use crate::format::{self, Body, RECORD_HEADER_BYTES, Record};
use crate::segment::SegmentPin;
use crate::types::{Entry, Place, ReadError, SegmentEntry};
use crate::writer::{Effect, Written};
use longshore_wire::{Index, ShardId, Term};

/// One entry to read.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) pin: SegmentPin,
    pub(crate) index: Index,
    pub(crate) term: Term,
    pub(crate) place: Place,
}

/// Reads entries that are no longer in memory; made by [`crate::NodeLog::entries`], run on any thread (blocking).
#[derive(Debug)]
pub struct ReadTask {
    pub(crate) group: ShardId,
    pub(crate) low: Index,
    pub(crate) wanted: Vec<Wanted>,
}

/// What a [`ReadTask`] found.
#[derive(Debug)]
pub struct ReadDone {
    /// The group.
    pub group: ShardId,
    /// The first index asked for.
    pub low: Index,
    /// The entries from `low` on without gaps, at least one.
    pub entries: Result<Vec<Entry>, ReadError>,
}

impl ReadTask {
    /// Reads; blocking.
    pub fn run(self) -> ReadDone {
        let entries = self.wanted.iter().map(|wanted| read_one(self.group, wanted)).collect();
        ReadDone { group: self.group, low: self.low, entries }
    }
}

fn read_one(group: ShardId, wanted: &Wanted) -> Result<Entry, ReadError> {
    let Place { segment, header_position, context_len, data_len } = wanted.place;
    let position = u64::from(header_position);
    let len = RECORD_HEADER_BYTES + usize::from(context_len) + data_len as usize;
    let bytes = wanted.pin.read(position, len)?;
    match Record::decode(&bytes, wanted.pin.segment().seed, position) {
        Some(Record { group: found, body: Body::Entry(entry) })
            if (found, entry.index, entry.term) == (group, wanted.index, wanted.term) =>
        {
            Ok(entry)
        }
        _ => Err(ReadError::Corrupt { segment, position }),
    }
}

/// Lists the entries of a sealed segment; blocking, run on any thread.
#[derive(Debug)]
pub struct ScanTask {
    pub(crate) pin: SegmentPin,
    /// The number after its last batch; 0 if it is not known (the manifest was lost).
    pub(crate) end_sequence: u64,
}

impl ScanTask {
    /// All entries in the order of writing, overwritten ones too. Every checksum was verified.
    ///
    /// Errors: [`ReadError::Corrupt`] where a batch is not whole, [`ReadError::Io`].
    pub fn run(self) -> Result<Vec<SegmentEntry>, ReadError> {
        let segment = self.pin.segment();
        let bytes = segment.read_all().map_err(|source| ReadError::Io { segment: segment.id, source })?;
        let mut entries = Vec::new();
        let mut position = format::FIRST_POSITION;
        let mut done = false;
        while !done {
            let corrupt = ReadError::Corrupt { segment: segment.id, position };
            let Some(header) = format::BatchHeader::decode(&bytes, segment.seed, position) else {
                return if self.end_sequence == 0 { Ok(entries) } else { Err(corrupt) };
            };
            let Some(records) = format::decode_body(&bytes, segment.seed, position, &header) else {
                return Err(corrupt);
            };
            for (at, record) in records {
                if let Effect::Entry { index, term, place } = Written::of(&record, 0, segment.id, at).effect {
                    entries.push(SegmentEntry { group: record.group, index, term, place });
                }
            }
            position += header.total_bytes();
            done = header.sequence + 1 == self.end_sequence;
        }
        Ok(entries)
    }
}
