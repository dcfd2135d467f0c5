//! The state in pages: one per entity, its key a letter for its kind and then its id or name.
//!
//! Danger: these bytes are checkpoints and snapshots, read by later builds: letters and field numbers are for ever.
//! Called through `state` by the node's checkpoints, and at start.
//!
//! | letter | then | value |
//! |---|---|---|
//! | `0` | | `MetaNumbers` |
//! | `c` | | `Cluster` |
//! | `n` | id u32 | `Namespace` |
//! | `u` | name | `User` |
//! | `q` | namespace u32, name | `Queue` |
//! | `t` | log u64 | `QueueDeleted` |
//! | `x` | namespace u32, name | `Exchange` |
//! | `b` | number u64 | `Binding` |
//! | `s` | id u32 | `StorageNode` |
//! | `p` | id u32 | `Shard` |
//! | `g` | session u64 | `Gateway` |
//!
//! Numbers in keys are big-endian, so that pages sort as their ids do.

use crate::changes::ChangeLog;
use crate::state::{Key, Meta};
use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use std::collections::BTreeSet;

/// Why pages do not make a state; the replica must be set aside and rebuilt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// The key is of no kind that this build knows: a newer build wrote it.
    #[error("page {0:?} is of an unknown kind; a newer build is needed")]
    Kind(Bytes),
    /// The value cannot be read.
    #[error("page {key:?}: {error}")]
    Value {
        /// The page.
        key: Bytes,
        /// Why.
        error: prost::DecodeError,
    },
    /// The value is of another key.
    #[error("page {0:?} holds the value of another one")]
    Mismatch(Bytes),
    /// The page with the state's numbers is not there.
    #[error("the page with the state's numbers is missing")]
    NoNumbers,
    /// The state has another format.
    #[error("the cluster has meta format {found}, this build knows {known}; start a newer build")]
    Format {
        /// The format found.
        found: u32,
        /// The one that this build knows.
        known: u32,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PageKey {
    Numbers,
    Cluster,
    Namespace(u32),
    User(String),
    Queue(Key),
    Tombstone(u64),
    Exchange(Key),
    Binding(u64),
    Node(u32),
    Shard(u32),
    Gateway(u64),
}

impl PageKey {
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(16);
        let mut named = |letter, (namespace, name): &Key| {
            out.put_u8(letter);
            out.put_u32(*namespace);
            out.put_slice(name.as_bytes());
        };
        match self {
            PageKey::Queue(key) => named(b'q', key),
            PageKey::Exchange(key) => named(b'x', key),
            PageKey::Numbers => out.put_u8(b'0'),
            PageKey::Cluster => out.put_u8(b'c'),
            PageKey::User(name) => {
                out.put_u8(b'u');
                out.put_slice(name.as_bytes());
            }
            PageKey::Namespace(id) => put_id(&mut out, b'n', *id),
            PageKey::Node(id) => put_id(&mut out, b's', *id),
            PageKey::Shard(id) => put_id(&mut out, b'p', *id),
            PageKey::Tombstone(n) => put_long_id(&mut out, b't', *n),
            PageKey::Binding(n) => put_long_id(&mut out, b'b', *n),
            PageKey::Gateway(n) => put_long_id(&mut out, b'g', *n),
        }
        out.freeze()
    }
}

fn put_id(out: &mut BytesMut, letter: u8, id: u32) {
    out.put_u8(letter);
    out.put_u32(id);
}

fn put_long_id(out: &mut BytesMut, letter: u8, id: u64) {
    out.put_u8(letter);
    out.put_u64(id);
}

fn encoded<M: Message>(entity: &M) -> Bytes {
    Bytes::from(entity.encode_to_vec())
}

impl Meta {
    /// A page's value, `None` if the entity is gone.
    pub(crate) fn page(&self, key: &PageKey) -> Option<Bytes> {
        match key {
            PageKey::Numbers => Some(encoded(&self.numbers)),
            PageKey::Cluster => self.cluster.as_ref().map(encoded),
            PageKey::Namespace(id) => self.namespaces.get(id).map(encoded),
            PageKey::User(name) => self.users.get(name).map(encoded),
            PageKey::Queue(key) => self.queues.get(key).map(encoded),
            PageKey::Tombstone(log) => self.tombstones.get(log).map(encoded),
            PageKey::Exchange(key) => self.exchanges.get(key).map(encoded),
            PageKey::Binding(id) => self.bindings.get(*id).map(encoded),
            PageKey::Node(id) => self.nodes.get(id).map(encoded),
            PageKey::Shard(id) => self.shards.get(id).map(encoded),
            PageKey::Gateway(session) => self.gateways.get(session).map(encoded),
        }
    }

