//! A batch: what a gateway's session submits to a shard, replicated as one Raft entry.
//!
//! ```text
//! 0 u8 version = 1   1 u8[3] reserved   4 u32 items   8 u64 session   16 u64 number   24 items
//! item: u32 length of what follows, u8 kind, payload
//! ```
//! Session 0 is the shard's own leader (expiry, returns, logs made and dropped); such a batch has number 0.

use crate::record::{NewRecord, Record};
use crate::spec::LogSpec;
use crate::{
    BatchNo, CursorId, DecodeError, LeaseId, LogId, LogTime, Offset, OffsetRange, Reader, Revision,
    SessionId, Term,
};
use bytes::{BufMut, Bytes, BytesMut};

pub use items::{DeadReason, Item, Origin, Returned, Settle};

mod items;

const VERSION: u8 = 1;
/// Bytes before the first item.
pub const HEADER_BYTES: usize = 24;
/// Bytes of a part's upload and checksum; its bytes follow, the checksum right before them.
const PART_HEADER_BYTES: usize = 12;

/// Builds one batch; the gateway's only encoding of a message.
#[derive(Debug)]
pub struct BatchBuilder {
    out: BytesMut,
    items: u32,
}

impl BatchBuilder {
    /// An empty batch.
    pub fn new(session: SessionId) -> BatchBuilder {
        let mut out = BytesMut::with_capacity(1024);
        out.put_u8(VERSION);
        out.put_bytes(0, 7);
        out.put_u64_le(session.0);
        out.put_u64_le(0);
        BatchBuilder { out, items: 0 }
    }

    /// How many items it has.
    pub fn len(&self) -> usize {
        self.items as usize
    }

    /// Whether it has no item.
    pub fn is_empty(&self) -> bool {
        self.items == 0
    }

    /// Its encoded size so far, in bytes.
    pub fn bytes(&self) -> usize {
        self.out.len()
    }

    /// Adds all items of `other`, in order, as they are encoded.
    pub fn extend(&mut self, other: &BatchBuilder) {
        self.out.put_slice(&other.out[HEADER_BYTES..]);
        self.items += other.items;
    }

    fn item<E>(&mut self, kind: u8, write: impl FnOnce(&mut BytesMut) -> Result<(), E>) -> Result<(), E> {
        let start = self.out.len();
        self.out.put_u32_le(0);
        self.out.put_u8(kind);
        if let Err(error) = write(&mut self.out) {
            self.out.truncate(start);
            return Err(error);
        }
        let len = (self.out.len() - start - 4) as u32;
        self.out[start..start + 4].copy_from_slice(&len.to_le_bytes());
        self.items += 1;
        Ok(())
    }

    /// Adds an append; see [`NewRecord::encode`] for the errors, on which nothing is added.
    pub fn append(
        &mut self,
        origin: Option<Origin>,
        new: &NewRecord<'_>,
        body: &[Bytes],
    ) -> Result<(), DecodeError> {
        self.item(1, |out| {
            put_origin(origin, out);
            new.encode(body, out)
        })
    }

    /// Adds any item.
    pub fn push(&mut self, item: &Item) {
        let kind = match item {
            Item::Append { .. } => 1,
            Item::Part { .. } => 2,
            Item::Settle(_) => 3,
            Item::CreateLog { .. } => 4,
            Item::DropLog { .. } => 5,
            Item::Purge { .. } => 6,
            Item::OpenSession(_) => 7,
            Item::CloseSession(_) => 8,
            Item::Expire { .. } => 9,
            Item::Take { .. } => 10,
            Item::CommitPosition { .. } => 11,
            Item::Rewind { .. } => 12,
            Item::Trim { .. } => 13,
        };
        let result: Result<(), std::convert::Infallible> = self.item(kind, |out| {
            put_item(item, out);
            Ok(())
        });
        match result {
            Ok(()) => {}
        }
    }

