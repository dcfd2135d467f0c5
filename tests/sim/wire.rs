//! Everything that goes between processes. Raft frames may be lost, doubled and overtaken; streams and calls are
//! connections, so they deliver in order or break.

use crate::sim::machine::{CLUSTER, address};
use crate::sim::world::{MACHINES, What, World};
use longshore_consensus::{Event, Frame};
use longshore_mutations::{self as mutations, Mutation};
use longshore_node::{
    FetchSend, Input, LinkId, LinkItem, Output, Reply, SnapshotSend, Ticket, WatchId, snapshot_meta,
};
use longshore_proto::v1::{self, meta_change, meta_command, node_item};
use longshore_wire::{NodeId, ReplicaId, SessionId, ShardId};

/// After a cut, a connection breaks within this time.
const BREAK_US: u64 = 400_000;
const CALL_US: u64 = 1_500_000;
/// A watch of a storage node that is outside of meta has an endpoint beyond those of gateways.
pub const OUTSIDE: usize = 100;

/// A gateway's stream to a node.
#[derive(Debug)]
pub struct LinkState {
    pub gateway: usize,
    pub slot: usize,
    pub epoch: u64,
    /// When the last thing sent each way arrives.
    down_at: u64,
    up_at: u64,
}

/// Who made a call to meta.
#[derive(Debug)]
pub enum Caller {
    /// A gateway that opens its session.
    Open { gateway: usize, life: u64 },
    /// The harness, which declares a queue.
    Declare,
    /// A node that tells meta's leader what it wants.
    Node { slot: usize, epoch: u64 },
    /// A wiped machine that registers anew.
    Register { slot: usize },
    /// Nobody waits for it.
    Nobody,
    /// Replicas are compared.
    Compare,
    /// What waits in a shard's queues.
    Logs { shard: u32 },
}

/// A snapshot under way.
#[derive(Debug)]
pub struct SnapshotCall {
    from: (usize, u64),
    to: (usize, u64),
    group: ShardId,
    replica: ReplicaId,
}

/// Records under way.
#[derive(Debug)]
pub struct FetchCall {
    asker: (usize, u64),
    giver: (usize, u64),
    /// The asker's number for it.
    fetch: u64,
    request: v1::FetchRequest,
    heard: u64,
    /// When the last answer arrives: they come over one stream, in order.
    answered_at: u64,
}

impl World {
    /// Carries a turn's outputs out.
    pub fn send_all(&mut self, slot: usize, epoch: u64, mut out: Output) {
        self.take_writes(slot, std::mem::take(&mut out.writes));
        if self.process(slot, epoch).is_none() {
            return;
        }
        for frame in out.frames.drain(..) {
            self.send_frame(slot, frame);
        }
        self.take_tasks(slot, std::mem::take(&mut out.tasks));
        for LinkItem { link, item } in out.items.drain(..) {
            self.send_item(link.0, item);
        }
        for link in out.close_links.drain(..) {
            self.break_link(link.0);
        }
        for (watch, down) in out.watch.drain(..) {
            self.watch_down(slot, watch, down);
        }
        for (ticket, reply) in out.replies.drain(..) {
            self.reply(slot, ticket, reply);
        }
        for (group, installed) in out.snapshots_installed.drain(..) {
            let call = self.process(slot, epoch).and_then(|process| process.installing.remove(&group.0));
            if let Some(call) = call {
                self.snapshot_over(call, installed);
            }
        }
        for snapshot in out.snapshots.drain(..) {
            self.send_snapshot(slot, epoch, snapshot);
        }
        for fetch in out.fetches.drain(..) {
            self.send_fetch(slot, epoch, fetch);
        }
        if !out.meta_commands.is_empty() {
            self.tell_meta(slot, epoch, out.meta_commands);
        }
    }

