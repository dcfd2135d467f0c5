//! Installing a snapshot: the state's pages are staged durably, every body that they name is fetched and synced, and only
//! then consensus hears of it.
//!
//! Danger: a snapshot that is acknowledged before its bodies are durable is a replica that votes for messages which it
//! does not have. What was fetched stays and counts for the next try.

use crate::META;
use crate::bodies::{Wanted, import};
use crate::checkpoints::STAGED;
use crate::host::Host;
use crate::io::{Output, SnapshotSend, Task};
use crate::pages;
use crate::shard_host::ShardHost;
use bytes::Bytes;
use longshore_checkpoint::Mark;
use longshore_consensus::{BOOTSTRAP_INDEX, Event, SnapshotMeta, Store};
use longshore_meta::Meta;
use longshore_mutations::{self as mutations, Mutation};
use longshore_proto::v1::{FetchReply, FetchRequest};
use longshore_records::{ImportFor, LiveView, Records, part_log, part_offset};
use longshore_shard::Shard;
use longshore_wire::{Index, LogId, LogTime, Offset, OffsetRange, ReplicaId, ShardId};
use std::collections::{BTreeMap, VecDeque};

/// A snapshot on its way in.
#[derive(Debug)]
pub(crate) struct Installing {
    /// Tells it from an earlier one of the same group, whose answers may still come.
    number: u64,
    meta: SnapshotMeta,
    from: ReplicaId,
    state: State,
    /// Runs of offsets that are still missing here.
    missing: VecDeque<(LogId, OffsetRange)>,
    asked: bool,
    imports: usize,
    staged: bool,
}

#[derive(Debug)]
enum State {
    Meta(Box<Meta>),
    Shard(Box<Shard>),
}

impl Host {
    /// Sends a snapshot of ours.
    pub(crate) fn send_snapshot(
        &mut self,
        group: ShardId,
        to: ReplicaId,
        meta: &SnapshotMeta,
        pages: Vec<Bytes>,
        out: &mut Output,
    ) {
        let from = self.replicas.get(&group).copied().unwrap_or_default();
        let head = pages::snapshot_head(&self.config.cluster, group, from, meta);
        out.snapshots.push(SnapshotSend { to_node: to.node(), to, head, pages });
    }

    /// The receiver of a snapshot of ours has it, or not.
    pub(crate) fn snapshot_sent(&mut self, group: ShardId, to: ReplicaId) {
        if let Some(pin) = self.pins.remove(&(group, to)) {
            self.records.unpin(pin);
        }
    }

    /// Whether the group's log begins where the staged snapshot ends, and no checkpoint reaches that far yet: the staged pages
    /// are all that a start could begin with. A newer snapshot must not be staged over them (simulation, seeds 470 and 516). A
    /// log that begins behind its bootstrap stands on nothing: the empty state is the one there.
    pub(crate) fn stands_on_staged(&self, store: &Store, group: ShardId) -> bool {
        let base = store.log().first_index(group).map_or(Index(0), |first| Index(first.0.saturating_sub(1)));
        let checkpoint = self.pages.mark(group).map_or(Index(0), |mark| mark.index);
        checkpoint.max(BOOTSTRAP_INDEX) < base
    }

    /// Consensus wants a snapshot's pages staged and its bodies here.
    pub(crate) fn fetch_bodies(
        &mut self,
        group: ShardId,
        from: ReplicaId,
        meta: SnapshotMeta,
        pieces: &[Bytes],
        events: &mut Vec<Event>,
        out: &mut Output,
    ) {
        let failed = Event::BodiesFailed { group, index: meta.index };
        let Ok(pages) = pages::unpack(pieces) else { return events.push(failed) };
        if pages.is_empty() {
            // An empty state would be taken for an empty shard, and all that is here would go.
            return events.push(failed);
        }
        let staged: BTreeMap<Bytes, Bytes> = pages.iter().cloned().collect();
        let state = if group == META {
            Meta::restore(pages).map(|meta| State::Meta(Box::new(meta))).ok()
        } else {
            Shard::restore(group, pages).map(|shard| State::Shard(Box::new(shard))).ok()
        };
        let Some(state) = state else {
            tracing::error!(%group, "a snapshot's state cannot be read");
            return events.push(failed);
        };
        let missing = match &state {
            State::Meta(_) => VecDeque::new(),
            State::Shard(shard) => missing_of(&self.records, group, shard),
        };
        let mark = Mark { index: meta.index, term: meta.term, log_time: LogTime(0), conf: Bytes::new() };
        let staged_as = ShardId(group.0 | STAGED);
        match self.pages.replace(staged_as, mark, staged) {
            Ok(job) => out.tasks.push(Task::Checkpoint(job)),
            Err(_) => {
                // Perhaps what was staged before is damaged: the next try finds it gone.
                out.tasks.extend(self.pages.remove(staged_as).map(Task::Checkpoint));
                return events.push(failed);
            }
        }
        let number = self.reads.next_number();
        let installing =
            Installing { number, meta, from, state, missing, asked: false, imports: 0, staged: false };
        self.installing.insert(group, installing);
        self.go_on_installing(group, events, out);
    }

