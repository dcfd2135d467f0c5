//! Virtual time, and the queue of what happens next. Two things at one moment happen in the order of their making.

use crate::sim::gateway::Gateway;
use crate::sim::history::History;
use crate::sim::machine::Machine;
use crate::sim::reached::Reached;
use crate::sim::wire::{Caller, FetchCall, LinkState, SnapshotCall};
use longshore_io::Mono;
use longshore_io::sim::Rng;
use longshore_node::{Input, WatchId};
use longshore_proto::v1;
use longshore_wire::{LogId, NodeId, ShardId};
use std::collections::{BTreeMap, BTreeSet};

/// Storage machines; gateways are the endpoints behind them.
pub const MACHINES: usize = 3;
/// Gateways.
pub const GATEWAYS: usize = 2;

/// Something that will happen.
#[derive(Debug)]
pub enum What {
    /// An input reaches a storage process, if it still runs.
    Inbox { slot: usize, epoch: u64, from: usize, input: Box<Input> },
    /// A storage process may take a turn.
    Turn { slot: usize, epoch: u64 },
    /// The log thread's write is over.
    Written { slot: usize, epoch: u64 },
    /// A worker's task is over.
    TaskOver { slot: usize, epoch: u64, lane: usize },
    /// A storage machine looks at its disk, its pause, its replica of meta.
    MachineTick { slot: usize },
    /// A storage process starts (again).
    Start { slot: usize },
    /// A gateway's housekeeping.
    GatewayTick { gateway: usize },
    /// An item for a gateway.
    ToGateway { gateway: usize, link: u64, sent: u64, item: Box<v1::node_item::Item> },
    /// A gateway's stream is open or gone.
    LinkUp { gateway: usize, link: u64 },
    /// See above.
    LinkDown { gateway: usize, link: u64 },
    /// News from meta for a gateway.
    Watched { gateway: usize, watch: u64, down: Box<v1::WatchDown> },
    /// The answer to a call, or `None`: it never came.
    Answered { call: u64, reply: Option<Box<v1::MetaReply>> },
    /// A snapshot that has no answer yet has failed.
    SnapshotFailed { call: u64 },
    /// A fetch that has no answer yet has failed.
    FetchFailed { call: u64, at: u64 },
    /// Something breaks, or heals.
    Fault,
}

/// What the network does.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// Longest delay, in microseconds.
    pub delay_us: u64,
    /// Frames lost, of a thousand.
    pub loss: u64,
    /// Frames doubled, of a thousand.
    pub double: u64,
    /// Calls that are made twice, of a thousand: the caller had no answer to the first.
    pub resend: u64,
    /// What each answer that carries records takes longer, in microseconds.
    pub bulk_us: u64,
}

/// How long clients hold a message at most, as a rule.
pub const HOLD_US: u64 = 60_000;

/// Nothing special.
pub const CALM: Weather = Weather { delay_us: 600, loss: 0, double: 0, resend: 0, bulk_us: 0 };
/// Slow, lossy, out of order.
pub const ROUGH: Weather = Weather { delay_us: 30_000, loss: 40, double: 60, resend: 100, bulk_us: 20_000 };

/// A queue that clients use.
#[derive(Clone, Copy, Debug)]
pub struct Queue {
    /// Its log.
    pub log: LogId,
    /// Where it is.
    pub shard: ShardId,
}

/// A replica, as its node shows it.
#[derive(Clone, Debug)]
pub struct Word {
    pub shard: u64,
    pub applied: u64,
    pub voters: usize,
    pub learners: usize,
}

/// Everything.
pub struct World {
    pub now: u64,
    pub rng: Rng,
    pub machines: Vec<Machine>,
    pub gateways: Vec<Gateway>,
    pub queues: Vec<Queue>,
    pub history: History,
    pub reached: Reached,
    pub weather: Weather,
    /// One-way: nothing goes from the first endpoint to the second.
    pub cut: BTreeSet<(usize, usize)>,
    pub links: BTreeMap<u64, LinkState>,
    pub calls: BTreeMap<u64, Caller>,
    pub watches: BTreeMap<u64, (usize, usize)>,
    pub snapshots: BTreeMap<u64, SnapshotCall>,
    pub fetches: BTreeMap<u64, FetchCall>,
    /// Faults strike.
    pub stormy: bool,
    /// Producers send.
    pub publishing: bool,
    /// Consumers come.
    pub consuming: bool,
    /// All messages are alike: of one size, to one queue, one at a time.
    pub uniform: bool,
    /// How long clients hold a message at most, in microseconds.
    pub hold_us: u64,
    /// The machine that may lose what it synced; the others keep it.
    pub victim: usize,
    pub wiped: bool,
    pub next_id: u64,
    pub declared: BTreeMap<u64, Queue>,
    /// What each machine last said of its replicas, and of what waits in them.
    pub last_words: BTreeMap<usize, Vec<Word>>,
    pub unsettled: BTreeMap<(usize, u32), u64>,
    /// A hash over when everything happened, and what was answered.
    pub trace: u64,
    queue: BTreeMap<(u64, u64), What>,
    sequence: u64,
}

