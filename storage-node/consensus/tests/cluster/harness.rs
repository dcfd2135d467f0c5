//! A cluster in one thread: nodes, a network that delays, loses, doubles and reorders, and virtual time.
//!
//! Everything follows from the seed. What no run may show is checked in `oracle`.

use crate::machine::History;
use crate::node::{Node, Wishes};
use crate::random::Rng;
use bytes::Bytes;
use longshore_consensus::{Action, Event, ProposeError, SnapshotMeta};
use longshore_io::Mono;
use longshore_wire::{Index, NodeId, ReplicaId, ShardId};
use std::collections::{BTreeMap, BTreeSet};

/// Something under way to a node.
enum Parcel {
    Event(Event),
    /// The end of a body fetch: stage the pages, then tell both sides.
    Fetched {
        group: ShardId,
        from: ReplicaId,
        meta: SnapshotMeta,
        pages: Vec<Bytes>,
    },
}

/// What the network does.
#[derive(Clone, Copy)]
pub struct Weather {
    pub delay_us_max: u64,
    pub loss_per_mille: u64,
    pub double_per_mille: u64,
}

pub const CALM: Weather = Weather { delay_us_max: 500, loss_per_mille: 0, double_per_mille: 0 };

pub struct Cluster {
    pub now: Mono,
    pub nodes: BTreeMap<NodeId, Node>,
    pub history: History,
    pub weather: Weather,
    pub rng: Rng,
    /// One-way: nothing goes from the first to the second.
    pub cut: BTreeSet<(NodeId, NodeId)>,
    /// Values whose commit a client was told of.
    pub acked: BTreeMap<ShardId, Vec<Bytes>>,
    pub snapshots_installed: u64,
    /// Connections break before they carry the news that a snapshot is installed.
    pub answers_lost: bool,
    pub groups: Vec<ShardId>,
    first_voters: BTreeMap<ShardId, Vec<ReplicaId>>,
    parcels: BTreeMap<(Mono, u64), (NodeId, NodeId, Parcel)>,
    pending: BTreeSet<Bytes>,
    sequence: u64,
    pub seed: u64,
}

impl Cluster {
    /// `nodes` nodes with a replica of each of `groups` groups, all started.
    pub fn new(seed: u64, nodes: u32, groups: u32) -> Cluster {
        let mut c = Cluster::unstarted(seed, nodes, groups);
        for id in c.ids() {
            c.start(id);
        }
        c
    }

    fn unstarted(seed: u64, nodes: u32, groups: u32) -> Cluster {
        let groups: Vec<ShardId> = (0..groups).map(ShardId).collect();
        let ids = || (1..=nodes).map(NodeId);
        let voters: Vec<ReplicaId> = ids().map(|n| ReplicaId::new(n, 1)).collect();
        let mut c = Cluster {
            now: Mono(1_000_000),
            nodes: ids().map(|n| (n, Node::new(n, seed ^ u64::from(n.0) << 20))).collect(),
            history: History::default(),
            weather: CALM,
            rng: Rng::new(seed),
            cut: BTreeSet::new(),
            acked: BTreeMap::new(),
            snapshots_installed: 0,
            answers_lost: false,
            first_voters: groups.iter().map(|g| (*g, voters.clone())).collect(),
            groups,
            parcels: BTreeMap::new(),
            pending: BTreeSet::new(),
            sequence: 0,
            seed,
        };
        for node in c.nodes.values_mut() {
            node.replicas = c.groups.iter().map(|g| (*g, ReplicaId::new(node.id, 1))).collect();
        }
        c
    }

    pub fn ids(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }

    pub fn node(&mut self, id: NodeId) -> &mut Node {
        self.nodes.get_mut(&id).expect("a known node")
    }

    pub fn start(&mut self, id: NodeId) {
        let (now, seed, voters) = (self.now, self.rng.next(), self.first_voters.clone());
        let node = self.node(id);
        if node.process.is_none() {
            node.start(now, seed, &voters);
        }
        self.reconcile_all();
    }

    pub fn crash(&mut self, id: NodeId) {
        let seed = self.rng.next();
        self.node(id).crash(seed);
        self.break_connections(id);
    }

    /// The node loses its disk and comes back as a new replica.
    pub fn wipe(&mut self, id: NodeId) {
        let seed = self.rng.next();
        self.node(id).wipe(seed);
        self.break_connections(id);
        self.start(id);
    }

