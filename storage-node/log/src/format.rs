//! Bytes of a segment: file header, batch header, records.
//!
//! Duty: write and recognise them. Danger: a byte string that is taken for a batch *is* history. Every checksum is
//! seeded with the log's random salt, the segment's generation and the position, so that neither old bytes in a recycled
//! file, nor a block that landed elsewhere, nor a client's body validates. Called by the writer, recovery and readers.
//!
//! ```text
//! segment  0 magic u32, 4 crc u32 of the rest, 8 version u32, 12 reserved u32, 16 generation u64, 24 salt [16], 40 bytes u64
//!          4096 batches, each from a multiple of 8, zeros between
//! batch    0 magic u32, 4 crc u32 of the rest of the header, 8 sequence u64, 16 body bytes u32,
//!          20 groups u16, 22 groups of the batch before u16 (65535: too many to list), 24 u32 each; records
//! record   0 crc u32 of the rest, context and data, 4 kind u8, 5 entry kind u8, 6 context bytes u16, 8 data bytes u32,
//!          12 group u32, 16 index u64, 24 term u64, 32 vote u64; 40 context, data
//! ```
//! All integers are little-endian. Batches of a log are numbered without gaps; one is written only after the one
//! before it was synced.

use crate::types::{Entry, HardState, SegmentId};
use bytes::{BufMut, Bytes};
use longshore_wire::{Index, Reader, ReplicaId, ShardId, Term};

/// Version of everything under `log/`.
pub const VERSION: u32 = 1;
/// Where the first batch of a segment begins, in bytes.
pub const FIRST_POSITION: u64 = 4096;
/// Bytes of a batch header without its lists.
pub const BATCH_HEADER_BYTES: usize = 24;
/// Bytes of the local header before an entry's context.
pub const RECORD_HEADER_BYTES: usize = 40;
/// Batches begin at multiples of this, in bytes.
pub const BATCH_ALIGN: u64 = 8;
/// Most groups that a batch lists.
const GROUPS_LISTED_MAX: usize = 1024;

const SEGMENT_MAGIC: u32 = u32::from_le_bytes(*b"LSg1");
const BATCH_MAGIC: u32 = u32::from_le_bytes(*b"LSb1");
const SEGMENT_HEADER_BYTES: usize = 48;
const UNLISTED: u16 = u16::MAX;

/// The checksum seed of one segment generation.
pub(crate) fn seed(salt: &[u8; 16], segment: SegmentId) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(salt), &segment.0.to_le_bytes())
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|b| u16::from_le_bytes(*b))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_le_bytes(*b))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|b| u64::from_le_bytes(*b))
}

/// The header of a segment file; read only when the manifest is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) id: SegmentId,
    pub(crate) salt: [u8; 16],
    pub(crate) bytes: u64,
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SEGMENT_HEADER_BYTES);
        out.put_u32_le(SEGMENT_MAGIC);
        out.put_u32_le(0);
        out.put_u32_le(VERSION);
        out.put_u32_le(0);
        out.put_u64_le(self.id.0);
        out.put_slice(&self.salt);
        out.put_u64_le(self.bytes);
        let crc = crc32c::crc32c(&out[8..]);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<SegmentHeader> {
        let bytes = bytes.get(..SEGMENT_HEADER_BYTES)?;
        let whole = u32_at(bytes, 0)? == SEGMENT_MAGIC && u32_at(bytes, 4)? == crc32c::crc32c(&bytes[8..]);
        (whole && u32_at(bytes, 8)? == VERSION).then_some(())?;
        Some(SegmentHeader {
            id: SegmentId(u64_at(bytes, 16)?),
            salt: *bytes.get(24..)?.first_chunk()?,
            bytes: u64_at(bytes, 40)?,
        })
    }
}

/// The groups of a batch, ascending; `None`: too many to list, so any group.
pub(crate) type GroupList = Option<Vec<ShardId>>;

/// How many groups a batch in a segment of this size lists.
pub(crate) fn groups_listed_max(segment_bytes: u64) -> usize {
    usize::try_from(segment_bytes / 64).unwrap_or(usize::MAX).min(GROUPS_LISTED_MAX)
}

/// What stands before a batch's records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BatchHeader {
    pub(crate) sequence: u64,
    pub(crate) body_bytes: u32,
    pub(crate) groups: GroupList,
    /// The groups of the batch before this one.
    pub(crate) previous: GroupList,
}

impl BatchHeader {
    /// Bytes of the header of a batch with these lists.
    pub(crate) fn len_of(groups: &GroupList, previous: &GroupList) -> usize {
        let listed = |list: &GroupList| list.as_ref().map_or(0, Vec::len);
        BATCH_HEADER_BYTES + 4 * (listed(groups) + listed(previous))
    }

    pub(crate) fn header_bytes(&self) -> usize {
        BatchHeader::len_of(&self.groups, &self.previous)
    }

    /// Bytes of the whole batch, with the zeros after it.
    pub(crate) fn total_bytes(&self) -> u64 {
        (self.header_bytes() as u64 + u64::from(self.body_bytes)).next_multiple_of(BATCH_ALIGN)
    }

