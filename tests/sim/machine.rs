//! A storage node's process on its disk: the turns of `Node`, its log thread, and its two workers, as the server crate
//! runs them.
//!
//! Danger: what a follower acknowledges waits in `held` until its write is synced, here as in the server.

use crate::sim::world::{MACHINES, What, World};
use longshore_consensus::{Event, Held};
use longshore_io::sim::SimDisk;
use longshore_io::{Disk, Mono, WallMs};
use longshore_log::{Completion, LogWriter, WriteRequest};
use longshore_mutations as mutations;
use longshore_node::{Input, Node, NodeConfig, Output, Task};
use longshore_proto::v1;
use longshore_wire::NodeId;
use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// The simulated cluster's id.
pub const CLUSTER: &str = "00112233445566778899aabbccddeeff";
/// Shards of the cluster.
pub const SHARDS: u32 = 3;
const TICK_US: u64 = 50_000;
/// No two turns within this time: inputs gather meanwhile.
const TURN_US: u64 = 150;
const NO_SPACE_PAUSE_US: u64 = 200_000;

/// A running process.
pub struct Process {
    pub node: Node,
    pub epoch: u64,
    pub inbox: Vec<Input>,
    pub telling_meta: bool,
    /// A snapshot that came in, by group: its call.
    pub installing: BTreeMap<u32, u64>,
    writer: LogWriter,
    waiting: Vec<(WriteRequest, Option<Held>)>,
    writing: Option<Vec<WriteRequest>>,
    /// The disk was quicker than the news of it.
    finished: Option<Completion>,
    held: VecDeque<Held>,
    lanes: [VecDeque<Task>; 2],
    busy: [Option<Task>; 2],
    turn_at: u64,
}

impl Process {
    /// Whether something is appended that no sync covers yet.
    pub fn has_unsynced(&self) -> bool {
        self.writing.is_some() || !self.waiting.is_empty()
    }

    /// Whether a job of the record store is under way.
    pub fn has_job(&self) -> bool {
        matches!(self.busy[1], Some(Task::Records(_)))
    }

    /// Whether it is a rewrite.
    pub fn rewrites(&self) -> bool {
        matches!(&self.busy[1], Some(Task::Records(job)) if job.what() == longshore_records::What::Rewrite)
    }
}

/// A machine, its process running or not.
pub struct Machine {
    pub slot: usize,
    pub node: NodeId,
    pub disk: SimDisk,
    pub process: Option<Process>,
    pub paused_until: u64,
    pub wall_ms: u64,
    pub sync_us: u64,
    /// It lost its disk and is not a member yet.
    pub joining: bool,
    /// A call that registers it is under way.
    pub registering: bool,
    pub starts: u64,
}

impl Machine {
    pub fn new(slot: usize, seed: u64) -> Machine {
        Machine {
            slot,
            node: NodeId(slot as u32 + 1),
            disk: SimDisk::new(seed),
            process: None,
            paused_until: 0,
            wall_ms: 1_700_000_000_000 + seed % 40,
            sync_us: 1_000,
            joining: false,
            registering: false,
            starts: 0,
        }
    }
}

fn config(node: NodeId, seed: u64) -> NodeConfig {
    let mut consensus = longshore_consensus::Config::new(node);
    consensus.tick_us = TICK_US;
    consensus.tail_bytes_max = 24 << 10;
    consensus.append_bytes_max = 32 << 10;
    consensus.uncommitted_bytes_max = 256 << 10;
    consensus.unsynced_bytes_max = 256 << 10;
    consensus.read_bytes_max = 32 << 10;
    consensus.seed = seed;
    NodeConfig {
        cluster: CLUSTER.to_owned(),
        node,
        consensus,
        log: longshore_log::LogConfig {
            segment_bytes: 128 << 10,
            batch_bytes_max: 32 << 10,
            tail_bytes_max: 32 << 10,
            standby_segments: 1,
            free_segments_max: 2,
            log_bytes_max: 512 << 10,
            raft_segments_max: 4,
            salt: [7; 16],
            must_exist: false,
        },
        records: longshore_records::Config {
            tail_bytes_max: 24 << 10,
            block_cache_bytes_max: 16 << 10,
            read_cache_bytes_max: 32 << 10,
            read_ahead_bytes: 8 << 10,
            read_bytes_max: 16 << 10,
            rewrite_live_percent_max: 50,
            ..longshore_records::Config::default()
        },
        checkpoint: longshore_checkpoint::Config {
            frame_bytes: 4 << 10,
            rewrite_bytes_min: 32 << 10,
            ..longshore_checkpoint::Config::default()
        },
        delivery: longshore_delivery::Config { window_rows_max: 64, ..longshore_delivery::Config::default() },
        checkpoint_bytes: 48 << 10,
        reserve_bytes: 256 << 10,
        rewrite_bytes_per_s: 256 << 10,
    }
}

/// What a panic said.
pub fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

