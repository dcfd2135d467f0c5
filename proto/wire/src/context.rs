//! The few bytes that a leader puts beside a batch when it proposes it (Raft's entry context).
//!
//! The batch itself stays as the gateway sent it; only the leader knows the time.

use crate::{DecodeError, LogTime, Reader};
use bytes::{BufMut, Bytes, BytesMut};

const VERSION: u8 = 1;

/// The leader's stamp on an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct EntryContext {
    /// The leader's clock when it proposed; apply takes the larger of this and the shard's last stamp.
    pub stamp: LogTime,
}

impl EntryContext {
    /// The encoded form: version, stamp.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(9);
        out.put_u8(VERSION);
        out.put_u64_le(self.stamp.0);
        out.freeze()
    }

    /// Reads the encoded form.
    pub fn decode(bytes: Bytes) -> Result<EntryContext, DecodeError> {
        let mut r = Reader::new(bytes, "entry context");
        let version = r.u8()?;
        if version != VERSION {
            return Err(DecodeError::Version { what: "entry context", found: version, known: VERSION });
        }
        Ok(EntryContext { stamp: LogTime(r.u64()?) })
    }
}
