//! A gateway: its session and lease from meta, its streams to the nodes, and what it does at each tick. Everything
//! that decides about messages is the shipped `Sender` and `Consumers` (see `shard_side`).

use crate::sim::clients::Clients;
use crate::sim::shard_side::ShardSide;
use crate::sim::wire::Caller;
use crate::sim::world::{MACHINES, What, World};
use longshore_node::{Input, LinkId, WatchId};
use longshore_proto::v1::{self, gateway_item, meta_command, node_item};
use longshore_wire::{NodeId, SessionId, ShardId, Term};
use std::collections::{BTreeMap, VecDeque};

const TICK_US: u64 = 20_000;
/// As the broker's lease.
const RENEW_US: u64 = 1_000_000;
const TRUST_US: u64 = 3_000_000;
const SILENT_US: u64 = 1_500_000;
const RECONNECT_US: u64 = 100_000;
const SHARD_TICK_US: u64 = 200_000;

/// One end of a stream.
#[derive(Debug, Default)]
pub struct LinkEnd {
    pub id: Option<u64>,
    pub up: bool,
    tried_at: u64,
    /// Heard while the lease was in doubt.
    waiting: VecDeque<(u64, node_item::Item)>,
}

/// A gateway.
pub struct Gateway {
    pub session: Option<SessionId>,
    /// Counts sessions and attempts at one.
    pub life: u64,
    pub links: Vec<LinkEnd>,
    pub shards: BTreeMap<ShardId, ShardSide>,
    pub clients: Clients,
    pub paused_until: u64,
    opening: bool,
    pub lease_until: u64,
    renewals: u64,
    sent: BTreeMap<u64, u64>,
    next_renewal: u64,
    next_shard_tick: u64,
    shard_ticks: u64,
    watch: Option<u64>,
    meta: usize,
    applied: u64,
}

impl Gateway {
    pub fn new(at: usize) -> Gateway {
        Gateway {
            session: None,
            life: 0,
            links: (0..MACHINES).map(|_| LinkEnd::default()).collect(),
            shards: BTreeMap::new(),
            clients: Clients::new(at),
            paused_until: 0,
            opening: false,
            lease_until: 0,
            renewals: 0,
            sent: BTreeMap::new(),
            next_renewal: 0,
            next_shard_tick: 0,
            shard_ticks: 0,
            watch: None,
            meta: at,
            applied: 0,
        }
    }

    /// Whether it may confirm and deliver now.
    pub fn holds_lease(&self, now: u64) -> bool {
        self.session.is_some() && now < self.lease_until
    }

    /// Its stream to a machine, if that is up.
    pub fn link_to(&self, slot: usize) -> Option<u64> {
        self.links[slot].id.filter(|_| self.links[slot].up)
    }
}

impl World {
    /// A gateway's housekeeping.
    pub fn gateway_tick(&mut self, at: usize) {
        let now = self.now;
        if self.gateways[at].paused_until > now {
            let after = self.gateways[at].paused_until - now;
            return self.post(after, What::GatewayTick { gateway: at });
        }
        self.post(TICK_US, What::GatewayTick { gateway: at });
        if self.gateways[at].session.is_none() {
            return self.open_session(at);
        }
        self.renew(at);
        self.tend_links(at);
        self.hear_waiting(at);
        if now >= self.gateways[at].next_shard_tick {
            self.gateways[at].next_shard_tick = now + SHARD_TICK_US;
            self.gateways[at].shard_ticks += 1;
            let attaches = self.gateways[at].shard_ticks.is_multiple_of(5);
            self.tick_shards(at, attaches);
        }
        if self.gateways[at].holds_lease(now) {
            self.run_clients(at);
        }
        self.pump(at);
    }

    fn open_session(&mut self, at: usize) {
        let gateway = &mut self.gateways[at];
        if std::mem::replace(&mut gateway.opening, true) {
            return;
        }
        gateway.life += 1;
        let (life, slot) = (gateway.life, gateway.meta);
        let open = v1::OpenGateway { name: format!("gateway-{at}"), addresses: Vec::new() };
        let command = Some(meta_command::Command::OpenGateway(open));
        let command = v1::MetaCommand { command, ..v1::MetaCommand::default() };
        self.call(slot, MACHINES + at, command, Caller::Open { gateway: at, life });
    }