impl World {
    /// Three machines that form a cluster and two gateways that wait for it.
    pub fn new(seed: u64) -> World {
        let mut rng = Rng::new(seed.wrapping_mul(0x9E37_79B9).wrapping_add(17));
        let machines = (0..MACHINES).map(|slot| Machine::new(slot, rng.next_u64())).collect();
        let victim = rng.below(MACHINES as u64) as usize;
        let mut world = World {
            now: 1_000_000,
            rng,
            machines,
            gateways: (0..GATEWAYS).map(Gateway::new).collect(),
            queues: Vec::new(),
            history: History::default(),
            reached: Reached::default(),
            weather: CALM,
            cut: BTreeSet::new(),
            links: BTreeMap::new(),
            calls: BTreeMap::new(),
            watches: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            fetches: BTreeMap::new(),
            stormy: false,
            publishing: false,
            consuming: true,
            uniform: false,
            hold_us: HOLD_US,
            victim,
            wiped: false,
            next_id: 1,
            declared: BTreeMap::new(),
            last_words: BTreeMap::new(),
            unsettled: BTreeMap::new(),
            trace: 0,
            queue: BTreeMap::new(),
            sequence: 0,
        };
        for slot in 0..MACHINES {
            world.start(slot, true);
            world.post(1_000 + slot as u64, What::MachineTick { slot });
        }
        for gateway in 0..GATEWAYS {
            world.post(500_000, What::GatewayTick { gateway });
        }
        world
    }

    /// The monotonic clock.
    pub fn mono(&self) -> Mono {
        Mono(self.now)
    }

    /// A number never given before.
    pub fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// True so many times of a thousand.
    pub fn chance(&mut self, per_mille: u64) -> bool {
        self.rng.below(1_000) < per_mille
    }

    /// How long something takes on the network, in microseconds.
    pub fn delay(&mut self) -> u64 {
        50 + self.rng.below(self.weather.delay_us)
    }

    /// Makes something happen `after` microseconds from now.
    pub fn post(&mut self, after: u64, what: What) {
        self.sequence += 1;
        self.queue.insert((self.now + after, self.sequence), what);
    }

    /// The machine that is this node now.
    pub fn slot_of(&self, node: NodeId) -> Option<usize> {
        self.machines.iter().position(|machine| machine.node == node)
    }

    /// Runs for so long.
    pub fn run_ms(&mut self, ms: u64) {
        let until = self.now + ms * 1_000;
        while let Some(entry) = self.queue.first_entry() {
            if entry.key().0 > until || self.history.is_broken() {
                break;
            }
            let ((at, sequence), what) = entry.remove_entry();
            let heard = self.history.acknowledged ^ self.history.deliveries.rotate_left(24);
            self.trace = (self.trace.rotate_left(5) ^ at ^ sequence.rotate_left(40) ^ heard)
                .wrapping_mul(0x9E37_79B9_7F4A_7C15);
            self.now = self.now.max(at);
            self.happen(what);
        }
        self.now = until;
    }

    fn happen(&mut self, what: What) {
        match what {
            What::Inbox { slot, epoch, from, input } => self.arrive(slot, epoch, from, *input),
            What::Turn { slot, epoch } => self.turn(slot, epoch),
            What::Written { slot, epoch } => self.written(slot, epoch),
            What::TaskOver { slot, epoch, lane } => self.task_over(slot, epoch, lane),
            What::MachineTick { slot } => self.machine_tick(slot),
            What::Start { slot } => self.start(slot, false),
            What::GatewayTick { gateway } => self.gateway_tick(gateway),
            What::ToGateway { gateway, link, sent, item } => self.send_to_gateway(gateway, link, sent, *item),
            What::LinkUp { gateway, link } => self.link_up(gateway, link),
            What::LinkDown { gateway, link } => self.link_down(gateway, link),
            What::Watched { gateway, watch, down } => self.watched(gateway, WatchId(watch), *down),
            What::Answered { call, reply } => self.answered(call, reply.map(|reply| *reply)),
            What::SnapshotFailed { call } => self.snapshot_over(call, false),
            What::FetchFailed { call, at } => self.fetch_failed(call, at),
            What::Fault => self.fault(),
        }
    }
}
