//! Work that blocks on the disk: index files, rewriting, importing, removing. Made by the store thread, run on another.
//!
//! Danger: the order of the steps is the safety. New bytes are synced, then their name is, then the manifest names them; only
//! the store thread, on hearing that, lets the old copy go, and only a later job removes its file.

use crate::directory::{self, Directory, IndexWriter};
use crate::fetch::fetch;
use crate::file::{FileKey, PendingRows};
use crate::manifest::{Manifest, write_file};
use crate::read::{Found, Io, ReadDone, Want, resolve};
use crate::store_file::StoreWriter;
use crate::types::{ImportFor, ReadError, RecordsError, SegmentId, StoreId};
use bytes::Bytes;
use longshore_wire::row::Row;
use longshore_wire::{Index, LogId, ShardId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Bodies that a rewrite holds in memory at a time, in bytes.
const COPY_BYTES: u64 = 1 << 20;

/// Pending rows of one file, section by section.
pub(crate) struct PendingFile {
    pub key: FileKey,
    pub sections: Vec<(ShardId, LogId)>,
    pub rows: Arc<Vec<PendingRows>>,
}

/// Rows and bytes that were fetched from a peer, ready to be written.
pub(crate) struct ImportRow {
    pub group: ShardId,
    pub row: Row,
    pub bytes: Bytes,
}

pub(crate) enum Work {
    Index {
        files: Vec<PendingFile>,
        upto: BTreeMap<ShardId, Index>,
    },
    Rewrite {
        wants: Vec<Want>,
        sources: Vec<FileKey>,
        store: StoreId,
        guards: Vec<Arc<()>>,
        /// What each group had applied when it was said what of the sources is live.
        reached: BTreeMap<ShardId, Index>,
    },
    Import {
        rows: Vec<ImportRow>,
        store: StoreId,
        owner: Option<ImportFor>,
    },
    Remove {
        names: Vec<String>,
        forgotten: Vec<SegmentId>,
    },
}

/// Blocking work on the disk: run it on a thread that may block, and give the result to [`crate::Records::job_done`].
pub struct Job {
    pub(crate) io: Arc<Io>,
    pub(crate) manifest: Arc<Manifest>,
    pub(crate) work: Work,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Job").field(&self.what()).finish()
    }
}

/// What a finished rewrite or import wrote.
pub(crate) struct Written {
    pub store: StoreId,
    pub directory: Directory,
    pub bytes: u64,
}

pub(crate) enum Done {
    Index { files: Vec<(FileKey, Directory)>, upto: BTreeMap<ShardId, Index> },
    Rewritten { sources: Vec<FileKey>, written: Option<Written> },
    Imported { written: Option<Written>, owner: Option<ImportFor> },
    ImportFailed { owner: Option<ImportFor>, names: Vec<String>, error: RecordsError },
    Removed,
    Failed { was: What, names: Vec<String>, forgotten: Vec<SegmentId>, error: RecordsError },
}

/// The kind of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// Writes index files.
    Index,
    /// Copies live records out of mostly dead files.
    Rewrite,
    /// Stores records fetched from a peer.
    Import,
    /// Removes files that nothing needs.
    Remove,
}

/// A finished job.
pub struct JobDone {
    pub(crate) done: Done,
}

impl std::fmt::Debug for JobDone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JobDone").finish_non_exhaustive()
    }
}

/// What a finished job changed.
#[derive(Debug)]
pub enum JobOutcome {
    /// Rows became durable: see [`crate::Records::rows_durable`].
    Indexed,
    /// Live records moved; segments may have become removable.
    Rewritten,
    /// Fetched records are durable and readable. `None`: a repaired record.
    Imported(Option<ImportFor>),
    /// Nothing of the import was stored: fetch it and import it again.
    ImportFailed(Option<ImportFor>, RecordsError),
    /// Old files are gone.
    Removed,
    /// A job that was no import failed; nothing changed. The next call of [`crate::Records::next_job`] may try again.
    Failed(What, RecordsError),
}

impl Job {
    /// Which kind of work it is.
    pub fn what(&self) -> What {
        match &self.work {
            Work::Index { .. } => What::Index,
            Work::Rewrite { .. } => What::Rewrite,
            Work::Import { .. } => What::Import,
            Work::Remove { .. } => What::Remove,
        }
    }

    /// Does the work. Blocks.
    pub fn run(self) -> JobDone {
        let Job { io, manifest, work } = self;
        let done = match work {
            Work::Index { files, upto } => match write_indexes(&io, files) {
                Ok(files) => Done::Index { files, upto },
                Err(error) => failed(What::Index, error),
            },
            Work::Rewrite { wants, sources, store, guards, reached } => {
                let result = rewrite(&io, &manifest, wants, &sources, store, reached);
                drop(guards);
                match result {
                    Ok(written) => Done::Rewritten { sources, written },
                    Err(error) => {
                        let names = abandon(&io, &manifest, store);
                        Done::Failed { was: What::Rewrite, names, forgotten: Vec::new(), error }
                    }
                }
            }
            Work::Import { rows, store, owner } => match import(&io, &manifest, rows, store) {
                Ok(written) => Done::Imported { written, owner },
                Err(error) => Done::ImportFailed { owner, names: abandon(&io, &manifest, store), error },
            },
            Work::Remove { names, forgotten } => match remove(&io, &manifest, &names, &forgotten) {
                Ok(()) => Done::Removed,
                Err(error) => Done::Failed { was: What::Remove, names, forgotten, error },
            },
        };
        JobDone { done }
    }
}

fn failed(was: What, error: RecordsError) -> Done {
    Done::Failed { was, names: Vec::new(), forgotten: Vec::new(), error }
}

