//! Opening a node: what the data directory holds becomes replicas, and what a replica cannot be made of is set aside.
//!
//! Danger: a replica that begins with less than it acknowledged would vote and count for what it does not have; whatever
//! is not whole is left closed here, and meta is asked for a new replica. Called once, before the first turn.

use super::{Node, UPKEEP_MS};
use crate::host::Host;
use crate::segments::{SegmentBook, record_id};
use crate::shard_host::ShardHost;
use crate::snapshots::{View, staged_group};
use crate::{META, NodeConfig};
use longshore_checkpoint::{Loaded, PageStore};
use longshore_consensus::Store;
use longshore_io::{Disk, Mono};
use longshore_log::{LogWriter, NodeLog, SegmentState};
use longshore_meta::Meta;
use longshore_proto::v1;
use longshore_records::{Records, RecordsError, SegmentInfo};
use longshore_shard::Shard;
use longshore_wire::{Index, NodeId, ReplicaId, ShardId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Why a node cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The node log.
    #[error(transparent)]
    Log(#[from] longshore_log::OpenError),
    /// The record store.
    #[error(transparent)]
    Records(#[from] RecordsError),
    /// The checkpoints.
    #[error(transparent)]
    Checkpoints(#[from] longshore_checkpoint::OpenError),
    /// Consensus.
    #[error(transparent)]
    Consensus(#[from] longshore_consensus::OpenError),
}

impl Node {
    /// Opens what the data directory holds. Blocking; the first turn then applies what was committed.
    pub fn open(config: NodeConfig, disk: Arc<dyn Disk>, now: Mono) -> Result<(Node, LogWriter), OpenError> {
        let (log, writer, recovery) = NodeLog::open(Arc::clone(&disk), config.log.clone())?;
        for damage in &recovery.damage {
            tracing::error!(node = %config.node, ?damage, "the node log is damaged");
        }
        let book = Arc::new(SegmentBook::default());
        let existing = segment_infos(&log, &book);
        let known_segments = existing.iter().map(|segment| segment.id).collect();
        let rewrite_bytes_per_run = config.rewrite_bytes_per_s * UPKEEP_MS / 1_000;
        let records_config = longshore_records::Config { rewrite_bytes_per_run, ..config.records.clone() };
        let (records, opened) = Records::open(Arc::clone(&disk), book.clone(), records_config, &existing)?;
        for damaged in &opened.damaged {
            tracing::error!(node = %config.node, ?damaged, "an index file is damaged; who lacks its records is rebuilt");
        }
        let pages = PageStore::open(disk, config.checkpoint.clone())?;
        // A damaged staged file says nothing of its group: whether the log stands on it shows below.
        let of_groups = |group: &ShardId| staged_group(*group).is_none();
        let damaged = pages.damaged.iter().map(|damaged| damaged.group).filter(of_groups).collect();
        let host = Host::new(config.clone(), now, records, pages.store, damaged);
        let store = Store::new(config.consensus.clone(), log, now)?;
        let suspects = if opened.damaged.is_empty() { Vec::new() } else { store.log().groups() };
        let mut node = Node {
            store,
            host,
            book,
            events: Vec::new(),
            consensus: longshore_consensus::Output::default(),
            next_upkeep: now,
            known_segments,
            retired_segments: BTreeSet::new(),
            next_metrics: now,
            next_records_job: now,
            lacking: suspects.into_iter().map(|group| (group, now)).collect(),
            stopping: false,
            torn_tail: recovery.cut_bytes > 0,
        };
        node.open_groups(pages.loaded, &opened.reached, now);
        Ok((node, writer))
    }

    /// Opens every group of the log with its checkpoint, or with the snapshot staged for it if that is newer.
    fn open_groups(&mut self, loaded: Vec<Loaded>, reached: &BTreeMap<ShardId, Index>, now: Mono) {
        let mut checkpoints: BTreeMap<ShardId, Loaded> = BTreeMap::new();
        let mut staged: BTreeMap<ShardId, Loaded> = BTreeMap::new();
        for checkpoint in loaded {
            match staged_group(checkpoint.group) {
                Some(group) => staged.insert(group, checkpoint),
                None => checkpoints.insert(checkpoint.group, checkpoint),
            };
        }
        for group in self.store.log().groups() {
            if self.host.damaged.contains(&group) {
                continue;
            }
            let base = self.store.log().first_index(group).map_or(0, |first| first.0.saturating_sub(1));
            let mut best = checkpoints.remove(&group);
            let is_behind = best.as_ref().is_none_or(|checkpoint| checkpoint.mark.index.0 < base);
            if let (true, Some(snapshot)) = (is_behind, staged.remove(&group))
                && snapshot.mark.index.0 == base
            {
                best = Some(snapshot);
            }
            let reached = reached.get(&group).copied().unwrap_or_default();
            self.open_group(group, best, reached, now);
        }
    }

    fn open_group(&mut self, group: ShardId, checkpoint: Option<Loaded>, reached: Index, now: Mono) {
        let applied = checkpoint.as_ref().map_or(Index(0), |checkpoint| checkpoint.mark.index);
        let pages = checkpoint.map(|checkpoint| checkpoint.pages).unwrap_or_default();
        let fresh = pages.is_empty();
        let restored = if group == META {
            let meta = if fresh { Ok(Meta::new()) } else { Meta::restore(pages).map_err(|e| e.to_string()) };
            meta.map(|meta| self.host.meta.meta = meta)
        } else {
            let shard = if fresh {
                Ok(Shard::new(group))
            } else {
                Shard::restore(group, pages).map_err(|e| e.to_string())
            };
            shard.map(|shard| {
                self.host.records.recover(group, &View(&shard));
                let host = ShardHost::new(group, self.host.node, shard, self.host.config.delivery.clone());
                self.host.shards.insert(group, host);
            })
        };
        if let Err(error) = restored {
            tracing::error!(%group, %error, "a checkpoint cannot be read");
            self.host.damaged.insert(group);
            return;
        }
        // A replica that never had members was only about to join: meta's word makes it join again.
        let Some(me) = self.replica_of(group) else {
            self.host.shards.remove(&group);
            return;
        };
        match self.store.open(group, me, applied, reached, now) {
            Ok(()) => {
                self.host.replicas.insert(group, me);
                if applied > Index(0) {
                    self.store.checkpointed(group, applied);
                }
            }
            Err(error) => {
                tracing::error!(node = %self.host.node, %group, %error, "a replica cannot be opened; it will be replaced");
                self.host.shards.remove(&group);
                self.host.damaged.insert(group);
            }
        }
    }

    /// This node's replica id in a group, from the log's membership record: the newest, since a newer replica begins
    /// with an empty log.
    fn replica_of(&self, group: ShardId) -> Option<ReplicaId> {
        let members = self.store.stored_membership(group)?;
        members.members().filter(|replica| replica.node() == self.host.node).max()
    }

    /// Makes this node's replica of meta if it is one of those that get a vote in it. `nodes` form the cluster; each of them
    /// does the same with the same list.
    pub fn form(&mut self, nodes: &[v1::StorageNode], now: Mono) -> Result<(), OpenError> {
        if self.store.groups().any(|group| group == META) {
            return Ok(());
        }
        let on = longshore_meta::first_nodes(nodes, META.0).into_iter();
        let voters: Vec<ReplicaId> = on.map(|node| ReplicaId::new(NodeId(node), 1)).collect();
        let me = ReplicaId::new(self.host.node, 1);
        if voters.contains(&me) {
            self.store.bootstrap(META, me, &voters, now)?;
            self.host.replicas.insert(META, me);
        }
        Ok(())
    }
}

fn segment_infos(log: &NodeLog, book: &SegmentBook) -> Vec<SegmentInfo> {
    let last: Vec<_> = log
        .groups()
        .into_iter()
        .filter_map(|group| log.last_appended(group).map(|last| (group, last.0)))
        .collect();
    let info = |segment: longshore_log::SegmentInfo| {
        book.pin(log, record_id(segment.id));
        let retired = segment.state == SegmentState::Retired;
        SegmentInfo {
            id: record_id(segment.id),
            bytes: segment.bytes,
            sealed: segment.state != SegmentState::Open,
            retired,
            last: if retired { Vec::new() } else { last.clone() },
        }
    };
    log.segments().into_iter().map(info).collect()
}