    /// An input arrives at a process, unless the way was cut meanwhile.
    pub fn arrive(&mut self, slot: usize, epoch: u64, from: usize, input: Input) {
        if self.process(slot, epoch).is_none() {
            return;
        }
        if self.cut.contains(&(from, slot)) {
            match &input {
                Input::Link { link, .. } | Input::LinkOpened { link, .. } => self.break_link(link.0),
                _ => {}
            }
            return;
        }
        if let Input::LinkOpened { link, .. } = &input {
            let (link, delay) = (link.0, self.delay());
            if let Some(state) = self.links.get(&link) {
                let gateway = state.gateway;
                self.post(delay, What::LinkUp { gateway, link });
            }
        }
        self.input(slot, input);
    }

    /// Sends a frame of consensus.
    pub fn send_frame(&mut self, slot: usize, frame: Frame) {
        let Some(to) = self.slot_of(frame.to) else { return };
        let from = self.machines[slot].node;
        if self.cut.contains(&(slot, to)) || self.chance(self.weather.loss) {
            return;
        }
        let copies = 1 + u64::from(self.chance(self.weather.double));
        let Some(epoch) = self.machines[to].process.as_ref().map(|process| process.epoch) else { return };
        for _ in 0..copies {
            let event = Event::Frame { from, bytes: frame.bytes.clone() };
            let (delay, input) = (self.delay(), Box::new(Input::Consensus(event)));
            self.post(delay, What::Inbox { slot: to, epoch, from: slot, input });
        }
    }

    /// A process is gone: all its connections break.
    pub fn process_gone(&mut self, slot: usize, epoch: u64) {
        let links: Vec<u64> =
            self.links.iter().filter(|(_, state)| state.slot == slot).map(|(id, _)| *id).collect();
        for link in links {
            self.break_link(link);
        }
        let calls: Vec<u64> = self
            .snapshots
            .iter()
            .filter(|(_, call)| call.from == (slot, epoch) || call.to == (slot, epoch))
            .map(|(id, _)| *id)
            .collect();
        for call in calls {
            self.snapshot_over(call, false);
        }
        let fetches: Vec<u64> =
            self.fetches.iter().filter(|(_, call)| call.giver == (slot, epoch)).map(|(id, _)| *id).collect();
        for call in fetches {
            self.post(1_000, What::FetchFailed { call, at: u64::MAX });
        }
        let node = self.machines[slot].node;
        for other in (0..MACHINES).filter(|other| *other != slot) {
            self.input(other, Input::Consensus(Event::PeerUnreachable(node)));
        }
    }

    /// A gateway opens a stream to a machine; its number.
    pub fn open_link(&mut self, gateway: usize, slot: usize, session: SessionId) -> Option<u64> {
        let epoch = self.machines[slot].process.as_ref()?.epoch;
        let link = self.id();
        let state = LinkState { gateway, slot, epoch, down_at: 0, up_at: 0 };
        self.links.insert(link, state);
        self.send_to_node(link, Input::LinkOpened { link: LinkId(link), session });
        Some(link)
    }

    /// Sends a gateway's input along a link.
    pub fn send_to_node(&mut self, link: u64, input: Input) {
        let (delay, now) = (self.delay(), self.now);
        let Some(state) = self.links.get_mut(&link) else { return };
        state.up_at = state.up_at.max(now + delay) + 1;
        let (slot, epoch, from, after) =
            (state.slot, state.epoch, MACHINES + state.gateway, state.up_at - now);
        self.post(after, What::Inbox { slot, epoch, from, input: Box::new(input) });
    }

    fn send_item(&mut self, link: u64, item: node_item::Item) {
        let (delay, now) = (self.delay(), self.now);
        let Some(state) = self.links.get_mut(&link) else { return };
        state.down_at = state.down_at.max(now + delay) + 1;
        let (gateway, after) = (state.gateway, state.down_at - now);
        self.post(after, What::ToGateway { gateway, link, sent: now, item: Box::new(item) });
    }

    /// A stream breaks: each end hears of it at its own time.
    pub fn break_link(&mut self, link: u64) {
        let Some(state) = self.links.remove(&link) else { return };
        let (at_gateway, at_node) = (1 + self.rng.below(BREAK_US), 1 + self.rng.below(BREAK_US));
        self.reached.links_broken += 1;
        self.post(at_gateway, What::LinkDown { gateway: state.gateway, link });
        let input = Box::new(Input::LinkClosed { link: LinkId(link) });
        let from = MACHINES + state.gateway + OUTSIDE;
        self.post(at_node, What::Inbox { slot: state.slot, epoch: state.epoch, from, input });
    }