    /// The encoded batch under its number (0 for the leader's own).
    pub fn finish(mut self, number: BatchNo) -> Bytes {
        self.out[4..8].copy_from_slice(&self.items.to_le_bytes());
        self.out[16..24].copy_from_slice(&number.0.to_le_bytes());
        self.out.freeze()
    }

    /// As [`BatchBuilder::finish`], in memory that is no larger than the batch: for what is kept as long as its entry.
    pub fn finish_to_keep(self, number: BatchNo) -> Bytes {
        Bytes::copy_from_slice(&self.finish(number))
    }
}

fn put_origin(origin: Option<Origin>, out: &mut BytesMut) {
    match origin {
        None => out.put_u8(0),
        Some(Origin::Producer { id, epoch, sequence }) => {
            out.put_u8(1);
            out.put_u64_le(id);
            out.put_u16_le(epoch);
            out.put_u32_le(sequence);
        }
        Some(Origin::Token { scope, id, attempt }) => {
            out.put_u8(2);
            out.put_u64_le(scope);
            out.put_u64_le(id);
            out.put_u32_le(attempt);
        }
    }
}

fn put_ranges(ranges: &[OffsetRange], out: &mut BytesMut) {
    out.put_u32_le(ranges.len() as u32);
    for range in ranges {
        out.put_u64_le(range.first.0);
        out.put_u64_le(range.last.0);
    }
}

fn put_item(item: &Item, out: &mut BytesMut) {
    let cursor_of = |out: &mut BytesMut, log: LogId, cursor: CursorId| {
        out.put_u64_le(log.0);
        out.put_u32_le(cursor.0);
    };
    match item {
        Item::Append { origin, record } => {
            put_origin(*origin, out);
            out.put_slice(record.bytes());
        }
        Item::Part { upload, crc, bytes } => {
            out.put_u64_le(*upload);
            out.put_u32_le(*crc);
            out.put_slice(bytes);
        }
        Item::Settle(settle) => {
            cursor_of(out, settle.log, settle.cursor);
            put_settled(settle, out);
        }
        Item::CreateLog { log, spec } => {
            out.put_u64_le(log.0);
            spec.encode(out);
        }
        Item::DropLog { log, revision } => {
            out.put_u64_le(log.0);
            out.put_u64_le(revision.0);
        }
        Item::Purge { log, cursor, end, leased } => {
            cursor_of(out, *log, *cursor);
            out.put_u64_le(end.0);
            put_ranges(leased, out);
        }
        Item::OpenSession(session) | Item::CloseSession(session) => out.put_u64_le(session.0),
        Item::Expire { log, cursor, ranges } => {
            cursor_of(out, *log, *cursor);
            put_ranges(ranges, out);
        }
        Item::Take { log, cursor, offset, lease, until } => {
            cursor_of(out, *log, *cursor);
            out.put_u64_le(offset.0);
            out.put_u64_le(lease.0);
            out.put_u64_le(until.0);
        }
        Item::CommitPosition { log, name, offset } => {
            out.put_u64_le(log.0);
            out.put_u64_le(offset.0);
            out.put_u16_le(name.len().min(255) as u16);
            out.put_slice(&name[..name.len().min(255)]);
        }
        Item::Rewind { log, cursor, to } => {
            cursor_of(out, *log, *cursor);
            out.put_u64_le(to.0);
        }
        Item::Trim { log, start } => {
            out.put_u64_le(log.0);
            out.put_u64_le(start.0);
        }
    }
}

/// What follows the log and the cursor of a settle.
fn put_settled(settle: &Settle, out: &mut BytesMut) {
    out.put_u64_le(settle.term.0);
    put_ranges(&settle.acked, out);
    out.put_u32_le(settle.returned.len() as u32);
    for returned in &settle.returned {
        out.put_u64_le(returned.offset.0);
        out.put_u64_le(returned.lease.0);
        out.put_u8(u8::from(returned.counted));
    }
    out.put_u32_le(settle.dead.len() as u32);
    for (offset, reason) in &settle.dead {
        out.put_u64_le(offset.0);
        out.put_u8(*reason as u8);
    }
}

