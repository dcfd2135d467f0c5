//! The bytes of a checkpoint file: a header, then checkpoints, each a run of page frames closed by a commit frame.
//!
//! Danger: this is read back after crashes and bit rot. Each frame's header has a CRC of its own, which covers the
//! group, the file's generation and the frame's position, so that bytes which are stale, moved or of another file
//! are never taken for a frame. Called by `job` and `load`. All integers are little-endian.
//!
//! ```text
//! file   = magic "LSCK" | version u16 | 0 u16 | group u32 | generation u64 | crc u32        (24 bytes)
//! frame  = magic "LSCF" | kind u8 | 0 u8[3] | sequence u64 | length u32 | payload crc u32 | header crc u32
//! pages  = ( removed u8 | key length u16 | value length u32 | key | value )*
//! commit = index u64 | term u64 | log time u64 | pages u64 | chain u32 | conf length u32 | conf
//! ```
//! `sequence` counts the checkpoints of a file from 1 (the base); `chain` is a CRC over the payload CRCs of the
//! checkpoint's page frames.

use crate::{CONF_BYTES_MAX, KEY_BYTES_MAX, Mark, VALUE_BYTES_MAX};
use bytes::{BufMut, Bytes, BytesMut};
use longshore_io::DiskFile;
use longshore_wire::{Index, LogTime, Reader, ShardId, Term};
use std::io;

/// Version of the files that this build writes, and the newest that it reads.
pub const VERSION: u16 = 1;
/// Bytes of a file's header, in every version.
pub const FILE_HEADER_BYTES: u64 = 24;
/// Bytes of a frame's header.
pub const FRAME_HEADER_BYTES: usize = 28;
/// Bytes of a page beside its key and value.
pub const PAGE_OVERHEAD_BYTES: usize = 7;

const FILE_MAGIC: &[u8; 4] = b"LSCK";
pub(crate) const FRAME_MAGIC: &[u8; 4] = b"LSCF";

/// What identifies a file; part of every CRC in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId {
    /// The group.
    pub group: ShardId,
    /// Grows with each base that is written for the group.
    pub generation: u64,
}

impl FileId {
    /// The file's name.
    pub fn name(self) -> String {
        format!("{:08x}-{:016x}.ckpt", self.group.0, self.generation)
    }

    /// The name under which the file is written until it is complete and synced.
    pub fn temporary(self) -> String {
        format!("{:08x}-{:016x}.tmp", self.group.0, self.generation)
    }

    /// Reads a name of either kind; the flag tells whether it is a temporary one.
    pub fn parse(name: &str) -> Option<(FileId, bool)> {
        let (stem, kind) = name.split_once('.')?;
        let temporary = match kind {
            "ckpt" => false,
            "tmp" => true,
            _ => return None,
        };
        let (group, generation) = stem.split_once('-')?;
        if group.len() != 8 || generation.len() != 16 {
            return None;
        }
        let group = ShardId(u32::from_str_radix(group, 16).ok()?);
        let generation = u64::from_str_radix(generation, 16).ok()?;
        Some((FileId { group, generation }, temporary))
    }

    /// The file's header.
    pub fn header(self) -> Bytes {
        let mut out = BytesMut::with_capacity(FILE_HEADER_BYTES as usize);
        out.put_slice(FILE_MAGIC);
        out.put_u16_le(VERSION);
        out.put_u16_le(0);
        out.put_u32_le(self.group.0);
        out.put_u64_le(self.generation);
        out.put_u32_le(crc32c::crc32c(&out));
        out.freeze()
    }
}

