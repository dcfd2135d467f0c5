//! The manifest: which store files count, which segments they replaced, and how much each group had applied then.
//!
//! ```text
//! u32 crc over the rest, u8 version = 2, u64 next store, u32 n, n stores (u64), u32 m, m retired segments (u64),
//! from version 2 on: u32 k, k times (u32 group, u64 index)
//! ```
//! What was settled up to these indexes may be gone from the disk: see [`crate::Opened::reached`].
//!
//! Danger: this one rename is the moment at which a rewritten copy becomes *the* copy. It happens after the store file is
//! synced and before its sources are let go. Shared by jobs that run at the same time, so it has a lock.

use crate::types::{RecordsError, SegmentId, StoreId};
use bytes::BufMut;
use longshore_io::{Disk, OpenMode};
use longshore_wire::{Index, Reader, ShardId};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

const VERSION: u8 = 2;
const NAME: &str = "manifest";

/// What the manifest says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Listed {
    pub next_store: u64,
    pub stores: BTreeSet<StoreId>,
    pub retired: BTreeSet<SegmentId>,
    pub reached: BTreeMap<ShardId, Index>,
}

impl Listed {
    fn encode(&self) -> Vec<u8> {
        let mut out = vec![0, 0, 0, 0, VERSION];
        out.put_u64_le(self.next_store);
        out.put_u32_le(self.stores.len() as u32);
        self.stores.iter().for_each(|store| out.put_u64_le(store.0));
        out.put_u32_le(self.retired.len() as u32);
        self.retired.iter().for_each(|segment| out.put_u64_le(segment.0));
        out.put_u32_le(self.reached.len() as u32);
        for (group, index) in &self.reached {
            out.put_u32_le(group.0);
            out.put_u64_le(index.0);
        }
        let crc = crc32c::crc32c(&out[4..]);
        out[..4].copy_from_slice(&crc.to_le_bytes());
        out
    }

    fn decode(bytes: Vec<u8>, file: &str) -> Result<Listed, RecordsError> {
        let damaged = || RecordsError::Manifest { file: file.into() };
        let crc = crc32c::crc32c(bytes.get(4..).ok_or_else(damaged)?);
        let mut r = Reader::new(bytes.into(), "manifest");
        let mut read = || -> Result<(u32, u8, Listed), longshore_wire::DecodeError> {
            let (crc, version) = (r.u32()?, r.u8()?);
            if version > VERSION {
                return Ok((crc, version, Listed::default()));
            }
            let mut listed = Listed { next_store: r.u64()?, ..Listed::default() };
            for _ in 0..r.count(8)? {
                listed.stores.insert(StoreId(r.u64()?));
            }
            for _ in 0..r.count(8)? {
                listed.retired.insert(SegmentId(r.u64()?));
            }
            if version >= 2 {
                for _ in 0..r.count(12)? {
                    listed.reached.insert(ShardId(r.u32()?), Index(r.u64()?));
                }
            }
            Ok((crc, version, listed))
        };
        match read() {
            Ok((found, version, _)) if found == crc && version > VERSION => {
                Err(RecordsError::Version { file: file.into(), found: version, known: VERSION })
            }
            Ok((found, _, listed)) if found == crc => Ok(listed),
            _ => Err(damaged()),
        }
    }
}

/// The manifest and its place on the disk.
pub(crate) struct Manifest {
    disk: Arc<dyn Disk>,
    dir: String,
    listed: Mutex<Listed>,
    /// Stores of an edit that failed after its rename began: the disk may name them.
    doubtful: Mutex<BTreeSet<StoreId>>,
}

impl std::fmt::Debug for Manifest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Manifest").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Manifest {
    /// Reads the manifest, or makes an empty one in an empty directory.
    pub fn open(disk: Arc<dyn Disk>, dir: &str) -> Result<Manifest, RecordsError> {
        let path = format!("{dir}/{NAME}");
        let failed = |what, error| RecordsError::Io { what, file: path.clone(), error };
        disk.create_dir(dir).map_err(|error| failed("make the directory of", error))?;
        match disk.open(&path, OpenMode::Read) {
            Ok(file) => {
                let len = file.len().map_err(|error| failed("read", error))?;
                let bytes = crate::directory::read_exact(&*file, 0, len as usize)
                    .map_err(|error| failed("read", error))?;
                let listed = Listed::decode(bytes, &path)?;
                Ok(Manifest { disk, dir: dir.into(), listed: Mutex::new(listed), doubtful: Mutex::default() })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let names = disk.list(dir).map_err(|error| failed("list the directory of", error))?;
                if names.iter().any(|name| crate::file::FileKey::parse(name).is_some()) {
                    return Err(RecordsError::Manifest { file: path });
                }
                let listed = Mutex::new(Listed { next_store: 1, ..Listed::default() });
                let manifest = Manifest { disk, dir: dir.into(), listed, doubtful: Mutex::default() };
                manifest.edit(|_| ())?;
                Ok(manifest)
            }
            Err(error) => Err(failed("open", error)),
        }
    }

    /// What it says now.
    pub fn listed(&self) -> Listed {
        self.listed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether it names a store file, or may do so on the disk.
    pub fn may_name(&self, store: StoreId) -> bool {
        self.listed().stores.contains(&store)
            || self.doubtful.lock().unwrap_or_else(PoisonError::into_inner).contains(&store)
    }

    /// Changes it. When this returns, the change is durable; after an error it has not happened in memory, and on disk
    /// either the old or the new one is found at the next start.
    pub fn edit<T>(&self, change: impl FnOnce(&mut Listed) -> T) -> Result<T, RecordsError> {
        let mut listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = listed.clone();
        let result = change(&mut changed);
        let (path, temporary) = (format!("{}/{NAME}", self.dir), format!("{}/{NAME}.tmp", self.dir));
        write_file(&*self.disk, &temporary, &[&changed.encode()])?;
        let failed = |what, error| RecordsError::Io { what, file: path.clone(), error };
        let renamed = self.disk.rename(&temporary, &path).map_err(|error| failed("rename", error));
        let named = renamed.and_then(|()| {
            self.disk.sync_dir(&self.dir).map_err(|error| failed("sync the directory of", error))
        });
        if let Err(error) = named {
            self.doubtful.lock().unwrap_or_else(PoisonError::into_inner).extend(changed.stores);
            return Err(error);
        }
        *listed = changed;
        Ok(result)
    }
}

/// Writes a whole file, replacing what a crash left under its name, and syncs it (not its name).
pub(crate) fn write_file(disk: &dyn Disk, path: &str, slices: &[&[u8]]) -> Result<(), RecordsError> {
    let failed = |what, error| RecordsError::Io { what, file: path.into(), error };
    let file = create(disk, path)?;
    let slices: Vec<io::IoSlice<'_>> = slices.iter().map(|slice| io::IoSlice::new(slice)).collect();
    file.write_at(&slices, 0).map_err(|error| failed("write", error))?;
    file.sync_data().map_err(|error| failed("sync", error))
}

/// Creates a file, also where a crash left one of that name.
pub(crate) fn create(disk: &dyn Disk, path: &str) -> Result<Arc<dyn longshore_io::DiskFile>, RecordsError> {
    let failed = |error| RecordsError::Io { what: "create", file: path.into(), error };
    match disk.open(path, OpenMode::Create) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            disk.remove(path).map_err(failed)?;
            disk.open(path, OpenMode::Create).map_err(failed)
        }
        other => other.map_err(failed),
    }
}
