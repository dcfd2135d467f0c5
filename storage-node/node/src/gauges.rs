//! What this node's metrics show of its state, set about once a second; what happens is counted where it happens.
//!
//! Queue depths are sums per virtual host, each node for the shards that it leads: a queue's own depth is what
//! `longshore queues` shows. Danger: a series never goes away by itself, so hosts that are gone are set to 0, and no
//! more than [`VHOSTS_MAX`] are told apart.

use crate::host::Host;
use longshore_consensus::Store;
use longshore_io::Mono;
use longshore_wire::{LogId, ShardId};
use std::collections::{BTreeMap, BTreeSet};

/// Virtual hosts that have series of their own; the others share one, named [`OTHERS`].
const VHOSTS_MAX: usize = 200;
const OTHERS: &str = "(others)";
/// Depths are summed up this often, in milliseconds: they walk all queues.
const DEPTHS_MS: u64 = 5_000;

/// The virtual hosts shown so far.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    vhosts: BTreeSet<String>,
    next: Mono,
}

impl Shown {
    /// The label of a virtual host.
    fn label(&mut self, vhost: &str) -> String {
        if self.vhosts.contains(vhost) || self.vhosts.len() < VHOSTS_MAX {
            self.vhosts.insert(vhost.to_owned());
            vhost.to_owned()
        } else {
            OTHERS.to_owned()
        }
    }
}

/// The queues of one virtual host on this node.
#[derive(Clone, Copy, Debug, Default)]
struct Depths {
    queues: u64,
    messages: u64,
    deepest: u64,
}

impl Host {
    /// Sets the gauges of this node.
    pub(crate) fn show_metrics(&mut self, store: &Store, now: Mono) {
        let node = self.node.to_string();
        let garbage = self.records.garbage();
        // Files as a whole: garbage is what is dead, and what is not written yet.
        let bytes = store.log().segment_bytes_used() + garbage.store_bytes;
        let dead = bytes.saturating_sub(garbage.live_bytes);
        metrics::gauge!("longshore_log_bytes", "node" => node.clone()).set(bytes as f64);
        metrics::gauge!("longshore_log_live_bytes", "node" => node.clone()).set(garbage.live_bytes as f64);
        metrics::gauge!("longshore_log_garbage_bytes", "node" => node.clone()).set(dead as f64);
        metrics::gauge!("longshore_shards_led", "node" => node.clone()).set(store.leads() as f64);
        let mut sums = longshore_delivery::Counters::default();
        // A shard's counts outlive its leadership: sums over all of them only grow.
        for counters in self.shards.values().map(|host| host.delivery.counters()) {
            sums.delivered += counters.delivered;
            sums.redelivered += counters.redelivered;
            sums.returned += counters.returned;
            sums.expired += counters.expired;
            sums.leases += counters.leases;
            sums.consumers += counters.consumers;
        }
        metrics::counter!("longshore_delivered_total", "node" => node.clone()).absolute(sums.delivered);
        metrics::counter!("longshore_redelivered_total", "node" => node.clone()).absolute(sums.redelivered);
        metrics::counter!("longshore_returned_total", "node" => node.clone()).absolute(sums.returned);
        metrics::counter!("longshore_expired_total", "node" => node.clone()).absolute(sums.expired);
        metrics::gauge!("longshore_leases", "node" => node.clone()).set(sums.leases as f64);
        metrics::gauge!("longshore_consumers", "node" => node.clone()).set(sums.consumers as f64);
        if now >= self.shown.next {
            self.shown.next = now.plus_ms(DEPTHS_MS);
            self.show_depths(&node);
        }
    }

    fn show_depths(&mut self, node: &str) {
        let mut of_vhosts: BTreeMap<u32, Depths> = BTreeMap::new();
        for queue in self.meta.meta.queues().filter(|queue| queue.durable) {
            let Some(shard) = queue.spans.last().map(|span| ShardId(span.shard)) else { continue };
            let led = self.shards.get(&shard).filter(|host| host.is_leader().is_some());
            let Some(log) = led.and_then(|host| host.shard.log(LogId(queue.log))) else { continue };
            let messages = match log.cursors().next() {
                Some((_, cursor)) => cursor.unsettled_count(),
                None => log.next().0.saturating_sub(log.first().0),
            };
            let depths = of_vhosts.entry(queue.namespace).or_default();
            depths.queues += 1;
            depths.messages += messages;
            depths.deepest = depths.deepest.max(messages);
        }
        let mut series: BTreeMap<String, Depths> =
            self.shown.vhosts.iter().map(|vhost| (vhost.clone(), Depths::default())).collect();
        for (namespace, depths) in of_vhosts {
            let name = self.meta.meta.namespace_by_id(namespace).map_or("", |namespace| &namespace.name);
            let label = self.shown.label(name);
            let sum = series.entry(label).or_default();
            sum.queues += depths.queues;
            sum.messages += depths.messages;
            sum.deepest = sum.deepest.max(depths.deepest);
        }
        for (vhost, depths) in series {
            let labels = [("node", node.to_owned()), ("vhost", vhost)];
            metrics::gauge!("longshore_queues", &labels).set(depths.queues as f64);
            metrics::gauge!("longshore_queue_messages", &labels).set(depths.messages as f64);
            metrics::gauge!("longshore_queue_messages_deepest", &labels).set(depths.deepest as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_bounded() {
        let mut shown = Shown::default();
        let labels: BTreeSet<String> =
            (0..1_000).map(|n| shown.label(&format!("vhost {}", n % 500))).collect();
        assert_eq!(labels.len(), VHOSTS_MAX + 1);
        assert_eq!(shown.label("vhost 0"), "vhost 0");
        assert_eq!(shown.label("vhost 499"), OTHERS);
    }
}
