//! One seed: form a cluster, declare queues, publish and consume while things break, heal, drain, judge.

use crate::sim::history::History;
use crate::sim::machine::SHARDS;
use crate::sim::reached::Reached;
use crate::sim::wire::Caller;
use crate::sim::world::{MACHINES, Queue, What, Word, World};
use bytes::{Bytes, BytesMut};
use longshore_proto::v1::{self, gateway_item, meta_command};
use longshore_wire::spec::LogSpec;
use longshore_wire::{LogId, ShardId};

const QUEUES: usize = 6;
/// Publishing begins before anything breaks.
const CALM_MS: u64 = 2_000;
/// Storms last so long, in milliseconds.
const STORM_MS: u64 = 40_000;
/// Acknowledged appends that a run goes on for, at most this much longer.
const ACKNOWLEDGED_MIN: u64 = 2_000;
const EXTRA_MS: u64 = 180_000;
const DRAIN_MS: u64 = 120_000;

/// What a run came to.
#[derive(Debug)]
pub struct Report {
    pub acknowledged: u64,
    pub deliveries: u64,
    pub settles: u64,
    pub compared: u64,
    /// Of everything that happened, in its order: the same for the same seed.
    pub trace: u64,
    pub reached: Reached,
}

/// Runs one seed; the error says what rule was broken, and what came before.
pub fn run(seed: u64) -> Result<Report, String> {
    let mut world = World::new(seed);
    world.set_up()?;
    world.publishing = true;
    world.run_ms(CALM_MS);
    world.stormy = true;
    world.history.stormy = true;
    world.post(500_000, What::Fault);
    world.run_ms(STORM_MS);
    let mut extra = 0;
    while world.history.acknowledged < ACKNOWLEDGED_MIN && extra < EXTRA_MS {
        world.run_ms(1_000);
        extra += 1_000;
    }
    world.publishing = false;
    world.heal();
    world.drain()?;
    world.history.judge();
    world.history.verdict()?;
    let History { acknowledged, deliveries, settles, compared, .. } = world.history;
    let trace = world.trace;
    Ok(Report { acknowledged, deliveries, settles, compared, trace, reached: world.reached })
}

impl World {
    fn until(&mut self, what: &str, ms: u64, done: impl Fn(&mut World) -> bool) -> Result<(), String> {
        let mut waited = 0;
        while !done(self) {
            self.run_ms(100);
            waited += 100;
            self.history.verdict()?;
            if waited >= ms {
                self.explain();
                let standing = self.standing();
                self.history.violation(format!("{what}: not within {ms} ms: {standing}"));
                return self.history.verdict();
            }
        }
        Ok(())
    }

    /// Asks the leaders why messages wait; their answers are among the notes.
    fn explain(&mut self) {
        for queue in self.queues.clone() {
            let (shard, log) = (queue.shard.0, queue.log.0);
            let request = self.id();
            let explain = v1::Explain { request, shard, log, cursor: 0 };
            self.send_to_leader(0, queue.shard, gateway_item::Item::Explain(explain));
        }
        self.run_ms(500);
    }

    fn set_up(&mut self) -> Result<(), String> {
        self.until("a cluster", 20_000, |world| {
            world.machines.iter().all(|m| m.process.as_ref().is_some_and(|p| p.node.standing().ready))
        })?;
        let mut spec = BytesMut::new();
        LogSpec::QUEUE.encode(&mut spec);
        let spec = spec.freeze();
        self.until("queues", 20_000, |world| world.declare(&spec))?;
        self.queues = self.declared.values().copied().collect();
        self.until("sessions", 20_000, |world| {
            let now = world.now;
            world
                .gateways
                .iter()
                .all(|g| g.holds_lease(now) && g.shards.values().all(|side| side.link.is_some()))
        })?;
        self.until("logs", 20_000, |world| {
            let made = world.gateways[0].clients.made() >= world.queues.len();
            if !made {
                world.make_logs(0, &spec);
            }
            made
        })
    }

    fn declare(&mut self, spec: &Bytes) -> bool {
        if self.declared.len() < QUEUES {
            for n in 0..QUEUES {
                let queue = v1::Queue {
                    namespace: 1,
                    name: format!("queue-{n}"),
                    spec: spec.clone(),
                    durable: true,
                    kind: "quorum".to_owned(),
                    ..v1::Queue::default()
                };
                let declare = v1::DeclareQueue { queue: Some(queue) };
                let command = Some(meta_command::Command::DeclareQueue(declare));
                let command = v1::MetaCommand { command, ..v1::MetaCommand::default() };
                for slot in 0..MACHINES {
                    self.call(slot, MACHINES, command.clone(), Caller::Declare);
                }
            }
        }
        self.declared.len() >= QUEUES
    }