    /// A call to meta on a machine. It is answered once, perhaps by nothing.
    pub fn call(&mut self, slot: usize, from: usize, command: v1::MetaCommand, caller: Caller) {
        let call = self.id();
        self.calls.insert(call, caller);
        self.post(CALL_US, What::Answered { call, reply: None });
        let Some(epoch) = self.machines[slot].process.as_ref().map(|process| process.epoch) else { return };
        if self.weather.resend > 0 && self.chance(self.weather.resend) {
            // The first try came through late, and its answer to nobody.
            let lost = Ticket(self.id());
            let (delay, command) = (self.rng.below(CALL_US), command.clone());
            let input = Box::new(Input::Meta { ticket: lost, command });
            self.reached.calls_doubled += 1;
            self.post(delay, What::Inbox { slot, epoch, from, input });
        }
        let (delay, input) = (self.delay(), Box::new(Input::Meta { ticket: Ticket(call), command }));
        self.post(delay, What::Inbox { slot, epoch, from, input });
    }

    fn reply(&mut self, slot: usize, ticket: Ticket, reply: Reply) {
        let call = ticket.0;
        match reply {
            Reply::Meta(reply) => {
                let delay = self.delay();
                let to = match self.calls.get(&call) {
                    Some(Caller::Open { gateway, .. }) => MACHINES + gateway,
                    Some(Caller::Node { slot, .. } | Caller::Register { slot }) => *slot,
                    _ => OUTSIDE,
                };
                if !self.cut.contains(&(slot, to)) {
                    self.post(delay, What::Answered { call, reply: Some(reply) });
                }
            }
            Reply::Fetched(reply) => self.fetched(call, reply),
            Reply::Inspected(json) => match self.calls.remove(&call) {
                Some(Caller::Compare) => self.inspected(slot, &json),
                Some(Caller::Logs { shard }) => self.counted(slot, shard, &json),
                _ => {}
            },
            Reply::Transfer(_) => {}
        }
    }

    /// The end of a call to meta.
    pub fn answered(&mut self, call: u64, reply: Option<v1::MetaReply>) {
        let Some(caller) = self.calls.remove(&call) else { return };
        match caller {
            Caller::Open { gateway, life } => self.session_answer(gateway, life, reply),
            Caller::Declare => {
                if let Some(queue) = reply.and_then(|reply| reply.queue) {
                    self.declared_queue(&queue);
                }
            }
            Caller::Node { slot, epoch } => {
                if let Some(process) = self.process(slot, epoch) {
                    process.telling_meta = false;
                }
            }
            Caller::Register { slot } => {
                self.machines[slot].registering = false;
                if let Some(reply) = reply.filter(|reply| reply.node != 0) {
                    let machine = &mut self.machines[slot];
                    if machine.joining {
                        machine.joining = false;
                        machine.node = NodeId(reply.node);
                        self.start(slot, false);
                    }
                }
            }
            Caller::Nobody | Caller::Compare | Caller::Logs { .. } => {}
        }
    }

    fn tell_meta(&mut self, slot: usize, epoch: u64, mut commands: Vec<v1::MetaCommand>) {
        let Some(process) = self.process(slot, epoch) else { return };
        let leader = process.node.standing().meta_leader;
        if process.telling_meta {
            return;
        }
        let Some(to) = leader.and_then(|leader| self.slot_of(leader)) else { return };
        if let Some(process) = self.process(slot, epoch) {
            process.telling_meta = true;
        }
        commands.truncate(256);
        let many = meta_command::Command::Many(v1::Many { commands });
        let command = v1::MetaCommand { command: Some(many), ..v1::MetaCommand::default() };
        self.call(to, slot, command, Caller::Node { slot, epoch });
    }

