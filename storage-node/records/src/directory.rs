//! An index as bytes: blocks, then a directory per log, then a footer. The same at the end of a store file.
//!
//! ```text
//! header 32: u32 magic, u8 version = 1, u8 kind (1 segment's, 2 store), u16 0, u64 id, u32 part, u64 0, u32 crc of the 28 before
//! (a store file: records, see store_file)   blocks (see block)   directory: varints   footer
//! footer 32: u64 directory position, u64 directory length, u32 directory crc, u32 0, u32 magic, u32 crc of the 28 before
//! ```
//! Danger: a file without a valid footer was never finished. Written under another name, synced, then renamed.

use crate::block::{self, Located};
use crate::column::{put_varint, take_varint};
use crate::file::{BlockRef, FileKey, Section, block_is_full};
use crate::set::OffsetSet;
use bytes::{BufMut, Bytes};
use longshore_io::DiskFile;
use longshore_wire::{DecodeError, LogId, Reader, ShardId};
use std::io;

/// Bytes of the header, and of the footer.
pub(crate) const HEADER_BYTES: usize = 32;
const MAGIC: u32 = 0x3158_534C;
const END_MAGIC: u32 = 0x4458_534C;
/// The format of index and store files.
pub(crate) const VERSION: u8 = 1;
const DIRECTORY_BYTES_MAX: u64 = 1 << 30;

/// What a file's end says.
#[derive(Debug)]
pub(crate) struct Directory {
    pub sections: Vec<Section>,
    pub blocks: Vec<BlockRef>,
}

/// Why an index cannot be used.
#[derive(Debug)]
pub(crate) enum Unusable {
    Io(io::Error),
    Version(u8),
    Damaged,
}

impl From<io::Error> for Unusable {
    fn from(error: io::Error) -> Unusable {
        Unusable::Io(error)
    }
}

impl From<DecodeError> for Unusable {
    fn from(_: DecodeError) -> Unusable {
        Unusable::Damaged
    }
}

/// The first bytes of an index or store file.
pub(crate) fn header(key: FileKey) -> Vec<u8> {
    let (kind, id, part) = match key {
        FileKey::Segment(segment, part) => (1, segment.0, part),
        FileKey::Store(store) => (2, store.0, 0),
    };
    let mut out = Vec::with_capacity(HEADER_BYTES);
    out.put_u32_le(MAGIC);
    out.put_u8(VERSION);
    out.put_u8(kind);
    out.put_u16_le(0);
    out.put_u64_le(id);
    out.put_u32_le(part);
    out.put_u64_le(0);
    out.put_u32_le(crc32c::crc32c(&out));
    out
}

/// Gathers rows, one log after the other and ascending within each, into blocks and a directory.
#[derive(Default)]
pub(crate) struct IndexWriter {
    out: Vec<u8>,
    sections: Vec<Section>,
    blocks: Vec<BlockRef>,
    rows: Vec<Located>,
}

impl IndexWriter {
    fn end_block(&mut self) {
        let Some(first) = self.rows.first() else { return };
        let bytes = block::encode(&self.rows);
        self.blocks.push(BlockRef {
            first: first.row.offset.0,
            position: self.out.len() as u64,
            len: bytes.len() as u32,
            parts: self.rows.iter().any(|located| !located.row.parts.is_empty()),
        });
        if let Some(section) = self.sections.last_mut() {
            section.blocks.end = self.blocks.len() as u32;
        }
        self.out.extend(bytes);
        self.rows.clear();
    }

    /// Adds a row: of a new log, or above the last one of the same log.
    pub fn push(&mut self, group: ShardId, located: Located) {
        match self.sections.last_mut().filter(|section| section.log == located.row.log) {
            Some(section) => {
                section.extend(&located);
                if block_is_full(&self.rows, &located) {
                    self.end_block();
                }
            }
            None => {
                self.end_block();
                self.sections.push(Section::begin(group, &located, self.blocks.len() as u32));
            }
        }
        self.rows.push(located);
    }

    /// Everything from `base` to the end of the file, and what it says.
    pub fn finish(mut self, base: u64) -> (Vec<u8>, Directory) {
        self.end_block();
        self.blocks.iter_mut().for_each(|block| block.position += base);
        let position = base + self.out.len() as u64;
        let mut directory = Vec::new();
        put_varint(self.sections.len() as u64, &mut directory);
        for section in &self.sections {
            put_section(section, &self.blocks, &mut directory);
        }
        let mut footer = Vec::with_capacity(HEADER_BYTES);
        footer.put_u64_le(position);
        footer.put_u64_le(directory.len() as u64);
        footer.put_u32_le(crc32c::crc32c(&directory));
        footer.put_u32_le(0);
        footer.put_u32_le(END_MAGIC);
        footer.put_u32_le(crc32c::crc32c(&footer));
        self.out.extend(directory);
        self.out.extend(footer);
        (self.out, Directory { sections: self.sections, blocks: self.blocks })
    }
}

