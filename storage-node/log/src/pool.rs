//! The files: which are segments, which are free, which stand by for the writer.
//!
//! Duty: hand the writer its next segment in generation order, prepare files ahead, recycle and delete them. Danger:
//! the manifest on disk and in memory must agree; after a save whose outcome is unknown the process ends. Shared by the log
//! thread (the next segment) and maintenance threads (everything else) under one lock, held for a few small syncs at most.

use crate::format::SegmentHeader;
use crate::manifest::{DIR, Manifest, Named};
use crate::segment::{Segment, path_of};
use crate::types::{LogError, SegmentId};
use longshore_io::{Disk, DiskFile, OpenMode, PAGE_BYTES, PageBuf};
use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Zeros are written in pieces of so many pages.
const ZEROS_PAGES: usize = 64;

/// Why there is no new segment.
#[derive(Debug)]
pub(crate) enum PoolError {
    /// The disk is full: nothing changed, try again later.
    NoSpace,
    /// The process must end.
    Failed(LogError),
}

/// Whether an error says that the disk, or this user's share of it, is full.
pub(crate) fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn classify(path: &str) -> impl Fn(io::Error) -> PoolError + '_ {
    move |source| {
        if is_no_space(&source) {
            PoolError::NoSpace
        } else {
            PoolError::Failed(LogError::Failed { path: path.to_owned(), source })
        }
    }
}

#[derive(Debug)]
pub(crate) struct PoolState {
    pub(crate) manifest: Manifest,
    /// Slots of files of the right size that no segment uses.
    pub(crate) free: Vec<u32>,
    /// Named in the manifest, never written; oldest generation first.
    pub(crate) standby: VecDeque<Arc<Segment>>,
    pub(crate) next_slot: u32,
}