    /// A wiped machine asks to be taken in as a new node.
    pub fn register(&mut self, slot: usize) {
        self.machines[slot].registering = true;
        let to = (slot + 1 + self.rng.below(2) as usize) % MACHINES;
        let node = v1::StorageNode {
            address: address(slot),
            identity: vec![slot as u8 + 100; 16].into(),
            ..v1::StorageNode::default()
        };
        let register = meta_command::Command::RegisterNode(v1::RegisterNode { node: Some(node) });
        let command = v1::MetaCommand { command: Some(register), ..v1::MetaCommand::default() };
        self.call(to, slot, command, Caller::Register { slot });
    }

    fn send_snapshot(&mut self, slot: usize, epoch: u64, send: SnapshotSend) {
        let group = ShardId(send.head.group);
        let to = self.slot_of(send.to_node);
        let target = to.and_then(|to| Some((to, self.machines[to].process.as_ref()?.epoch)));
        let call = self.id();
        let reachable = target.filter(|(to, _)| {
            !self.cut.contains(&(slot, *to))
                && !self.cut.contains(&(*to, slot))
                && send.head.cluster == CLUSTER
        });
        let to = reachable.unwrap_or((slot, 0));
        self.snapshots.insert(call, SnapshotCall { from: (slot, epoch), to, group, replica: send.to });
        let (Some((target, target_epoch)), Ok(meta)) = (reachable, snapshot_meta(&send.head)) else {
            return self.post(20_000, What::SnapshotFailed { call });
        };
        if let Some(older) =
            self.process(target, target_epoch).and_then(|process| process.installing.insert(group.0, call))
        {
            self.snapshot_over(older, false);
        }
        self.reached.snapshots_sent += 1;
        let event =
            Event::SnapshotArrived { group, from: ReplicaId(send.head.from), meta, pages: send.pages };
        let (delay, input) = (2_000 + self.delay(), Box::new(Input::Consensus(event)));
        self.post(delay, What::Inbox { slot: target, epoch: target_epoch, from: slot, input });
        self.post(20_000_000, What::SnapshotFailed { call });
    }

    /// A snapshot is installed, or not: its sender hears it once.
    pub fn snapshot_over(&mut self, call: u64, installed: bool) {
        let Some(SnapshotCall { from, group, replica, .. }) = self.snapshots.remove(&call) else { return };
        if installed {
            self.reached.snapshots_installed += 1;
            self.reached.snapshots_under_load += u64::from(self.publishing);
        }
        if self.process(from.0, from.1).is_some() {
            let event = Event::SnapshotSent { group, to: replica, installed };
            self.input(from.0, Input::Consensus(event));
        }
    }

    fn send_fetch(&mut self, slot: usize, epoch: u64, send: FetchSend) {
        let call = self.id();
        let target = self.slot_of(send.to_node);
        let giver = target.and_then(|to| Some((to, self.machines[to].process.as_ref()?.epoch)));
        let giver = giver.unwrap_or((slot, 0));
        let asker = (slot, epoch);
        let (fetch, request) = (send.fetch, send.request);
        self.fetches.insert(call, FetchCall { asker, giver, fetch, request, heard: 0, answered_at: 0 });
        self.ask_on(call);
    }

    /// The giver is asked for what comes next.
    fn ask_on(&mut self, call: u64) {
        let Some(fetch) = self.fetches.get_mut(&call) else { return };
        fetch.heard += 1;
        let (at, (slot, epoch), from) = (fetch.heard, fetch.giver, fetch.asker.0);
        let input = Box::new(Input::Fetch { ticket: Ticket(call), request: fetch.request.clone() });
        let delay = self.delay();
        self.post(delay, What::Inbox { slot, epoch, from, input });
        self.post(3_000_000, What::FetchFailed { call, at });
    }

