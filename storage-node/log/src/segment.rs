//! Segment files: their names, handles and pins.
//!
//! Danger: a file is recycled under a new generation; whoever reads outside the store thread holds a [`SegmentPin`], and a
//! file is given up only when its generation has no pin. Used by every module that touches a segment.

use crate::format;
use crate::types::{ReadError, SegmentId};
use bytes::Bytes;
use longshore_io::{Disk, DiskFile, OpenMode};
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Path of a segment file.
pub(crate) fn path_of(slot: u32) -> String {
    format!("{}/{slot:08}.seg", crate::manifest::DIR)
}

/// The slot that a file name in the log's directory stands for.
pub(crate) fn slot_of(name: &str) -> Option<u32> {
    let digits = name.strip_suffix(".seg").filter(|d| d.len() == 8)?;
    digits.parse().ok()
}

/// One generation of a segment file.
pub(crate) struct Segment {
    pub(crate) id: SegmentId,
    pub(crate) slot: u32,
    pub(crate) bytes: u64,
    pub(crate) seed: u32,
    disk: Arc<dyn Disk>,
    /// Kept open while Raft may need the segment; a retired one is opened by whoever reads it.
    file: Mutex<Option<Arc<dyn DiskFile>>>,
    pins: AtomicUsize,
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Segment").field("id", &self.id).field("slot", &self.slot).finish_non_exhaustive()
    }
}

impl Segment {
    pub(crate) fn new(
        disk: &Arc<dyn Disk>,
        salt: &[u8; 16],
        id: SegmentId,
        slot: u32,
        bytes: u64,
    ) -> Segment {
        Segment {
            id,
            slot,
            bytes,
            seed: format::seed(salt, id),
            disk: Arc::clone(disk),
            file: Mutex::new(None),
            pins: AtomicUsize::new(0),
        }
    }

    pub(crate) fn path(&self) -> String {
        path_of(self.slot)
    }

    /// The file, opened for writing and kept.
    pub(crate) fn writable(&self) -> io::Result<Arc<dyn DiskFile>> {
        let mut slot = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = slot.as_ref() {
            return Ok(Arc::clone(file));
        }
        let file = self.disk.open(&self.path(), OpenMode::Write)?;
        Ok(Arc::clone(slot.insert(file)))
    }

    fn readable(&self) -> io::Result<Arc<dyn DiskFile>> {
        if let Some(file) = self.file.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            return Ok(Arc::clone(file));
        }
        self.disk.open(&self.path(), OpenMode::Read)
    }

    /// Lets go of the handle; pins keep theirs.
    pub(crate) fn close(&self) {
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(crate) fn is_pinned(&self) -> bool {
        self.pins.load(Ordering::Acquire) > 0
    }

    /// Reads the whole file; what it lacks at its end reads as zeros.
    pub(crate) fn read_all(&self) -> io::Result<Bytes> {
        let mut bytes = vec![0u8; self.bytes as usize];
        self.readable()?.read_at(&mut bytes, 0)?;
        Ok(Bytes::from(bytes))
    }
}

struct Pinned {
    segment: Arc<Segment>,
    file: OnceLock<Arc<dyn DiskFile>>,
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.segment.pins.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Keeps a segment's file from being recycled while it or a clone lives, and reads from it on any thread.
#[derive(Clone)]
pub struct SegmentPin {
    pinned: Arc<Pinned>,
}

impl fmt::Debug for SegmentPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SegmentPin").field(&self.id()).finish()
    }
}

impl SegmentPin {
    /// Only the store thread pins, so that a segment found unpinned there stays so.
    pub(crate) fn new(segment: &Arc<Segment>) -> SegmentPin {
        segment.pins.fetch_add(1, Ordering::AcqRel);
        SegmentPin { pinned: Arc::new(Pinned { segment: Arc::clone(segment), file: OnceLock::new() }) }
    }

    pub(crate) fn segment(&self) -> &Segment {
        &self.pinned.segment
    }

    /// The segment.
    pub fn id(&self) -> SegmentId {
        self.pinned.segment.id
    }

    /// Reads `len` bytes at `position`; blocking. The bytes are returned unchecked: the caller knows their checksums.
    ///
    /// Errors: [`ReadError::Corrupt`] if the segment has no such bytes, [`ReadError::Io`].
    pub fn read(&self, position: u64, len: usize) -> Result<Bytes, ReadError> {
        let segment = &self.pinned.segment;
        let corrupt = || ReadError::Corrupt { segment: segment.id, position };
        if position.checked_add(len as u64).is_none_or(|end| end > segment.bytes) {
            return Err(corrupt());
        }
        let failed = |source| ReadError::Io { segment: segment.id, source };
        let file = match self.pinned.file.get() {
            Some(file) => Arc::clone(file),
            None => {
                let file = segment.readable().map_err(failed)?;
                Arc::clone(self.pinned.file.get_or_init(|| file))
            }
        };
        let mut bytes = vec![0u8; len];
        let n = file.read_at(&mut bytes, position).map_err(failed)?;
        if n == len { Ok(Bytes::from(bytes)) } else { Err(corrupt()) }
    }
}
