//! All that this node hosts: the machines behind consensus, and what they need between turns.
//!
//! Danger: calls of [`Machine`] come from within a turn of consensus; what they cause for the log (places, releases) is
//! gathered in [`Host::applied`] and carried out right after it. Called by the turn only.

use crate::bodies::Reads;
use crate::checkpoints::{Pending, STAGED};
use crate::gauges::Shown;
use crate::io::{LinkId, Output, Reply, Task, Ticket};
use crate::links::Links;
use crate::meta_host::MetaHost;
use crate::node::blocked_item;
use crate::pages;
use crate::requests::Requests;
use crate::shard_host::{Applied, ShardHost};
use crate::snapshots::Installing;
use crate::usage::Usage;
use crate::{META, NodeConfig};
use bytes::Bytes;
use longshore_checkpoint::PageStore;
use longshore_consensus::{Machine, Membership, Role, SnapshotMeta, SnapshotPages, Store};
use longshore_delivery::QueueId;
use longshore_io::Mono;
use longshore_meta::Meta;
use longshore_proto::v1::meta_command::Command;
use longshore_proto::v1::{self, answer, node_item};
use longshore_records::{PinId, Records};
use longshore_shard::Shard;
use longshore_wire::outcome::Refusal;
use longshore_wire::{CursorId, Index, LogId, NamespaceId, NodeId, ReplicaId, ShardId, Term};
use std::collections::{BTreeMap, BTreeSet};

/// Requests that wait for a log to be made or purged: who asked.
pub(crate) type Waiting = BTreeMap<(ShardId, LogId), Vec<(LinkId, u64)>>;

/// A transient queue that ended by itself.
#[derive(Debug)]
pub(crate) struct Gone {
    shard: ShardId,
    /// The term that it ended in: a later leader knows nothing of it, and may have it anew.
    term: Term,
    delete: v1::DeleteQueue,
}

pub(crate) struct Host {
    pub node: NodeId,
    pub config: NodeConfig,
    pub now: Mono,
    pub meta: MetaHost,
    pub shards: BTreeMap<ShardId, ShardHost>,
    pub replicas: BTreeMap<ShardId, ReplicaId>,
    pub links: Links,
    pub close_links: Vec<LinkId>,
    pub records: Records,
    pub reads: Reads,
    pub pages: PageStore,
    pub pending: BTreeMap<ShardId, Pending>,
    pub installing: BTreeMap<ShardId, Installing>,
    pub pins: BTreeMap<(ShardId, ReplicaId), PinId>,
    /// Groups whose checkpoint or log is damaged: their replicas must be replaced.
    pub damaged: BTreeSet<ShardId>,
    /// What this process asks meta for new replicas under.
    pub requests: Requests,
    /// Applied since the last turn of consensus began, for the record store.
    pub applied: Vec<(Applied, Term)>,
    /// Shards with something for delivery to do.
    pub dirty: BTreeSet<ShardId>,
    pub waiting_for_log: Waiting,
    pub waiting_for_purge: Waiting,
    pub replies: Vec<(Ticket, Reply)>,
    pub addresses: Vec<(NodeId, String)>,
    /// What the data directory can still take, in bytes, as far as this node was told.
    pub free_bytes: u64,
    /// Gateways were told that publishes are refused here.
    pub blocked: bool,
    /// What this node asks meta for until the cluster is formed.
    pub formation: Option<v1::FormCluster>,
    /// Groups whose next checkpoint is of the whole state, and due.
    pub replace_checkpoint: BTreeSet<ShardId>,
    pub reconcile_due: bool,
    pub usage: Usage,
    /// Snapshots that were installed in this turn: their senders are answered.
    pub installed: Vec<ShardId>,
    /// Transient queues that ended by themselves under a leader here, with what meta must delete.
    pub gone: BTreeMap<LogId, Gone>,
    /// One of them is new.
    pub claims_due: bool,
    /// Groups whose log is ahead of their machine: nothing may be applied to it any more.
    pub unrestored: BTreeSet<ShardId>,
    /// When groups that pin the oldest segment are checkpointed next, however small that is.
    pub unpin_at: Mono,
    /// What each group had applied since its checkpoint, in bytes, when quiet ones were last looked for.
    pub looked_at: BTreeMap<ShardId, u64>,
    /// What its metrics have shown.
    pub shown: Shown,
}