    /// Meta's answer, if one came.
    pub fn session_answer(&mut self, at: usize, life: u64, reply: Option<v1::MetaReply>) {
        let hinted = reply.as_ref().and_then(|reply| reply.not_leader.as_ref());
        let hinted = hinted.and_then(|hint| self.slot_of(NodeId(hint.node)));
        let (now, gateway) = (self.now, &mut self.gateways[at]);
        if gateway.life != life {
            return;
        }
        gateway.opening = false;
        match reply.map(|reply| reply.session) {
            Some(session) if session != 0 => {
                self.history.session_opened(SessionId(session));
                let gateway = &mut self.gateways[at];
                gateway.session = Some(SessionId(session));
                gateway.lease_until = 0;
                gateway.next_renewal = now;
                gateway.applied = 0;
                gateway.shards.clear();
                self.session_begins(at);
            }
            _ => gateway.meta = hinted.unwrap_or((gateway.meta + 1) % MACHINES),
        }
    }

    /// The session is over, by meta's word or the gateway's end: what has no outcome is unknown.
    pub fn session_over(&mut self, at: usize) {
        let gateway = &mut self.gateways[at];
        let Some(session) = gateway.session.take() else { return };
        gateway.life += 1;
        gateway.opening = false;
        self.drop_watch(at);
        let links: Vec<u64> = self.gateways[at].links.iter_mut().filter_map(|end| end.id.take()).collect();
        for link in links {
            self.break_link(link);
        }
        for end in &mut self.gateways[at].links {
            *end = LinkEnd::default();
        }
        self.reached.sessions_lost += u64::from(self.stormy);
        self.history.session_over(session);
        for side in std::mem::take(&mut self.gateways[at].shards).into_values() {
            let unknown = side.sender.into_tags();
            self.clients_forget(at, unknown);
        }
        self.gateways[at].clients.session_over();
    }

    fn drop_watch(&mut self, at: usize) {
        if let Some(watch) = self.gateways[at].watch.take()
            && let Some((_, slot)) = self.watches.remove(&watch)
        {
            self.input(slot, Input::WatchClosed { watch: WatchId(watch) });
        }
        self.gateways[at].sent.clear();
    }

    fn renew(&mut self, at: usize) {
        let now = self.now;
        let gateway = &mut self.gateways[at];
        if gateway.sent.values().next().is_some_and(|sent| now > sent + SILENT_US) {
            gateway.meta = (gateway.meta + 1) % MACHINES;
            gateway.next_renewal = now;
            self.drop_watch(at);
        }
        if now >= self.gateways[at].next_renewal {
            let gateway = &mut self.gateways[at];
            gateway.next_renewal = now + RENEW_US;
            gateway.renewals += 1;
            let renewal = gateway.renewals;
            gateway.sent.insert(renewal, now);
            self.say_to_meta(at, renewal);
        }
    }

    fn say_to_meta(&mut self, at: usize, renewal: u64) {
        let id = self.id();
        let gateway = &mut self.gateways[at];
        let (slot, watch) = (gateway.meta, *gateway.watch.get_or_insert(id));
        let session = gateway.session.unwrap_or_default().0;
        let up = v1::WatchUp { applied: gateway.applied, session, renewal, node: 0 };
        let slot = self.watches.entry(watch).or_insert((at, slot)).1;
        let Some(epoch) = self.machines[slot].process.as_ref().map(|process| process.epoch) else { return };
        let input = Box::new(Input::Watch { watch: WatchId(watch), up });
        self.post(400, What::Inbox { slot, epoch, from: MACHINES + at, input });
    }

    /// News from meta.
    pub fn watched(&mut self, at: usize, watch: WatchId, down: v1::WatchDown) {
        let now = self.now;
        if self.gateways[at].watch != Some(watch.0) {
            return;
        }
        if let Some(told) = &down.not_leader {
            let hinted = self.slot_of(NodeId(told.node));
            let gateway = &mut self.gateways[at];
            gateway.meta = hinted.unwrap_or((gateway.meta + 1) % MACHINES);
            gateway.next_renewal = now + 50_000;
            return self.drop_watch(at);
        }
        if down.lease_lost {
            return self.session_over(at);
        }
        let gateway = &mut self.gateways[at];
        if let Some(sent) = gateway.sent.get(&down.renewed) {
            gateway.lease_until = gateway.lease_until.max(sent + TRUST_US);
            gateway.sent.retain(|renewal, _| *renewal > down.renewed);
        }
        if !down.more && down.revision > gateway.applied {
            gateway.applied = down.revision;
            self.say_to_meta(at, 0);
        }
    }

