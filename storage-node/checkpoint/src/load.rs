//! Reading everything back at start.
//!
//! Duty: tell a torn delta (cut, the checkpoint before it holds) from damage (reported). Danger: taking damage for a
//! tear throws a durable checkpoint away. A file appears under its name only once its base is synced, and a delta is
//! begun only once the one before it is synced; so a bad frame in the base, or one with a later checkpoint's frame
//! anywhere behind it, is damage. Only a flip inside the very last delta looks like a tear; then the older mark tells
//! (see [`crate::Loaded::cut_bytes`]). Called by [`crate::PageStore::open`].

use crate::format::{
    self, Commit, FILE_HEADER_BYTES, FRAME_HEADER_BYTES, FileId, Found, FrameHeader, FrameKind,
};
use crate::{Config, Damaged, Loaded, Mark, OpenError};
use bytes::Bytes;
use longshore_io::{Disk, DiskFile, OpenMode};
use longshore_wire::ShardId;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;

/// Where the newest version of a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageAt {
    /// Position in the file, in bytes.
    pub at: u64,
    /// Bytes it takes there.
    pub bytes: u64,
}

/// A group's file and what is known of it.
pub(crate) struct GroupFile {
    pub id: FileId,
    pub file: Arc<dyn DiskFile>,
    /// End of the last durable checkpoint, in bytes.
    pub len: u64,
    /// Checkpoints in the file.
    pub sequence: u64,
    pub index: BTreeMap<Bytes, PageAt>,
    /// Sum over the index, in bytes.
    pub live_bytes: u64,
    /// A failed job may have left bytes after `len`.
    pub tail_dirty: bool,
}

impl fmt::Debug for GroupFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupFile").field("id", &self.id).field("len", &self.len).finish_non_exhaustive()
    }
}

impl GroupFile {
    pub fn new(id: FileId, file: Arc<dyn DiskFile>, len: u64, sequence: u64) -> GroupFile {
        GroupFile { id, file, len, sequence, index: BTreeMap::new(), live_bytes: 0, tail_dirty: false }
    }

    /// Notes where the newest version of a page is, or that there is none.
    pub fn place(&mut self, key: Bytes, page: Option<PageAt>) {
        let old = match page {
            Some(page) => {
                self.live_bytes += page.bytes;
                self.index.insert(key, page)
            }
            None => self.index.remove(&key),
        };
        self.live_bytes -= old.map_or(0, |page| page.bytes);
    }
}

type Files = Vec<(Loaded, GroupFile)>;

/// Reads all files of the directory.
pub(crate) fn read_all(disk: &dyn Disk, config: &Config) -> Result<(Files, Vec<Damaged>), OpenError> {
    let at_dir = |source| OpenError::Io { path: config.dir.clone(), source };
    disk.create_dir(&config.dir).map_err(at_dir)?;
    disk.sync_dir("").map_err(at_dir)?;
    let newest = clean_directory(disk, config)?;
    let (mut files, mut damaged) = (Vec::new(), Vec::new());
    for id in newest.into_values() {
        let path = format!("{}/{}", config.dir, id.name());
        let at_file = |source| OpenError::Io { path: path.clone(), source };
        let file = disk.open(&path, OpenMode::Write).map_err(at_file)?;
        match (Load { id, file, path: &path }).read()? {
            Ok(found) => files.push(found),
            Err((at, what)) => damaged.push(Damaged { group: id.group, path: path.clone(), at, what }),
        }
    }
    Ok((files, damaged))
}

/// Removes temporary files and bases that a newer one replaced; the newest of each group stays.
fn clean_directory(disk: &dyn Disk, config: &Config) -> Result<BTreeMap<ShardId, FileId>, OpenError> {
    let mut newest: BTreeMap<ShardId, FileId> = BTreeMap::new();
    let mut stale = Vec::new();
    let listed = disk.list(&config.dir);
    for name in listed.map_err(|source| OpenError::Io { path: config.dir.clone(), source })? {
        match FileId::parse(&name) {
            None => return Err(OpenError::Foreign { path: format!("{}/{name}", config.dir) }),
            Some((_, true)) => stale.push(name),
            Some((id, false)) => {
                let older = match newest.get(&id.group) {
                    Some(known) if known.generation > id.generation => Some(id),
                    _ => newest.insert(id.group, id),
                };
                stale.extend(older.map(FileId::name));
            }
        }
    }
    for name in &stale {
        let path = format!("{}/{name}", config.dir);
        disk.remove(&path).map_err(|source| OpenError::Io { path, source })?;
    }
    // Also without stale names: what an unfinished process left may be listed and not yet be durable.
    disk.sync_dir(&config.dir).map_err(|source| OpenError::Io { path: config.dir.clone(), source })?;
    Ok(newest)
}

struct Load<'a> {
    id: FileId,
    file: Arc<dyn DiskFile>,
    path: &'a str,
}

