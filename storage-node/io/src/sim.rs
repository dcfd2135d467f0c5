//! A disk in memory that forgets, tears, flips and refuses: what tests and the simulation run on.
//!
//! Duty: be the harshest disk that the code must survive, repeatably. Data is durable only after `sync_data`, names
//! only after `sync_dir`; [`SimDisk::crash`] keeps an arbitrary part of the rest. Danger: it must never be kinder than
//! a real disk, or tests prove nothing. Clones share the disk; files opened before a crash fail after it.
//!
//! | module | what |
//! |---|---|
//! | `state` | names and operations |
//! | `file` | a file's bytes, durable and current |
//! | `fault` | what is injected, and the seeded choices |

mod fault;
mod file;
mod state;
#[cfg(test)]
mod tests;

pub use fault::{Effect, Fault, Operation, Rng};
pub use file::SECTOR_BYTES;
pub use state::Record;

use crate::{Disk, DiskFile, OpenMode};
use state::State;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A data directory in memory.
#[derive(Clone, Debug, Default)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

impl SimDisk {
    /// An empty disk without limits or faults. `seed` rules the choices of injected torn writes.
    pub fn new(seed: u64) -> SimDisk {
        let disk = SimDisk::default();
        disk.lock().rng = Rng::new(seed);
        disk
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is plain data: a test that panicked elsewhere leaves it usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Power loss and restart: of what was not synced, an arbitrary part survives, chosen by `seed` (nothing, all, a
    /// prefix torn at a sector, or any set of sectors). Files opened before fail from now on; injected faults are gone.
    pub fn crash(&self, seed: u64) {
        self.lock().crash(&mut Rng::new(seed));
    }

    /// The process ends and starts again, the machine runs on: everything written survives. Files opened before fail.
    pub fn restart(&self) {
        self.lock().restart();
    }

    /// Adds a fault.
    pub fn inject(&self, fault: Fault) {
        self.lock().faults.push(fault);
    }

    /// Takes back all faults that have not struck.
    pub fn clear_faults(&self) {
        self.lock().faults.clear();
    }

    /// How many faults have struck so far.
    pub fn faults_struck(&self) -> u64 {
        self.lock().struck
    }

    /// The disk dies at the `nth` change from now (0 is the next): every operation fails until [`SimDisk::crash`].
    /// `inside`: an arbitrary part of that change was done before. Changes are writes, syncs, and changes of names and lengths.
    pub fn crash_at_change(&self, nth: u64, inside: bool) {
        let mut state = self.lock();
        state.dies_at = Some((state.changes.saturating_add(nth), inside));
    }

    /// Whether the disk died (see [`SimDisk::crash_at_change`]) and waits for [`SimDisk::crash`].
    pub fn is_down(&self) -> bool {
        self.lock().down
    }

    /// How many changes were made since the disk was made.
    pub fn changes(&self) -> u64 {
        self.lock().changes
    }

    /// Room for this many bytes of files; `None` for no limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.lock().capacity = bytes;
    }

    /// Bytes that files take.
    pub fn used_bytes(&self) -> u64 {
        self.lock().used_bytes()
    }

    /// Flips one bit of a file, durably (bit rot). `false` if there is no such byte.
    pub fn flip(&self, path: &str, at: u64, bit: u8) -> bool {
        self.lock().flip(path, at, bit)
    }

    /// The current content of a file, as a reader would see it.
    pub fn content(&self, path: &str) -> Option<Vec<u8>> {
        self.lock().content(path)
    }

    /// Starts or stops keeping a log of operations (the newest 100,000).
    pub fn keep_records(&self, keep: bool) {
        self.lock().keep_records = keep;
    }

    /// The operations kept so far, oldest first; they are forgotten here.
    pub fn take_records(&self) -> Vec<Record> {
        self.lock().records.drain(..).collect()
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.lock();
        let inode = state.open(path, mode)?;
        Ok(Arc::new(SimFile {
            disk: self.clone(),
            inode,
            epoch: state.epoch,
            path: path.to_owned(),
            writable: mode != OpenMode::Read,
        }))
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.lock().list(dir)
    }

    fn create_dir(&self, dir: &str) -> io::Result<()> {
        self.lock().create_dir(dir)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.lock().rename(from, to)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.lock().remove(path)
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.lock().sync_dir(dir)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let state = self.lock();
        state.up()?;
        Ok(state.capacity.map_or(u64::MAX / 2, |c| c.saturating_sub(state.used_bytes())))
    }
}

struct SimFile {
    disk: SimDisk,
    inode: u64,
    epoch: u64,
    path: String,
    writable: bool,
}

impl SimFile {
    /// The state, if this file was opened by the process that runs now.
    fn state(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.disk.lock();
        state.up()?;
        if state.epoch != self.epoch {
            return Err(io::Error::other(format!("{} was opened before the crash", self.path)));
        }
        Ok(state)
    }

    fn state_to_write(&self) -> io::Result<MutexGuard<'_, State>> {
        if !self.writable {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("{} was opened for reading", self.path),
            ));
        }
        self.state()
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        self.state()?.read_at(self.inode, &self.path, buf, at)
    }

    fn write_at(&self, slices: &[IoSlice<'_>], at: u64) -> io::Result<()> {
        self.state_to_write()?.write_at(self.inode, &self.path, slices, at)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.state()?.sync_data(self.inode, &self.path)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.state()?.file(self.inode)?.current.len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.state_to_write()?.set_len(self.inode, &self.path, len)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.state_to_write()?.allocate(self.inode, &self.path, len)
    }
}