    /// What meta would tell every node: the replicas that exist now.
    fn reconcile_all(&mut self) {
        for group in self.groups.clone() {
            let ids: Vec<ReplicaId> =
                self.nodes.values().filter_map(|n| n.replicas.get(&group)).copied().collect();
            for p in self.nodes.values_mut().filter_map(|n| n.process.as_mut()) {
                p.reconcile(group, &ids);
            }
        }
    }

    /// Snapshots that were on their way to or from a node fail.
    fn break_connections(&mut self, id: NodeId) {
        let mut kept = BTreeMap::new();
        for (key, (from, to, parcel)) in std::mem::take(&mut self.parcels) {
            let snapshot = match &parcel {
                Parcel::Event(Event::SnapshotArrived { group, .. }) => Some((*group, from, to)),
                Parcel::Fetched { group, .. } => Some((*group, from, to)),
                Parcel::Event(Event::SnapshotSent { .. }) => None,
                Parcel::Event(_) => None,
            };
            match snapshot.filter(|_| from == id || to == id) {
                Some((group, from, to)) => {
                    self.report(group, from, to, false);
                    if let (Parcel::Fetched { meta, .. }, Some(p)) = (&parcel, &mut self.node(to).process) {
                        p.inbox.push(Event::BodiesFailed { group, index: meta.index });
                    }
                }
                None => {
                    kept.insert(key, (from, to, parcel));
                }
            }
        }
        self.parcels.append(&mut kept);
        for node in self.nodes.values_mut().filter(|n| n.id != id) {
            if let Some(p) = &mut node.process {
                p.inbox.push(Event::PeerUnreachable(id));
            }
        }
    }

    /// Tells the sender of a snapshot how it went.
    fn report(&mut self, group: ShardId, sender: NodeId, receiver: NodeId, installed: bool) {
        let to = self.nodes[&receiver].replicas[&group];
        if let Some(p) = &mut self.node(sender).process {
            p.inbox.push(Event::SnapshotSent { group, to, installed });
        }
    }

    fn post(&mut self, from: NodeId, to: NodeId, delay_us: u64, parcel: Parcel) {
        self.sequence += 1;
        self.parcels.insert((Mono(self.now.0 + delay_us), self.sequence), (from, to, parcel));
    }

    fn send(&mut self, from: NodeId, to: NodeId, bytes: Bytes) {
        if self.cut.contains(&(from, to)) || self.rng.per_mille(self.weather.loss_per_mille) {
            return;
        }
        let copies = 1 + u64::from(self.rng.per_mille(self.weather.double_per_mille));
        for _ in 0..copies {
            let delay = 50 + self.rng.below(self.weather.delay_us_max);
            self.post(from, to, delay, Parcel::Event(Event::Frame { from, bytes: bytes.clone() }));
        }
    }

    /// Runs until `until`.
    pub fn run_until(&mut self, until: Mono) {
        loop {
            let parcels = self.parcels.keys().next().map(|(at, _)| *at);
            let nodes = self.nodes.values().filter_map(Node::next_event).min();
            let next = parcels.into_iter().chain(nodes).min().unwrap_or(until).max(self.now);
            if next > until {
                self.now = until;
                return;
            }
            self.now = next;
            self.deliver_due();
            for id in self.ids() {
                self.step(id, false);
            }
            self.check_leases();
            // Two things at one moment are possible, endless ones are not.
            if next == self.now {
                self.now = Mono(self.now.0 + 1);
            }
        }
    }

    pub fn run_ms(&mut self, ms: u64) {
        self.run_until(self.now.plus_ms(ms));
    }

    fn deliver_due(&mut self) {
        while let Some(entry) = self.parcels.first_entry().filter(|e| e.key().0 <= self.now) {
            let (from, to, parcel) = entry.remove();
            let cut = self.cut.contains(&(from, to));
            match parcel {
                Parcel::Event(Event::Frame { .. }) if cut => {}
                Parcel::Event(event) => {
                    if let Some(p) = &mut self.node(to).process {
                        p.inbox.push(event);
                    }
                }
                Parcel::Fetched { group, from: sender, meta, pages } => {
                    self.bodies_fetched(to, group, sender, meta.index, pages);
                }
            }
        }
    }

    fn bodies_fetched(
        &mut self,
        at: NodeId,
        group: ShardId,
        from: ReplicaId,
        index: Index,
        pages: Vec<Bytes>,
    ) {
        let node = self.node(at);
        let Some(p) = &mut node.process else { return };
        node.saved.staged.insert((group, index.0), pages.clone());
        p.machines.staged.insert((group, index.0), pages);
        p.inbox.push(Event::BodiesDurable { group, index });
        self.report(group, from.node(), at, !self.answers_lost);
    }