/// Removes the store file of a failed job, unless the manifest may name it. Its name is never used again, so nothing else would remove it before the next
/// start, and retries on a full disk would fill it to the last byte. Returns the name if the removal fails too.
fn abandon(io: &Io, manifest: &Manifest, store: StoreId) -> Vec<String> {
    if manifest.may_name(store) {
        // Its name is on the disk, or may be: the next start decides.
        return Vec::new();
    }
    let name = FileKey::Store(store).name();
    match io.disk.remove(&format!("{}/{name}", io.dir)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => vec![name],
        _ => Vec::new(),
    }
}

/// Writes each file under a temporary name, syncs it, gives it its name, and makes the names durable.
fn write_indexes(io: &Io, files: Vec<PendingFile>) -> Result<Vec<(FileKey, Directory)>, RecordsError> {
    let mut written = Vec::with_capacity(files.len());
    for file in files {
        let mut writer = IndexWriter::default();
        for ((group, log), rows) in file.sections.iter().zip(file.rows.iter()) {
            rows.each(*log, &mut |located| writer.push(*group, located));
        }
        let header = directory::header(file.key);
        let (bytes, directory) = writer.finish(header.len() as u64);
        let path = io.path(file.key);
        let temporary = format!("{path}.tmp");
        write_file(&*io.disk, &temporary, &[&header, &bytes])?;
        io.disk.rename(&temporary, &path).map_err(|error| RecordsError::Io {
            what: "rename",
            file: path,
            error,
        })?;
        written.push((file.key, directory));
    }
    sync_dir(io)?;
    Ok(written)
}

fn sync_dir(io: &Io) -> Result<(), RecordsError> {
    io.disk.sync_dir(&io.dir).map_err(|error| RecordsError::Io { what: "sync", file: io.dir.clone(), error })
}

fn rewrite(
    io: &Io,
    manifest: &Manifest,
    wants: Vec<Want>,
    sources: &[FileKey],
    store: StoreId,
    reached: BTreeMap<ShardId, Index>,
) -> Result<Option<Written>, RecordsError> {
    let mut done = ReadDone::default();
    let mut found = resolve(io, wants, &mut done);
    if let Some(error) = done.failed.pop() {
        return Err(RecordsError::Corrupt(error));
    }
    drop(done);
    found.sort_by_key(|found| (found.located.row.log, found.located.row.offset));
    found.dedup_by_key(|found| (found.located.row.log, found.located.row.offset));
    let written = match found.is_empty() {
        true => None,
        false => Some(copy(io, &found, store)?),
    };
    let retired: BTreeSet<SegmentId> = sources
        .iter()
        .filter_map(|key| match key {
            FileKey::Segment(segment, _) => Some(*segment),
            FileKey::Store(_) => None,
        })
        .collect();
    manifest.edit(|listed| {
        for key in sources {
            if let FileKey::Store(store) = key {
                listed.stores.remove(store);
            }
        }
        listed.retired.extend(retired);
        listed.reached = reached;
        if written.is_some() {
            listed.stores.insert(store);
            listed.next_store = listed.next_store.max(store.0 + 1);
        }
    })?;
    Ok(written)
}

/// Copies rows that are ordered by (log, offset), a bounded number of bytes at a time.
fn copy(io: &Io, found: &[Found], store: StoreId) -> Result<Written, RecordsError> {
    let rows = found.iter().map(|found| (found.group, &found.located.row));
    let mut writer = StoreWriter::new(&*io.disk, &io.dir, store, rows)?;
    let mut rest = found;
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = rest.iter().take_while(|found| {
            let first = bytes == 0;
            bytes += u64::from(found.located.row.record.len).max(1);
            first || bytes <= COPY_BYTES
        });
        let (now, later) = rest.split_at(fits.count().max(1));
        rest = later;
        let mut failed: Vec<ReadError> = Vec::new();
        for (row, bytes, group) in fetch(io, now, &mut failed) {
            writer.push(group, row, &bytes)?;
        }
        if let Some(error) = failed.pop() {
            return Err(RecordsError::Corrupt(error));
        }
    }
    let (directory, bytes) = writer.finish()?;
    sync_dir(io)?;
    Ok(Written { store, directory, bytes })
}

fn import(
    io: &Io,
    manifest: &Manifest,
    mut rows: Vec<ImportRow>,
    store: StoreId,
) -> Result<Option<Written>, RecordsError> {
    rows.sort_by_key(|import| (import.row.log, import.row.offset));
    rows.dedup_by_key(|import| (import.row.log, import.row.offset));
    if rows.is_empty() {
        return Ok(None);
    }
    let all = rows.iter().map(|import| (import.group, &import.row));
    let mut writer = StoreWriter::new(&*io.disk, &io.dir, store, all)?;
    for ImportRow { group, row, bytes } in rows {
        writer.push(group, row, &bytes)?;
    }
    let (directory, bytes) = writer.finish()?;
    sync_dir(io)?;
    manifest.edit(|listed| {
        listed.stores.insert(store);
        listed.next_store = listed.next_store.max(store.0 + 1);
    })?;
    Ok(Some(Written { store, directory, bytes }))
}

fn remove(
    io: &Io,
    manifest: &Manifest,
    names: &[String],
    forgotten: &[SegmentId],
) -> Result<(), RecordsError> {
    for name in names {
        let path = format!("{}/{name}", io.dir);
        match io.disk.remove(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(RecordsError::Io { what: "remove", file: path, error });
            }
            _ => {}
        }
    }
    sync_dir(io)?;
    // Only now that their index files are gone for good: a retired segment whose index came back would count twice.
    if forgotten.is_empty() {
        return Ok(());
    }
    manifest.edit(|listed| {
        forgotten.iter().for_each(|segment| {
            listed.retired.remove(segment);
        })
    })
}