/// Reads a file's header: its version if it is this file's, else what is wrong.
pub fn read_file_header(id: FileId, bytes: &[u8]) -> Result<u16, &'static str> {
    let Some(head) = bytes.first_chunk::<{ FILE_HEADER_BYTES as usize }>() else {
        return Err("the file is shorter than its header");
    };
    let (fields, crc) = head.split_at(20);
    if crc != crc32c::crc32c(fields).to_le_bytes() {
        return Err("the file header fails its checksum");
    }
    let mut r = Reader::new(Bytes::copy_from_slice(fields), "checkpoint header");
    let mut read = || Some((r.u32().ok()?, r.u16().ok()?, r.u16().ok()?, r.u32().ok()?, r.u64().ok()?));
    match read() {
        Some((magic, version, _, group, generation)) => {
            if magic.to_le_bytes() != *FILE_MAGIC || group != id.group.0 || generation != id.generation {
                return Err("the file header names another file");
            }
            Ok(version)
        }
        None => Err("the file header is too short"),
    }
}

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// Pages of a checkpoint.
    Pages,
    /// The end of a checkpoint: its mark.
    Commit,
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// What it holds.
    pub kind: FrameKind,
    /// Which checkpoint of the file it belongs to.
    pub sequence: u64,
    /// Payload bytes after the header.
    pub length: u32,
    /// CRC32C of the payload.
    pub payload_crc: u32,
}

fn frame_crc(id: FileId, at: u64, fields: &[u8]) -> u32 {
    let mut place = [0u8; 20];
    let (group, rest) = place.split_at_mut(4);
    let (generation, position) = rest.split_at_mut(8);
    group.copy_from_slice(&id.group.0.to_le_bytes());
    generation.copy_from_slice(&id.generation.to_le_bytes());
    position.copy_from_slice(&at.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&place), fields)
}

impl FrameHeader {
    /// The header of a frame that begins at `at`.
    pub fn encode(&self, id: FileId, at: u64) -> [u8; FRAME_HEADER_BYTES] {
        let mut out = [0u8; FRAME_HEADER_BYTES];
        let mut rest = out.as_mut_slice();
        rest.put_slice(FRAME_MAGIC);
        rest.put_u8(match self.kind {
            FrameKind::Pages => 1,
            FrameKind::Commit => 2,
        });
        rest.put_slice(&[0; 3]);
        rest.put_u64_le(self.sequence);
        rest.put_u32_le(self.length);
        rest.put_u32_le(self.payload_crc);
        let (fields, crc) = out.split_at_mut(FRAME_HEADER_BYTES - 4);
        crc.copy_from_slice(&frame_crc(id, at, fields).to_le_bytes());
        out
    }

    /// Reads the header of a frame that begins at `at`; `None` if these bytes are not one.
    pub fn decode(id: FileId, at: u64, bytes: &[u8]) -> Option<FrameHeader> {
        let head = bytes.first_chunk::<FRAME_HEADER_BYTES>()?;
        let (fields, crc) = head.split_at(FRAME_HEADER_BYTES - 4);
        if !fields.starts_with(FRAME_MAGIC) || crc != frame_crc(id, at, fields).to_le_bytes() {
            return None;
        }
        let mut r = Reader::new(Bytes::copy_from_slice(fields.get(4..)?), "frame header");
        let kind = match r.u32().ok()? {
            1 => FrameKind::Pages,
            2 => FrameKind::Commit,
            _ => return None,
        };
        let sequence = r.u64().ok()?;
        Some(FrameHeader { kind, sequence, length: r.u32().ok()?, payload_crc: r.u32().ok()? })
    }
}

/// A page within a frame.
#[derive(Clone, Debug)]
pub struct PageEntry {
    /// Where it begins in the payload, in bytes.
    pub offset: u64,
    /// Its key; shares the payload's memory.
    pub key: Bytes,
    /// Its value, or `None` if the page was removed; shares the payload's memory.
    pub value: Option<Bytes>,
}

/// Bytes that a page takes in a file.
pub fn page_bytes(key: &[u8], value: Option<&[u8]>) -> u64 {
    (PAGE_OVERHEAD_BYTES + key.len() + value.map_or(0, <[u8]>::len)) as u64
}

/// Appends a page. The caller has checked the limits.
pub fn put_page(out: &mut BytesMut, key: &[u8], value: Option<&[u8]>) {
    out.put_u8(u8::from(value.is_none()));
    out.put_u16_le(key.len() as u16);
    out.put_u32_le(value.map_or(0, <[u8]>::len) as u32);
    out.put_slice(key);
    out.put_slice(value.unwrap_or_default());
}

