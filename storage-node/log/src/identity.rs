//! Who this data directory is.
//!
//! Duty: keep the random identity made with the directory, and the cluster and node id learned later.
//! Danger: a directory that took another node's identity would vote from someone else's memory. The directory's lock
//! is `longshore_io::real::RealDisk`'s. Called once at start, and when the node joins a cluster.
//!
//! ```text
//! 0 magic u32, 4 crc u32 of the rest, 8 version u32, 12 random [16], 28 flags u8, cluster [16], 45 node u32 (0: none)
//! flags: 1 has a cluster, 2 not settled
//! ```

use crate::manifest::write_whole;
use bytes::{BufMut, Bytes};
use longshore_io::{Disk, OpenMode};
use longshore_wire::{NodeId, Reader};
use std::io;

const PATH: &str = "identity";
const MAGIC: u32 = u32::from_le_bytes(*b"LSid");
/// Version of the data directory as a whole.
const VERSION: u32 = 1;
const BYTES: usize = 49;
const HAS_CLUSTER: u8 = 1;
const NOT_SETTLED: u8 = 2;

/// The identity of a data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Random bytes, made once with the directory; never changed.
    pub random: [u8; 16],
    /// The cluster it belongs to, once it joined or formed one.
    pub cluster: Option<[u8; 16]>,
    /// Its node id in that cluster, once registered; never `NodeId(0)`.
    pub node: Option<NodeId>,
    /// The node belongs to a formed cluster and has made its log. From then on, a missing log is a lost log. Before that,
    /// the node looks for its cluster at each start, because it may be the one that must form it.
    pub settled: bool,
}

/// Why an identity could not be read or stored.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file could not be read or written.
    #[error("the identity file could not be read or written: {0}")]
    Io(#[from] io::Error),
    /// The file's bytes are not what was written: checksum or fields do not fit.
    #[error("the identity file is damaged: wipe this data directory and let the node join anew")]
    Damaged,
    /// Written by a newer build.
    #[error(
        "the data directory has format version {found}, this build knows up to {known}: start the newer build"
    )]
    Version {
        /// The version found.
        found: u32,
        /// The newest version that this build reads.
        known: u32,
    },
}

impl Identity {
    /// Reads the identity of a data directory; `None` if it has none, that is, if it is new.
    pub fn load(disk: &dyn Disk) -> Result<Option<Identity>, IdentityError> {
        let file = match disk.open(PATH, OpenMode::Read) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut bytes = [0u8; BYTES];
        let n = file.read_at(&mut bytes, 0)?;
        let Some((head, rest)) = bytes.split_first_chunk::<8>().filter(|_| n == BYTES) else {
            return Err(IdentityError::Damaged);
        };
        if *head != header(rest) {
            return Err(IdentityError::Damaged);
        }
        Identity::decode(rest).map(Some)
    }

    fn decode(rest: &[u8]) -> Result<Identity, IdentityError> {
        let mut r = Reader::new(Bytes::copy_from_slice(rest), "identity");
        let damaged = |_| IdentityError::Damaged;
        let version = r.u32().map_err(damaged)?;
        if version != VERSION {
            return Err(IdentityError::Version { found: version, known: VERSION });
        }
        let mut random = [0u8; 16];
        random.copy_from_slice(&r.slice(16).map_err(damaged)?);
        let flags = r.u8().map_err(damaged)?;
        let has_cluster = flags & HAS_CLUSTER != 0;
        let mut cluster = [0u8; 16];
        cluster.copy_from_slice(&r.slice(16).map_err(damaged)?);
        let node = r.u32().map_err(damaged)?;
        Ok(Identity {
            random,
            cluster: has_cluster.then_some(cluster),
            node: (node != 0).then_some(NodeId(node)),
            settled: has_cluster && flags & NOT_SETTLED == 0,
        })
    }

    /// Makes the identity of a new directory from fresh random bytes, durably.
    ///
    /// Errors: `AlreadyExists` if the directory has one.
    pub fn create(disk: &dyn Disk, random: [u8; 16]) -> Result<Identity, IdentityError> {
        if Identity::load(disk)?.is_some() {
            return Err(io::Error::from(io::ErrorKind::AlreadyExists).into());
        }
        let identity = Identity { random, cluster: None, node: None, settled: false };
        identity.store(disk)?;
        Ok(identity)
    }

    /// Stores the identity, durably, replacing the old one in one step.
    pub fn store(&self, disk: &dyn Disk) -> Result<(), IdentityError> {
        let mut rest = Vec::with_capacity(BYTES);
        rest.put_u32_le(VERSION);
        rest.put_slice(&self.random);
        let cluster = if self.cluster.is_some() { HAS_CLUSTER } else { 0 };
        let unsettled = if self.cluster.is_some() && !self.settled { NOT_SETTLED } else { 0 };
        rest.put_u8(cluster | unsettled);
        rest.put_slice(&self.cluster.unwrap_or_default());
        rest.put_u32_le(self.node.map_or(0, |n| n.0));
        let mut bytes = header(&rest).to_vec();
        bytes.append(&mut rest);
        Ok(write_whole(disk, "", PATH, &bytes)?)
    }
}

fn header(rest: &[u8]) -> [u8; 8] {
    let mut out = [0u8; 8];
    out[..4].copy_from_slice(&MAGIC.to_le_bytes());
    out[4..].copy_from_slice(&crc32c::crc32c(rest).to_le_bytes());
    out
}