    /// Whether live records of a group of several voters are not held here: as its replica this node would count for what
    /// it does not have.
    pub(crate) fn lacks_records(&self, group: ShardId) -> bool {
        let Some(host) = self.shards.get(&group) else { return false };
        if mutations::on(Mutation::SnapshotBeforeBodies) {
            // The broken build that counts for what it does not have does not look for it either.
            return false;
        }
        host.membership.voters.len() > 1 && !missing_of(&self.records, group, &host.shard).is_empty()
    }

    /// Asks for the next run that is missing, or ends the installation.
    pub(crate) fn go_on_installing(&mut self, group: ShardId, events: &mut Vec<Event>, out: &mut Output) {
        let Some(installing) = self.installing.get_mut(&group) else { return };
        if installing.staged && mutations::on(Mutation::SnapshotBeforeBodies) {
            return events.push(Event::BodiesDurable { group, index: installing.meta.index });
        }
        if installing.asked || installing.imports > 0 {
            return;
        }
        if let Some((log, range)) = installing.missing.front() {
            installing.asked = true;
            let request = FetchRequest {
                cluster: self.config.cluster.clone(),
                shard: group.0,
                snapshot_index: installing.meta.index.0,
                log: log.0,
                from: range.first.0,
                until: range.last.0 + 1,
            };
            let wanted = Wanted::Bodies { group, number: installing.number };
            let to_node = installing.from.node();
            return self.fetch(wanted, to_node, group, request, out);
        }
        if installing.staged {
            events.push(Event::BodiesDurable { group, index: installing.meta.index });
        }
    }

    /// The installation cannot go on; consensus asks for another snapshot later.
    pub(crate) fn give_up_installing(&mut self, group: ShardId, events: &mut Vec<Event>) {
        if let Some(installing) = self.installing.remove(&group) {
            events.push(Event::BodiesFailed { group, index: installing.meta.index });
        }
    }

    /// The group's log reaches as far as the snapshot at `index` without it. Only consensus knows: a log that ends there may
    /// just as well be the mark that this snapshot left, with its restore still to come (simulation, seed 3754).
    pub(crate) fn need_not_install(&mut self, group: ShardId, index: Index) {
        if self.installing.get(&group).is_some_and(|installing| installing.meta.index == index) {
            self.installing.remove(&group);
        }
    }

    /// The pages are durable.
    pub(crate) fn snapshot_staged(&mut self, group: ShardId, index: Index) {
        if let Some(installing) = self.installing.get_mut(&group)
            && installing.meta.index == index
        {
            installing.staged = true;
        }
    }

    /// Records of a peer for the snapshot of a group.
    pub(crate) fn bodies_fetched(
        &mut self,
        (group, number): (ShardId, u64),
        reply: Option<FetchReply>,
        events: &mut Vec<Event>,
        out: &mut Output,
    ) {
        let Some(installing) = self.installing.get_mut(&group).filter(|i| i.number == number) else { return };
        let index = installing.meta.index;
        let Some(reply) = reply.filter(|reply| !reply.unknown_snapshot) else {
            self.installing.remove(&group);
            return events.push(Event::BodiesFailed { group, index });
        };
        if reply.done {
            installing.asked = false;
            installing.missing.pop_front();
        }
        let batch: Result<Vec<_>, _> =
            reply.records.into_iter().map(|fetched| import(group, fetched)).collect();
        match batch.map(|batch| (batch.is_empty(), self.records.import(ImportFor(number), batch))) {
            Ok((true, _)) => {}
            Ok((false, Ok(job))) => {
                installing.imports += 1;
                out.tasks.push(Task::Records(job));
            }
            Ok((false, Err(error))) => {
                tracing::warn!(%group, %error, "what a peer sent cannot be stored");
                self.installing.remove(&group);
                return events.push(Event::BodiesFailed { group, index });
            }
            Err(error) => {
                tracing::warn!(%group, %error, "what a peer sent cannot be read");
                self.installing.remove(&group);
                return events.push(Event::BodiesFailed { group, index });
            }
        }
        self.go_on_installing(group, events, out);
    }