impl Host {
    /// A host without groups.
    pub fn new(
        config: NodeConfig,
        now: Mono,
        records: Records,
        pages: PageStore,
        damaged: BTreeSet<ShardId>,
    ) -> Host {
        let requests = Requests::new(config.consensus.seed);
        Host {
            node: config.node,
            config,
            now,
            meta: MetaHost::new(Meta::new()),
            shards: BTreeMap::new(),
            replicas: BTreeMap::new(),
            links: Links::default(),
            close_links: Vec::new(),
            records,
            reads: Reads::default(),
            pages,
            pending: BTreeMap::new(),
            installing: BTreeMap::new(),
            pins: BTreeMap::new(),
            damaged,
            requests,
            applied: Vec::new(),
            dirty: BTreeSet::new(),
            waiting_for_log: BTreeMap::new(),
            waiting_for_purge: BTreeMap::new(),
            replies: Vec::new(),
            addresses: Vec::new(),
            free_bytes: u64::MAX,
            blocked: false,
            formation: None,
            replace_checkpoint: BTreeSet::new(),
            reconcile_due: true,
            usage: Usage::default(),
            installed: Vec::new(),
            gone: BTreeMap::new(),
            claims_due: false,
            unrestored: BTreeSet::new(),
            unpin_at: now,
            looked_at: BTreeMap::new(),
            shown: Shown::default(),
        }
    }

    /// The group's replica left this node.
    pub fn remove_group(&mut self, group: ShardId, out: &mut Output) {
        self.shards.remove(&group);
        self.replicas.remove(&group);
        self.pending.remove(&group);
        self.installing.remove(&group);
        self.damaged.remove(&group);
        self.looked_at.remove(&group);
        self.records.forget(group);
        for kept in [group, ShardId(group.0 | STAGED)] {
            if let Ok(job) = self.pages.remove(kept) {
                out.tasks.push(Task::Checkpoint(job));
            }
        }
        self.reconcile_due = true;
    }

    /// A gateway's stream ended: its consumers wait for it to come back.
    pub fn link_closed(&mut self, link: LinkId) {
        for waiting in [&mut self.waiting_for_log, &mut self.waiting_for_purge] {
            waiting.retain(|_, requests| {
                requests.retain(|(of, _)| *of != link);
                !requests.is_empty()
            });
        }
        if let Some(session) = self.links.close(link) {
            self.session_unlinked(session);
        }
    }

    /// The session has no stream here any more, or a new one: its consumers attach again.
    pub fn session_unlinked(&mut self, session: longshore_wire::SessionId) {
        for (id, host) in &mut self.shards {
            host.session_unlinked(session);
            self.dirty.insert(*id);
        }
    }

    /// A transient queue ended by itself: whatever meta knows of its name goes too.
    pub fn transient_gone(&mut self, shard: ShardId, log: LogId, namespace: NamespaceId, name: &Bytes) {
        let name = String::from_utf8_lossy(name).into_owned();
        let Some(term) = self.shards.get(&shard).and_then(ShardHost::is_leader) else { return };
        let claim = self.meta.meta.queue(namespace.0, &name);
        let claim = claim.filter(|claim| !claim.durable && (claim.log == log.0 || claim.log == 0));
        if let Some(claim) = claim {
            let delete = v1::DeleteQueue { namespace: namespace.0, name, log: claim.log };
            self.gone.insert(log, Gone { shard, term, delete });
            self.claims_due = true;
        }
    }

