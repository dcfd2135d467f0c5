//! Forming the cluster, its storage nodes, and the replicas of its shards.
//!
//! Danger: a replica's id must never be given twice: a node that lost its log would vote a second time with the old
//! id. Each shard counts its incarnations, and ids contain the count. Called by `apply`; [`Meta::repairs`] by the
//! leader's node, again and again.
//!
//! The way of a replacement: `ReplaceReplica` marks the old one `leaving` and adds a learner · the shard's leader takes
//! the old one out and the learner in · `ReplicaRemoved` and, once the learner holds everything, `ReplicaPromoted`. A node runs
//! a new replica only if it asked for it itself (`ReplaceReplica::request`).

use crate::apply::{Decided, given, refusal, room, valid};
use crate::limits::{IDENTITY_BYTES_MAX, INCARNATIONS_MAX, NAME_BYTES_MAX, NODES_MAX, SHARDS_MAX};
use crate::{COPIES, FORMAT, Meta};
use longshore_proto::v1::{
    Cluster, FormCluster, MetaError, MetaReply, RegisterNode, ReplaceReplica, Replica, Shard, StorageNode,
};
use longshore_wire::{NodeId, ReplicaId, ShardId};
use std::collections::BTreeSet;

/// A replica that should be replaced: submit it as a `ReplaceReplica`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaChange {
    /// The shard.
    pub shard: ShardId,
    /// The replica that goes.
    pub old: ReplicaId,
    /// Where the new one comes.
    pub node: NodeId,
}

fn check_node(node: &StorageNode) -> Result<(), Box<MetaReply>> {
    let longest = node.address.len().max(node.zone.len()).max(node.version.len());
    valid(longest <= NAME_BYTES_MAX && !node.address.is_empty(), "a node's address has 1 to 255 bytes")?;
    valid(node.identity.len() <= IDENTITY_BYTES_MAX, "a node's identity is too long")
}

fn replica(node: u32, incarnation: u32, learner: bool) -> Replica {
    // Counts beyond 16 bits are refused before they get here.
    let id = ReplicaId::new(NodeId(node), u16::try_from(incarnation).unwrap_or(u16::MAX)).0;
    Replica { id, node, learner, leaving: false, request: 0 }
}

impl Meta {
    /// Once, by the node that found all others empty. A second time is refused unless it names the same cluster.
    pub(crate) fn form_cluster(&mut self, form: FormCluster) -> Decided {
        if let Some(known) = &self.cluster {
            if known.id == form.cluster {
                return Ok(MetaReply::default());
            }
            return Err(refusal(MetaError::MetaExists, format!("this is cluster {} already", known.id)));
        }
        let administrator = given(form.administrator, "a cluster begins with an administrator")?;
        let shards = form.shards;
        valid(
            !form.cluster.is_empty() && form.cluster.len() <= NAME_BYTES_MAX,
            "a cluster's id has 1 to 255 bytes",
        )?;
        valid((1..=SHARDS_MAX).contains(&shards), "a cluster has 1 to 256 shards")?;
        valid(!form.nodes.is_empty() && form.nodes.len() <= NODES_MAX, "a cluster has 1 to 64 nodes")?;
        let mut ids = BTreeSet::new();
        for node in &form.nodes {
            check_node(node)?;
            valid(node.id != 0 && ids.insert(node.id), "nodes have different ids, from 1 on")?;
        }
        let permitted = administrator.permissions.iter().all(|p| p.namespace == crate::ROOT_NAMESPACE);
        valid(permitted, "the administrator's permissions are for namespace 1")?;
        let bare = longshore_proto::v1::User { permissions: Vec::new(), ..administrator.clone() };
        self.check_user(&bare)?;

        self.numbers.last_node = ids.last().copied().unwrap_or(0);
        self.put_cluster(Cluster { id: form.cluster, shards, format: FORMAT, sessions_given: 0 });
        for node in form.nodes {
            self.put_node(StorageNode { retired: false, ..node });
        }
        let nodes: Vec<u32> = ids.into_iter().collect();
        for id in 0..=shards {
            // Shard by shard one node further on, so that more than three nodes share the shards evenly.
            let from = nodes.iter().cycle().skip(id as usize % nodes.len());
            let replicas = from.take(COPIES.min(nodes.len())).map(|node| replica(*node, 1, false)).collect();
            self.put_shard(Shard { id, replicas, revision: 0, incarnations: 1 });
        }
        self.make_namespace("/".to_owned())?;
        self.put_user(administrator);
        Ok(MetaReply { created: true, ..MetaReply::default() })
    }

