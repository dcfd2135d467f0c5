//! The shipped disk: a directory of the file system.
//!
//! Duty: [`Disk`] by system calls, without a copy (pwritev of the caller's slices) and without hiding an error.
//! Danger: one process per directory; [`RealDisk::open`] takes a lock that lasts as long as the disk. Every method
//! blocks: call it from threads made for that. Used by the storage node's server.

use crate::{Disk, DiskFile, OpenMode, PageBuf};
use rustix::fs::{FallocateFlags, OFlags};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, IoSlice};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// The file that is locked while a process uses the directory.
pub const LOCK_FILE: &str = "lock";
/// Slices in one pwritev; the kernel's own limit.
const SLICES_MAX: usize = 1024;

/// A data directory on a real file system.
#[derive(Debug)]
pub struct RealDisk {
    root: PathBuf,
    /// Holds the lock; closed, and so unlocked, with the disk.
    _lock: File,
}

impl RealDisk {
    /// Opens a data directory, making it unless it exists, and locks it.
    ///
    /// Errors: `ResourceBusy` if another process uses it; whatever the file system says.
    pub fn open(root: &Path) -> io::Result<RealDisk> {
        std::fs::create_dir_all(root)?;
        if let Some(parent) = root.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            File::open(parent)?.sync_all()?;
        }
        let lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(root.join(LOCK_FILE))?;
        match lock.try_lock() {
            Ok(()) => Ok(RealDisk { root: root.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                format!("{} is in use by another process; stop it first", root.display()),
            )),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn path(&self, relative: &str) -> io::Result<PathBuf> {
        let strange = |part: &str| part.is_empty() || part == "." || part == ".." || part.contains('\0');
        if relative.split('/').count() > 2 || relative.split('/').any(strange) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("not a path in a data directory: {relative:?}"),
            ));
        }
        Ok(self.root.join(relative))
    }

    fn dir(&self, dir: &str) -> io::Result<PathBuf> {
        if dir.is_empty() { Ok(self.root.clone()) } else { self.path(dir) }
    }
}

impl Disk for RealDisk {
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true);
        match mode {
            OpenMode::Read => {}
            OpenMode::Write => {
                options.write(true);
            }
            OpenMode::Create => {
                options.write(true).create_new(true);
            }
        }
        let path = self.path(path)?;
        Ok(Arc::new(RealFile { file: options.open(&path)?, path, direct: OnceLock::new() }))
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(self.dir(dir)?)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                continue;
            }
            // A name that is not UTF-8 is none of ours.
            if let Ok(name) = entry.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn create_dir(&self, dir: &str) -> io::Result<()> {
        let path = self.path(dir)?;
        match std::fs::create_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            other => other,
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path(from)?, self.path(to)?)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        std::fs::remove_file(self.path(path)?)
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        File::open(self.dir(dir)?)?.sync_all()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(&self.root)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

#[derive(Debug)]
struct RealFile {
    file: File,
    path: PathBuf,
    /// The same file without the page cache, opened at the first write of pages; `None` where that cannot be.
    direct: OnceLock<Option<File>>,
}

impl RealFile {
    fn direct(&self) -> Option<&File> {
        let open = || {
            let mut options = OpenOptions::new();
            options.read(true).write(true).custom_flags(OFlags::DIRECT.bits() as i32);
            options.open(&self.path).ok()
        };
        self.direct.get_or_init(open).as_ref()
    }
}

impl DiskFile for RealFile {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(rest, at + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_at(&self, slices: &[IoSlice<'_>], at: u64) -> io::Result<()> {
        let mut rest: Vec<IoSlice<'_>> =
            slices.iter().filter(|s| !s.is_empty()).map(|s| IoSlice::new(s)).collect();
        let mut rest = rest.as_mut_slice();
        let mut at = at;
        while !rest.is_empty() {
            let window = &rest[..rest.len().min(SLICES_MAX)];
            match rustix::io::pwritev(&self.file, window, at) {
                Ok(0) => {
                    return Err(io::Error::new(io::ErrorKind::WriteZero, "the file takes no more bytes"));
                }
                Ok(n) => {
                    at += n as u64;
                    IoSlice::advance_slices(&mut rest, n);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn write_pages(&self, pages: &PageBuf, at: u64) -> io::Result<()> {
        let bytes = pages.bytes();
        let mut done = 0;
        while let (Some(direct), true) = (self.direct(), done < bytes.len()) {
            match direct.write_at(&bytes[done..], at + done as u64) {
                Ok(0) => {
                    return Err(io::Error::new(io::ErrorKind::WriteZero, "the file takes no more bytes"));
                }
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A device of larger blocks, or a file system that only pretends: the page cache takes the rest.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => break,
                Err(error) => return Err(error),
            }
        }
        self.write_at(&[IoSlice::new(&bytes[done..])], at + done as u64)
    }

    fn sync_data(&self) -> io::Result<()> {
        // One file, whichever handle wrote: fdatasync is about the file.
        let file = self.direct.get().and_then(Option::as_ref).unwrap_or(&self.file);
        Ok(rustix::fs::fdatasync(file)?)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        match rustix::fs::fallocate(&self.file, FallocateFlags::KEEP_SIZE, 0, len) {
            // A file system without reservations: what does not fit shows at the write.
            Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            other => Ok(other?),
        }
    }
}
