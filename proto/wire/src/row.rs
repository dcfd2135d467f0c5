//! A row: what the index says of one stored record. Made by apply, kept by the record store, used by delivery.

use crate::{DecodeError, Index, LogId, LogTime, Offset, Reader};
use bytes::BufMut;

/// The value of [`Row::expiry`] that means never.
pub const NEVER: LogTime = LogTime(u64::MAX);
const VERSION: u8 = 1;

/// Bytes within the batch of one Raft entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    /// The entry.
    pub index: Index,
    /// First byte within the entry's batch.
    pub start: u32,
    /// How many bytes.
    pub len: u32,
}

/// One stored record of one log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The log.
    pub log: LogId,
    /// Its first offset.
    pub offset: Offset,
    /// How many offsets it takes, at least 1.
    pub count: u32,
    /// Log time of its append.
    pub time: LogTime,
    /// The client's timestamp, or `record::NO_CLIENT_TIME`.
    pub client_time_ms: i64,
    /// Not visible before this log time; 0: at once.
    pub due: LogTime,
    /// Expires at this log time; [`NEVER`] if it does not.
    pub expiry: LogTime,
    /// 0 (lowest) to 255.
    pub priority: u8,
    /// Hash of its key or group, 0 if none.
    pub key_hash: u64,
    /// The record within its entry.
    pub record: Source,
    /// The pieces of a large body, in order, before what the record itself holds.
    pub parts: Vec<Source>,
}

impl Row {
    /// Bytes of the record and all its parts.
    pub fn bytes(&self) -> u64 {
        u64::from(self.record.len) + self.parts.iter().map(|part| u64::from(part.len)).sum::<u64>()
    }

    /// The offset after the last one that it takes.
    pub fn end(&self) -> Offset {
        self.offset.plus(u64::from(self.count))
    }

    /// Appends the encoded form (used between nodes; the index on disk has its own).
    pub fn encode(&self, out: &mut impl BufMut) {
        out.put_u8(VERSION);
        out.put_u64_le(self.log.0);
        out.put_u64_le(self.offset.0);
        out.put_u32_le(self.count);
        out.put_u64_le(self.time.0);
        out.put_i64_le(self.client_time_ms);
        out.put_u64_le(self.due.0);
        out.put_u64_le(self.expiry.0);
        out.put_u8(self.priority);
        out.put_u64_le(self.key_hash);
        put_source(&self.record, out);
        out.put_u32_le(self.parts.len() as u32);
        for part in &self.parts {
            put_source(part, out);
        }
    }

    /// Reads the encoded form.
    pub fn decode(r: &mut Reader) -> Result<Row, DecodeError> {
        let version = r.u8()?;
        if version != VERSION {
            return Err(DecodeError::Version { what: "row", found: version, known: VERSION });
        }
        let mut row = Row {
            log: LogId(r.u64()?),
            offset: Offset(r.u64()?),
            count: r.u32()?,
            time: LogTime(r.u64()?),
            client_time_ms: r.i64()?,
            due: LogTime(r.u64()?),
            expiry: LogTime(r.u64()?),
            priority: r.u8()?,
            key_hash: r.u64()?,
            record: read_source(r)?,
            parts: Vec::new(),
        };
        let parts = r.count(16)?;
        row.parts = (0..parts).map(|_| read_source(r)).collect::<Result<_, _>>()?;
        if row.count == 0 {
            return Err(DecodeError::Invalid("row count"));
        }
        Ok(row)
    }
}

fn put_source(source: &Source, out: &mut impl BufMut) {
    out.put_u64_le(source.index.0);
    out.put_u32_le(source.start);
    out.put_u32_le(source.len);
}

fn read_source(r: &mut Reader) -> Result<Source, DecodeError> {
    Ok(Source { index: Index(r.u64()?), start: r.u32()?, len: r.u32()? })
}