    /// A node's identity decides who it is; a new one at an older one's address retires that.
    pub(crate) fn register_node(&mut self, register: RegisterNode) -> Decided {
        let mut node = given(register.node, "no node given")?;
        check_node(&node)?;
        valid(!node.identity.is_empty(), "a node has an identity")?;
        let known = self.nodes.values().find(|known| known.identity == node.identity);
        let (id, created) = match known {
            Some(known) if node.id != 0 && node.id != known.id => {
                return Err(refusal(MetaError::MetaInvalid, format!("this identity is node {}", known.id)));
            }
            Some(known) if known.retired => {
                let words = format!("node {} is retired; start it with an empty data directory", known.id);
                return Err(refusal(MetaError::MetaForbidden, words));
            }
            Some(known) => (known.id, false),
            None if node.id != 0 => {
                let words = format!(
                    "node {} is not of this cluster any more; start with an empty data directory",
                    node.id
                );
                return Err(refusal(MetaError::MetaForbidden, words));
            }
            None => {
                room(self.nodes.len(), NODES_MAX, "nodes")?;
                self.numbers.last_node = self.numbers.last_node.saturating_add(1);
                (self.numbers.last_node, true)
            }
        };
        node.id = id;
        node.retired = false;
        let elsewhere =
            |other: &&StorageNode| other.id != id && other.address == node.address && !other.retired;
        let older: Vec<u32> = self.nodes.values().filter(elsewhere).map(|other| other.id).collect();
        for older in older {
            self.retire(older);
        }
        if self.nodes.get(&id) != Some(&node) {
            self.put_node(node);
        }
        Ok(MetaReply { node: id, created, ..MetaReply::default() })
    }

    pub(crate) fn retire_node(&mut self, node: u32) -> Decided {
        if !self.nodes.contains_key(&node) {
            return Err(refusal(MetaError::MetaNotFound, format!("no node {node}")));
        }
        self.retire(node);
        Ok(MetaReply { node, ..MetaReply::default() })
    }

    fn retire(&mut self, node: u32) {
        if let Some(known) = self.nodes.get(&node).filter(|known| !known.retired) {
            self.put_node(StorageNode { retired: true, ..known.clone() });
        }
        self.forget_empty(node);
    }

    /// A retired node without replicas is of no use to anyone.
    fn forget_empty(&mut self, node: u32) {
        let retired = self.nodes.get(&node).is_some_and(|known| known.retired);
        if retired && !self.shards.values().any(|shard| shard.replicas.iter().any(|r| r.node == node)) {
            self.drop_node(node);
        }
    }

    fn shard_or_refuse(&self, shard: u32) -> Result<Shard, Box<MetaReply>> {
        let known = self.shards.get(&shard).cloned();
        known.ok_or_else(|| refusal(MetaError::MetaNotFound, format!("no shard {shard}")))
    }

