//! What the broker knows of a client connection; shared by its handles, the engine and whoever delivers to it.

use crate::api::*;
use crate::budget::Budget;
use crate::events::EventQueue;
use crate::mail::{Letter, Settlements};
use crate::metadata::Namespace;
use crate::permissions::Permissions;
use longshore_wire::ShardId;
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// How often a held-back connection looks, beside being told.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A consumer of a connection.
#[derive(Clone, Debug)]
pub(crate) struct ConsumerAt {
    pub id: u64,
    pub shard: ShardId,
    pub queue: Arc<str>,
    /// Reads a stream: nothing to settle.
    pub positional: bool,
    /// Its queue goes with its last consumer.
    pub auto_delete: bool,
}

/// Where a connection asked for exclusive queues.
#[derive(Debug, Default)]
struct Exclusive {
    shards: BTreeSet<ShardId>,
    /// It asked meta for something in its name.
    claimed: bool,
}

/// What was asked for, and what has its outcome.
#[derive(Debug, Default)]
struct Count {
    submitted: AtomicU64,
    completed: AtomicU64,
}

impl Count {
    fn submit(&self, count: u64) {
        self.submitted.fetch_add(count, Ordering::AcqRel);
    }

    fn complete(&self, count: u64) {
        self.completed.fetch_add(count, Ordering::AcqRel);
    }

    fn submitted(&self) -> u64 {
        self.submitted.load(Ordering::Acquire)
    }

    fn has(&self, submitted: u64) -> bool {
        self.completed.load(Ordering::Acquire) >= submitted
    }
}

