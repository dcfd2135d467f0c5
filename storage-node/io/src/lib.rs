//! Files: the thin layer under the storage node that the simulation replaces.
//!
//! Everything under the storage node reads and writes through [`Disk`]; time is always a parameter
//! ([`Mono`], [`WallMs`]), never read. `real::RealDisk` is the shipped one, `sim::SimDisk` keeps files in memory and
//! loses, tears, flips and refuses what a seed says.
#![forbid(unsafe_code)]

mod pages;
pub mod real;
pub mod sim;

pub use pages::{PAGE_BYTES, PageBuf};

use std::io;
use std::sync::Arc;

/// Microseconds of a monotonic clock with an arbitrary start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Mono(pub u64);

impl Mono {
    /// The moment `ms` milliseconds later.
    pub fn plus_ms(self, ms: u64) -> Mono {
        Mono(self.0.saturating_add(ms.saturating_mul(1000)))
    }

    /// Microseconds from `earlier` to here, 0 if it is later.
    pub fn since(self, earlier: Mono) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Milliseconds since the Unix epoch by this machine's clock, which may step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct WallMs(pub u64);

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// It must exist; reading only.
    Read,
    /// It must exist; reading and writing.
    Write,
    /// It must not exist; reading and writing.
    Create,
}

/// A data directory. Paths are relative, with `/` between at most two parts.
pub trait Disk: Send + Sync + 'static {
    /// Opens a file.
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>>;
    /// Names of the files in a directory ("" is the root), sorted; directories are left out.
    fn list(&self, dir: &str) -> io::Result<Vec<String>>;
    /// Makes a directory unless it exists.
    fn create_dir(&self, dir: &str) -> io::Result<()>;
    /// Replaces `to` by `from`; durable only after [`Disk::sync_dir`].
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file; durable only after [`Disk::sync_dir`].
    fn remove(&self, path: &str) -> io::Result<()>;
    /// Makes names in a directory durable.
    fn sync_dir(&self, dir: &str) -> io::Result<()>;
    /// Bytes that can still be written.
    fn free_bytes(&self) -> io::Result<u64>;
}

/// An open file. All methods may be called from several threads.
pub trait DiskFile: Send + Sync {
    /// Reads up to `buf.len()` bytes at `at`; fewer only at the end of the file.
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize>;
    /// Writes all slices one after the other at `at`, with as few calls as possible. *Written, not flushed.*
    fn write_at(&self, slices: &[io::IoSlice<'_>], at: u64) -> io::Result<()>;
    /// Writes whole pages at `at`, a multiple of [`PAGE_BYTES`], past the page cache where the file system lets it: a log is
    /// written once and seldom read, and pages that are cached only to be written cost more than the write. *Written,
    /// not flushed.* Mixing it with [`DiskFile::write_at`] is safe for readers; between two writers of one page it is not.
    fn write_pages(&self, pages: &PageBuf, at: u64) -> io::Result<()> {
        self.write_at(&[io::IoSlice::new(pages.bytes())], at)
    }
    /// fdatasync: everything written before is durable when this returns. After an error nothing is known of
    /// what was written since the last success: the process must end.
    fn sync_data(&self) -> io::Result<()>;
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Cuts or zero-extends the file.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Reserves room for `len` bytes, without writing it.
    fn allocate(&self, len: u64) -> io::Result<()>;
}