    /// Asked again for a replica that is leaving already, it answers with the one that came for it, if that is there.
    pub(crate) fn replace_replica(&mut self, replace: ReplaceReplica) -> Decided {
        let mut shard = self.shard_or_refuse(replace.shard)?;
        if self.nodes.get(&replace.node).is_none_or(|node| node.retired) {
            return Err(refusal(MetaError::MetaNotFound, format!("no live node {}", replace.node)));
        }
        let taken =
            shard.replicas.iter().find(|r| r.node == replace.node && !r.leaving && r.id != replace.old);
        let taken = taken.map(|r| r.id);
        let Some(old) = shard.replicas.iter().find(|r| r.id == replace.old) else {
            return Err(refusal(MetaError::MetaNotFound, format!("no replica {}", replace.old)));
        };
        if old.leaving {
            let mut refused = refusal(MetaError::MetaExists, "the replica is leaving already");
            refused.replica = taken.unwrap_or(0);
            return Err(refused);
        }
        if taken.is_some() {
            let words = format!("node {} has a replica of shard {} already", replace.node, replace.shard);
            return Err(refusal(MetaError::MetaExists, words));
        }
        // Two at once could leave the shard without a majority of replicas that hold everything.
        if shard.replicas.iter().any(|r| r.id != replace.old && self.is_replacing(r)) {
            let words = format!("another replica of shard {} is being replaced; try again", replace.shard);
            return Err(refusal(MetaError::MetaInUse, words));
        }
        room(shard.incarnations as usize, INCARNATIONS_MAX as usize, "replicas per shard over its life")?;
        for old in shard.replicas.iter_mut().filter(|r| r.id == replace.old) {
            old.leaving = true;
        }
        shard.incarnations += 1;
        let new = Replica { request: replace.request, ..replica(replace.node, shard.incarnations, true) };
        let id = new.id;
        shard.replicas.push(new);
        self.put_shard(shard);
        Ok(MetaReply { replica: id, created: true, ..MetaReply::default() })
    }

    pub(crate) fn replica_promoted(&mut self, shard: u32, replica: u64) -> Decided {
        let mut shard = self.shard_or_refuse(shard)?;
        let Some(known) = shard.replicas.iter_mut().find(|r| r.id == replica) else {
            return Err(refusal(MetaError::MetaNotFound, format!("no replica {replica}")));
        };
        if known.learner {
            known.learner = false;
            self.put_shard(shard);
        }
        Ok(MetaReply { replica, ..MetaReply::default() })
    }

    /// Only a replica that was told to leave can be removed. One that is gone already is no error.
    pub(crate) fn replica_removed(&mut self, shard: u32, replica: u64) -> Decided {
        let mut shard = self.shard_or_refuse(shard)?;
        let Some(at) = shard.replicas.iter().position(|r| r.id == replica) else {
            return Ok(MetaReply { replica, ..MetaReply::default() });
        };
        if !shard.replicas.get(at).is_some_and(|r| r.leaving) {
            return Err(refusal(MetaError::MetaForbidden, "the replica was not told to leave"));
        }
        let gone = shard.replicas.remove(at);
        self.put_shard(shard);
        self.forget_empty(gone.node);
        Ok(MetaReply { replica, ..MetaReply::default() })
    }

    /// Whether a replacement is under way with this replica; on a retired node it never ends.
    fn is_replacing(&self, replica: &Replica) -> bool {
        (replica.learner || replica.leaving)
            && self.nodes.get(&replica.node).is_some_and(|node| !node.retired)
    }

    /// Replicas on retired nodes that a live node can take over, at most one per shard, and none for a shard in
    /// which another replacement is under way. Level-triggered: ask again after every change.
    pub fn repairs(&self) -> Vec<ReplicaChange> {
        // Replicas per node, those that are only planned here included.
        let mut load: std::collections::BTreeMap<u32, usize> =
            self.nodes.values().filter(|node| !node.retired).map(|node| (node.id, 0)).collect();
        for replica in self.shards.values().flat_map(|shard| &shard.replicas) {
            if let Some(count) = load.get_mut(&replica.node) {
                *count += 1;
            }
        }
        let mut changes = Vec::new();
        for shard in self.shards.values() {
            let under_way = shard.replicas.iter().any(|r| self.is_replacing(r));
            let staying = |r: &&Replica| !r.leaving;
            let lost = shard.replicas.iter().filter(staying).find(|r| !load.contains_key(&r.node));
            let (Some(lost), false) = (lost, under_way) else { continue };
            let free = |node: &&u32| !shard.replicas.iter().any(|r| r.node == **node);
            let target =
                load.iter().filter(|(node, _)| free(node)).min_by_key(|(node, count)| (**count, **node));
            let Some(target) = target.map(|(node, _)| *node) else { continue };
            *load.entry(target).or_default() += 1;
            changes.push(ReplicaChange {
                shard: ShardId(shard.id),
                old: ReplicaId(lost.id),
                node: NodeId(target),
            });
        }
        changes
    }
}