    pub(crate) fn encode(&self, seed: u32, position: u64, out: &mut Vec<u8>) {
        let start = out.len();
        out.put_u32_le(BATCH_MAGIC);
        out.put_u32_le(0);
        out.put_u64_le(self.sequence);
        out.put_u32_le(self.body_bytes);
        for list in [&self.groups, &self.previous] {
            out.put_u16_le(list.as_ref().map_or(UNLISTED, |l| l.len() as u16));
        }
        for group in [&self.groups, &self.previous].into_iter().flatten().flatten() {
            out.put_u32_le(group.0);
        }
        let crc = checksum(seed, position, &out[start + 8..], &[]);
        out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    }

    /// The batch header at `position` of a segment's bytes, if one is there and the segment can hold the batch.
    pub(crate) fn decode(segment: &[u8], seed: u32, position: u64) -> Option<BatchHeader> {
        let at = usize::try_from(position).ok()?;
        let bytes = segment.get(at..)?;
        (u32_at(bytes, 0)? == BATCH_MAGIC).then_some(())?;
        let counts = [u16_at(bytes, 20)?, u16_at(bytes, 22)?];
        let listed = |count: u16| if count == UNLISTED { 0 } else { usize::from(count) };
        let header = bytes.get(..BATCH_HEADER_BYTES + 4 * (listed(counts[0]) + listed(counts[1])))?;
        (u32_at(header, 4)? == checksum(seed, position, header.get(8..)?, &[])).then_some(())?;
        let list = |first: usize, count: u16| -> GroupList {
            (count != UNLISTED).then(|| {
                let words = header.get(BATCH_HEADER_BYTES + 4 * first..).unwrap_or_default();
                words.chunks_exact(4).take(listed(count)).filter_map(|w| u32_at(w, 0)).map(ShardId).collect()
            })
        };
        let decoded = BatchHeader {
            sequence: u64_at(header, 8)?,
            body_bytes: u32_at(header, 16)?,
            groups: list(0, counts[0]),
            previous: list(listed(counts[0]), counts[1]),
        };
        (decoded.total_bytes() <= bytes.len() as u64).then_some(decoded)
    }
}

fn checksum(seed: u32, position: u64, header: &[u8], payload: &[&[u8]]) -> u32 {
    let crc = crc32c::crc32c_append(seed, &position.to_le_bytes());
    let crc = crc32c::crc32c_append(crc, header);
    payload.iter().fold(crc, |crc, part| crc32c::crc32c_append(crc, part))
}

/// A group's small state, as it is written again so that an old segment can go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupState {
    pub(crate) hard_state: HardState,
    pub(crate) mark: Mark,
    pub(crate) conf: Bytes,
}

/// The entry before a group's first one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Mark {
    pub(crate) index: Index,
    pub(crate) term: Term,
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    Entry(Entry),
    HardState(HardState),
    Conf(Bytes),
    /// Entries up to the mark are gone.
    Compact(Mark),
    /// A snapshot up to the mark replaced the group's whole log.
    Snapshot(Mark),
    /// A new replica begins; nothing older of the group counts.
    Reset,
    /// The group left this node.
    Remove,
    /// The replica was given up until the next reset.
    Aside,
    /// Groups that are not in this log are set aside. Written under group 0, changes no group.
    EveryOtherAside,
    /// The group's small state again; changes nothing that is newer than it.
    State(GroupState),
}

impl Body {
    /// Bytes of a record with this body on disk.
    pub(crate) fn len(&self) -> usize {
        RECORD_HEADER_BYTES
            + match self {
                Body::Entry(entry) => entry.bytes(),
                Body::Conf(conf) => conf.len(),
                Body::State(state) => STATE_BYTES + state.conf.len(),
                _ => 0,
            }
    }
}

const KIND_ENTRY: u8 = 1;
const KIND_HARD_STATE: u8 = 2;
const KIND_CONF: u8 = 3;
const KIND_COMPACT: u8 = 4;
const KIND_SNAPSHOT: u8 = 5;
const KIND_RESET: u8 = 6;
const KIND_REMOVE: u8 = 7;
const KIND_ASIDE: u8 = 8;
const KIND_EVERY_OTHER_ASIDE: u8 = 9;
const KIND_STATE: u8 = 10;

/// A record with the group that it concerns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) group: ShardId,
    pub(crate) body: Body,
}

impl Record {
    /// Bytes of the record on disk.
    pub(crate) fn len(&self) -> usize {
        self.body.len()
    }