/// See the module.
pub(crate) struct Pool {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) segment_bytes: u64,
    pub(crate) free_max: usize,
    state: Mutex<PoolState>,
    standby_len: AtomicUsize,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Pool {
    pub(crate) fn new(disk: Arc<dyn Disk>, segment_bytes: u64, free_max: usize, state: PoolState) -> Pool {
        Pool { disk, segment_bytes, free_max, state: Mutex::new(state), standby_len: AtomicUsize::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, PoolState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Segments that wait for the writer.
    pub(crate) fn standby_len(&self) -> usize {
        self.standby_len.load(Ordering::Acquire)
    }

    /// The writer's next segment: one that stands by, else one made here and now.
    pub(crate) fn next_segment(&self) -> Result<Arc<Segment>, PoolError> {
        let mut state = self.lock();
        if state.standby.is_empty() {
            if state.free.is_empty() {
                self.reserve_file(&mut state)?;
            }
            self.name_segment(&mut state)?;
        }
        let next = state.standby.pop_front().ok_or(PoolError::NoSpace)?;
        self.standby_len.store(state.standby.len(), Ordering::Release);
        Ok(next)
    }

    /// A new file whose room is reserved but not written: quicker to make, slower to sync into.
    fn reserve_file(&self, state: &mut PoolState) -> Result<(), PoolError> {
        let slot = state.next_slot;
        state.next_slot += 1;
        self.make_file(slot, |file| {
            file.allocate(self.segment_bytes)?;
            file.set_len(self.segment_bytes)
        })?;
        state.free.push(slot);
        Ok(())
    }

    /// Makes a durable file; removes it again if there is no room.
    fn make_file(&self, slot: u32, fill: impl Fn(&dyn DiskFile) -> io::Result<()>) -> Result<(), PoolError> {
        let path = path_of(slot);
        let made = self.disk.open(&path, OpenMode::Create).and_then(|file| {
            fill(file.as_ref())?;
            file.sync_data()?;
            self.disk.sync_dir(DIR)
        });
        let Err(error) = made else { return Ok(()) };
        let error = classify(&path)(error);
        if matches!(error, PoolError::NoSpace) {
            match self.disk.remove(&path) {
                Err(left) if left.kind() != io::ErrorKind::NotFound => return Err(classify(&path)(left)),
                _ => {}
            }
        }
        Err(error)
    }

    /// Turns the last free file into a segment of a new generation that stands by.
    fn name_segment(&self, state: &mut PoolState) -> Result<(), PoolError> {
        let Some(&slot) = state.free.last() else { return Err(PoolError::NoSpace) };
        let mut manifest = state.manifest.clone();
        let id = SegmentId(manifest.next_generation);
        manifest.next_generation += 1;
        manifest.segments.push(Named {
            id,
            slot,
            bytes: self.segment_bytes,
            retired: false,
            end_sequence: 0,
        });
        let segment = Segment::new(&self.disk, &manifest.salt, id, slot, self.segment_bytes);
        let path = segment.path();
        let header = SegmentHeader { id, salt: manifest.salt, bytes: self.segment_bytes }.encode();
        let file = segment.writable().map_err(classify(&path))?;
        file.write_at(&[IoSlice::new(&header)], 0).map_err(classify(&path))?;
        file.sync_data().map_err(classify(&path))?;
        state.free.pop();
        if let Err(error) = self.save(state, manifest) {
            state.free.push(slot);
            return Err(error);
        }
        state.standby.push_back(Arc::new(segment));
        self.standby_len.store(state.standby.len(), Ordering::Release);
        Ok(())
    }

    /// Puts `manifest` on disk, then in memory. A full disk costs a free file before it costs the save.
    fn save(&self, state: &mut PoolState, manifest: Manifest) -> Result<(), PoolError> {
        let mut saved = manifest.save(self.disk.as_ref());
        if saved.as_ref().is_err_and(is_no_space)
            && let Some(slot) = state.free.pop()
        {
            self.disk.remove(&path_of(slot)).map_err(classify(&path_of(slot)))?;
            saved = manifest.save(self.disk.as_ref());
        }
        saved.map_err(classify(crate::manifest::PATH))?;
        state.manifest = manifest;
        Ok(())
    }

    /// Makes one segment stand by, its file written in full beforehand. The writing is done without the lock.
    pub(crate) fn prepare_one(&self) -> Result<(), PoolError> {
        let slot = {
            let mut state = self.lock();
            if !state.free.is_empty() {
                return self.name_segment(&mut state);
            }
            let slot = state.next_slot;
            state.next_slot += 1;
            slot
        };
        self.make_file(slot, |file| {
            file.allocate(self.segment_bytes)?;
            write_zeros(file, 0, self.segment_bytes)
        })?;
        let mut state = self.lock();
        state.free.push(slot);
        self.name_segment(&mut state)
    }

    /// One change of the manifest: `retire` these (with the sequence after each one's last batch), unname `free`, forget what was
    /// recorded as lost if records in the log say it too.
    pub(crate) fn change(&self, change: &Change) -> Result<(), PoolError> {
        let mut state = self.lock();
        let mut manifest = state.manifest.clone();
        for (id, end_sequence) in &change.retire {
            if let Some(named) = manifest.segments.iter_mut().find(|named| named.id == *id) {
                named.retired = true;
                named.end_sequence = *end_sequence;
                manifest.tail_sequence = *end_sequence;
            }
        }
        if change.forget_lost {
            manifest.lost.clear();
        }
        let freed: Vec<Named> =
            manifest.segments.iter().filter(|named| change.free.contains(&named.id)).copied().collect();
        manifest.segments.retain(|named| !change.free.contains(&named.id));
        self.save(&mut state, manifest)?;
        for named in freed {
            if named.bytes == self.segment_bytes && state.free.len() < self.free_max {
                state.free.push(named.slot);
            } else {
                let path = path_of(named.slot);
                self.disk.remove(&path).map_err(classify(&path))?;
            }
        }
        Ok(())
    }
}

/// See [`Pool::change`].
#[derive(Debug, Default)]
pub(crate) struct Change {
    pub(crate) retire: Vec<(SegmentId, u64)>,
    pub(crate) free: Vec<SegmentId>,
    pub(crate) forget_lost: bool,
}

impl Change {
    pub(crate) fn is_empty(&self) -> bool {
        self.retire.is_empty() && self.free.is_empty()
    }
}

/// Writes zeros from `from` up to `end`; not synced. Past the page cache, and piece by piece: a large heap of dirty pages
/// would be flushed in one go, and the writer's sync would wait behind it.
pub(crate) fn write_zeros(file: &dyn DiskFile, from: u64, end: u64) -> io::Result<()> {
    let page = PAGE_BYTES as u64;
    let (first, last) = (from.next_multiple_of(page).min(end), end - end % page);
    let few = [0; PAGE_BYTES];
    file.write_at(&[IoSlice::new(&few[..(first - from) as usize])], from)?;
    let all = vec![0; ZEROS_PAGES * PAGE_BYTES];
    let mut zeros = PageBuf::new(ZEROS_PAGES);
    zeros.put(&all);
    let mut at = first;
    while at < last {
        let rest = (last - at) as usize;
        if rest < all.len() {
            zeros.keep(0, 0);
            zeros.put(&all[..rest]);
        }
        file.write_pages(&zeros, at)?;
        at += zeros.len() as u64;
    }
    file.write_at(&[IoSlice::new(&few[..(end - at) as usize])], at)
}