    fn fetched(&mut self, call: u64, reply: v1::FetchReply) {
        let (delay, now) = (self.weather.bulk_us + self.delay(), self.now);
        let Some(fetch) = self.fetches.get_mut(&call) else { return };
        fetch.answered_at = fetch.answered_at.max(now + delay) + 1;
        let delay = fetch.answered_at - now;
        let ((slot, epoch), from, number) = (fetch.asker, fetch.giver.0, fetch.fetch);
        if self.cut.contains(&(from, slot)) {
            return;
        }
        let next = reply.records.last().map(|record| record.offset + 1);
        let ended = reply.done || reply.unknown_snapshot;
        let input = Box::new(Input::Fetched { fetch: number, reply: Some(reply) });
        self.post(delay, What::Inbox { slot, epoch, from: slot, input });
        match next.filter(|_| !ended) {
            Some(next) => {
                if let Some(fetch) = self.fetches.get_mut(&call) {
                    fetch.request.from = next;
                }
                self.ask_on(call);
            }
            None => {
                self.fetches.remove(&call);
                if !ended {
                    let input = Box::new(Input::Fetched { fetch: number, reply: None });
                    self.post(delay + 1, What::Inbox { slot, epoch, from: slot, input });
                }
            }
        }
    }

    /// No answer since `at`: the asker hears that it failed.
    pub fn fetch_failed(&mut self, call: u64, at: u64) {
        if self.fetches.get(&call).is_none_or(|fetch| fetch.heard != at && at != u64::MAX) {
            return;
        }
        let Some(fetch) = self.fetches.remove(&call) else { return };
        if self.process(fetch.asker.0, fetch.asker.1).is_some() {
            self.reached.fetches_failed += 1;
            self.input(fetch.asker.0, Input::Fetched { fetch: fetch.fetch, reply: None });
        }
    }

    fn watch_down(&mut self, slot: usize, watch: WatchId, down: v1::WatchDown) {
        let Some((follower, node)) = self.watches.get(&watch.0).copied() else { return };
        if follower >= OUTSIDE {
            return self.hear_of_meta(follower - OUTSIDE, slot, watch, down);
        }
        if node == slot && !self.cut.contains(&(slot, MACHINES + follower)) {
            // One stream: in order.
            let delay = 500;
            self.post(delay, What::Watched { gateway: follower, watch: watch.0, down: Box::new(down) });
        }
    }

    /// A node without a replica of meta asks another one about it.
    pub fn look_at_meta(&mut self, slot: usize) {
        let other = (slot + 1 + self.rng.below(2) as usize) % MACHINES;
        if self.cut.contains(&(slot, other)) || self.cut.contains(&(other, slot)) {
            return;
        }
        let watch = self.id();
        self.watches.insert(watch, (OUTSIDE + slot, other));
        let up = v1::WatchUp { node: self.machines[slot].node.0, ..v1::WatchUp::default() };
        self.input(other, Input::Watch { watch: WatchId(watch), up });
    }

    fn hear_of_meta(&mut self, slot: usize, teller: usize, watch: WatchId, down: v1::WatchDown) {
        if !down.more {
            self.watches.remove(&watch.0);
            self.input(teller, Input::WatchClosed { watch });
        }
        let node = self.machines[slot].node.0;
        let standing = self.machines[slot].process.as_ref().map(|process| process.node.standing());
        let Some(request) = standing.and_then(|standing| standing.meta_request) else { return };
        for change in down.changes.into_iter().filter_map(|change| change.change) {
            let meta_change::Change::Shard(shard) = change else { continue };
            let mine = shard.replicas.into_iter().find(|replica| replica.node == node && !replica.leaving);
            let command = match mine {
                _ if shard.id != 0 => continue,
                Some(known)
                    if known.learner && known.request == request
                        || mutations::on(Mutation::WipedNodeKeepsId) =>
                {
                    self.input(slot, Input::JoinMeta { replica: ReplicaId(known.id), request });
                    continue;
                }
                Some(known) => {
                    let replace = v1::ReplaceReplica { shard: 0, old: known.id, node, request };
                    meta_command::Command::ReplaceReplica(replace)
                }
                None => meta_command::Command::ObserveMeta(v1::ObserveMeta { node, request }),
            };
            for to in (0..MACHINES).filter(|to| *to != slot) {
                let command =
                    v1::MetaCommand { command: Some(command.clone()), ..v1::MetaCommand::default() };
                self.call(to, slot, command, Caller::Nobody);
            }
        }
    }
}
