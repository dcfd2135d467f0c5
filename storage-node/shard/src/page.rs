//! Pages: the state as keys and values, for checkpoints (what changed) and snapshots (all). The keys' formats.
//!
//! A key is a kind byte and big-endian numbers, so that keys sort as the state does and a log's page stands before
//! the pages of its chunks. A value begins with its version. Both are formats on disk and between nodes.

use bytes::{BufMut, Bytes, BytesMut};
use longshore_wire::{CursorId, DecodeError, LogId, Reader, SessionId};

/// What a page holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    Header,
    Dropped,
    Closed,
    Session(SessionId),
    Upload(SessionId, u64),
    /// A block of tokens by serial number.
    Tokens(u64),
    /// A bucket of producers by id.
    Producers(u16),
    Log(LogId),
    Chunk(LogId, CursorId, u64),
    Position(LogId, Bytes),
}

impl Key {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(24);
        match self {
            Key::Header => out.put_u8(1),
            Key::Dropped => out.put_u8(2),
            Key::Closed => out.put_u8(3),
            Key::Session(session) => {
                out.put_u8(4);
                out.put_u64(session.0);
            }
            Key::Upload(session, upload) => {
                out.put_u8(5);
                out.put_u64(session.0);
                out.put_u64(*upload);
            }
            Key::Tokens(block) => {
                out.put_u8(6);
                out.put_u64(*block);
            }
            Key::Producers(bucket) => {
                out.put_u8(7);
                out.put_u16(*bucket);
            }
            Key::Log(log) => {
                out.put_u8(8);
                out.put_u64(log.0);
            }
            Key::Chunk(log, cursor, n) => {
                out.put_u8(9);
                out.put_u64(log.0);
                out.put_u32(cursor.0);
                out.put_u64(*n);
            }
            Key::Position(log, name) => {
                out.put_u8(10);
                out.put_u64(log.0);
                out.put_slice(name);
            }
        }
        out.freeze()
    }

    /// Reads a key; `None` for a kind that this build does not know.
    pub(crate) fn decode(key: &Bytes) -> Result<Option<Key>, DecodeError> {
        let mut r = Reader::new(key.clone(), "page key");
        // Numbers in keys are big-endian.
        let u64_be = |r: &mut Reader| r.u64().map(u64::swap_bytes);
        let key = match r.u8()? {
            1 => Key::Header,
            2 => Key::Dropped,
            3 => Key::Closed,
            4 => Key::Session(SessionId(u64_be(&mut r)?)),
            5 => Key::Upload(SessionId(u64_be(&mut r)?), u64_be(&mut r)?),
            6 => Key::Tokens(u64_be(&mut r)?),
            7 => Key::Producers(r.u16()?.swap_bytes()),
            8 => Key::Log(LogId(u64_be(&mut r)?)),
            9 => {
                let log = LogId(u64_be(&mut r)?);
                let cursor = CursorId(r.u32()?.swap_bytes());
                Key::Chunk(log, cursor, u64_be(&mut r)?)
            }
            10 => {
                let log = LogId(u64_be(&mut r)?);
                let name = r.slice(r.remaining())?;
                Key::Position(log, name)
            }
            _ => return Ok(None),
        };
        r.finish()?;
        Ok(Some(key))
    }
}

/// Pages on their way out; `None` removes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pages(pub(crate) Vec<(Bytes, Option<Bytes>)>);

impl Pages {
    pub(crate) fn push(&mut self, key: Key, page: Option<Bytes>) {
        self.0.push((key.encode(), page));
    }
}

/// A page: its version, then what `write` adds.
pub(crate) fn versioned(version: u8, write: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut out = BytesMut::with_capacity(64);
    out.put_u8(version);
    write(&mut out);
    out.freeze()
}

/// Refuses a page that a newer build wrote; both versions are named.
pub(crate) fn read_version(r: &mut Reader, what: &'static str, known: u8) -> Result<(), DecodeError> {
    let found = r.u8()?;
    if found == 0 || found > known {
        return Err(DecodeError::Version { what, found, known });
    }
    Ok(())
}

/// A 64-bit hash of pages: equal pages, equal hash, on every machine.
#[derive(Clone, Debug)]
pub(crate) struct PageHasher(u64);

impl PageHasher {
    pub(crate) fn new() -> PageHasher {
        PageHasher(0x9E37_79B9_7F4A_7C15)
    }

    fn mix(&mut self, word: u64) {
        let wide = u128::from(self.0 ^ word) * u128::from(0xD6E8_FEB8_6659_FD93_u64);
        self.0 = (wide as u64 ^ (wide >> 64) as u64).wrapping_add(0xA076_1D64_78BD_642F);
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.mix(bytes.len() as u64);
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.mix(u64::from_le_bytes(word));
        }
    }

    pub(crate) fn finish(&self) -> u64 {
        self.0
    }
}
