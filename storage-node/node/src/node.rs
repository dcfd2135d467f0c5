//! A node and its turn.

use crate::host::Host;
use crate::io::{Input, LinkId, Output, Reply, Task, TaskDone, Ticket};
use crate::segments::{SegmentBook, log_id, place_of, record_id};
use crate::{META, inspect};
use bytes::Bytes;
use longshore_consensus::{Action, Event, ProposeError, Store};
use longshore_delivery::{Action as Delivered, Counters, Refused};
use longshore_io::{Mono, WallMs};
use longshore_log::{LogError, SegmentState};
use longshore_mutations::{self as mutations, Mutation};
use longshore_proto::v1::{self, FormCluster, MetaCommand, node_item};
use longshore_records::{JobOutcome, RecordsError, SegmentInfo};
use longshore_wire::context::EntryContext;
use longshore_wire::{Index, ReplicaId, ShardId};
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use open::OpenError;

mod open;
mod standing;

/// Between two tries to let another node lead a group that lacks records here, in milliseconds.
const HAND_OVER_PAUSE_MS: u64 = 5_000;
/// Between two looks at everything that is only level-triggered, in milliseconds.
const UPKEEP_MS: u64 = 250;
/// Between two looks at the gauges, in milliseconds.
const METRICS_MS: u64 = 1_000;
/// After a failed job of the record store (a full disk, a sector that cannot be read), in milliseconds.
const FAILED_JOB_PAUSE_MS: u64 = 5_000;
/// Turns of consensus within one turn of the node: the second carries what the first caused.
const ROUNDS_MAX: usize = 2;

