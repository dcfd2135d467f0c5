//! Bringing this node to what meta says, level-triggered: which replicas it has, who their members are, which
//! sessions and logs its shards hold. Asked after every change of meta and each 250 ms.
//!
//! Danger: absence proves nothing. A log is dropped only on its tombstone, a session closed only if meta gave it and
//! ended it, a group bootstrapped only when its shard has never had other replicas, joined only as `requests` says.

use crate::META;
use crate::host::Host;
use crate::io::{Output, Task};
use longshore_consensus::{OpenError, Replica, Store};
use longshore_io::Mono;
use longshore_proto::v1::meta_command::Command;
use longshore_proto::v1::{self, MetaCommand};
use longshore_wire::batch::Item;
use longshore_wire::{LogId, NodeId, ReplicaId, Revision, SessionId, ShardId};
use std::collections::BTreeSet;

/// Tombstones that one pass acts on, per shard.
const DROPS_MAX: usize = 1_000;

impl Host {
    /// One pass.
    pub(crate) fn reconcile(&mut self, store: &mut Store, now: Mono, out: &mut Output) {
        if self.meta.meta.cluster().is_none() {
            return;
        }
        self.tell_addresses(out);
        self.make_replicas(store, now, out);
        self.tell_members(store);
        if self.meta.is_leader() {
            self.plan_repairs();
        }
        for shard in self.shards.keys().copied().collect::<Vec<_>>() {
            if self.shards.get(&shard).is_some_and(|host| host.is_leader().is_some()) {
                self.tend_shard(shard, now);
            }
        }
    }

    fn tell_addresses(&mut self, out: &mut Output) {
        let nodes = self.meta.meta.nodes().filter(|node| !node.retired);
        let addresses: Vec<_> = nodes.map(|node| (NodeId(node.id), node.address.clone())).collect();
        if addresses != self.addresses {
            self.addresses = addresses.clone();
            out.addresses = Some(addresses);
        }
    }

    /// Groups that this node should have and has not.
    fn make_replicas(&mut self, store: &mut Store, now: Mono, out: &mut Output) {
        let open: BTreeSet<ShardId> = store.groups().collect();
        for (group, replica, learner) in self.meta.meta.shards_of(self.node) {
            let Some(shard) = self.meta.meta.shard(group) else { continue };
            if open.contains(&group) {
                let mine = self.replicas.get(&group).copied().unwrap_or(replica);
                if mine < replica && !shard.replicas.iter().any(|known| known.id == mine.0) {
                    // It left while this node was away, and nobody will ever tell it.
                    store.set_aside(group);
                    self.remove_group(group, out);
                }
                continue;
            }
            let spoiled = store.log().is_set_aside(group) || self.damaged.contains(&group);
            let is_new = !spoiled && shard.incarnations == 1 && store.log().first_index(group).is_none();
            let request =
                shard.replicas.iter().find(|known| known.id == replica.0).map(|known| known.request);
            let result = if learner && request == self.requests.get(group) {
                self.join(store, group, replica, now, out)
            } else if is_new {
                let voters: Vec<ReplicaId> = shard.replicas.iter().map(|r| ReplicaId(r.id)).collect();
                store.bootstrap(group, replica, &voters, now).map(|()| true)
            } else {
                // Any other id may be one that this node had before it lost its log.
                self.ask_for_replacement(group, replica);
                continue;
            };
            match result {
                Ok(true) => self.add_shard(group, replica),
                Ok(false) => {}
                Err(error) => tracing::error!(%group, %error, "cannot make a replica"),
            }
        }
    }

    /// Begins a new replica under an id that was made for this process's request; `false`: not yet, ask again.
    pub(crate) fn join(
        &mut self,
        store: &mut Store,
        group: ShardId,
        replica: ReplicaId,
        now: Mono,
        out: &mut Output,
    ) -> Result<bool, OpenError> {
        if self.pages.is_busy(group) {
            // A checkpoint of the old replica is being written; it would be taken for the new one's.
            return Ok(false);
        }
        store.join(group, replica, now)?;
        self.requests.close(group);
        if self.damaged.remove(&group)
            && let Ok(job) = self.pages.remove(group)
        {
            out.tasks.push(Task::Checkpoint(job));
        }
        if group == META {
            // The new replica applies from the beginning, or restores a snapshot.
            self.meta.reset();
        }
        Ok(true)
    }