fn put_section(section: &Section, blocks: &[BlockRef], out: &mut Vec<u8>) {
    put_varint(u64::from(section.group.0), out);
    put_varint(section.log.0, out);
    put_varint(section.first, out);
    put_varint(section.last - section.first, out);
    put_varint(section.bytes, out);
    put_varint(section.index_last, out);
    match &section.held {
        None => put_varint(0, out),
        Some(held) => {
            let mut encoded = Vec::new();
            held.encode(&mut encoded);
            put_varint(encoded.len() as u64, out);
            out.extend(encoded);
        }
    }
    let of_section =
        blocks.get(section.blocks.start as usize..section.blocks.end as usize).unwrap_or_default();
    put_varint(of_section.len() as u64, out);
    let mut first = section.first;
    for block in of_section {
        put_varint(block.first - first, out);
        put_varint(block.position, out);
        put_varint(u64::from(block.len) << 1 | u64::from(block.parts), out);
        first = block.first;
    }
}

fn take_section(bytes: &mut &[u8], blocks: &mut Vec<BlockRef>) -> Result<Section, DecodeError> {
    let invalid = || DecodeError::Invalid("index directory");
    let group = ShardId(u32::try_from(take_varint(bytes)?).map_err(|_| invalid())?);
    let log = LogId(take_varint(bytes)?);
    let first = take_varint(bytes)?;
    let last = first.checked_add(take_varint(bytes)?).filter(|last| *last < u64::MAX).ok_or_else(invalid)?;
    let (size, index_last) = (take_varint(bytes)?, take_varint(bytes)?);
    let held_len = take_varint(bytes)? as usize;
    let held_bytes = bytes.get(..held_len).ok_or_else(invalid)?;
    *bytes = &bytes[held_len..];
    let held = match held_len {
        0 => None,
        _ => {
            Some(OffsetSet::decode(&mut Reader::new(Bytes::copy_from_slice(held_bytes), "index directory"))?)
        }
    };
    let start = blocks.len() as u32;
    let mut block_first = first;
    for _ in 0..take_varint(bytes)? {
        block_first = block_first.checked_add(take_varint(bytes)?).ok_or_else(invalid)?;
        let position = take_varint(bytes)?;
        let len = take_varint(bytes)?;
        let parts = len & 1 == 1;
        let len = u32::try_from(len >> 1).map_err(|_| invalid())?;
        blocks.push(BlockRef { first: block_first, position, len, parts });
    }
    let mut section = Section {
        group,
        log,
        first,
        last,
        bytes: size,
        index_last,
        held,
        live: 0,
        blocks: start..blocks.len() as u32,
    };
    section.live = section.held_count();
    Ok(section)
}

/// Reads exactly `len` bytes.
pub(crate) fn read_exact(file: &dyn DiskFile, at: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let mut done = 0;
    while done < len {
        match file.read_at(&mut bytes[done..], at + done as u64)? {
            0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            n => done += n,
        }
    }
    Ok(bytes)
}

/// Reads header, footer and directory of a finished file.
pub(crate) fn load(file: &dyn DiskFile, key: FileKey) -> Result<(Directory, u64), Unusable> {
    let len = file.len()?;
    if len < 2 * HEADER_BYTES as u64 {
        return Err(Unusable::Damaged);
    }
    let found = read_exact(file, 0, HEADER_BYTES)?;
    if found[..4] == MAGIC.to_le_bytes() && found[4] > VERSION {
        return Err(Unusable::Version(found[4]));
    }
    let footer = read_exact(file, len - HEADER_BYTES as u64, HEADER_BYTES)?;
    if found != header(key) || crc32c::crc32c(&footer[..28]).to_le_bytes() != footer[28..] {
        return Err(Unusable::Damaged);
    }
    let mut r = Reader::new(footer.into(), "index footer");
    let (position, size, crc) = (r.u64()?, r.u64()?, r.u32()?);
    r.u32()?;
    let fits = position.checked_add(size) == Some(len - HEADER_BYTES as u64);
    if r.u32()? != END_MAGIC || !fits || size > DIRECTORY_BYTES_MAX {
        return Err(Unusable::Damaged);
    }
    let bytes = read_exact(file, position, size as usize)?;
    if crc32c::crc32c(&bytes) != crc {
        return Err(Unusable::Damaged);
    }
    let mut bytes = &bytes[..];
    let (mut sections, mut blocks) = (Vec::new(), Vec::new());
    for _ in 0..take_varint(&mut bytes)? {
        sections.push(take_section(&mut bytes, &mut blocks)?);
    }
    blocks.shrink_to_fit();
    Ok((Directory { sections, blocks }, len))
}