/// An encoded batch whose header was read; the items are read one by one.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Who submitted it.
    pub session: SessionId,
    /// Its number within (session, shard).
    pub number: BatchNo,
    /// How many items it says it has.
    pub items: usize,
    bytes: Bytes,
}

impl Batch {
    /// Reads the header.
    pub fn parse(bytes: Bytes) -> Result<Batch, DecodeError> {
        let mut r = Reader::new(bytes.clone(), "batch");
        let version = r.u8()?;
        if version != VERSION {
            return Err(DecodeError::Version { what: "batch", found: version, known: VERSION });
        }
        r.slice(3)?;
        let items = r.u32()? as usize;
        let session = SessionId(r.u64()?);
        let number = BatchNo(r.u64()?);
        if items.saturating_mul(5) > r.remaining() {
            return Err(DecodeError::Invalid("number of items"));
        }
        Ok(Batch { session, number, items, bytes })
    }

    /// The items in order, each with the position of its first byte after kind and length within the batch.
    /// A bad item ends the iteration with its error.
    pub fn items(&self) -> Items {
        Items { bytes: self.bytes.clone(), at: HEADER_BYTES, left: self.items }
    }

    /// The encoded batch.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Checks every item's shape and every record's and part's checksum, as a leader does before it proposes
    /// and a replica before it writes.
    pub fn verify(&self) -> Result<(), DecodeError> {
        let mut items = self.items();
        for located in &mut items {
            match located?.item {
                Item::Append { record, .. } => record.verify()?,
                Item::Part { crc, bytes, .. } if crc32c::crc32c(&bytes) != crc => {
                    return Err(DecodeError::Checksum("part"));
                }
                _ => {}
            }
        }
        if items.at == self.bytes.len() { Ok(()) } else { Err(DecodeError::Invalid("batch length")) }
    }
}

/// Where the pieces of large bodies lie in an encoded batch: start and length of each [`Item::Part`]'s bytes. Only
/// lengths and kinds are read, so a batch without parts costs next to nothing. Ends at the first thing that is not right.
pub fn part_places(bytes: &[u8]) -> impl Iterator<Item = (u32, u32)> + '_ {
    let mut at = HEADER_BYTES;
    std::iter::from_fn(move || {
        loop {
            let head = bytes.get(at..at.checked_add(5)?)?;
            let end = at + 4 + u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
            let start = at + 5 + PART_HEADER_BYTES;
            if end <= at + 4 || end > bytes.len() {
                return None;
            }
            at = end;
            if head[4] == 2 && start <= end {
                return Some((start as u32, (end - start) as u32));
            }
        }
    })
}

/// An item and where its stored bytes lie in the batch.
#[derive(Clone, Debug)]
pub struct Located {
    /// The item.
    pub item: Item,
    /// For an append: where the record starts within the batch; for a part: where its bytes start. Else the payload.
    pub start: u32,
    /// Length of the record or the part's bytes.
    pub len: u32,
}

/// Iterator over a batch's items.
#[derive(Debug)]
pub struct Items {
    bytes: Bytes,
    at: usize,
    left: usize,
}

impl Iterator for Items {
    type Item = Result<Located, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        let result = self.read();
        if result.is_err() {
            self.left = 0;
        }
        Some(result)
    }
}

impl Items {
    fn read(&mut self) -> Result<Located, DecodeError> {
        let mut r = Reader::new(self.bytes.slice(self.at..), "batch item");
        let len = r.u32()? as usize;
        let mut r = Reader::new(r.slice(len)?, "batch item");
        let end = self.at + 4 + len;
        let kind = r.u8()?;
        let item = read_item(kind, &mut r)?;
        let len = match &item {
            Item::Append { record, .. } => record.bytes().len(),
            Item::Part { bytes, .. } => bytes.len(),
            _ => {
                r.finish()?;
                end - self.at - 5
            }
        };
        self.at = end;
        Ok(Located { item, start: (end - len) as u32, len: len as u32 })
    }
}