    /// This node has no sound replica: it asks for a new one in the place of the one that meta names.
    fn ask_for_replacement(&mut self, group: ShardId, old: ReplicaId) {
        let request = self.requests.number(group);
        let replace = v1::ReplaceReplica { shard: group.0, old: old.0, node: self.node.0, request };
        self.want(Command::ReplaceReplica(replace));
    }

    fn want(&mut self, command: Command) {
        self.meta.wanted.push(MetaCommand { command: Some(command), ..MetaCommand::default() });
    }

    fn tell_members(&mut self, store: &mut Store) {
        for shard in self.meta.meta.shards() {
            let staying = shard.replicas.iter().filter(|replica| !replica.leaving);
            let desired: Vec<Replica> =
                staying.map(|r| Replica { id: ReplicaId(r.id), learner: r.observer }).collect();
            store.reconcile(ShardId(shard.id), &desired);
        }
    }

    fn plan_repairs(&mut self) {
        for repair in self.meta.meta.repairs() {
            let (shard, old, node) = (repair.shard.0, repair.old.0, repair.node.0);
            self.want(Command::ReplaceReplica(v1::ReplaceReplica { shard, old, node, request: 0 }));
        }
    }

    /// A group's members changed, says its leader: meta is told what came true.
    pub(crate) fn members_settled(&mut self, group: ShardId, voters: &[ReplicaId], learners: &[ReplicaId]) {
        let Some(shard) = self.meta.meta.shard(group) else { return };
        let mut wanted = Vec::new();
        for replica in &shard.replicas {
            let id = ReplicaId(replica.id);
            if replica.learner && voters.contains(&id) {
                wanted.push(Command::ReplicaPromoted(v1::ReplicaPromoted { shard: group.0, replica: id.0 }));
            }
            if replica.leaving && !voters.contains(&id) && !learners.contains(&id) {
                wanted.push(Command::ReplicaRemoved(v1::ReplicaRemoved { shard: group.0, replica: id.0 }));
            }
        }
        wanted.into_iter().for_each(|command| self.want(command));
    }

    /// What a shard's leader owes meta: members, ended sessions, tombstones.
    fn tend_shard(&mut self, id: ShardId, now: Mono) {
        let Some(host) = self.shards.get_mut(&id) else { return };
        let meta = &self.meta.meta;
        let ended: Vec<_> = host
            .shard
            .sessions()
            .map(|(session, _)| session)
            .filter(|session| meta.is_session_over(*session))
            .collect();
        for session in ended {
            if host.closing.insert(session) {
                host.proposals.push(Item::CloseSession(session));
            }
        }
        // Transient queues need no session in the shard; and a shard may have closed one that came back by a node that did not
        // know of its end yet (simulation: consumers of an ended session that were handed messages for ever).
        let gone =
            |session: &SessionId| meta.is_session_over(*session) && host.shard.session(*session).is_none();
        for session in host.delivery.sessions().filter(gone).collect::<Vec<_>>() {
            host.delivery.session_gone(now, session);
        }
        let mut dropped = Vec::new();
        let tombstones = meta.tombstones().filter(|tomb| tomb.spans.iter().any(|span| span.shard == id.0));
        for tomb in tombstones.take(DROPS_MAX) {
            let log = LogId(tomb.log);
            if host.shard.is_dropped(log) {
                dropped.push(tomb.log);
            } else if host.dropping.insert(log) {
                host.proposals.push(Item::DropLog { log, revision: Revision(tomb.revision) });
            }
        }
        let members = host.membership.clone();
        self.dirty.insert(id);
        if !dropped.is_empty() {
            self.want(Command::LogsDropped(v1::LogsDropped { logs: dropped }));
        }
        if !members.is_joint() {
            self.members_settled(id, &members.voters, &members.learners);
        }
    }
}
