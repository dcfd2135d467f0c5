//! On which nodes the copies of a shard come to be: in as many zones as there are, so that the loss of a whole zone (a data
//! centre, a rack) takes at most one copy of three.
//!
//! Called by `cluster` when the cluster is formed, and by every node that makes its replica of meta then: both must come to
//! the same nodes, so everything here is a function of the nodes' list alone.

use crate::COPIES;
use longshore_proto::v1::StorageNode;
use std::collections::BTreeMap;

/// The nodes, in order, that hold shard `shard` of a new cluster of `nodes`: [`COPIES`] of them, or all if there are fewer.
/// Shard by shard it begins one node further on, so that they share the shards evenly. An empty zone is one like any other:
/// nodes that name none may all fail together.
pub fn first_nodes(nodes: &[StorageNode], shard: u32) -> Vec<u32> {
    let order = alternating(nodes);
    let from = order.iter().cycle().skip(shard as usize % order.len().max(1)).take(order.len());
    let mut free: Vec<&StorageNode> = from.copied().collect();
    let mut taken: BTreeMap<&str, usize> = BTreeMap::new();
    let mut chosen = Vec::new();
    while chosen.len() < COPIES {
        let copies = |node: &StorageNode| taken.get(node.zone.as_str()).copied().unwrap_or(0);
        // Of several that are equally good `min_by_key` takes the first.
        let Some((at, _)) = free.iter().enumerate().min_by_key(|(_, node)| copies(node)) else { break };
        let node = free.remove(at);
        *taken.entry(node.zone.as_str()).or_default() += 1;
        chosen.push(node.id);
    }
    chosen
}

/// One node of each zone, then the second of each, and so on: neighbours are in different zones as far as that goes.
fn alternating(nodes: &[StorageNode]) -> Vec<&StorageNode> {
    let mut sorted: Vec<&StorageNode> = nodes.iter().collect();
    sorted.sort_by_key(|node| node.id);
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let mut ranked = Vec::new();
    for node in sorted {
        let rank = seen.entry(node.zone.as_str()).or_default();
        ranked.push((*rank, node));
        *rank += 1;
    }
    // Stable: within a rank in the order of ids.
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.into_iter().map(|(_, node)| node).collect()
}
