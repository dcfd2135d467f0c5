//! What a log is made with. Part of a replicated command, so it is versioned and deterministic.

use crate::{DecodeError, Reader};
use bytes::{BufMut, BytesMut};

const VERSION: u8 = 1;

/// How a log is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum LogKind {
    /// A settlement cursor of its own pins the records; a settled record may go.
    Queue = 1,
    /// Read by position (AMQP stream, Kafka partition); time and size rule retention.
    Stream = 2,
}

/// Settings of a log, fixed at creation; `0` means "none" wherever a limit is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogSpec {
    /// How it is read.
    pub kind: LogKind,
    /// Every record expires at the latest this long after its append, in milliseconds; `None`: never.
    /// A TTL of zero, which AMQP allows, is `Some(0)` and expires what cannot be delivered at once.
    pub ttl_ms: Option<u64>,
    /// Settled records stay rewindable this long, in milliseconds; 0: they go at once.
    pub rewind_ms: u64,
    /// Streams: records older than this go, in milliseconds; 0: no limit.
    pub retention_ms: u64,
    /// Streams: the oldest records go beyond this size, in bytes; 0: no limit.
    pub retention_bytes: u64,
    /// Highest priority that is told apart; 0: none.
    pub priority_max: u8,
}

impl LogSpec {
    /// A queue with no limits.
    pub const QUEUE: LogSpec = LogSpec {
        kind: LogKind::Queue,
        ttl_ms: None,
        rewind_ms: 0,
        retention_ms: 0,
        retention_bytes: 0,
        priority_max: 0,
    };

    /// Appends the encoded form.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_u8(VERSION);
        out.put_u8(self.kind as u8);
        out.put_u8(self.priority_max);
        out.put_u8(u8::from(self.ttl_ms.is_some()));
        out.put_u64_le(self.ttl_ms.unwrap_or(0));
        out.put_u64_le(self.rewind_ms);
        out.put_u64_le(self.retention_ms);
        out.put_u64_le(self.retention_bytes);
    }

    /// Reads the encoded form.
    pub fn decode(r: &mut Reader) -> Result<LogSpec, DecodeError> {
        let version = r.u8()?;
        if version != VERSION {
            return Err(DecodeError::Version { what: "log spec", found: version, known: VERSION });
        }
        let kind = match r.u8()? {
            1 => LogKind::Queue,
            2 => LogKind::Stream,
            _ => return Err(DecodeError::Invalid("log kind")),
        };
        let priority_max = r.u8()?;
        let has_ttl = r.u8()? != 0;
        let ttl = r.u64()?;
        Ok(LogSpec {
            kind,
            priority_max,
            ttl_ms: has_ttl.then_some(ttl),
            rewind_ms: r.u64()?,
            retention_ms: r.u64()?,
            retention_bytes: r.u64()?,
        })
    }
}