    fn page_keys(&self) -> Vec<PageKey> {
        let mut keys = vec![PageKey::Numbers];
        keys.extend(self.cluster.iter().map(|_| PageKey::Cluster));
        keys.extend(self.namespaces.keys().map(|id| PageKey::Namespace(*id)));
        keys.extend(self.users.keys().map(|name| PageKey::User(name.clone())));
        keys.extend(self.queues.keys().map(|key| PageKey::Queue(key.clone())));
        keys.extend(self.tombstones.keys().map(|log| PageKey::Tombstone(*log)));
        keys.extend(self.exchanges.keys().map(|key| PageKey::Exchange(key.clone())));
        keys.extend(self.bindings.ids().map(PageKey::Binding));
        keys.extend(self.nodes.keys().map(|id| PageKey::Node(*id)));
        keys.extend(self.shards.keys().map(|id| PageKey::Shard(*id)));
        keys.extend(self.gateways.keys().map(|session| PageKey::Gateway(*session)));
        keys
    }

    /// The whole state, sorted by key.
    pub fn all_pages(&self) -> Vec<(Bytes, Bytes)> {
        let keys = self.page_keys();
        let mut pages: Vec<_> = keys.iter().filter_map(|key| Some((key.encode(), self.page(key)?))).collect();
        pages.sort();
        pages
    }

    /// Equal on equal state, whatever way led to it. Costs an encoding of everything.
    pub fn state_hash(&self) -> u64 {
        let mut hash = 0xCBF2_9CE4_8422_2325u64;
        for (key, value) in self.all_pages() {
            let lengths = [(key.len() as u64).to_le_bytes(), (value.len() as u64).to_le_bytes()].concat();
            for byte in lengths.iter().chain(&key).chain(&value) {
                hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3);
            }
        }
        hash
    }

    /// The state from its pages. Watchers of an earlier revision will have to take the whole state.
    ///
    /// Errors: [`RestoreError`].
    pub fn restore(pages: impl IntoIterator<Item = (Bytes, Bytes)>) -> Result<Meta, RestoreError> {
        let mut meta = Meta::new();
        let mut has_numbers = false;
        for (key, value) in pages {
            let owned = meta.take_page(&key, value)?;
            has_numbers |= owned == PageKey::Numbers;
            if owned.encode() != key {
                return Err(RestoreError::Mismatch(key));
            }
        }
        if !has_numbers {
            return Err(RestoreError::NoNumbers);
        }
        if let Some(found) =
            meta.cluster.as_ref().map(|cluster| cluster.format).filter(|f| *f > crate::FORMAT)
        {
            return Err(RestoreError::Format { found, known: crate::FORMAT });
        }
        meta.log = ChangeLog::at(meta.numbers.revision);
        meta.dirty = BTreeSet::new();
        Ok(meta)
    }

    /// Takes one page in; the answer is the key that its value belongs to.
    fn take_page(&mut self, key: &Bytes, value: Bytes) -> Result<PageKey, RestoreError> {
        Ok(match key.first() {
            Some(b'0') => {
                self.numbers = read(key, value)?;
                PageKey::Numbers
            }
            Some(b'c') => {
                self.cluster = Some(read(key, value)?);
                PageKey::Cluster
            }
            Some(b'n') => {
                let namespace: longshore_proto::v1::Namespace = read(key, value)?;
                let id = namespace.id;
                self.namespace_ids.insert(namespace.name.clone(), id);
                self.namespaces.insert(id, namespace);
                PageKey::Namespace(id)
            }
            Some(b'u') => {
                let user: longshore_proto::v1::User = read(key, value)?;
                let name = user.name.clone();
                self.users.insert(name.clone(), user);
                PageKey::User(name)
            }
            Some(b'q') => {
                let queue: longshore_proto::v1::Queue = read(key, value)?;
                let of = (queue.namespace, queue.name.clone());
                self.note_queue(queue);
                PageKey::Queue(of)
            }
            Some(b't') => {
                let tombstone: longshore_proto::v1::QueueDeleted = read(key, value)?;
                let log = tombstone.log;
                self.tombstones.insert(log, tombstone);
                PageKey::Tombstone(log)
            }
            Some(b'x') => {
                let exchange: longshore_proto::v1::Exchange = read(key, value)?;
                let of = (exchange.namespace, exchange.name.clone());
                self.exchanges.insert(of.clone(), exchange);
                PageKey::Exchange(of)
            }
            Some(b'b') => {
                let number = key.get(1..).and_then(|rest| <[u8; 8]>::try_from(rest).ok());
                let id = u64::from_be_bytes(number.ok_or_else(|| RestoreError::Mismatch(key.clone()))?);
                self.bindings.insert(id, read(key, value)?);
                PageKey::Binding(id)
            }
            Some(b's') => {
                let node: longshore_proto::v1::StorageNode = read(key, value)?;
                let id = node.id;
                self.nodes.insert(id, node);
                PageKey::Node(id)
            }
            Some(b'p') => {
                let shard: longshore_proto::v1::Shard = read(key, value)?;
                let id = shard.id;
                self.shards.insert(id, shard);
                PageKey::Shard(id)
            }
            Some(b'g') => {
                let gateway: longshore_proto::v1::Gateway = read(key, value)?;
                let session = gateway.session;
                self.gateways.insert(session, gateway);
                PageKey::Gateway(session)
            }
            _ => return Err(RestoreError::Kind(key.clone())),
        })
    }
}

fn read<M: Message + Default>(key: &Bytes, value: Bytes) -> Result<M, RestoreError> {
    M::decode(value.as_ref()).map_err(|error| RestoreError::Value { key: key.clone(), error })
}
