//! The replicas of the shards, and how one is replaced.
//!
//! Danger: a replica's id must never be given twice: a node that lost its log would vote a second time with the old
//! id. Each shard counts its incarnations, and ids contain the count. Called by `apply`; [`Meta::repairs`] by the
//! leader's node, again and again.
//!
//! The way of a replacement: `ReplaceReplica` marks the old one `leaving` and adds a learner · the shard's leader takes
//! the old one out and the learner in · `ReplicaRemoved` and, once the learner holds everything, `ReplicaPromoted`. A node runs
//! a new replica only if it asked for it itself (`ReplaceReplica::request`).
//!
//! Every storage node needs meta's state, and three have a vote in it. Each of the others asks (`ObserveMeta`) for an
//! *observer*: a replica that stays a learner. It goes with its node, and it takes the place of a voter that is lost.

use crate::Meta;
use crate::apply::{Decided, refusal, room};
use crate::limits::INCARNATIONS_MAX;
use longshore_proto::v1::{MetaError, MetaReply, ReplaceReplica, Replica, Shard};
use longshore_wire::{NodeId, ReplicaId, ShardId};
use std::collections::BTreeMap;

/// Meta's own group.
const META: u32 = 0;

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

pub(crate) fn replica(node: u32, incarnation: u32, learner: bool) -> Replica {
    // Counts beyond 16 bits are refused before they get here.
    let id = ReplicaId::new(NodeId(node), u16::try_from(incarnation).unwrap_or(u16::MAX)).0;
    Replica { id, node, learner, ..Replica::default() }
}

fn exists(words: impl Into<String>, replica: u64) -> Box<MetaReply> {
    let mut refused = refusal(MetaError::MetaExists, words);
    refused.replica = replica;
    refused
}

/// What a shard's changes have in common: a replica more, under an id that was never given.
fn add_replica(shard: &mut Shard, node: u32, request: u64, observer: bool) -> Result<u64, Box<MetaReply>> {
    room(shard.incarnations as usize, INCARNATIONS_MAX as usize, "replicas per shard over its life")?;
    shard.incarnations += 1;
    let new = Replica { request, observer, ..replica(node, shard.incarnations, true) };
    let id = new.id;
    shard.replicas.push(new);
    Ok(id)
}

impl Meta {
    fn shard_or_refuse(&self, shard: u32) -> Result<Shard, Box<MetaReply>> {
        let known = self.shards.get(&shard).cloned();
        known.ok_or_else(|| refusal(MetaError::MetaNotFound, format!("no shard {shard}")))
    }

    fn is_live(&self, node: u32) -> bool {
        self.nodes.get(&node).is_some_and(|node| !node.retired)
    }

    fn live_or_refuse(&self, node: u32) -> Result<(), Box<MetaReply>> {
        let refused = || refusal(MetaError::MetaNotFound, format!("no live node {node}"));
        self.is_live(node).then_some(()).ok_or_else(refused)
    }

    /// Asked again for a replica that is leaving already, it answers with the one that came for it, if that is there.
    pub(crate) fn replace_replica(&mut self, replace: ReplaceReplica) -> Decided {
        let mut shard = self.shard_or_refuse(replace.shard)?;
        self.live_or_refuse(replace.node)?;
        let taken =
            shard.replicas.iter().find(|r| r.node == replace.node && !r.leaving && r.id != replace.old);
        let taken = taken.map(|r| (r.id, r.observer));
        let Some(old) = shard.replicas.iter().find(|r| r.id == replace.old) else {
            return Err(refusal(MetaError::MetaNotFound, format!("no replica {}", replace.old)));
        };
        let observes = old.observer;
        if old.leaving {
            return Err(exists("the replica is leaving already", taken.map_or(0, |(id, _)| id)));
        }
        let promoted = match taken {
            Some((id, true)) if !observes => Some(id),
            Some((id, _)) => {
                let words = format!("node {} has a replica of shard {} already", replace.node, replace.shard);
                return Err(exists(words, id));
            }
            None => None,
        };
        // Two at once could leave the shard without a majority of replicas that hold everything.
        if !observes && shard.replicas.iter().any(|r| r.id != replace.old && self.is_replacing(r)) {
            let words = format!("another replica of shard {} is being replaced; try again", replace.shard);
            return Err(refusal(MetaError::MetaInUse, words));
        }
        let id = match promoted {
            Some(id) => id,
            None => add_replica(&mut shard, replace.node, replace.request, observes)?,
        };
        for replica in &mut shard.replicas {
            replica.leaving |= replica.id == replace.old;
            replica.observer &= Some(replica.id) != promoted;
        }
        self.put_shard(shard);
        Ok(MetaReply { replica: id, created: true, ..MetaReply::default() })
    }