/// Reads the pages of a frame; `None` if they are not well-formed.
pub fn read_pages(payload: Bytes) -> Option<Vec<PageEntry>> {
    let total = payload.len();
    let mut r = Reader::new(payload, "checkpoint pages");
    let mut pages = Vec::new();
    while r.remaining() > 0 {
        let offset = (total - r.remaining()) as u64;
        let removed = r.u8().ok()?;
        let key_len = usize::from(r.u16().ok()?);
        let value_len = r.u32().ok()? as usize;
        let key = r.slice(key_len).ok()?;
        let value = r.slice(value_len).ok()?;
        let value = match removed {
            0 => Some(value),
            1 if value.is_empty() => None,
            _ => return None,
        };
        pages.push(PageEntry { offset, key, value });
    }
    Some(pages)
}

/// The payload of a commit frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Up to where the checkpoint holds.
    pub mark: Mark,
    /// How many pages it wrote.
    pub pages: u64,
    /// CRC over its page frames' payload CRCs.
    pub chain: u32,
}

impl Commit {
    /// The encoded form.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(40 + self.mark.conf.len());
        out.put_u64_le(self.mark.index.0);
        out.put_u64_le(self.mark.term.0);
        out.put_u64_le(self.mark.log_time.0);
        out.put_u64_le(self.pages);
        out.put_u32_le(self.chain);
        out.put_u32_le(self.mark.conf.len() as u32);
        out.put_slice(&self.mark.conf);
        out.freeze()
    }

    /// Reads the encoded form; `None` if it is not well-formed.
    pub fn decode(payload: Bytes) -> Option<Commit> {
        let mut r = Reader::new(payload, "checkpoint commit");
        let mut mark = Mark {
            index: Index(r.u64().ok()?),
            term: Term(r.u64().ok()?),
            log_time: LogTime(r.u64().ok()?),
            conf: Bytes::new(),
        };
        let (pages, chain) = (r.u64().ok()?, r.u32().ok()?);
        mark.conf = Bytes::copy_from_slice(&r.long().ok()?);
        r.finish().ok()?;
        Some(Commit { mark, pages, chain })
    }
}

/// What lies at a position of a file.
#[derive(Debug)]
pub enum Found {
    /// A frame that passes its checksums, and where the next begins.
    Frame(FrameHeader, Bytes, u64),
    /// The end of the file, exactly here.
    End,
    /// Something else.
    Bad(&'static str),
}

/// Reads the frame at `at` of a file with `len` bytes.
pub fn read_frame(file: &dyn DiskFile, id: FileId, at: u64, len: u64) -> io::Result<Found> {
    if at == len {
        return Ok(Found::End);
    }
    let mut head = [0u8; FRAME_HEADER_BYTES];
    let got = file.read_at(&mut head, at)?;
    let Some(header) = head.get(..got).and_then(|bytes| FrameHeader::decode(id, at, bytes)) else {
        return Ok(Found::Bad("a frame header fails its checksum"));
    };
    let begin = at + FRAME_HEADER_BYTES as u64;
    let end = begin.saturating_add(u64::from(header.length));
    if end > len {
        return Ok(Found::Bad("the file ends inside a frame"));
    }
    let mut payload = BytesMut::zeroed(header.length as usize);
    if file.read_at(&mut payload, begin)? < payload.len() || crc32c::crc32c(&payload) != header.payload_crc {
        return Ok(Found::Bad("a frame fails its checksum"));
    }
    Ok(Found::Frame(header, payload.freeze(), end))
}

/// What of a page or mark is beyond its limit, with its size.
pub(crate) fn beyond_limit(
    mark: &Mark,
    pages: &std::collections::BTreeMap<Bytes, Option<Bytes>>,
) -> Option<(&'static str, usize)> {
    if mark.conf.len() > CONF_BYTES_MAX {
        return Some(("a conf state", mark.conf.len()));
    }
    pages.iter().find_map(|(key, value)| {
        let bytes = value.as_ref().map_or(0, Bytes::len);
        if key.len() > KEY_BYTES_MAX {
            return Some(("a page key", key.len()));
        }
        (bytes > VALUE_BYTES_MAX).then_some(("a page value", bytes))
    })
}
