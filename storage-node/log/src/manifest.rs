//! The manifest: which files are segments of the log, under which generation.
//!
//! Duty: replace it in one step, durably. Danger: a segment is history only while the manifest names it, so it is named
//! before its first batch is written and unnamed only after nothing needs it. Called by the pool under its lock, and at start.
//!
//! ```text
//! 0 magic u32, 4 crc u32 of the rest, 8 version u32, 12 salt [16], 28 next generation u64, 36 tail sequence u64,
//! 44 u32 count of segments: generation u64, slot u32, bytes u64, retired u8, end sequence u64;
//! u32 count of what was lost: sequence u64, every u8, group u32
//! ```

use crate::format::VERSION;
use crate::types::{OpenError, SegmentId};
use bytes::{BufMut, Bytes};
use longshore_io::{Disk, OpenMode};
use longshore_wire::{DecodeError, Reader, ShardId};
use std::io::{self, IoSlice};

pub(crate) const DIR: &str = "log";
pub(crate) const PATH: &str = "log/manifest";
const MAGIC: u32 = u32::from_le_bytes(*b"LSmf");
/// Larger than any manifest: half a million segments.
const BYTES_MAX: u64 = 16 << 20;

/// A segment as the manifest names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) id: SegmentId,
    /// Number of its file.
    pub(crate) slot: u32,
    pub(crate) bytes: u64,
    /// Not needed by Raft; only bodies live in it.
    pub(crate) retired: bool,
    /// Sequence after its last batch; known, and not 0, once it is retired.
    pub(crate) end_sequence: u64,
}

/// Groups lost by damage that a start found, until records in the log say so too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lost {
    /// The last batch that was there at that start; only what comes after it knows of the loss.
    pub(crate) sequence: u64,
    /// The group, or `None` for every one.
    pub(crate) group: Option<ShardId>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) salt: [u8; 16],
    /// The generation that the next segment gets.
    pub(crate) next_generation: u64,
    /// Sequence of the first batch in the oldest segment that is not retired.
    pub(crate) tail_sequence: u64,
    /// Ascending by id, which is the order of writing.
    pub(crate) segments: Vec<Named>,
    pub(crate) lost: Vec<Lost>,
}

/// What is under `log/manifest`.
#[derive(Debug)]
pub(crate) enum Loaded {
    Absent,
    Damaged,
    Whole(Manifest),
}

impl Manifest {
    pub(crate) fn new(salt: [u8; 16]) -> Manifest {
        Manifest { salt, next_generation: 1, tail_sequence: 1, segments: Vec::new(), lost: Vec::new() }
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.segments.len() * 29);
        out.put_u32_le(MAGIC);
        out.put_u32_le(0);
        out.put_u32_le(VERSION);
        out.put_slice(&self.salt);
        out.put_u64_le(self.next_generation);
        out.put_u64_le(self.tail_sequence);
        out.put_u32_le(self.segments.len() as u32);
        for named in &self.segments {
            out.put_u64_le(named.id.0);
            out.put_u32_le(named.slot);
            out.put_u64_le(named.bytes);
            out.put_u8(u8::from(named.retired));
            out.put_u64_le(named.end_sequence);
        }
        out.put_u32_le(self.lost.len() as u32);
        for lost in &self.lost {
            out.put_u64_le(lost.sequence);
            out.put_u8(u8::from(lost.group.is_none()));
            out.put_u32_le(lost.group.unwrap_or_default().0);
        }
        let crc = crc32c::crc32c(&out[8..]);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
        out
    }

    fn decode(rest: Bytes) -> Result<Manifest, DecodeError> {
        let mut r = Reader::new(rest, "manifest");
        let mut salt = [0u8; 16];
        salt.copy_from_slice(&r.slice(16)?);
        let mut manifest = Manifest::new(salt);
        manifest.next_generation = r.u64()?;
        manifest.tail_sequence = r.u64()?;
        for _ in 0..r.count(29)? {
            manifest.segments.push(Named {
                id: SegmentId(r.u64()?),
                slot: r.u32()?,
                bytes: r.u64()?,
                retired: r.u8()? == 1,
                end_sequence: r.u64()?,
            });
        }
        for _ in 0..r.count(13)? {
            let sequence = r.u64()?;
            let every = r.u8()? == 1;
            let group = ShardId(r.u32()?);
            manifest.lost.push(Lost { sequence, group: (!every).then_some(group) });
        }
        r.finish()?;
        Ok(manifest)
    }

    pub(crate) fn load(disk: &dyn Disk) -> Result<Loaded, OpenError> {
        let failed = |source| OpenError::Io { path: PATH.to_owned(), source };
        let file = match disk.open(PATH, OpenMode::Read) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Loaded::Absent),
            Err(error) => return Err(failed(error)),
        };
        let mut bytes = vec![0u8; file.len().map_err(failed)?.min(BYTES_MAX) as usize];
        let n = file.read_at(&mut bytes, 0).map_err(failed)?;
        bytes.truncate(n);
        let mut r = Reader::new(Bytes::from(bytes), "manifest");
        let (Ok(magic), Ok(crc)) = (r.u32(), r.u32()) else { return Ok(Loaded::Damaged) };
        let rest = r.clone().rest();
        if magic != MAGIC || crc != crc32c::crc32c(&rest) {
            return Ok(Loaded::Damaged);
        }
        match r.u32() {
            Ok(VERSION) => Ok(Manifest::decode(r.rest()).map_or(Loaded::Damaged, Loaded::Whole)),
            Ok(found) => Err(OpenError::Version { path: PATH.to_owned(), found, known: VERSION }),
            Err(_) => Ok(Loaded::Damaged),
        }
    }

    pub(crate) fn save(&self, disk: &dyn Disk) -> io::Result<()> {
        write_whole(disk, DIR, PATH, &self.encode())
    }
}

/// Replaces a small file durably: new file, sync, rename, sync of the directory. On an error the old one may or may
/// not have been replaced.
pub(crate) fn write_whole(disk: &dyn Disk, dir: &str, path: &str, bytes: &[u8]) -> io::Result<()> {
    let new = format!("{path}.tmp");
    match disk.remove(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = disk.open(&new, OpenMode::Create)?;
    file.write_at(&[IoSlice::new(bytes)], 0)?;
    file.sync_data()?;
    disk.rename(&new, path)?;
    disk.sync_dir(dir)
}