    /// An import is finished. Without an owner it was a repair; its installation may be over, too.
    pub(crate) fn imported(
        &mut self,
        owner: Option<ImportFor>,
        ok: bool,
        events: &mut Vec<Event>,
        out: &mut Output,
    ) {
        let mut all = self.installing.iter_mut();
        let Some((group, installing)) = all.find(|(_, i)| owner == Some(ImportFor(i.number))) else { return };
        let group = *group;
        installing.imports -= 1;
        if !ok {
            return self.give_up_installing(group, events);
        }
        self.go_on_installing(group, events, out);
    }

    /// Consensus has made the staged snapshot the group's history.
    pub(crate) fn restore_staged(&mut self, group: ShardId, meta: &SnapshotMeta) {
        let installing = self.installing.remove(&group).filter(|known| known.meta.index == meta.index);
        let Some(installing) = installing else {
            // Consensus goes on above the mark: the machine as it is would apply with a gap.
            self.unrestored.insert(group);
            return;
        };
        tracing::info!(node = %self.node, %group, index = %meta.index, "installed a snapshot");
        metrics::counter!("longshore_snapshots_installed_total").increment(1);
        match installing.state {
            State::Meta(restored) => {
                self.meta.meta = *restored;
                self.meta.changed = true;
            }
            State::Shard(restored) => {
                self.records.recover(group, &View(&restored));
                let host = ShardHost::new(group, self.node, *restored, self.config.delivery.clone());
                let old = self.shards.insert(group, host);
                if let (Some(old), Some(host)) = (old, self.shards.get_mut(&group)) {
                    (host.role, host.membership) = (old.role, old.membership);
                }
            }
        }
        self.pending.remove(&group);
        self.installed.push(group);
        self.reconcile_due = true;
    }
}

/// What a snapshot's state names and this node does not hold: live records, and the pieces of uploads that have no end
/// yet. Without those, a message whose last part comes after the snapshot would be confirmed and have no body here.
fn missing_of(records: &Records, group: ShardId, shard: &Shard) -> VecDeque<(LogId, OffsetRange)> {
    let mut all = VecDeque::new();
    for log in shard.logs() {
        let live: Vec<_> = log.live_ranges().collect();
        all.extend(records.missing(log.id(), &live).into_iter().map(|range| (log.id(), range)));
    }
    let pieces: Vec<_> = shard.upload_sources().collect();
    let missing = records.missing_parts(group, &pieces);
    all.extend(missing.iter().map(|piece| (part_log(group), OffsetRange::one(part_offset(piece)))));
    all
}

/// A shard's word on what the record store must keep.
pub(crate) struct View<'a>(pub &'a Shard);

impl LiveView for View<'_> {
    fn applied(&self) -> Index {
        self.0.applied()
    }

    fn first(&self, log: LogId) -> Option<Offset> {
        self.0.log(log).map(|log| log.first())
    }

    fn dead(&self, log: LogId, dead: &mut dyn FnMut(OffsetRange)) {
        let Some(log) = self.0.log(log) else { return };
        let mut at = log.first();
        for live in log.live_ranges() {
            if live.first > at {
                dead(OffsetRange { first: at, last: Offset(live.first.0 - 1) });
            }
            at = live.last.plus(1);
        }
        if log.next() > at {
            dead(OffsetRange { first: at, last: Offset(log.next().0 - 1) });
        }
    }

    fn uploads_from(&self) -> Index {
        self.0.oldest_pinned_index().unwrap_or(Index(self.0.applied().0 + 1))
    }
}

/// The group that pages of the store are staged for; `None` for a checkpoint.
pub(crate) fn staged_group(group: ShardId) -> Option<ShardId> {
    (group.0 & STAGED != 0).then_some(ShardId(group.0 & !STAGED))
}

#[cfg(test)]
mod tests;
