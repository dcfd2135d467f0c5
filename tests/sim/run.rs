//! One seed: form a cluster, declare queues, publish and consume while things break, heal, drain, judge.

use crate::sim::history::{Failure, History, Rule};
use crate::sim::machine::SHARDS;
use crate::sim::reached::Reached;
use crate::sim::scenes::Scene;
use crate::sim::wire::Caller;
use crate::sim::world::{MACHINES, Queue, What, Word, World};
use bytes::{Bytes, BytesMut};
use longshore_mutations as mutations;
use longshore_proto::v1::{self, gateway_item, meta_command};
use longshore_wire::spec::LogSpec;
use longshore_wire::{LogId, ShardId};
use std::cell::Cell;
use std::collections::BTreeSet;

const QUEUES: usize = 6;
/// Publishing begins before anything breaks.
const CALM_MS: u64 = 2_000;
/// Storms last so long, in milliseconds.
const STORM_MS: u64 = 40_000;
/// Acknowledged appends that a run goes on for: so much longer at most in the storm, and so much after it.
pub const ACKNOWLEDGED_MIN: u64 = 2_000;
const STORM_EXTRA_MS: u64 = 180_000;
const CALM_EXTRA_MS: u64 = 60_000;
/// How long a shard has to confirm a new message in a cluster that does not come to rest.
const PROBE_MS: u64 = 10_000;
const IDLE_QUEUES: usize = 4;

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
    play(seed, Scene::Storm).map_err(|failure| failure.to_string())
}

/// Runs one seed of a scene.
pub fn play(seed: u64, scene: Scene) -> Result<Report, Failure> {
    let mut world = World::new(seed);
    world.history.patient = mutations::any();
    world.consuming = scene.consumes_at_once();
    world.set_up()?;
    world.publishing = true;
    world.run_ms(CALM_MS);
    world.stormy = true;
    world.history.stormy = true;
    world.act(scene);
    world.publishing = false;
    world.heal();
    if matches!(scene, Scene::Storm) {
        world.publish_what_is_missing();
    }
    world.drain(scene.drain_ms())?;
    world.history.judge();
    world.history.verdict()?;
    let History { acknowledged, deliveries, settles, compared, .. } = world.history;
    let trace = world.trace;
    Ok(Report { acknowledged, deliveries, settles, compared, trace, reached: world.reached })
}

/// Looks in a row, 100 ms apart, at which nothing is left.
const DRAINED_LOOKS: u32 = 5;

impl World {
    /// Anything breaks at any time, until enough was acknowledged.
    pub fn storm(&mut self) {
        self.post(500_000, What::Fault);
        self.run_ms(STORM_MS);
        self.run_until_enough(STORM_EXTRA_MS);
    }

    /// After a storm that hardly let anything through.
    fn publish_what_is_missing(&mut self) {
        self.publishing = self.history.acknowledged < ACKNOWLEDGED_MIN;
        self.run_until_enough(CALM_EXTRA_MS);
        self.publishing = false;
    }

    fn run_until_enough(&mut self, most_ms: u64) {
        let mut extra = 0;
        while self.history.acknowledged < ACKNOWLEDGED_MIN && extra < most_ms {
            self.run_ms(1_000);
            extra += 1_000;
        }
    }

    fn until(&mut self, what: &str, ms: u64, done: impl Fn(&mut World) -> bool) -> Result<(), Failure> {
        let mut waited = 0;
        while !done(self) {
            self.run_ms(100);
            waited += 100;
            self.history.verdict()?;
            if waited >= ms {
                self.explain();
                let standing = self.standing();
                self.judge_what_serves();
                let text = format!("{what}: not within {ms} ms: {standing}");
                self.history.violation(Rule::Stuck, text);
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

    /// The cluster does not come to rest. A shard that confirms new messages although it never delivered old ones that it
    /// confirmed, with everything healed for so long, has lost them: it is not merely stuck.
    fn judge_what_serves(&mut self) {
        let probes = self.publish_probes();
        self.run_ms(PROBE_MS);
        let serves: BTreeSet<LogId> = probes
            .iter()
            .filter(|(_, (producer, number))| self.history.is_acknowledged(*producer, *number))
            .map(|(log, _)| *log)
            .collect();
        self.history.forget(probes.into_iter().map(|(_, key)| key));
        self.history.judge_lost(|log| serves.contains(&log));
    }

    fn set_up(&mut self) -> Result<(), Failure> {
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
                self.ask_for_queue(format!("queue-{n}"), spec);
            }
        }
        self.declared.len() >= QUEUES
    }

    fn ask_for_queue(&mut self, name: String, spec: &Bytes) {
        let queue = v1::Queue {
            namespace: 1,
            name,
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

    /// Declares queues that nobody uses: new ones, or once more those of before.
    pub fn declare_idle_queues(&mut self) {
        let mut spec = BytesMut::new();
        LogSpec::QUEUE.encode(&mut spec);
        let spec = spec.freeze();
        (0..IDLE_QUEUES).for_each(|n| self.ask_for_queue(format!("idle-{n}"), &spec));
    }

    /// Meta answered a declare.
    pub fn declared_queue(&mut self, queue: &v1::Queue) {
        self.history.declared(&queue.name, queue.log);
        if let Some(span) = queue.spans.first() {
            let known = Queue { log: LogId(queue.log), shard: ShardId(span.shard) };
            self.declared.insert(queue.log, known);
        }
    }

    /// Waits until nothing is left to do anywhere.
    fn drain(&mut self, ms: u64) -> Result<(), Failure> {
        let wiped = self.wiped;
        let calm = Cell::new(0);
        self.until("drained", ms, |world| {
            // What nodes said of themselves may be older than the last confirms: only once it stays so, all is delivered.
            calm.set(if world.is_drained() { calm.get() + 1 } else { 0 });
            for slot in 0..MACHINES {
                world.compare_replicas(slot);
                (1..=SHARDS).for_each(|shard| world.inspect(slot, Caller::Logs { shard }, "logs", shard));
            }
            calm.get() >= DRAINED_LOOKS
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

    /// Whether a node shows a replica of everything, each one of three voters.
    pub fn is_whole(&self, slot: usize) -> bool {
        self.last_words.get(&slot).is_some_and(|last| {
            last.len() == SHARDS as usize + 1
                && last.iter().all(|word| word.voters == MACHINES && word.learners == 0)
        })
    }

    /// Whether a node's last word on its replicas is the same as everybody's, with nothing left in the queues.
    fn agrees(&self, slot: usize) -> bool {
        let Some(last) = self.last_words.get(&slot) else { return false };
        let Some(first) = self.last_words.get(&0) else { return false };
        self.is_whole(slot)
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