    /// A node that has a replica of meta already is told which: it may replace that.
    pub(crate) fn observe_meta(&mut self, node: u32, request: u64) -> Decided {
        let mut shard = self.shard_or_refuse(META)?;
        self.live_or_refuse(node)?;
        if let Some(has) = shard.replicas.iter().find(|r| r.node == node && !r.leaving) {
            return Err(exists(format!("node {node} has a replica of meta already"), has.id));
        }
        let id = add_replica(&mut shard, node, request, true)?;
        self.put_shard(shard);
        Ok(MetaReply { replica: id, created: true, ..MetaReply::default() })
    }

    /// The observer of a node that is gone leaves; nobody comes for it.
    pub(crate) fn dismiss_observer(&mut self, node: u32) {
        let observes = |r: &Replica| r.node == node && r.observer && !r.leaving;
        let Some(mut shard) = self.shards.get(&META).filter(|s| s.replicas.iter().any(observes)).cloned()
        else {
            return;
        };
        shard.replicas.iter_mut().filter(|r| observes(r)).for_each(|r| r.leaving = true);
        self.put_shard(shard);
    }

    pub(crate) fn replica_promoted(&mut self, shard: u32, replica: u64) -> Decided {
        let mut shard = self.shard_or_refuse(shard)?;
        let Some(known) = shard.replicas.iter_mut().find(|r| r.id == replica) else {
            return Err(refusal(MetaError::MetaNotFound, format!("no replica {replica}")));
        };
        if known.observer {
            return Err(refusal(MetaError::MetaForbidden, "the replica was not told to vote"));
        }
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

    /// Whether a replacement of a voter is under way with this replica; on a retired node it never ends.
    fn is_replacing(&self, replica: &Replica) -> bool {
        (replica.learner || replica.leaving) && !replica.observer && self.is_live(replica.node)
    }

    /// Replicas on retired nodes that a live node can take over, at most one per shard, and none for a shard in
    /// which another replacement is under way. Level-triggered: ask again after every change.
    pub fn repairs(&self) -> Vec<ReplicaChange> {
        // Replicas per node, those that are only planned here included.
        let mut load: BTreeMap<u32, usize> =
            self.nodes.values().filter(|node| !node.retired).map(|node| (node.id, 0)).collect();
        for replica in self.shards.values().flat_map(|shard| &shard.replicas).filter(|r| !r.observer) {
            if let Some(count) = load.get_mut(&replica.node) {
                *count += 1;
            }
        }
        let mut changes = Vec::new();
        for shard in self.shards.values() {
            let voters = || shard.replicas.iter().filter(|r| !r.observer);
            let lost = voters().filter(|r| !r.leaving).find(|r| !load.contains_key(&r.node));
            let under_way = voters().any(|r| self.is_replacing(r));
            let (Some(lost), false) = (lost, under_way) else { continue };
            let Some(node) = self.place_one(shard, &load) else { continue };
            *load.entry(node).or_default() += 1;
            let (shard, old) = (ShardId(shard.id), ReplicaId(lost.id));
            changes.push(ReplicaChange { shard, old, node: NodeId(node) });
        }
        changes
    }

    /// The live node that a shard's next replica belongs on: in the zone with the fewest of them, and of several the one with
    /// the least to hold. `load` has the live nodes.
    fn place_one(&self, shard: &Shard, load: &BTreeMap<u32, usize>) -> Option<u32> {
        let voters = || shard.replicas.iter().filter(|r| !r.observer);
        let zone = |node: u32| self.nodes.get(&node).map_or("", |node| node.zone.as_str());
        let staying = || voters().filter(|r| !r.leaving && load.contains_key(&r.node));
        let copies = |node: u32| staying().filter(|r| zone(r.node) == zone(node)).count();
        let free = |node: &u32| !voters().any(|r| r.node == *node);
        let best = load.iter().filter(|(node, _)| free(node));
        best.min_by_key(|(node, count)| (copies(**node), **count, **node)).map(|(node, _)| *node)
    }
}
