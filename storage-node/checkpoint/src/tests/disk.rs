//! A disk in memory that fails and crashes on command: everything unsynced is lost, kept or torn.

use longshore_io::{Disk, DiskFile, OpenMode};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

#[derive(Clone, Default)]
struct Inode {
    now: Vec<u8>,
    synced: Vec<u8>,
    /// Writes since the last sync.
    unsynced: Vec<(u64, Vec<u8>)>,
}

#[derive(Clone, Default)]
struct Inner {
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    synced_names: BTreeMap<String, usize>,
    steps: u64,
    crash_at: Option<u64>,
    space_left: Option<u64>,
}

/// What of the unsynced survives a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Nothing.
    Nothing,
    /// Everything.
    All,
    /// Names only; no unsynced bytes.
    Names,
    /// All writes but the first one, which is lost.
    NotTheFirst,
    /// The first half of each write; no names.
    Halves,
}

#[derive(Clone, Default)]
pub struct MemDisk {
    inner: Arc<Mutex<Inner>>,
}

struct MemFile {
    disk: MemDisk,
    inode: usize,
}

fn write_into(bytes: &mut Vec<u8>, at: u64, data: &[u8]) {
    let (at, end) = (at as usize, at as usize + data.len());
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[at..end].copy_from_slice(data);
}

impl MemDisk {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    fn step(&self) -> io::Result<MutexGuard<'_, Inner>> {
        let mut inner = self.lock();
        inner.steps += 1;
        if inner.crash_at.is_some_and(|at| inner.steps >= at) {
            return Err(io::Error::other("the power is off"));
        }
        Ok(inner)
    }

    /// From step `at` on (counted from now), everything fails; the step itself is not done.
    pub fn crash_at(&self, at: u64) {
        let mut inner = self.lock();
        inner.crash_at = Some(inner.steps + at);
    }

    pub fn space_left(&self, bytes: Option<u64>) {
        self.lock().space_left = bytes;
    }

    pub fn steps(&self) -> u64 {
        self.lock().steps
    }

    /// A disk of its own with equal contents.
    pub fn copy(&self) -> MemDisk {
        MemDisk { inner: Arc::new(Mutex::new(self.lock().clone())) }
    }

    pub fn crash(&self, keep: Keep) {
        let mut inner = self.lock();
        inner.crash_at = None;
        if matches!(keep, Keep::Nothing | Keep::Halves) {
            inner.names = inner.synced_names.clone();
        }
        for inode in &mut inner.inodes {
            let writes = std::mem::take(&mut inode.unsynced);
            if keep != Keep::All {
                inode.now = inode.synced.clone();
                for (n, (at, data)) in writes.iter().enumerate() {
                    match keep {
                        Keep::NotTheFirst if n > 0 => write_into(&mut inode.now, *at, data),
                        Keep::Halves => write_into(&mut inode.now, *at, &data[..data.len() / 2]),
                        _ => {}
                    }
                }
            }
            inode.synced = inode.now.clone();
        }
        inner.synced_names = inner.names.clone();
    }

    pub fn names(&self) -> Vec<String> {
        self.lock().names.keys().cloned().collect()
    }

    pub fn total_bytes(&self) -> usize {
        let inner = self.lock();
        inner.names.values().map(|inode| inner.inodes[*inode].now.len()).sum()
    }

    pub fn edit(&self, path: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut inner = self.lock();
        let inode = inner.names[path];
        change(&mut inner.inodes[inode].now);
    }

    pub fn put(&self, path: &str, bytes: &[u8]) {
        let mut inner = self.lock();
        inner.inodes.push(Inode { now: bytes.to_vec(), ..Inode::default() });
        let inode = inner.inodes.len() - 1;
        inner.names.insert(path.into(), inode);
    }
}

impl Disk for MemDisk {
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut inner = self.step()?;
        let inode = match (inner.names.get(path), mode) {
            (Some(_), OpenMode::Create) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Some(inode), _) => *inode,
            (None, OpenMode::Create) => {
                inner.inodes.push(Inode::default());
                let inode = inner.inodes.len() - 1;
                inner.names.insert(path.into(), inode);
                inode
            }
            (None, _) => return Err(io::ErrorKind::NotFound.into()),
        };
        Ok(Arc::new(MemFile { disk: self.clone(), inode }))
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let inner = self.step()?;
        let prefix = format!("{dir}/");
        Ok(inner.names.keys().filter_map(|name| name.strip_prefix(&prefix)).map(str::to_owned).collect())
    }

    fn create_dir(&self, _: &str) -> io::Result<()> {
        self.step().map(|_| ())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut inner = self.step()?;
        let inode = inner.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        inner.names.insert(to.into(), inode);
        Ok(())
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let mut inner = self.step()?;
        inner.names.remove(path).map(|_| ()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync_dir(&self, _: &str) -> io::Result<()> {
        let mut inner = self.step()?;
        inner.synced_names = inner.names.clone();
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(self.lock().space_left.unwrap_or(u64::MAX))
    }
}

impl DiskFile for MemFile {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let inner = self.disk.step()?;
        let bytes = inner.inodes[self.inode].now.get(at as usize..).unwrap_or_default();
        let n = bytes.len().min(buf.len());
        buf[..n].copy_from_slice(&bytes[..n]);
        Ok(n)
    }

    fn write_at(&self, slices: &[io::IoSlice<'_>], at: u64) -> io::Result<()> {
        let mut inner = self.disk.step()?;
        let mut data: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
        let room = inner.space_left.map_or(data.len(), |left| data.len().min(left as usize));
        let full = room < data.len();
        data.truncate(room);
        if let Some(left) = &mut inner.space_left {
            *left -= room as u64;
        }
        let inode = &mut inner.inodes[self.inode];
        write_into(&mut inode.now, at, &data);
        inode.unsynced.push((at, data));
        if full { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut inner = self.disk.step()?;
        let inode = &mut inner.inodes[self.inode];
        inode.synced = inode.now.clone();
        inode.unsynced.clear();
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.step()?.inodes[self.inode].now.len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut inner = self.disk.step()?;
        inner.inodes[self.inode].now.resize(len as usize, 0);
        Ok(())
    }

    fn allocate(&self, _: u64) -> io::Result<()> {
        Ok(())
    }
}