    /// Meta answered a declare.
    pub fn declared_queue(&mut self, queue: &v1::Queue) {
        if let Some(span) = queue.spans.first() {
            let known = Queue { log: LogId(queue.log), shard: ShardId(span.shard) };
            self.declared.insert(queue.log, known);
        }
    }

    /// Waits until nothing is left to do anywhere.
    fn drain(&mut self) -> Result<(), String> {
        let wiped = self.wiped;
        self.until("drained", DRAIN_MS, |world| {
            let drained = world.is_drained();
            for slot in 0..MACHINES {
                world.compare_replicas(slot);
                (1..=SHARDS).for_each(|shard| world.inspect(slot, Caller::Logs { shard }, "logs", shard));
            }
            drained
        })?;
        self.reached.rebuilt += u64::from(wiped);
        Ok(())
    }

    fn is_drained(&self) -> bool {
        let senders = self.gateways.iter().all(|gateway| {
            gateway.session.is_some()
                && gateway.shards.len() == SHARDS as usize
                && gateway.shards.values().all(|side| side.sender.is_idle() && side.link.is_some())
        });
        senders && self.machines.iter().all(|machine| self.agrees(machine.slot))
    }

    /// Whether a node's last word on its replicas is the same as everybody's, with nothing left in the queues.
    fn agrees(&self, slot: usize) -> bool {
        let Some(last) = self.last_words.get(&slot) else { return false };
        let Some(first) = self.last_words.get(&0) else { return false };
        last.len() == SHARDS as usize + 1
            && last.iter().all(|word| word.voters == MACHINES && word.learners == 0)
            && last.iter().zip(first).all(|(a, b)| (a.shard, a.applied) == (b.shard, b.applied))
            && self.unsettled.len() == MACHINES * SHARDS as usize
            && self.unsettled.values().all(|unsettled| *unsettled == 0)
    }

    /// A node showed its replicas.
    pub fn inspected(&mut self, slot: usize, json: &str) {
        let Ok(serde_json::Value::Array(shards)) = serde_json::from_str(json) else { return };
        let number = |value: &serde_json::Value| value.as_u64().unwrap_or(0);
        let count = |value: &serde_json::Value| value.as_array().map_or(0, Vec::len);
        let mut words = Vec::new();
        for shown in &shards {
            words.push(Word {
                shard: number(&shown["shard"]),
                applied: number(&shown["applied"]),
                voters: count(&shown["voters"]),
                learners: count(&shown["learners"]),
            });
            // A damaged replica has no state any more.
            let Some(hash) = shown["state_hash"].as_u64() else { continue };
            let (shard, applied) = (number(&shown["shard"]), number(&shown["applied"]));
            self.history.compare(shard as u32, applied, hash, slot);
        }
        words.sort_by_key(|word| word.shard);
        self.last_words.insert(slot, words);
    }

    /// A node showed its logs.
    pub fn counted(&mut self, slot: usize, shard: u32, json: &str) {
        let Ok(serde_json::Value::Array(logs)) = serde_json::from_str(json) else { return };
        let unsettled = logs.iter().filter_map(|log| log["unsettled"].as_u64()).sum();
        self.unsettled.insert((slot, shard), unsettled);
    }

    fn standing(&self) -> String {
        let senders: Vec<String> = self
            .gateways
            .iter()
            .map(|gateway| {
                let sides: Vec<_> = gateway
                    .shards
                    .iter()
                    .map(|(id, side)| {
                        (id.0, side.leader, side.link, side.sender.is_idle(), side.consumers.len())
                    })
                    .collect();
                format!("session {:?} lease {} {sides:?}", gateway.session, gateway.holds_lease(self.now))
            })
            .collect();
        let machines: Vec<String> = self
            .machines
            .iter()
            .map(|m| {
                let standing = m.process.as_ref().map(|process| process.node.standing());
                format!("{:?} joining {} {standing:?}", m.node, m.joining)
            })
            .collect();
        format!("{senders:#?} {machines:#?} {:#?} unsettled {:?}", self.last_words, self.unsettled)
    }
}
