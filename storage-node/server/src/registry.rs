//! Who waits for what: streams and calls by their numbers, filled by the services, served by the store thread.

use longshore_node::{LinkId, LinkItem, Reply, Ticket, WatchId};
use longshore_proto::FRAME_BYTES_TARGET;
use longshore_proto::v1::{NodeFrame, NodeItem, WatchDown, node_item};
use longshore_wire::ShardId;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use tokio::sync::{mpsc, oneshot};

/// Frames that may wait in one gateway's stream; credit bounds their bytes. A gateway that lets them pile up is cut off.
pub(crate) const LINK_FRAMES_MAX: usize = 4_096;
/// Messages that may wait in one follower's stream of meta.
pub(crate) const WATCH_MESSAGES_MAX: usize = 4_096;

/// A table of waiting parties under one short lock.
struct Table<K, V>(Mutex<HashMap<K, V>>);

impl<K: Eq + Hash, V> Table<K, V> {
    fn new() -> Table<K, V> {
        Table(Mutex::new(HashMap::new()))
    }

    fn insert(&self, key: K, value: V) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key, value);
    }

    /// `false`: what is there stays.
    fn insert_unless(&self, key: K, value: V, stays: impl Fn(&V) -> bool) -> bool {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let free = !table.get(&key).is_some_and(stays);
        if free {
            table.insert(key, value);
        }
        free
    }

    fn remove(&self, key: &K) -> Option<V> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key)
    }
}

impl<K: Eq + Hash, V: Clone> Table<K, V> {
    fn get(&self, key: &K) -> Option<V> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }
}

/// All of them.
pub(crate) struct Registry {
    next: AtomicU64,
    links: Table<LinkId, mpsc::Sender<NodeFrame>>,
    watches: Table<WatchId, mpsc::Sender<WatchDown>>,
    calls: Table<Ticket, oneshot::Sender<Reply>>,
    snapshots: Table<ShardId, oneshot::Sender<bool>>,
}

impl Registry {
    pub fn new() -> Registry {
        Registry {
            next: AtomicU64::new(1),
            links: Table::new(),
            watches: Table::new(),
            calls: Table::new(),
            snapshots: Table::new(),
        }
    }

    fn next(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// A gateway's stream.
    pub fn link(&self) -> (LinkId, mpsc::Receiver<NodeFrame>) {
        let (sender, receiver) = mpsc::channel(LINK_FRAMES_MAX);
        let link = LinkId(self.next());
        self.links.insert(link, sender);
        (link, receiver)
    }

    pub fn close_link(&self, link: LinkId) {
        self.links.remove(&link);
    }

    /// A follower of meta.
    pub fn watch(&self) -> (WatchId, mpsc::Receiver<WatchDown>) {
        let (sender, receiver) = mpsc::channel(WATCH_MESSAGES_MAX);
        let watch = WatchId(self.next());
        self.watches.insert(watch, sender);
        (watch, receiver)
    }

    pub fn close_watch(&self, watch: WatchId) {
        self.watches.remove(&watch);
    }

    /// A call that waits for its answer.
    pub fn call(&self) -> (Ticket, oneshot::Receiver<Reply>) {
        let (sender, receiver) = oneshot::channel();
        let ticket = Ticket(self.next());
        self.calls.insert(ticket, sender);
        (ticket, receiver)
    }

    /// Nobody waits for the answer any more.
    pub fn forget_call(&self, ticket: Ticket) {
        self.calls.remove(&ticket);
    }

    /// The sender of a snapshot that comes in waits for its installation. `None` while another one waits for its own.
    pub fn snapshot(&self, group: ShardId) -> Option<oneshot::Receiver<bool>> {
        let (sender, receiver) = oneshot::channel();
        self.snapshots.insert_unless(group, sender, |waiting| !waiting.is_closed()).then_some(receiver)
    }

    pub fn snapshot_installed(&self, group: ShardId, installed: bool) {
        if let Some(waiting) = self.snapshots.remove(&group) {
            let _ = waiting.send(installed);
        }
    }

    pub fn reply(&self, ticket: Ticket, reply: Reply) {
        if let Some(call) = self.calls.remove(&ticket) {
            let _ = call.send(reply);
        }
    }

    pub fn watch_down(&self, watch: WatchId, down: WatchDown) {
        let last = down.lease_lost || down.not_leader.is_some();
        if let Some(sender) = self.watches.get(&watch)
            && (sender.try_send(down).is_err() || last)
        {
            self.watches.remove(&watch);
        }
    }

    /// Sends items in frames of about the target size. Links whose queue is full are cut off.
    pub fn send_items(&self, items: Vec<LinkItem>) {
        let mut frames: HashMap<LinkId, (Vec<NodeItem>, usize)> = HashMap::new();
        for LinkItem { link, item } in items {
            let (gathered, bytes) = frames.entry(link).or_default();
            *bytes += item_bytes(&item);
            gathered.push(NodeItem { item: Some(item) });
            if *bytes >= FRAME_BYTES_TARGET {
                let full = std::mem::take(gathered);
                *bytes = 0;
                self.send_frame(link, full);
            }
        }
        for (link, (items, _)) in frames {
            if !items.is_empty() {
                self.send_frame(link, items);
            }
        }
    }

    fn send_frame(&self, link: LinkId, items: Vec<NodeItem>) {
        if let Some(sender) = self.links.get(&link)
            && sender.try_send(NodeFrame { items }).is_err()
        {
            tracing::warn!(link = link.0, "a gateway does not read its stream: it is cut off");
            self.links.remove(&link);
        }
    }
}

/// About how many bytes an item takes in a frame.
fn item_bytes(item: &node_item::Item) -> usize {
    let payload = match item {
        node_item::Item::Deliver(deliver) => {
            deliver.deliveries.iter().map(|d| d.record.len() + d.piece.len() + 48).sum()
        }
        node_item::Item::Outcome(outcome) => match &outcome.result {
            Some(longshore_proto::v1::batch_outcome::Result::Outcomes(bytes)) => bytes.len(),
            _ => 0,
        },
        node_item::Item::Got(got) => got.delivery.as_ref().map_or(0, |d| d.record.len()),
        node_item::Item::Answer(_) => 256,
        _ => 0,
    };
    payload + 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_snapshot_of_a_group_at_a_time() {
        let registry = Registry::new();
        let (group, other) = (ShardId(3), ShardId(4));
        let first = registry.snapshot(group);
        assert!(first.is_some());
        assert!(registry.snapshot(group).is_none(), "the pages of another one would travel in vain");
        assert!(registry.snapshot(other).is_some());
        // Its sender hung up.
        drop(first);
        let mut second = registry.snapshot(group).unwrap();
        registry.snapshot_installed(group, true);
        assert_eq!(second.try_recv(), Ok(true));
        assert!(registry.snapshot(group).is_some());
    }
}