    /// Asks meta to forget the claims of transient queues that ended, until it has done so, the queue was made anew, or another
    /// leader has the shard: a command on its way to meta's leader may get lost.
    pub fn tend_claims(&mut self) {
        self.claims_due = false;
        let (meta, shards) = (&mut self.meta, &self.shards);
        self.gone.retain(|log, Gone { shard, term, delete }| {
            let claim = meta.meta.queue(delete.namespace, &delete.name);
            let claimed = claim.is_some_and(|claim| !claim.durable && claim.log == delete.log);
            let id = QueueId { log: *log, cursor: CursorId(0) };
            let leads = shards.get(shard).filter(|host| host.is_leader() == Some(*term));
            let is_over = claimed && leads.is_some_and(|host| host.delivery.stat(id, &host.shard).is_none());
            if is_over {
                let command = Some(Command::DeleteQueue(delete.clone()));
                meta.wanted.push(v1::MetaCommand { command, ..v1::MetaCommand::default() });
            }
            is_over
        });
    }

    /// What the data directory can still take.
    pub fn free_bytes(&mut self, store: &mut Store, bytes: u64) {
        metrics::gauge!("longshore_disk_free_bytes", "node" => self.node.to_string()).set(bytes as f64);
        self.free_bytes = bytes;
        store.set_short_of_space(bytes < self.config.reserve_bytes);
        self.tell_blocked(store);
    }

    /// Gateways hear whether some shard that this node leads refuses publishes.
    pub fn tell_blocked(&mut self, store: &Store) {
        let mut led = self.shards.iter().filter(|(_, host)| host.is_leader().is_some());
        let blocked = led.any(|(shard, _)| self.is_short_of_space(store, *shard));
        if blocked != self.blocked {
            self.blocked = blocked;
            for link in self.links.all().collect::<Vec<_>>() {
                self.links.send(link, blocked_item(blocked));
            }
        }
    }

    /// One node of a new cluster asks until the cluster is formed.
    pub fn form_if_due(&mut self) {
        if self.meta.meta.cluster().is_none()
            && let Some(form) = &self.formation
        {
            let command = Some(Command::FormCluster(form.clone()));
            self.meta.wanted.push(v1::MetaCommand { command, ..v1::MetaCommand::default() });
        }
    }

    /// A machine for a group that has a replica here now.
    pub fn add_shard(&mut self, group: ShardId, replica: ReplicaId) {
        self.replicas.insert(group, replica);
        if group != META && !self.shards.contains_key(&group) {
            let host = ShardHost::new(group, self.node, Shard::new(group), self.config.delivery.clone());
            self.shards.insert(group, host);
        }
    }

    /// Whether publishes into a shard must be refused for lack of disk space: a majority of its replicas is below the
    /// reserve, or this node, which leads it, below half of it. The rest is for acks, deletes and the rewriting of files.
    pub fn is_short_of_space(&self, store: &Store, shard: ShardId) -> bool {
        store.lacks_space(shard) || self.free_bytes < self.config.reserve_bytes / 2
    }

    /// Answers those who waited for a log to exist, or to be purged.
    fn answer_waiting(&mut self, group: ShardId, events: &[longshore_shard::Event]) {
        use longshore_shard::Event as Happened;
        let refused = |why: v1::Refused| answer::Result::Refused(why.into());
        for event in events {
            let (made, purged) = (&mut self.waiting_for_log, &mut self.waiting_for_purge);
            let (log, result, waiting) = match event {
                Happened::Created { log } => (log, answer::Result::Done(0), vec![made]),
                Happened::NotCreated { log, why: Refusal::DroppedLog } => {
                    (log, refused(v1::Refused::UnknownLog), vec![made])
                }
                Happened::NotCreated { log, .. } => (log, refused(v1::Refused::Busy), vec![made]),
                Happened::Purged { log, count, .. } => (log, answer::Result::Done(*count), vec![purged]),
                Happened::Dropped { log } => (log, refused(v1::Refused::UnknownLog), vec![made, purged]),
                _ => continue,
            };
            let waiting = waiting.into_iter().filter_map(|waiting| waiting.remove(&(group, *log)));
            for (link, request) in waiting.flatten() {
                let answer = v1::Answer { request, result: Some(result.clone()) };
                self.links.send(link, node_item::Item::Answer(answer));
            }
        }
    }