    /// Writes header and context to `out`, as for `position`; the data that must follow is returned.
    pub(crate) fn encode(&self, seed: u32, position: u64, out: &mut Vec<u8>) -> Bytes {
        let start = out.len();
        let none = Bytes::new();
        let fields =
            |kind: u8, mark: &Mark| (kind, 0u8, none.clone(), none.clone(), mark.index.0, mark.term.0, 0u64);
        let (kind, entry_kind, context, data, index, term, vote) = match &self.body {
            Body::Entry(e) => (KIND_ENTRY, e.kind, e.context.clone(), e.data.clone(), e.index.0, e.term.0, 0),
            Body::HardState(s) => {
                (KIND_HARD_STATE, 0, none.clone(), none.clone(), s.commit.0, s.term.0, s.vote.0)
            }
            Body::Conf(conf) => (KIND_CONF, 0, none.clone(), conf.clone(), 0, 0, 0),
            Body::Compact(mark) => fields(KIND_COMPACT, mark),
            Body::Snapshot(mark) => fields(KIND_SNAPSHOT, mark),
            Body::Reset => fields(KIND_RESET, &Mark::default()),
            Body::Remove => fields(KIND_REMOVE, &Mark::default()),
            Body::Aside => fields(KIND_ASIDE, &Mark::default()),
            Body::EveryOtherAside => fields(KIND_EVERY_OTHER_ASIDE, &Mark::default()),
            Body::State(s) => {
                (KIND_STATE, 0, none.clone(), encode_state(s), s.mark.index.0, s.mark.term.0, 0)
            }
        };
        out.put_u32_le(0);
        out.put_u8(kind);
        out.put_u8(entry_kind);
        out.put_u16_le(context.len() as u16);
        out.put_u32_le(data.len() as u32);
        out.put_u32_le(self.group.0);
        out.put_u64_le(index);
        out.put_u64_le(term);
        out.put_u64_le(vote);
        out.put_slice(&context);
        let crc = checksum(seed, position, &out[start + 4..], &[&data]);
        out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
        data
    }

    /// The record at the start of `bytes`, whose first byte lies at `position`. `None` if it is not whole.
    pub(crate) fn decode(bytes: &Bytes, seed: u32, position: u64) -> Option<Record> {
        let context_len = usize::from(u16_at(bytes, 6)?);
        let data_len = u32_at(bytes, 8)? as usize;
        let data_at = RECORD_HEADER_BYTES + context_len;
        let whole = bytes.get(..data_at.checked_add(data_len)?)?;
        (u32_at(whole, 0)? == checksum(seed, position, whole.get(4..)?, &[])).then_some(())?;
        let context = bytes.slice(RECORD_HEADER_BYTES..data_at);
        let data = bytes.slice(data_at..data_at + data_len);
        let (index, term) = (Index(u64_at(whole, 16)?), Term(u64_at(whole, 24)?));
        let mark = Mark { index, term };
        let body = match *whole.get(4)? {
            KIND_ENTRY => Body::Entry(Entry { index, term, kind: *whole.get(5)?, context, data }),
            KIND_HARD_STATE => {
                Body::HardState(HardState { term, vote: ReplicaId(u64_at(whole, 32)?), commit: index })
            }
            KIND_CONF => Body::Conf(data),
            KIND_COMPACT => Body::Compact(mark),
            KIND_SNAPSHOT => Body::Snapshot(mark),
            KIND_RESET => Body::Reset,
            KIND_REMOVE => Body::Remove,
            KIND_ASIDE => Body::Aside,
            KIND_EVERY_OTHER_ASIDE => Body::EveryOtherAside,
            KIND_STATE => Body::State(decode_state(data, mark)?),
            _ => return None,
        };
        Some(Record { group: ShardId(u32_at(whole, 12)?), body })
    }
}

const STATE_BYTES: usize = 24;

fn encode_state(state: &GroupState) -> Bytes {
    let mut out = Vec::with_capacity(STATE_BYTES + state.conf.len());
    out.put_u64_le(state.hard_state.term.0);
    out.put_u64_le(state.hard_state.vote.0);
    out.put_u64_le(state.hard_state.commit.0);
    out.put_slice(&state.conf);
    out.into()
}

fn decode_state(data: Bytes, mark: Mark) -> Option<GroupState> {
    let mut r = Reader::new(data, "group state");
    let hard_state =
        HardState { term: Term(r.u64().ok()?), vote: ReplicaId(r.u64().ok()?), commit: Index(r.u64().ok()?) };
    Some(GroupState { hard_state, mark, conf: r.rest() })
}

/// All records of the batch at `position`, each with its own position. `None` if one of them is not whole.
pub(crate) fn decode_body(
    segment: &Bytes,
    seed: u32,
    position: u64,
    header: &BatchHeader,
) -> Option<Vec<(u64, Record)>> {
    let start = usize::try_from(position).ok()? + header.header_bytes();
    let end = start + header.body_bytes as usize;
    let mut at = start;
    let mut records = Vec::new();
    while at < end {
        let record = Record::decode(&segment.slice(at..end), seed, at as u64)?;
        let len = record.len();
        records.push((at as u64, record));
        at += len;
    }
    Some(records)
}

/// The first batch header at or after `from` whose number is at least `sequence_min`.
pub(crate) fn find_batch(
    segment: &[u8],
    seed: u32,
    from: u64,
    sequence_min: u64,
) -> Option<(u64, BatchHeader)> {
    let mut position = from.next_multiple_of(BATCH_ALIGN);
    while position + BATCH_HEADER_BYTES as u64 <= segment.len() as u64 {
        if let Some(header) =
            BatchHeader::decode(segment, seed, position).filter(|h| h.sequence >= sequence_min)
        {
            return Some((position, header));
        }
        position += BATCH_ALIGN;
    }
    None
}
