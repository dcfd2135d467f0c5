//! What unit tests of this crate begin with: a host on simulated disks.

#![allow(clippy::unwrap_used, reason = "a test may end by it")]

use crate::NodeConfig;
use crate::host::Host;
use crate::segments::SegmentBook;
use crate::shard_host::ShardHost;
use longshore_checkpoint::PageStore;
use longshore_consensus::Store;
use longshore_io::Mono;
use longshore_io::sim::SimDisk;
use longshore_log::{LogConfig, NodeLog};
use longshore_records::Records;
use longshore_shard::Shard;
use longshore_wire::NodeId;
use std::collections::BTreeSet;
use std::sync::Arc;

const NODE: NodeId = NodeId(1);

/// A node's host with one shard.
pub(crate) fn host(shard: Shard) -> Host {
    let config = NodeConfig {
        cluster: String::new(),
        node: NODE,
        consensus: longshore_consensus::Config::new(NODE),
        log: LogConfig::default(),
        records: longshore_records::Config::default(),
        checkpoint: longshore_checkpoint::Config::default(),
        delivery: longshore_delivery::Config::default(),
        checkpoint_bytes: 1 << 20,
        reserve_bytes: 0,
        rewrite_bytes_per_s: 0,
    };
    let (disk, book) = (Arc::new(SimDisk::new(1)), Arc::new(SegmentBook::default()));
    let records = Records::open(disk.clone(), book, config.records.clone(), &[]).unwrap().0;
    let pages = PageStore::open(disk, config.checkpoint.clone()).unwrap().store;
    let mut host = Host::new(config, Mono(0), records, pages, BTreeSet::new());
    let shard = ShardHost::new(shard.id(), NODE, shard, longshore_delivery::Config::default());
    host.shards.insert(shard.id, shard);
    host
}

/// Consensus without groups.
pub(crate) fn store() -> Store {
    let log = LogConfig { segment_bytes: 128 << 10, batch_bytes_max: 32 << 10, ..LogConfig::default() };
    let (log, ..) = NodeLog::open(Arc::new(SimDisk::new(2)), log).unwrap();
    Store::new(longshore_consensus::Config::new(NODE), log, Mono(0)).unwrap()
}