    fn step(&mut self, id: NodeId, turn: bool) {
        let now = self.now;
        let mut wishes = Wishes::default();
        let node = self.node(id);
        node.run(now, &mut wishes, turn);
        let Some(p) = &mut node.process else { return };
        let applied = std::mem::take(&mut p.machines.applied);
        let restored = std::mem::take(&mut p.machines.restored);
        self.snapshots_installed += restored.len() as u64;
        for (group, index, term, data) in applied {
            self.history.applied(group, index, term, &data);
            if self.pending.remove(&data) {
                self.acked.entry(group).or_default().push(data);
            }
        }
        for frame in wishes.frames {
            self.send(id, frame.to, frame.bytes);
        }
        for action in wishes.actions {
            self.act(id, action);
        }
    }

    fn act(&mut self, id: NodeId, action: Action) {
        match action {
            Action::SendSnapshot { group, to, meta, pages } => {
                let from = self.nodes[&id].replicas[&group];
                let receiver = to.node();
                let reachable =
                    self.nodes[&receiver].process.is_some() && !self.cut.contains(&(id, receiver));
                if !reachable || self.nodes[&receiver].replicas[&group] != to {
                    let event = Event::SnapshotSent { group, to, installed: false };
                    self.post(id, id, 1_000, Parcel::Event(event));
                    return;
                }
                if self.rng.per_mille(250) {
                    // Its sender's connection broke, and it sends it again.
                    let (meta, pages) = (meta.clone(), pages.clone());
                    let event = Event::SnapshotArrived { group, from, meta, pages };
                    let late = 5_000 + self.rng.below(300_000);
                    self.post(id, receiver, late, Parcel::Event(event));
                }
                let event = Event::SnapshotArrived { group, from, meta, pages };
                self.post(id, receiver, 5_000, Parcel::Event(event));
            }
            Action::FetchBodies { group, from, meta, pages } => {
                if let Some(p) = &mut self.node(id).process {
                    p.machines.arriving.insert((group, meta.index.0), pages.clone());
                }
                let took = 20_000 + self.rng.below(200_000);
                self.post(from.node(), id, took, Parcel::Fetched { group, from, meta, pages });
            }
            Action::SnapshotRefused { group, from, held, .. } => self.report(group, from.node(), id, held),
            Action::SnapshotNotNeeded { group, from, index } => {
                if let Some(p) = &mut self.node(id).process {
                    p.machines.arriving.remove(&(group, index.0));
                    p.machines.staged.remove(&(group, index.0));
                }
                self.report(group, from.node(), id, true);
            }
            Action::Removed { group, replica } => {
                self.history.violations.extend(
                    (self.nodes[&id].replicas.get(&group) == Some(&replica))
                        .then(|| format!("a replica that is wanted was removed: {replica} of {group}")),
                );
            }
            Action::Damaged { group, replica } => {
                self.history.violations.push(format!("{replica} of {group} found damage on a sound disk"));
            }
            Action::MembershipChanged { .. } | Action::ReadEntries(_) => {}
        }
    }

    /// Asks the leader of a group to hand over to a node.
    pub fn transfer(&mut self, group: ShardId, heir: NodeId) {
        let Some(leader) = self.leader(group) else { return };
        if let Some(p) = &mut self.node(leader).process {
            p.store.transfer(group, heir).expect("it leads, and a voter lives there");
        }
        self.step(leader, true);
    }

    /// Proposes a value on a node; its commit will be noted as acknowledged.
    pub fn propose(&mut self, on: NodeId, group: ShardId, bytes: usize) -> Result<Bytes, ProposeError> {
        self.sequence += 1;
        let mut value = format!("{}-{}-", group.0, self.sequence).into_bytes();
        value.resize(value.len().max(bytes), b'x');
        let value = Bytes::from(value);
        let now = self.now;
        let paused = self.nodes[&on].paused_until > now;
        let Some(p) = self.node(on).process.as_mut().filter(|_| !paused) else {
            return Err(ProposeError::UnknownGroup);
        };
        let stamp = p.store.stamp(group, now).ok_or(ProposeError::Busy)?;
        let context = longshore_wire::context::EntryContext { stamp }.encode();
        p.store.propose(group, context, value.clone())?;
        self.pending.insert(value.clone());
        self.step(on, true);
        Ok(value)
    }
}