/// Where and what the damage is.
type Damage = (u64, &'static str);

/// The checkpoint that is being read: what its frames so far would change.
#[derive(Default)]
struct Pending {
    pages: Vec<(Bytes, Option<Bytes>, PageAt)>,
    chain: u32,
}

impl Pending {
    /// Takes a frame of pages that begins at `at`; `false` if it is malformed.
    fn take(&mut self, at: u64, payload_crc: u32, payload: Bytes) -> bool {
        let Some(pages) = format::read_pages(payload) else { return false };
        self.chain = crc32c::crc32c_append(self.chain, &payload_crc.to_le_bytes());
        for page in pages {
            let place = PageAt {
                at: at + FRAME_HEADER_BYTES as u64 + page.offset,
                bytes: format::page_bytes(&page.key, page.value.as_deref()),
            };
            // Copied, so that no page keeps the memory of its whole frame.
            let value = page.value.map(|value| Bytes::copy_from_slice(&value));
            self.pages.push((Bytes::copy_from_slice(&page.key), value, place));
        }
        true
    }
}

impl Load<'_> {
    fn io<T>(&self, result: io::Result<T>) -> Result<T, OpenError> {
        result.map_err(|source| OpenError::Io { path: self.path.to_owned(), source })
    }

    fn read(&self) -> Result<Result<(Loaded, GroupFile), Damage>, OpenError> {
        let mut head = [0u8; FILE_HEADER_BYTES as usize];
        let got = self.io(self.file.read_at(&mut head, 0))?;
        match format::read_file_header(self.id, head.get(..got).unwrap_or_default()) {
            Err(what) => return Ok(Err((0, what))),
            Ok(format::VERSION) => {}
            Ok(found) => {
                let path = self.path.to_owned();
                return Err(OpenError::Version { path, found, known: format::VERSION });
            }
        }
        self.read_checkpoints()
    }

    fn read_checkpoints(&self) -> Result<Result<(Loaded, GroupFile), Damage>, OpenError> {
        let len = self.io(self.file.len())?;
        let mut file = GroupFile::new(self.id, Arc::clone(&self.file), FILE_HEADER_BYTES, 0);
        let mut found =
            Loaded { group: self.id.group, mark: Mark::default(), pages: BTreeMap::new(), cut_bytes: 0 };
        let mut at = FILE_HEADER_BYTES;
        let mut pending = Pending::default();
        let mut newest = at;
        let stopped = loop {
            let (header, payload, next) =
                match self.io(format::read_frame(self.file.as_ref(), self.id, at, len))? {
                    Found::Frame(header, payload, next) => (header, payload, next),
                    Found::End => break "the file ends inside a checkpoint",
                    Found::Bad(what) => break what,
                };
            if header.sequence != file.sequence + 1 {
                break "a frame is of another checkpoint";
            }
            match header.kind {
                FrameKind::Pages => {
                    if !pending.take(at, header.payload_crc, payload) {
                        break "pages are malformed";
                    }
                }
                FrameKind::Commit => match Commit::decode(payload) {
                    Some(commit)
                        if commit.pages == pending.pages.len() as u64 && commit.chain == pending.chain =>
                    {
                        newest = file.len;
                        finish(&mut file, &mut found, std::mem::take(&mut pending), commit.mark, next);
                    }
                    _ => break "a commit does not match its pages",
                },
            }
            at = next;
        };
        if file.sequence == 0 {
            return Ok(Err((at, stopped)));
        }
        if file.len < len {
            if self.io(self.later_frame(file.len, len, file.sequence + 1))? {
                return Ok(Err((at, stopped)));
            }
            found.cut_bytes = len - file.len;
            self.io(self.file.set_len(file.len))?;
            self.io(self.file.sync_data())?;
        }
        if file.sequence > 1 {
            match self.write_again(newest, file.len) {
                // A full disk must not keep a node from starting: the next checkpoint that finds room syncs the file.
                Err(OpenError::Io { source, .. }) if source.kind() == io::ErrorKind::StorageFull => {}
                other => other?,
            }
        }
        Ok(Ok((found, file)))
    }

    /// Makes the last delta durable once more: the process before may have died of a failed sync, after which the cache still
    /// shows what the disk does not hold, and no later sync would write it (simulation, seed 193).
    fn write_again(&self, from: u64, to: u64) -> Result<(), OpenError> {
        const CHUNK_BYTES: u64 = 1 << 20;
        let mut at = from;
        while at < to {
            let mut chunk = vec![0u8; (to - at).min(CHUNK_BYTES) as usize];
            self.io(read_whole(self.file.as_ref(), &mut chunk, at))?;
            self.io(self.file.write_at(&[io::IoSlice::new(&chunk)], at))?;
            at += chunk.len() as u64;
        }
        self.io(self.file.sync_data())
    }

    /// Whether a frame of a checkpoint after `sequence` lies anywhere in `from..len`.
    fn later_frame(&self, from: u64, len: u64, sequence: u64) -> io::Result<bool> {
        const CHUNK_BYTES: usize = 1 << 20;
        let mut buffer = vec![0u8; CHUNK_BYTES + FRAME_HEADER_BYTES];
        let mut at = from;
        while at < len {
            // Chunks overlap by a header, so that none is missed at a border.
            let got = self.file.read_at(&mut buffer, at)?;
            let bytes = buffer.get(..got).unwrap_or_default();
            for (offset, window) in bytes.windows(FRAME_HEADER_BYTES).enumerate() {
                if !window.starts_with(format::FRAME_MAGIC) {
                    continue;
                }
                let header = FrameHeader::decode(self.id, at + offset as u64, window);
                if header.is_some_and(|header| header.sequence > sequence) {
                    return Ok(true);
                }
            }
            at += CHUNK_BYTES as u64;
        }
        Ok(false)
    }
}

fn read_whole(file: &dyn DiskFile, into: &mut [u8], at: u64) -> io::Result<()> {
    if file.read_at(into, at)? == into.len() {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file ends inside what was just read"))
}

/// A checkpoint is complete up to `end`: its changes count.
fn finish(file: &mut GroupFile, found: &mut Loaded, pending: Pending, mark: Mark, end: u64) {
    for (key, value, place) in pending.pages {
        file.place(key.clone(), value.is_some().then_some(place));
        match value {
            Some(value) => found.pages.insert(key, value),
            None => found.pages.remove(&key),
        };
    }
    found.mark = mark;
    file.sequence += 1;
    file.len = end;
}