/// Why a node cannot go on: its process must end. What was acknowledged is safe.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The node log failed.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The record store cannot place an applied entry.
    #[error(transparent)]
    Records(#[from] RecordsError),
    /// A checkpoint's write failed.
    #[error(transparent)]
    Checkpoint(#[from] longshore_checkpoint::JobError),
}

/// A storage node.
pub struct Node {
    store: Store,
    host: Host,
    book: Arc<SegmentBook>,
    events: Vec<Event>,
    consensus: longshore_consensus::Output,
    next_upkeep: Mono,
    /// Segments known to the record store, and those that it knows to be retired.
    known_segments: BTreeSet<longshore_records::SegmentId>,
    retired_segments: BTreeSet<longshore_records::SegmentId>,
    next_metrics: Mono,
    /// After a failed job of the record store the next one waits until then.
    next_records_job: Mono,
    /// Groups that may lack records, because an index file was found damaged at the start, or delivery missed some; each with the
    /// time from which its leader may be handed over again.
    lacking: BTreeMap<ShardId, Mono>,
    stopping: bool,
    torn_tail: bool,
}

impl Node {
    /// Whether this node has a replica of meta.
    pub fn has_meta(&self) -> bool {
        self.store.groups().any(|group| group == META)
    }

    /// What forms the cluster; one node of it is told so.
    pub fn set_formation(&mut self, form: FormCluster) {
        self.host.formation = Some(form);
    }

    /// Takes what happened and fills `out`; [`Node::hand_out`] follows. `inputs` is left empty. `now` and `wall` are read after
    /// `inputs` were gathered.
    ///
    /// Errors: [`NodeError`]; nothing of this turn may be sent, the process must end.
    pub fn turn(
        &mut self,
        now: Mono,
        wall: WallMs,
        inputs: &mut Vec<Input>,
        out: &mut Output,
    ) -> Result<(), NodeError> {
        self.host.now = now;
        for input in inputs.drain(..) {
            self.input(now, input, out)?;
        }
        for _ in 0..ROUNDS_MAX {
            self.consensus_turn(now, wall, out)?;
            if !self.after_consensus(now, out)? {
                break;
            }
        }
        if now >= self.next_upkeep || self.host.reconcile_due {
            self.upkeep(now, out);
        }
        if !self.has_meta() {
            self.host.requests.number(META);
        }
        out.close_links.append(&mut self.host.close_links);
        out.replies.append(&mut self.host.replies);
        out.snapshots_installed.extend(self.host.installed.drain(..).map(|group| (group, true)));
        out.again |= !self.events.is_empty();
        Ok(())
    }

    /// Moves into `out` what only a confirmed leader may say: deliveries, and renewals of gateways' leases. Call it after each
    /// turn, right before these are sent, with a clock that is read then: a process that was stopped inside of a turn must
    /// not hand out under a lease that is over meanwhile.
    pub fn hand_out(&mut self, now: Mono, out: &mut Output) {
        let confirmed = self.store.may_deliver(META, now);
        self.host.turn_meta(confirmed, out);
        let store = &self.store;
        self.host.links.flush(|shard| store.may_deliver(shard, now));
        self.host.links.take(&mut out.items);
    }

    fn consensus_turn(&mut self, now: Mono, wall: WallMs, out: &mut Output) -> Result<(), NodeError> {
        let mut consensus = std::mem::take(&mut self.consensus);
        for event in &self.events {
            // Its sender hears at once, instead of waiting for an answer that never comes.
            if let Event::BodiesFailed { group, .. } = event {
                out.snapshots_installed.push((*group, false));
            }
        }
        self.store.turn(now, wall, &mut self.events, &mut self.host, &mut consensus)?;
        self.events.append(&mut consensus.again);
        out.frames.append(&mut consensus.frames);
        if let Some(write) = consensus.write.take() {
            out.writes.push((write, consensus.held.take()));
        }
        for segment in consensus.sealed.drain(..) {
            self.segment_sealed(record_id(segment));
        }
        for action in consensus.actions.drain(..) {
            self.action(action, out);
        }
        for group in std::mem::take(&mut self.host.unrestored) {
            tracing::error!(node = %self.host.node, %group, "a snapshot is not here any more; this replica will be replaced");
            self.give_up(group, out);
        }
        self.consensus = consensus;
        Ok(())
    }

    fn action(&mut self, action: Action, out: &mut Output) {
        match action {
            Action::ReadEntries(task) => out.tasks.push(Task::ReadEntries(task)),
            Action::SendSnapshot { group, to, meta, pages } => {
                self.host.send_snapshot(group, to, &meta, pages, out)
            }
            Action::FetchBodies { group, from, meta, pages } => {
                if self.host.stands_on_staged(&self.store, group) {
                    self.events.push(Event::BodiesFailed { group, index: meta.index });
                } else {
                    self.host.fetch_bodies(group, from, meta, &pages, &mut self.events, out);
                }
            }
            Action::MembershipChanged { group, voters, learners } => {
                self.host.members_settled(group, &voters, &learners)
            }
            Action::SnapshotRefused { group, held, .. } => out.snapshots_installed.push((group, held)),
            Action::SnapshotNotNeeded { group, index, .. } => {
                out.snapshots_installed.push((group, true));
                self.host.need_not_install(group, index);
            }
            Action::Damaged { group, replica } => {
                tracing::error!(node = %self.host.node, %group, %replica, "this replica's log is damaged; it will be replaced");
                self.give_up(group, out);
            }
            Action::Removed { group, replica } => {
                tracing::info!(node = %self.host.node, %group, %replica, "this replica left its group");
                self.store.set_aside(group);
                self.host.remove_group(group, out);
            }
        }
    }

    /// Replicas that lack records are replaced, one after the other: while the rest of its group is not sound, one that lacks
    /// some records is worth more than none, but somebody else should lead.
    fn tend_lacking(&mut self, now: Mono, out: &mut Output) {
        for (group, hand_over_at) in std::mem::take(&mut self.lacking) {
            if !self.host.lacks_records(group) {
                continue;
            }
            if self.store.can_be_spared(group, now) {
                tracing::error!(node = %self.host.node, %group, "this replica lacks records; it will be replaced");
                self.give_up(group, out);
            } else if now < hand_over_at {
                self.lacking.insert(group, hand_over_at);
            } else {
                self.hand_over(group);
                self.lacking.insert(group, now.plus_ms(HAND_OVER_PAUSE_MS));
            }
        }
    }

    /// If this node leads the group, another one should: the one that holds most.
    fn hand_over(&mut self, group: ShardId) {
        let Some(status) = self.store.status(group) else { return };
        let voters = status.matched.iter().filter(|(id, _)| status.membership.voters.contains(id));
        if let Some((heir, _)) = voters.max_by_key(|(_, matched)| *matched)
            && let Err(error) = self.store.transfer(group, heir.node())
        {
            tracing::debug!(node = %self.host.node, %group, %error, "cannot hand over a group whose records are lacking here");
        }
    }

    /// A damaged replica ends here; meta is asked for another one.
    fn give_up(&mut self, group: ShardId, out: &mut Output) {
        out.snapshots_installed.push((group, false));
        self.store.set_aside(group);
        self.host.installing.remove(&group);
        // Pages that wait are of the old replica's history.
        self.host.pending.remove(&group);
        self.host.replace_checkpoint.remove(&group);
        self.host.damaged.insert(group);
        self.host.shards.remove(&group);
        self.host.reconcile_due = true;
    }

    /// Carries what was applied into the record store, runs delivery, proposes what follows. Whether consensus has
    /// something new to do.
    fn after_consensus(&mut self, now: Mono, out: &mut Output) -> Result<bool, NodeError> {
        for (applied, term) in std::mem::take(&mut self.host.applied) {
            if !self.host.shards.contains_key(&applied.group) {
                // Its replica left or was given up in this very turn, and with it the log that has the places.
                continue;
            }
            let place =
                self.store.log().place(applied.group, applied.index).map(|place| place_of(&place, term));
            if let Some(place) = &place
                && self.known_segments.insert(place.segment)
            {
                self.book.pin(self.store.log(), place.segment);
            }
            self.host.records.applied(applied.group, applied.index, place, applied.rows, &applied.data)?;
            for (log, ranges) in &applied.released {
                self.host.records.settled(*log, ranges);
            }
            for event in &applied.events {
                if let longshore_shard::Event::Dropped { log } = event {
                    self.host.records.dropped(*log);
                }
            }
        }
        let mut proposed = false;
        self.host.wake_delivery(now);
        for shard in std::mem::take(&mut self.host.dirty) {
            proposed |= self.run_delivery(shard, now, out);
        }
        if self.host.claims_due {
            self.host.tend_claims();
        }
        proposed |= self.propose_meta(now, out);
        self.host.ask_for_bodies(out);
        Ok(proposed)
    }

    fn run_delivery(&mut self, shard: ShardId, now: Mono, out: &mut Output) -> bool {
        let may_deliver = self.store.may_deliver(shard, now);
        let log_time = self.store.stamp(shard, now);
        let Some(host) = self.host.shards.get_mut(&shard) else { return false };
        let log_time = log_time.unwrap_or_else(|| host.shard.log_time());
        let term = host.is_leader();
        let actions = host.turn_delivery(now, log_time, may_deliver && term.is_some());
        for action in actions {
            self.delivered(shard, action, out);
        }
        let Some(host) = self.host.shards.get_mut(&shard) else { return false };
        let Counters { missing, transient_bytes, .. } = host.delivery.counters();
        self.store.set_stays(shard, transient_bytes > 0);
        if std::mem::replace(&mut host.missing_seen, missing) < missing {
            self.lacking.entry(shard).or_insert(now);
        }
        if term.is_none() {
            host.proposals.clear();
            return false;
        }
        let context = EntryContext { stamp: log_time }.encode();
        host.propose_own(&mut self.store, &context).unwrap_or_else(|error| {
            tracing::debug!(%shard, %error, "the leader's own commands wait");
            false
        })
    }

    fn delivered(&mut self, shard: ShardId, action: Delivered, out: &mut Output) {
        let Some(host) = self.host.shards.get_mut(&shard) else { return };
        let term = host.is_leader().unwrap_or_default();
        match action {
            Delivered::Deliver { to, handed } => self.host.links.deliver(shard, term, to, handed),
            Delivered::LoadRows { id, log, from, max } => self.host.load_rows(shard, id, log, from, max, out),
            Delivered::FindTime { id, log, time } => {
                let first = host.shard.log(log).map_or(longshore_wire::Offset(0), |log| log.first());
                self.host.find_time(shard, id, log, time, first, out);
            }
            Delivered::Propose(item) => host.proposals.push(item),
            Delivered::Got { session, request, result, ready } => match result {
                Ok(Some(handed)) => self.host.links.got(shard, term, session, request, handed, ready),
                Ok(None) => {
                    let got = v1::Got { request, term: term.0, delivery: None, ready };
                    self.host.links.send_to_session(session, node_item::Item::Got(got));
                }
                Err(why) => {
                    let refused = crate::gateway_items::refused(why).into();
                    let result = Some(v1::answer::Result::Refused(refused));
                    let answer = v1::Answer { request, result };
                    self.host.links.send_to_session(session, node_item::Item::Answer(answer));
                }
            },
            Delivered::Took { .. } => {}
            Delivered::Attached { to, attempt, result } => {
                let refused = result.err().map(|why| crate::gateway_items::refused(why).into());
                let (shard, consumer, term) = (shard.0, to.consumer, term.0);
                let attached = v1::Attached { shard, consumer, term, refused, attempt };
                self.host.links.send_to_session(to.session, node_item::Item::Attached(attached));
            }
            // The next leader's name makes the gateway bring its transient queues and consumers there.
            Delivered::Cancelled { reason: Refused::NotLeader, .. } => {}
            Delivered::Cancelled { to, reason } => {
                let reason = crate::gateway_items::refused(reason).into();
                let cancelled = v1::Cancelled { shard: shard.0, consumer: to.consumer, reason };
                self.host.links.send_to_session(to.session, node_item::Item::Cancelled(cancelled));
            }
            Delivered::TransientGone { log, namespace, name } => {
                self.host.transient_gone(shard, log, namespace, &name)
            }
        }
    }

    /// Proposes what this node wants of meta, or leaves it for the leader of meta to hear.
    fn propose_meta(&mut self, now: Mono, out: &mut Output) -> bool {
        if !self.host.meta.is_leader() {
            // One by one: who sends them puts them into one call, and meta refuses a `Many` inside of a `Many`.
            out.meta_commands.append(&mut self.host.meta.wanted);
            return false;
        }
        let mut proposed = false;
        for command in self.host.meta.take_wanted() {
            proposed |= self.propose_to_meta(command.encode_to_vec().into(), now).is_ok();
        }
        proposed
    }

    fn propose_to_meta(&mut self, data: Bytes, now: Mono) -> Result<(), ProposeError> {
        let stamp = self.store.stamp(META, now).unwrap_or_else(|| self.host.meta.meta.log_time());
        self.store.propose(META, EntryContext { stamp }.encode(), data)
    }

    fn input(&mut self, now: Mono, input: Input, out: &mut Output) -> Result<(), NodeError> {
        match input {
            Input::Consensus(event) => {
                if let Event::SnapshotSent { group, to, .. } = &event {
                    self.host.snapshot_sent(*group, *to);
                }
                self.events.push(event);
            }
            Input::LinkOpened { link, session } => self.link_opened(link, session),
            Input::Link { link, item } => self.host.link_item(&mut self.store, now, link, item),
            Input::LinkClosed { link } => self.host.link_closed(link),
            Input::Meta { ticket, command } => self.meta_call(ticket, command, now, out),
            Input::Watch { watch, up } => self.host.meta.watch(watch, &up, now, out),
            Input::WatchClosed { watch } => self.host.meta.watch_closed(watch),
            Input::Done(done) => self.task_done(done, out)?,
            Input::Fetch { ticket, request } => self.host.export(ticket, &request, out),
            Input::Fetched { fetch, reply } => self.host.fetched(fetch, reply, &mut self.events, out),
            Input::Inspect { ticket, request } => {
                let json = inspect::json(&self.host, &self.store, now, &request);
                out.replies.push((ticket, Reply::Inspected(json)));
            }
            Input::TransferLeader { ticket, shard, to } => {
                let result = self.store.transfer(shard, to).map_err(|error| error.to_string());
                out.replies.push((ticket, Reply::Transfer(result)));
            }
            Input::FreeBytes(bytes) => self.host.free_bytes(&mut self.store, bytes),
            Input::JoinMeta { replica, request } => self.join_meta(replica, request, now, out),
            Input::Stopping => {
                self.stopping = true;
                self.store.transfer_all();
            }
        }
        Ok(())
    }

    fn join_meta(&mut self, replica: ReplicaId, request: u64, now: Mono, out: &mut Output) {
        let asked =
            self.host.requests.get(META) == Some(request) || mutations::on(Mutation::WipedNodeKeepsId);
        if self.has_meta() || !asked {
            return;
        }
        match self.host.join(&mut self.store, META, replica, now, out) {
            Ok(true) => {
                self.host.replicas.insert(META, replica);
            }
            Ok(false) => {}
            Err(error) => tracing::error!(%error, "cannot make a replica of meta"),
        }
    }

    fn link_opened(&mut self, link: LinkId, session: longshore_wire::SessionId) {
        if self.host.links.of_session(session).is_some() {
            // The end of the older stream is not known yet; nothing more goes there.
            self.host.session_unlinked(session);
        }
        self.host.links.open(link, session);
        for host in self.host.shards.values() {
            self.host.links.send(link, host.leader_item(0));
        }
        if self.host.blocked {
            self.host.links.send(link, blocked_item(true));
        }
    }

    fn meta_call(&mut self, ticket: Ticket, command: MetaCommand, now: Mono, out: &mut Output) {
        let Some(data) = self.host.meta.call(ticket, command, now, out) else { return };
        if self.propose_to_meta(data.clone(), now).is_err() {
            self.host.meta.call_failed(&data, out);
        }
    }

    fn task_done(&mut self, done: TaskDone, out: &mut Output) -> Result<(), NodeError> {
        match done {
            TaskDone::ReadEntries(done) => self.events.push(Event::EntriesRead(done)),
            TaskDone::Log(done) => self.store.maintained(done)?,
            TaskDone::ReadRecords(done) => self.host.read_done(done, out),
            TaskDone::Checkpoint(done) => {
                self.host.checkpoint_done(&mut self.store, done, &mut self.events, out)?;
                for group in self.host.installing.keys().copied().collect::<Vec<_>>() {
                    self.host.go_on_installing(group, &mut self.events, out);
                }
            }
            TaskDone::Records(done) => {
                let outcome = self.host.records.job_done(done);
                self.records_job_done(outcome, out);
            }
        }
        Ok(())
    }

    fn records_job_done(&mut self, outcome: JobOutcome, out: &mut Output) {
        match outcome {
            JobOutcome::Imported(owner) => self.host.imported(owner, true, &mut self.events, out),
            JobOutcome::ImportFailed(owner, error) => {
                tracing::warn!(node = %self.host.node, %error, "fetched records cannot be stored");
                metrics::counter!("longshore_record_jobs_failed_total").increment(1);
                self.host.imported(owner, false, &mut self.events, out);
            }
            JobOutcome::Failed(what, error) => {
                tracing::warn!(node = %self.host.node, ?what, %error, "a job of the record store failed");
                metrics::counter!("longshore_record_jobs_failed_total").increment(1);
                self.next_records_job = self.host.now.plus_ms(FAILED_JOB_PAUSE_MS);
            }
            // The next job comes with the next upkeep: that is what paces rewriting.
            JobOutcome::Indexed | JobOutcome::Rewritten | JobOutcome::Removed => {}
        }
        self.host.tend_checkpoints(&mut self.store, false, out);
        self.release_segments();
    }

    fn segment_sealed(&mut self, segment: longshore_records::SegmentId) {
        let info = self.store.log().segments().into_iter().find(|info| record_id(info.id) == segment);
        let Some(info) = info else { return };
        self.known_segments.insert(segment);
        self.book.pin(self.store.log(), segment);
        let last = self
            .store
            .log()
            .groups()
            .into_iter()
            .filter_map(|group| self.store.log().last_appended(group).map(|last| (group, last.0)));
        let last = last.collect();
        self.host.records.segment_sealed(&SegmentInfo {
            id: segment,
            bytes: info.bytes,
            sealed: true,
            retired: false,
            last,
        });
    }

    /// Segments that the record store needs no more go back to the log.
    fn release_segments(&mut self) {
        for segment in self.host.records.removable() {
            self.book.unpin(segment);
            self.store.log_mut().release(log_id(segment));
        }
        let segments = self.store.log().segments();
        for info in segments.iter().filter(|info| info.state == SegmentState::Retired) {
            let segment = record_id(info.id);
            if self.known_segments.contains(&segment) && self.retired_segments.insert(segment) {
                self.host.records.segment_retired(segment);
            }
        }
        let existing: BTreeSet<_> = segments.into_iter().map(|info| record_id(info.id)).collect();
        let gone: Vec<_> = self.known_segments.difference(&existing).copied().collect();
        for segment in gone {
            self.known_segments.remove(&segment);
            self.retired_segments.remove(&segment);
            self.book.unpin(segment);
            self.host.records.segment_removed(segment);
        }
    }

    /// Everything that is level-triggered.
    fn upkeep(&mut self, now: Mono, out: &mut Output) {
        self.host.reconcile_due = false;
        self.host.form_if_due();
        self.host.reconcile(&mut self.store, now, out);
        if now < self.next_upkeep {
            // A change of meta, not the time: the rest is not due.
            return;
        }
        self.next_upkeep = now.plus_ms(UPKEEP_MS);
        self.tend_lacking(now, out);
        self.host.tend_checkpoints(&mut self.store, self.stopping, out);
        for (group, host) in &self.host.shards {
            let from = host.shard.oldest_pinned_index().unwrap_or(Index(host.shard.applied().0 + 1));
            self.host.records.uploads_from(*group, from);
        }
        self.host.tend_usage(now);
        self.host.tend_claims();
        self.host.tell_blocked(&self.store);
        self.host.ask_for_repairs(out);
        if let Some(job) = self.store.maintain() {
            out.tasks.push(Task::Log(job));
        }
        if now >= self.next_records_job
            && let Some(job) = self.host.records.next_job()
        {
            out.tasks.push(Task::Records(job));
        }
        self.release_segments();
        self.host.dirty.extend(
            self.host.shards.iter().filter(|(_, host)| host.is_leader().is_some()).map(|(id, _)| *id),
        );
        if now >= self.next_metrics {
            self.next_metrics = now.plus_ms(METRICS_MS);
            self.host.show_metrics(&self.store, now);
        }
        out.again = true;
    }
}

pub(crate) fn blocked_item(blocked: bool) -> node_item::Item {
    let reason = if blocked { "low on disk" } else { "" }.to_owned();
    node_item::Item::Blocked(v1::Blocked { blocked, reason })
}