fn read_origin(r: &mut Reader) -> Result<Option<Origin>, DecodeError> {
    match r.u8()? {
        0 => Ok(None),
        1 => Ok(Some(Origin::Producer { id: r.u64()?, epoch: r.u16()?, sequence: r.u32()? })),
        2 => Ok(Some(Origin::Token { scope: r.u64()?, id: r.u64()?, attempt: r.u32()? })),
        _ => Err(DecodeError::Invalid("append origin")),
    }
}

fn read_ranges(r: &mut Reader) -> Result<Vec<OffsetRange>, DecodeError> {
    let n = r.count(16)?;
    (0..n)
        .map(|_| {
            let range = OffsetRange { first: Offset(r.u64()?), last: Offset(r.u64()?) };
            if range.first > range.last || range.last.0 == u64::MAX {
                return Err(DecodeError::Invalid("offset range"));
            }
            Ok(range)
        })
        .collect()
}

fn read_item(kind: u8, r: &mut Reader) -> Result<Item, DecodeError> {
    Ok(match kind {
        1 => {
            let origin = read_origin(r)?;
            let n = r.remaining();
            Item::Append { origin, record: Record::parse(r.slice(n)?)? }
        }
        2 => {
            let (upload, crc) = (r.u64()?, r.u32()?);
            let n = r.remaining();
            Item::Part { upload, crc, bytes: r.slice(n)? }
        }
        3 => Item::Settle(read_settle(r)?),
        4 => Item::CreateLog { log: LogId(r.u64()?), spec: LogSpec::decode(r)? },
        5 => Item::DropLog { log: LogId(r.u64()?), revision: Revision(r.u64()?) },
        6 => Item::Purge {
            log: LogId(r.u64()?),
            cursor: CursorId(r.u32()?),
            end: Offset(r.u64()?),
            leased: read_ranges(r)?,
        },
        7 => Item::OpenSession(SessionId(r.u64()?)),
        8 => Item::CloseSession(SessionId(r.u64()?)),
        9 => Item::Expire { log: LogId(r.u64()?), cursor: CursorId(r.u32()?), ranges: read_ranges(r)? },
        10 => Item::Take {
            log: LogId(r.u64()?),
            cursor: CursorId(r.u32()?),
            offset: Offset(r.u64()?),
            lease: LeaseId(r.u64()?),
            until: LogTime(r.u64()?),
        },
        11 => {
            let (log, offset, name) = (LogId(r.u64()?), Offset(r.u64()?), r.short()?);
            if name.is_empty() || name.len() > 255 {
                return Err(DecodeError::Invalid("position name"));
            }
            Item::CommitPosition { log, name, offset }
        }
        12 => Item::Rewind { log: LogId(r.u64()?), cursor: CursorId(r.u32()?), to: Offset(r.u64()?) },
        13 => Item::Trim { log: LogId(r.u64()?), start: Offset(r.u64()?) },
        _ => return Err(DecodeError::Invalid("item kind")),
    })
}

fn read_settle(r: &mut Reader) -> Result<Settle, DecodeError> {
    let (log, cursor, term) = (LogId(r.u64()?), CursorId(r.u32()?), Term(r.u64()?));
    let acked = read_ranges(r)?;
    let n = r.count(17)?;
    let returned = (0..n)
        .map(|_| Ok(Returned { offset: Offset(r.u64()?), lease: LeaseId(r.u64()?), counted: r.u8()? != 0 }))
        .collect::<Result<_, DecodeError>>()?;
    let n = r.count(9)?;
    let dead = (0..n)
        .map(|_| {
            let offset = Offset(r.u64()?);
            let reason = DeadReason::from_u8(r.u8()?).ok_or(DecodeError::Invalid("dead reason"))?;
            Ok((offset, reason))
        })
        .collect::<Result<_, DecodeError>>()?;
    Ok(Settle { log, cursor, term, acked, returned, dead })
}

#[cfg(test)]
mod tests;