    fn tend_links(&mut self, at: usize) {
        let now = self.now;
        let Some(session) = self.gateways[at].session else { return };
        for slot in 0..MACHINES {
            let end = &mut self.gateways[at].links[slot];
            let cut = self.cut.contains(&(MACHINES + at, slot)) || self.cut.contains(&(slot, MACHINES + at));
            if end.id.is_none() && now >= end.tried_at + RECONNECT_US && !cut {
                end.tried_at = now;
                let link = self.open_link(at, slot, session);
                self.gateways[at].links[slot].id = link;
            }
        }
    }

    /// A stream is open.
    pub fn link_up(&mut self, at: usize, link: u64) {
        let Some(slot) = self.gateways[at].links.iter().position(|end| end.id == Some(link)) else { return };
        self.gateways[at].links[slot].up = true;
        self.reach_through(at, slot, link);
    }

    /// A stream is gone.
    pub fn link_down(&mut self, at: usize, link: u64) {
        let Some(slot) = self.gateways[at].links.iter().position(|end| end.id == Some(link)) else { return };
        self.gateways[at].links[slot] = LinkEnd { tried_at: self.now, ..LinkEnd::default() };
        for side in self.gateways[at].shards.values_mut() {
            if side.link == Some(link) {
                side.unreachable();
            }
        }
    }

    /// An item from a node. Confirms and deliveries wait while the lease is in doubt.
    pub fn send_to_gateway(&mut self, at: usize, link: u64, sent: u64, item: node_item::Item) {
        let now = self.now;
        let state = self.links.get(&link).map(|state| state.slot);
        if state.is_some_and(|slot| self.cut.contains(&(slot, MACHINES + at))) {
            return self.break_link(link);
        }
        let gateway = &mut self.gateways[at];
        if gateway.paused_until > now {
            let after = gateway.paused_until - now;
            return self.post(after, What::ToGateway { gateway: at, link, sent, item: Box::new(item) });
        }
        let Some(slot) = gateway.links.iter().position(|end| end.id == Some(link)) else { return };
        if !gateway.holds_lease(now) || !gateway.links[slot].waiting.is_empty() {
            return gateway.links[slot].waiting.push_back((sent, item));
        }
        self.hear(at, link, slot, sent, item);
    }

    fn hear_waiting(&mut self, at: usize) {
        for slot in 0..MACHINES {
            while self.gateways[at].holds_lease(self.now) {
                let end = &mut self.gateways[at].links[slot];
                let (Some(link), Some((sent, item))) = (end.id, end.waiting.pop_front()) else { break };
                self.hear(at, link, slot, sent, item);
            }
        }
    }

    fn hear(&mut self, at: usize, link: u64, slot: usize, sent: u64, item: node_item::Item) {
        use node_item::Item as I;
        match item {
            I::Leader(leader) => {
                let node = (leader.node != 0).then_some(NodeId(leader.node));
                self.shard_leader(at, ShardId(leader.shard), Term(leader.term), node);
            }
            I::Outcome(outcome) => self.batch_outcome(at, link, outcome),
            I::Attached(attached) => self.shard_attached(at, &attached),
            I::Deliver(deliver) => self.deliveries(at, sent, deliver),
            I::Cancelled(cancelled) => self.consumer_cancelled(at, &cancelled),
            I::Answer(v1::Answer { result: Some(v1::answer::Result::Text(text)), .. }) => {
                self.history.note(self.now, text);
            }
            I::Answer(answer) => self.gateways[at].clients.log_made(answer.request),
            I::Blocked(blocked) => {
                self.reached.blocked += u64::from(blocked.blocked);
                let node = self.machines[slot].node;
                for side in self.gateways[at].shards.values_mut() {
                    let leads = side.leader.is_some_and(|(_, leader)| leader == node);
                    if leads && !blocked.blocked {
                        side.sender.unblocked();
                    }
                }
            }
            I::Got(_) | I::Welcome(_) | I::TransientOutcome(_) => {}
        }
        self.pump(at);
    }

    /// Sends an item to the leader of a shard, if it can be reached.
    pub fn send_to_leader(&mut self, at: usize, shard: ShardId, item: gateway_item::Item) {
        let link = self.gateways[at].shards.get(&shard).and_then(|side| side.link);
        if let Some(link) = link {
            self.send_to_node(link, Input::Link { link: LinkId(link), item });
        }
    }
}
