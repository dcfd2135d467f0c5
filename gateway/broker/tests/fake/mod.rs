//! A storage node that keeps everything in memory, behind real gRPC: meta, one shard's leader, and faults on demand.
//!
//! It applies batches as a shard does (numbers without gaps, a second one answered with the first outcome), so that
//! what the broker sends twice shows.

#![allow(dead_code, reason = "no test file uses all of it")]

pub mod client;
mod meta;
mod storage;

use longshore_proto::v1;
use longshore_wire::record::Record;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::mpsc;

/// A message of a queue.
pub struct Stored {
    pub record: Record,
    pub parts: Vec<bytes::Bytes>,
    /// The consumer that has it; 0: a get.
    pub out: Option<u64>,
    pub done: bool,
    pub returns: u32,
}

#[derive(Default)]
pub struct Queue {
    pub messages: Vec<Stored>,
    /// Name and owning connection of a transient queue.
    pub transient: Option<(String, u64)>,
}

pub struct Consumer {
    pub log: u64,
    pub credit: u64,
    pub delivered: u64,
}

#[derive(Default)]
pub struct State {
    pub revision: u64,
    pub changes: Vec<v1::MetaChange>,
    pub watchers: Vec<mpsc::UnboundedSender<Result<v1::WatchDown, tonic::Status>>>,
    pub sessions: u64,
    pub live: BTreeSet<u64>,
    pub queues: BTreeMap<(u32, String), v1::Queue>,
    pub logs: BTreeMap<u64, Queue>,
    pub next_log: u64,
    pub next_transient: u64,
    pub next_lease: u64,
    pub applied: BTreeMap<u64, u64>,
    pub outcomes: BTreeMap<(u64, u64), bytes::Bytes>,
    pub uploads: BTreeMap<u64, Vec<bytes::Bytes>>,
    pub consumers: BTreeMap<u64, Consumer>,
    pub links: Vec<mpsc::UnboundedSender<Result<v1::NodeFrame, tonic::Status>>>,
    pub waiting: VecDeque<v1::NodeItem>,
    /// Outcomes are made, but not told.
    pub silent: bool,
    /// What the leader says waits until [`Fake::release`].
    pub held: bool,
    /// Meta carries commands out, and answers once this is false again.
    pub meta_held: bool,
    /// Appends are refused.
    pub full: bool,
    /// Renewals are not answered.
    pub deaf: bool,
    /// Batches that came, by number: how often.
    pub submissions: BTreeMap<u64, u32>,
    pub meta_entries: u64,
    /// The next transient queue is lost right after it was made: its leader changes.
    pub depose: bool,
    /// Its term.
    pub term: u64,
    /// Questions about queues that renew their time without use.
    pub uses: u64,
}

/// The node. Clone it into its services.
#[derive(Clone)]
pub struct Fake {
    state: Arc<Mutex<State>>,
    pub address: SocketAddr,
}

impl Fake {
    /// Listens on a loopback port, with the user `guest`/`guest` in namespace `/`.
    pub async fn start() -> Fake {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let fake = Fake { state: Arc::default(), address };
        fake.seed();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let router = longshore_proto::transport::server(None)
            .unwrap()
            .add_service(v1::meta_server::MetaServer::new(fake.clone()))
            .add_service(
                v1::storage_server::StorageServer::new(fake.clone())
                    .max_decoding_message_size(longshore_proto::MESSAGE_BYTES_MAX),
            );
        tokio::spawn(router.serve_with_incoming(incoming));
        fake
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Every stream to a gateway dies; batches that came are kept.
    pub fn cut_links(&self) {
        let mut state = self.lock();
        state.links.clear();
        state.consumers.clear();
        state.waiting.clear();
    }

    /// Everything that was held is said.
    pub fn release(&self) {
        let mut state = self.lock();
        (state.held, state.meta_held) = (false, false);
        state.send();
    }

    /// Waits until the node's state is so.
    pub async fn until(&self, so: impl Fn(&State) -> bool) {
        let look = async {
            while !so(&self.lock()) {
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(10), look).await.expect("it comes to be so");
    }

    /// The records of a durable queue, in order, with how many pieces each has.
    pub fn bodies(&self, queue: &str) -> Vec<bytes::Bytes> {
        let state = self.lock();
        let log = state.queues[&(1, queue.to_owned())].log;
        state.logs[&log].messages.iter().map(|stored| stored.record.body()).collect()
    }
}