/// What the broker knows of a connection; shared with its control handles.
#[derive(Debug)]
pub(crate) struct ConnectionState {
    pub id: ConnectionId,
    pub identity: Identity,
    pub namespace: Arc<Namespace>,
    pub info: ConnectionInfo,
    /// What it logged in with: another one ends it.
    pub password_hash: Box<str>,
    pub events: Arc<EventQueue>,
    permissions: RwLock<Arc<Permissions>>,
    permissions_version: AtomicU64,
    consumers: Mutex<HashMap<ConsumerTag, ConsumerAt>>,
    exclusive: Mutex<Exclusive>,
    pending_bytes: AtomicUsize,
    created: Instant,
    /// When the publish whose time to durable is being taken was handed over, in microseconds after `created`, plus 1;
    /// 0: none is being taken.
    timed_since: AtomicU64,
    publishes: Count,
    returns: Count,
    acks: Count,
    progress: Notify,
    closed: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ConnectionState {
    pub fn new(
        id: ConnectionId,
        identity: Identity,
        namespace: Arc<Namespace>,
        info: ConnectionInfo,
        permissions: Permissions,
        password_hash: Box<str>,
        budget: Arc<Budget>,
    ) -> ConnectionState {
        ConnectionState {
            id,
            identity,
            namespace,
            info,
            password_hash,
            events: Arc::new(EventQueue::new(budget)),
            permissions: RwLock::new(Arc::new(permissions)),
            permissions_version: AtomicU64::new(0),
            consumers: Mutex::default(),
            exclusive: Mutex::default(),
            pending_bytes: AtomicUsize::new(0),
            created: Instant::now(),
            timed_since: AtomicU64::new(0),
            publishes: Count::default(),
            returns: Count::default(),
            acks: Count::default(),
            progress: Notify::new(),
            closed: AtomicBool::new(false),
        }
    }

    /// What a frame meant for this connection.
    pub fn receive(&self, letter: Letter) {
        if !letter.published.is_empty() {
            self.events.push(Event::Published(letter.published));
        }
        if !letter.deliveries.is_empty() {
            metrics::counter!("longshore_gateway_deliveries_total").increment(letter.deliveries.len() as u64);
            self.events.push(Event::Deliveries(letter.deliveries));
        }
        if let Some(stored) = letter.timed {
            self.end_timing(stored);
        }
        for tag in letter.cancelled {
            self.events.push(Event::Cancelled { tag });
        }
        if letter.done > 0 || letter.settled != Settlements::default() {
            let before = self.pending_bytes.load(Ordering::Relaxed);
            self.pending_bytes.fetch_sub(letter.bytes.min(before), Ordering::AcqRel);
            self.publishes.complete(letter.done);
            self.returns.complete(letter.settled.returned);
            self.acks.complete(letter.settled.acked);
            self.progress.notify_waiters();
        }
    }

    /// Whether the time of the publish that comes now shall be taken: of one at a time per connection, so that it costs
    /// the others nothing.
    pub fn begin_timing(&self) -> bool {
        let free = self.timed_since.load(Ordering::Relaxed) == 0;
        if free {
            let since = u64::try_from(self.created.elapsed().as_micros()).unwrap_or(u64::MAX - 1);
            self.timed_since.store(since + 1, Ordering::Relaxed);
        }
        free
    }

    fn end_timing(&self, stored: bool) {
        let since = self.timed_since.swap(0, Ordering::Relaxed).saturating_sub(1);
        if stored {
            let took = self.created.elapsed().saturating_sub(Duration::from_micros(since));
            metrics::histogram!("longshore_publish_durable_seconds").record(took.as_secs_f64());
        }
    }

    /// Ends it with a word to the client.
    pub fn close(&self, reason: CloseReason) {
        self.closed.store(true, Ordering::Release);
        self.events.close(reason);
        self.progress.notify_waiters();
    }

    /// Ends it without a word: the adapter dropped it.
    pub fn end(&self) {
        self.closed.store(true, Ordering::Release);
        self.progress.notify_waiters();
    }

    /// Bytes of publishes without an outcome.
    pub fn pending_bytes(&self) -> usize {
        self.pending_bytes.load(Ordering::Acquire)
    }

    /// Grows with each change of the permissions.
    pub fn permissions_version(&self) -> u64 {
        self.permissions_version.load(Ordering::Acquire)
    }

    /// Waits until something is so that depends on outcomes.
    pub async fn until(&self, so: impl Fn() -> bool) {
        loop {
            let mut progressed = std::pin::pin!(self.progress.notified());
            // Heard from here on: an outcome between the look and the wait counts.
            progressed.as_mut().enable();
            if so() {
                return;
            }
            let _ = tokio::time::timeout(LOOK_EVERY, progressed).await;
        }
    }

    /// Whether it was closed.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub fn permissions(&self) -> Arc<Permissions> {
        self.permissions.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set_permissions(&self, permissions: Permissions) {
        *self.permissions.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(permissions);
        self.permissions_version.fetch_add(1, Ordering::AcqRel);
    }

    /// An exclusive queue is about to be asked for in that shard; with `claimed` also in meta.
    pub fn note_exclusive(&self, shard: ShardId, claimed: bool) {
        let mut exclusive = lock(&self.exclusive);
        exclusive.shards.insert(shard);
        exclusive.claimed |= claimed;
    }

    /// The shards that may have exclusive queues of this connection, and whether meta may.
    pub fn take_exclusive(&self) -> (BTreeSet<ShardId>, bool) {
        let Exclusive { shards, claimed } = std::mem::take(&mut *lock(&self.exclusive));
        (shards, claimed)
    }

    /// Notes a consumer; false if the tag is in use.
    pub fn add_consumer(&self, tag: ConsumerTag, at: ConsumerAt) -> bool {
        let mut consumers = lock(&self.consumers);
        if consumers.contains_key(&tag) {
            return false;
        }
        consumers.insert(tag, at);
        true
    }

    pub fn forget_consumer(&self, tag: ConsumerTag) -> Option<ConsumerAt> {
        lock(&self.consumers).remove(&tag)
    }

    pub fn consumer(&self, tag: ConsumerTag) -> Option<ConsumerAt> {
        lock(&self.consumers).get(&tag).cloned()
    }

    pub fn take_consumers(&self) -> Vec<ConsumerAt> {
        let mut all: Vec<_> = lock(&self.consumers).drain().map(|(_, at)| at).collect();
        all.sort_by_key(|at| at.id);
        all
    }

    pub fn consumer_count(&self) -> usize {
        lock(&self.consumers).len()
    }

    /// So many outcomes of publishes are asked for, of so many bytes.
    pub fn submit(&self, tickets: u64, bytes: usize) {
        self.publishes.submit(tickets);
        self.pending_bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    /// So many outcomes of settlements are asked for.
    pub fn submit_settlements(&self, settlements: Settlements) {
        self.returns.submit(settlements.returned);
        self.acks.submit(settlements.acked);
    }

    /// Waits until as many outcomes came as were asked for before the call (all of them, while order holds) of what
    /// changes what is ready in a queue: publishes, unless storage refuses them now, and returns; with `acks`, of those too.
    pub async fn settled(&self, acks: bool, publishes_refused: impl Fn() -> bool) {
        let publishes = self.publishes.submitted();
        let returns = self.returns.submitted();
        let acked = if acks { self.acks.submitted() } else { 0 };
        self.until(|| {
            let published = self.publishes.has(publishes) || publishes_refused();
            self.is_closed() || (published && self.returns.has(returns) && self.acks.has(acked))
        })
        .await;
    }
}