/// What forms the cluster.
fn formation() -> v1::FormCluster {
    let nodes = (1..=MACHINES as u32).map(|id| v1::StorageNode {
        id,
        address: address(id as usize - 1),
        identity: vec![id as u8; 16].into(),
        ..v1::StorageNode::default()
    });
    v1::FormCluster {
        cluster: CLUSTER.to_owned(),
        shards: SHARDS,
        nodes: nodes.collect(),
        administrator: Some(v1::User {
            name: "admin".to_owned(),
            administrator: true,
            ..v1::User::default()
        }),
    }
}

/// Where a machine is reached.
pub fn address(slot: usize) -> String {
    format!("node-{slot}:5701")
}

impl World {
    /// Starts a machine's process, unless it runs, or is no member.
    pub fn start(&mut self, slot: usize, first: bool) {
        let (now, seed, epoch) = (self.mono(), self.rng.next_u64(), self.id());
        let machine = &mut self.machines[slot];
        if machine.process.is_some() || machine.joining {
            return;
        }
        if machine.disk.is_down() {
            machine.disk.crash(seed);
        }
        machine.starts += 1;
        let disk: Arc<dyn Disk> = Arc::new(machine.disk.clone());
        let opened = Node::open(config(machine.node, seed), disk, now);
        let (mut node, writer) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                // An I/O error while it opens: it tries again.
                self.reached.open_failed += 1;
                self.history.note(self.now, format!("node {slot} cannot open: {error}"));
                return self.post(500_000, What::Start { slot });
            }
        };
        if first {
            let formed = node.form(&formation().nodes, now);
            self.history.sound(formed.is_ok(), || format!("{slot} cannot form: {formed:?}"));
            if slot == 0 {
                node.set_formation(formation());
            }
        }
        self.reached.torn_tail += u64::from(node.had_torn_tail());
        let machine = &mut self.machines[slot];
        machine.process = Some(Process {
            node,
            epoch,
            inbox: Vec::new(),
            telling_meta: false,
            installing: BTreeMap::new(),
            writer,
            waiting: Vec::new(),
            writing: None,
            finished: None,
            held: VecDeque::new(),
            lanes: Default::default(),
            busy: Default::default(),
            turn_at: u64::MAX,
        });
        self.wake(slot, 0);
    }

    /// The process ends. With `power`, what was not synced may be lost; it starts again after `again_ms`.
    pub fn kill(&mut self, slot: usize, power: bool, again_ms: u64) {
        let seed = self.rng.next_u64();
        let machine = &mut self.machines[slot];
        let Some(process) = machine.process.take() else { return };
        if power || machine.disk.is_down() {
            machine.disk.crash(seed);
        } else {
            machine.disk.restart();
        }
        machine.paused_until = 0;
        self.reached.job_interrupted += u64::from(process.has_job());
        self.reached.rewrite_interrupted += u64::from(process.rewrites());
        if process.has_unsynced() {
            self.reached.lost_unsynced += 1;
            self.reached.leader_lost_unsynced += u64::from(process.node.leads() > 0);
        }
        self.history.note(self.now, format!("node {slot} dies, power {power}"));
        self.process_gone(slot, process.epoch);
        self.post(again_ms * 1_000, What::Start { slot });
    }

    /// The running process of this epoch.
    pub fn process(&mut self, slot: usize, epoch: u64) -> Option<&mut Process> {
        self.machines[slot].process.as_mut().filter(|process| process.epoch == epoch)
    }

    /// Lets the process take a turn soon.
    pub fn wake(&mut self, slot: usize, after: u64) {
        let (now, machine) = (self.now, &mut self.machines[slot]);
        let Some(process) = &mut machine.process else { return };
        let at = (now + after).max(machine.paused_until);
        if at < process.turn_at {
            process.turn_at = at;
            let epoch = process.epoch;
            self.post(at - now, What::Turn { slot, epoch });
        }
    }

    /// An input arrives.
    pub fn input(&mut self, slot: usize, input: Input) {
        if let Some(process) = &mut self.machines[slot].process {
            process.inbox.push(input);
            self.wake(slot, TURN_US);
        }
    }

    /// A process takes its turn.
    pub fn turn(&mut self, slot: usize, epoch: u64) {
        let now = self.now;
        let machine = &mut self.machines[slot];
        let Some(process) = machine.process.as_mut().filter(|p| p.epoch == epoch && p.turn_at == now) else {
            return;
        };
        process.turn_at = u64::MAX;
        if machine.paused_until > now {
            return self.wake(slot, 0);
        }
        let wall = WallMs(machine.wall_ms + now / 1_000);
        let mut out = Output::default();
        let mut inputs = std::mem::take(&mut process.inbox);
        let node = &mut process.node;
        let turned = catch_unwind(AssertUnwindSafe(|| {
            let turned = node.turn(Mono(now), wall, &mut inputs, &mut out);
            turned.map(|()| node.hand_out(Mono(now), &mut out))
        }));
        let overwritten = process.node.overwritten_sealed();
        match turned {
            Ok(Ok(())) => self.reached.overwritten_sealed += u64::from(overwritten > 0),
            Ok(Err(error)) => {
                self.history.note(now, format!("node {slot} fails: {error}"));
                self.reached.node_failed += 1;
                return self.kill(slot, false, 700);
            }
            // A process that panics is gone. Only a broken build may: what counts there is what clients see.
            Err(panic) => {
                let why = panic_text(panic.as_ref());
                self.history.note(now, format!("node {slot} panics: {why}"));
                self.history.sound(mutations::any(), || format!("node {slot} panicked: {why}"));
                return self.kill(slot, false, 700);
            }
        }
        let next = process.node.next_wakeup().0.saturating_sub(now).clamp(TURN_US, 100_000);
        let again = out.again;
        self.send_all(slot, epoch, out);
        self.wake(slot, if again { TURN_US } else { next });
    }

    /// Hands writes to the log thread.
    pub fn take_writes(&mut self, slot: usize, writes: Vec<(WriteRequest, Option<Held>)>) {
        if let Some(process) = &mut self.machines[slot].process {
            process.waiting.extend(writes);
            self.begin_write(slot);
        }
    }

    fn begin_write(&mut self, slot: usize) {
        let early = self.chance(300);
        let jitter = self.rng.below(400);
        let machine = &mut self.machines[slot];
        let sync_us = machine.sync_us;
        let Some(process) = &mut machine.process else { return };
        if process.writing.is_some() || process.waiting.is_empty() {
            return;
        }
        let mut requests = Vec::new();
        for (request, held) in process.waiting.drain(..) {
            requests.push(request);
            process.held.extend(held);
        }
        let epoch = process.epoch;
        process.writing = Some(requests);
        // On the disk at once or only at the end: both happen.
        if early && !self.write(slot) {
            return;
        }
        self.post(sync_us + jitter, What::Written { slot, epoch });
    }

    /// Carries the write out. False: the process died of it.
    fn write(&mut self, slot: usize) -> bool {
        let Some(process) = &mut self.machines[slot].process else { return false };
        let requests = process.writing.replace(Vec::new()).unwrap_or_default();
        match process.writer.write(requests) {
            Ok(completion) => {
                process.finished = Some(completion);
                true
            }
            Err(error) => {
                self.history.note(self.now, format!("node {slot} cannot write: {error}"));
                self.reached.write_failed += 1;
                let power = self.machines[slot].disk.is_down();
                self.kill(slot, power, 600);
                false
            }
        }
    }

    /// The write is over: its completion is reported, then what waited for it leaves.
    pub fn written(&mut self, slot: usize, epoch: u64) {
        let now = self.now;
        let paused = self.machines[slot].paused_until;
        let Some(process) = self.process(slot, epoch) else { return };
        if paused > now {
            return self.post(paused - now + 1, What::Written { slot, epoch });
        }
        if process.finished.is_none() && !self.write(slot) {
            return;
        }
        let Some(process) = self.process(slot, epoch) else { return };
        let Some(completion) = process.finished.take() else { return };
        process.writing = None;
        let (tickets, no_space) = (completion.tickets.clone(), completion.no_space);
        let mut frames = Vec::new();
        for ticket in tickets {
            while process.held.front().is_some_and(|front| front.ticket <= ticket) {
                frames.extend(process.held.pop_front().map(|front| front.frames).unwrap_or_default());
            }
        }
        if no_space {
            process.writing = Some(Vec::new());
            self.reached.no_space += 1;
            self.post(NO_SPACE_PAUSE_US, What::Written { slot, epoch });
        }
        self.input(slot, Input::Consensus(Event::Written(completion)));
        for frame in frames {
            self.send_frame(slot, frame);
        }
        self.begin_write(slot);
    }

    /// Hands tasks to the workers: reads to one, jobs to the other.
    pub fn take_tasks(&mut self, slot: usize, tasks: Vec<Task>) {
        let Some(process) = &mut self.machines[slot].process else { return };
        for task in tasks {
            process.lanes[usize::from(!task.is_urgent())].push_back(task);
        }
        self.begin_task(slot, 0);
        self.begin_task(slot, 1);
    }

    fn begin_task(&mut self, slot: usize, lane: usize) {
        let took = 300 + self.rng.below(if lane == 0 { 3_000 } else { 60_000 });
        let Some(process) = &mut self.machines[slot].process else { return };
        if process.busy[lane].is_none() {
            process.busy[lane] = process.lanes[lane].pop_front();
            let epoch = process.epoch;
            if process.busy[lane].is_some() {
                self.post(took, What::TaskOver { slot, epoch, lane });
            }
        }
    }

    /// A task is over; a disk that died in it takes the process along.
    pub fn task_over(&mut self, slot: usize, epoch: u64, lane: usize) {
        let now = self.now;
        let paused = self.machines[slot].paused_until;
        let Some(process) = self.process(slot, epoch) else { return };
        if paused > now {
            return self.post(paused - now + 1, What::TaskOver { slot, epoch, lane });
        }
        let Some(task) = process.busy[lane].take() else { return };
        let done = task.run();
        if self.machines[slot].disk.is_down() {
            self.reached.died_in_task += 1;
            return self.kill(slot, true, 500);
        }
        self.input(slot, Input::Done(done));
        self.begin_task(slot, lane);
    }
}
