//! The blocking part: appends a delta to a group's file, or writes a new base beside it and swaps the two.
//!
//! Danger: the old checkpoint must stay readable until the new one is synced. A delta counts only with its commit
//! frame, all in one fdatasync; a base is written under a temporary name, synced, renamed, and the directory synced
//! before the old file goes. Called on a background thread by whoever got the [`Job`] from the store.

use crate::format::{
    self, Commit, FILE_HEADER_BYTES, FRAME_HEADER_BYTES, FileId, Found, FrameHeader, FrameKind,
};
use crate::load::{GroupFile, PageAt};
use crate::{Config, JobError, Mark, Saved};
use bytes::{Bytes, BytesMut};
use longshore_io::{Disk, DiskFile, OpenMode};
use longshore_wire::ShardId;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

/// Pages to be written.
#[derive(Debug, Default, Clone)]
pub(crate) struct Changes {
    /// They are all pages; whatever was before is gone.
    pub whole: bool,
    /// Key to value, or removed.
    pub pages: BTreeMap<Bytes, Option<Bytes>>,
}

#[derive(Debug)]
pub(crate) enum Work {
    Save { file: Option<GroupFile>, mark: Mark, changes: Changes },
    Remove,
}

/// A checkpoint to be written; blocking, so not on the turn loop's thread.
#[must_use = "the group stays busy until the job was run and handed back"]
pub struct Job {
    pub(crate) group: ShardId,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) config: Config,
    pub(crate) work: Work,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job").field("group", &self.group).finish_non_exhaustive()
    }
}

/// A job's result, for [`crate::PageStore::job_done`].
#[must_use = "nothing is saved until the store took this back"]
#[derive(Debug)]
pub struct JobDone {
    pub(crate) group: ShardId,
    pub(crate) file: Option<GroupFile>,
    /// What could not be written.
    pub(crate) left: Changes,
    pub(crate) result: Result<Saved, JobError>,
}

impl JobDone {
    /// The group.
    pub fn group(&self) -> ShardId {
        self.group
    }
}