    /// Those who waited for the old leader's work hear who leads now.
    fn turn_waiting_away(&mut self, group: ShardId) {
        let Some(host) = self.shards.get(&group) else { return };
        for waiting in [&mut self.waiting_for_log, &mut self.waiting_for_purge] {
            let keys: Vec<_> = waiting.keys().copied().filter(|(of, _)| *of == group).collect();
            for (link, request) in keys.iter().filter_map(|key| waiting.remove(key)).flatten() {
                self.links.send(link, host.leader_item(request));
            }
        }
    }

    /// Shards whose delivery has something to do by now without anything having happened.
    pub fn wake_delivery(&mut self, now: Mono) {
        let due = self.shards.iter().filter(|(_, host)| {
            host.is_leader().is_some() && host.delivery.next_deadline().is_some_and(|at| at <= now)
        });
        self.dirty.extend(due.map(|(shard, _)| *shard));
    }

    /// Everything that is due for followers of meta.
    pub fn turn_meta(&mut self, confirmed: bool, out: &mut Output) {
        self.meta.turn(self.now, confirmed, out);
    }
}

impl Machine for Host {
    fn apply(&mut self, group: ShardId, index: Index, term: Term, context: &Bytes, data: &Bytes) {
        if self.unrestored.contains(&group) {
            return;
        }
        if group == META {
            let before = self.meta.meta.revision();
            self.meta.apply(index, term, context, data, self.now, &mut self.replies);
            self.reconcile_due |= self.meta.meta.revision() != before;
            return;
        }
        let Some(host) = self.shards.get_mut(&group) else { return };
        let mut applied = host.apply(index, term, context, data, self.now, &mut self.links);
        let events = std::mem::take(&mut applied.events);
        if host.is_leader().is_some() {
            self.dirty.insert(group);
            self.answer_waiting(group, &events);
        }
        self.applied.push((applied, term));
    }

    fn role_changed(&mut self, group: ShardId, role: Role) {
        if let Role::Leader { term } = role {
            tracing::info!(node = %self.node, %group, %term, "leads a group");
            metrics::counter!("longshore_leader_changes_total").increment(1);
        }
        if group == META {
            self.meta.role_changed(role, self.now, &mut self.replies);
        } else if let Some(host) = self.shards.get_mut(&group) {
            host.role_changed(role, self.now, &mut self.links);
            self.dirty.insert(group);
            if !matches!(role, Role::Leader { .. }) {
                self.turn_waiting_away(group);
            }
        }
        self.reconcile_due = true;
    }

    fn snapshot(&mut self, group: ShardId, meta: &SnapshotMeta, to: ReplicaId) -> SnapshotPages {
        let pages = if group == META {
            self.meta.meta.all_pages()
        } else {
            let pin = self.records.pin();
            if let Some(old) = self.pins.insert((group, to), pin) {
                self.records.unpin(old);
            }
            // No pages at all are refused by who gets them.
            self.shards.get(&group).map_or_else(Vec::new, |host| host.shard.all_pages())
        };
        SnapshotPages { index: meta.index, pages: pages::pack(pages) }
    }

    fn restore(&mut self, group: ShardId, meta: &SnapshotMeta) {
        self.restore_staged(group, meta);
    }

    fn membership_changed(&mut self, group: ShardId, membership: &Membership) {
        if group == META {
            self.meta.membership = membership.clone();
        } else if let Some(host) = self.shards.get_mut(&group) {
            host.membership = membership.clone();
        }
        self.reconcile_due = true;
    }
}

#[cfg(test)]
mod tests;