/// What stopped the writing.
enum Stop {
    Io(&'static str, io::Error),
    /// After the new base got its name: going on with the old file would write deltas that a restart never reads.
    AfterRename(&'static str, io::Error),
    Damaged(u64, &'static str),
}

impl Stop {
    fn is_no_space(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(self, Stop::Io(_, e) if matches!(e.kind(), StorageFull | QuotaExceeded))
    }

    fn into_error(self, group: ShardId) -> JobError {
        match self {
            stop if stop.is_no_space() => JobError::NoSpace(group),
            Stop::Io(doing, source) | Stop::AfterRename(doing, source) => {
                JobError::Failed { group, doing, source }
            }
            Stop::Damaged(at, what) => JobError::Damaged { group, at, what },
        }
    }
}

fn doing<T>(what: &'static str, result: io::Result<T>) -> Result<T, Stop> {
    result.map_err(|source| Stop::Io(what, source))
}

impl Job {
    /// Which group's checkpoint this is.
    pub fn group(&self) -> ShardId {
        self.group
    }

    /// Writes and syncs. Its duration is that of the disk; it reads at most one frame into memory at a time.
    pub fn run(self) -> JobDone {
        let Job { group, disk, config, work } = self;
        match work {
            Work::Remove => {
                let removed = remove_group(disk.as_ref(), &config, group);
                let result = match removed {
                    Ok(()) => Ok(Saved { group, mark: None, written_bytes: 0, rewritten: false }),
                    Err(source) => Err(JobError::Failed { group, doing: "removing it", source }),
                };
                JobDone { group, file: None, left: Changes::default(), result }
            }
            Work::Save { file, mark, changes } => {
                if let Some((what, bytes)) = format::beyond_limit(&mark, &changes.pages) {
                    let result = Err(JobError::TooLarge { group, what, bytes });
                    return JobDone { group, file, left: changes, result };
                }
                let save = Save { group, disk: disk.as_ref(), config: &config, mark, changes: &changes };
                let (file, result) = save.run(file);
                match result {
                    Ok(saved) => JobDone { group, file, left: Changes::default(), result: Ok(saved) },
                    Err(stop) => JobDone { group, file, left: changes, result: Err(stop.into_error(group)) },
                }
            }
        }
    }
}

fn remove_group(disk: &dyn Disk, config: &Config, group: ShardId) -> io::Result<()> {
    for name in disk.list(&config.dir)? {
        if FileId::parse(&name).is_some_and(|(id, _)| id.group == group) {
            disk.remove(&format!("{}/{name}", config.dir))?;
        }
    }
    disk.sync_dir(&config.dir)
}

struct Save<'a> {
    group: ShardId,
    disk: &'a dyn Disk,
    config: &'a Config,
    mark: Mark,
    changes: &'a Changes,
}

impl Save<'_> {
    fn run(self, file: Option<GroupFile>) -> (Option<GroupFile>, Result<Saved, Stop>) {
        let rewrite = match &file {
            None => true,
            Some(file) => self.changes.whole || self.rewrite_pays(file),
        };
        if rewrite {
            match self.write_base(file.as_ref()) {
                Ok(new) => {
                    let saved = self.saved(new.len, true);
                    return (Some(new), Ok(saved));
                }
                // A delta may still fit where a whole base does not.
                Err(stop) if stop.is_no_space() && !self.changes.whole && file.is_some() => {}
                Err(stop) => return (file, Err(stop)),
            }
        }
        let Some(mut file) = file else { return (None, Err(Stop::Damaged(0, "no base"))) };
        let before = file.len;
        let result = self.append_delta(&mut file);
        let written = file.len - before;
        (Some(file), result.map(|()| self.saved(written, false)))
    }

    fn saved(&self, written_bytes: u64, rewritten: bool) -> Saved {
        Saved { group: self.group, mark: Some(self.mark.clone()), written_bytes, rewritten }
    }

    /// Whether the file would hold more garbage than live pages once the changes were appended.
    fn rewrite_pays(&self, file: &GroupFile) -> bool {
        let (mut total, mut live) = (file.len, file.live_bytes);
        for (key, value) in &self.changes.pages {
            let bytes = format::page_bytes(key, value.as_deref());
            total += bytes;
            live -= file.index.get(key).map_or(0, |page| page.bytes);
            live += if value.is_some() { bytes } else { 0 };
        }
        total > self.config.rewrite_bytes_min && total - live > live
    }

    fn append_delta(&self, file: &mut GroupFile) -> Result<(), Stop> {
        if file.tail_dirty {
            doing("cutting what a failed one left", file.file.set_len(file.len))?;
        }
        file.tail_dirty = true;
        let mut writer = Writer::new(file.file.as_ref(), file.id, file.sequence + 1, file.len, self.config);
        for (key, value) in &self.changes.pages {
            doing("appending", writer.page(key, value.as_deref()))?;
        }
        doing("appending", writer.commit(&self.mark))?;
        doing("syncing a delta", file.file.sync_data())?;
        let (end, placed) = (writer.at, writer.placed);
        file.tail_dirty = false;
        file.len = end;
        file.sequence += 1;
        for (key, page) in placed {
            file.place(key, page);
        }
        Ok(())
    }

    fn write_base(&self, old: Option<&GroupFile>) -> Result<GroupFile, Stop> {
        let generation = old.map_or(1, |file| file.id.generation + 1);
        let id = FileId { group: self.group, generation };
        let temporary = format!("{}/{}", self.config.dir, id.temporary());
        doing("removing an unfinished base", remove_if_there(self.disk, &temporary))?;
        let written = self.write_temporary(id, &temporary, old);
        if written.is_err() {
            // Best effort: at the next start unfinished bases go anyway.
            self.disk.remove(&temporary).ok();
        }
        let new = written?;
        doing("naming a base", self.disk.rename(&temporary, &format!("{}/{}", self.config.dir, id.name())))?;
        self.retire(old).map_err(|source| Stop::AfterRename("replacing a base", source))?;
        Ok(new)
    }

    /// Makes the new base's name durable, then removes the old one.
    fn retire(&self, old: Option<&GroupFile>) -> io::Result<()> {
        self.disk.sync_dir(&self.config.dir)?;
        let Some(old) = old else { return Ok(()) };
        remove_if_there(self.disk, &format!("{}/{}", self.config.dir, old.id.name()))?;
        // Or else a later removal of the group could leave this one behind as the newest.
        self.disk.sync_dir(&self.config.dir)
    }

    fn write_temporary(&self, id: FileId, path: &str, old: Option<&GroupFile>) -> Result<GroupFile, Stop> {
        let file = doing("creating a base", self.disk.open(path, OpenMode::Create))?;
        let header = id.header();
        doing("writing a base", file.write_at(&[io::IoSlice::new(&header)], 0))?;
        let mut writer = Writer::new(file.as_ref(), id, 1, FILE_HEADER_BYTES, self.config);
        if let Some(old) = old.filter(|_| !self.changes.whole) {
            self.copy_live(old, &mut writer)?;
        }
        for (key, value) in &self.changes.pages {
            if let Some(value) = value {
                doing("writing a base", writer.page(key, Some(value)))?;
            }
        }
        doing("writing a base", writer.commit(&self.mark))?;
        doing("syncing a base", file.sync_data())?;
        let (len, placed) = (writer.at, writer.placed);
        let mut new = GroupFile::new(id, Arc::clone(&file), len, 1);
        for (key, page) in placed {
            new.place(key, page);
        }
        Ok(new)
    }

    /// Copies the old file's live pages that do not change now.
    fn copy_live(&self, old: &GroupFile, writer: &mut Writer<'_>) -> Result<(), Stop> {
        let mut at = FILE_HEADER_BYTES;
        let mut copied = 0u64;
        while at < old.len {
            let found =
                doing("reading the old base", format::read_frame(old.file.as_ref(), old.id, at, old.len))?;
            let (header, payload, next) = match found {
                Found::Frame(header, payload, next) => (header, payload, next),
                Found::Bad(what) => return Err(Stop::Damaged(at, what)),
                Found::End => return Err(Stop::Damaged(at, "the file ends too early")),
            };
            if header.kind == FrameKind::Pages {
                let pages = format::read_pages(payload).ok_or(Stop::Damaged(at, "pages are malformed"))?;
                for page in pages {
                    let place = at + FRAME_HEADER_BYTES as u64 + page.offset;
                    let Some(known) = old.index.get(&page.key).filter(|known| known.at == place) else {
                        continue;
                    };
                    copied += known.bytes;
                    if let (Some(value), false) = (page.value, self.changes.pages.contains_key(&page.key)) {
                        doing("writing a base", writer.page(&page.key, Some(&value)))?;
                    }
                }
            }
            at = next;
        }
        // Pairs with the index: what was live when it was written must be found when it is read.
        if copied != old.live_bytes {
            return Err(Stop::Damaged(old.len, "live pages are missing"));
        }
        Ok(())
    }
}

fn remove_if_there(disk: &dyn Disk, path: &str) -> io::Result<()> {
    match disk.remove(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Writes the frames of one checkpoint.
struct Writer<'a> {
    file: &'a dyn DiskFile,
    id: FileId,
    sequence: u64,
    at: u64,
    frame_bytes: usize,
    payload: BytesMut,
    chain: u32,
    pages: u64,
    /// Where each page went; `None`: it was removed.
    placed: Vec<(Bytes, Option<PageAt>)>,
}

impl<'a> Writer<'a> {
    fn new(file: &'a dyn DiskFile, id: FileId, sequence: u64, at: u64, config: &Config) -> Writer<'a> {
        let frame_bytes = config.frame_bytes.max(1);
        Writer {
            file,
            id,
            sequence,
            at,
            frame_bytes,
            payload: BytesMut::new(),
            chain: 0,
            pages: 0,
            placed: vec![],
        }
    }

    fn page(&mut self, key: &Bytes, value: Option<&[u8]>) -> io::Result<()> {
        let at = self.at + (FRAME_HEADER_BYTES + self.payload.len()) as u64;
        let place = value.map(|_| PageAt { at, bytes: format::page_bytes(key, value) });
        // Copied: the key may be a slice of a large buffer, which would live as long as the index.
        self.placed.push((Bytes::copy_from_slice(key), place));
        format::put_page(&mut self.payload, key, value);
        self.pages += 1;
        if self.payload.len() >= self.frame_bytes { self.close_frame() } else { Ok(()) }
    }

    fn close_frame(&mut self) -> io::Result<()> {
        if self.payload.is_empty() {
            return Ok(());
        }
        let payload = std::mem::take(&mut self.payload);
        let crc = self.frame(FrameKind::Pages, &payload)?;
        self.chain = crc32c::crc32c_append(self.chain, &crc.to_le_bytes());
        Ok(())
    }

    fn commit(&mut self, mark: &Mark) -> io::Result<()> {
        self.close_frame()?;
        let commit = Commit { mark: mark.clone(), pages: self.pages, chain: self.chain };
        self.frame(FrameKind::Commit, &commit.encode()).map(|_| ())
    }

    fn frame(&mut self, kind: FrameKind, payload: &[u8]) -> io::Result<u32> {
        let payload_crc = crc32c::crc32c(payload);
        // A frame holds at most frame_bytes and one page, whose limit is far below 4 GiB.
        let length =
            u32::try_from(payload.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let header =
            FrameHeader { kind, sequence: self.sequence, length, payload_crc }.encode(self.id, self.at);
        self.file.write_at(&[io::IoSlice::new(&header), io::IoSlice::new(payload)], self.at)?;
        self.at += (header.len() + payload.len()) as u64;
        Ok(payload_crc)
    }
}
