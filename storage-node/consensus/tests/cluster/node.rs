//! One node: its disk, and while it runs, its store, its log thread and its machines.

use crate::machine::{Machines, Saved};
use longshore_consensus::{Action, Config, Event, Frame, Output, Replica, Store};
use longshore_io::sim::SimDisk;
use longshore_io::{Mono, WallMs};
use longshore_log::{LogConfig, LogWriter, NodeLog, WriteRequest};
use longshore_wire::{Index, NodeId, ReplicaId, ShardId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A running process.
pub struct Process {
    pub store: Store,
    pub machines: Machines,
    pub inbox: Vec<Event>,
    writer: LogWriter,
    /// Submitted, not yet taken by the log thread.
    waiting: Vec<WriteRequest>,
    /// Under way, and when it will be synced.
    writing: Option<(Mono, Vec<WriteRequest>)>,
    held: BTreeMap<u64, Vec<Frame>>,
    out: Output,
    /// Reads of old entries that were asked for.
    pub reads: u64,
}

/// A node, running or not.
pub struct Node {
    pub id: NodeId,
    pub disk: SimDisk,
    pub saved: Saved,
    /// Made with the data directory: which replica of each group lives here.
    pub replicas: BTreeMap<ShardId, ReplicaId>,
    pub process: Option<Process>,
    pub paused_until: Mono,
    pub wall_offset_ms: u64,
    pub sync_us: u64,
    pub tail_bytes_max: usize,
}

/// What a step of a node wants from the world.
#[derive(Default)]
pub struct Wishes {
    pub frames: Vec<Frame>,
    pub actions: Vec<Action>,
}

fn log_config() -> LogConfig {
    LogConfig {
        segment_bytes: 256 << 10,
        batch_bytes_max: 64 << 10,
        tail_bytes_max: 16 << 10,
        standby_segments: 1,
        free_segments_max: 2,
        log_bytes_max: 1 << 20,
        raft_segments_max: 4,
        salt: [7; 16],
        must_exist: false,
    }
}

impl Node {
    pub fn new(id: NodeId, seed: u64) -> Node {
        Node {
            id,
            disk: SimDisk::new(seed),
            saved: Saved::default(),
            replicas: BTreeMap::new(),
            process: None,
            paused_until: Mono(0),
            wall_offset_ms: 1_700_000_000_000 + seed % 50,
            sync_us: 2_000,
            tail_bytes_max: 8 << 10,
        }
    }

    fn config(&self, seed: u64) -> Config {
        Config {
            uncommitted_bytes_max: 64 << 10,
            append_bytes_max: 8 << 10,
            appends_in_flight_max: 16,
            tail_bytes_max: self.tail_bytes_max,
            read_bytes_max: 4 << 10,
            balance_ticks: 8,
            seed,
            ..Config::new(self.id)
        }
    }

    /// Starts the process: recovers what the disk has, makes what it should have and has not.
    pub fn start(&mut self, now: Mono, seed: u64, voters: &BTreeMap<ShardId, Vec<ReplicaId>>) {
        let disk: Arc<dyn longshore_io::Disk> = Arc::new(self.disk.clone());
        let (log, writer, _) = NodeLog::open(disk, log_config()).expect("the log opens");
        let known = log.groups();
        let mut store = Store::new(self.config(seed), log, now).expect("a sound configuration");
        let mut machines = Machines { staged: self.saved.staged.clone(), ..Machines::default() };
        for (group, me) in &self.replicas {
            if !known.contains(group) {
                match voters.get(group).filter(|v| v.contains(me)) {
                    Some(v) => store.bootstrap(*group, *me, v, now).expect("a new group"),
                    None => store.join(*group, *me, now).expect("a new replica"),
                }
                continue;
            }
            let base = store.log().first_index(*group).map_or(0, |f| f.0 - 1);
            let mut state = self.saved.checkpoints.get(group).cloned().unwrap_or_default();
            if let Some(pages) = self.saved.staged.get(&(*group, base)).filter(|_| state.applied < base) {
                state = crate::machine::State { applied: base, values: pages.clone() };
            }
            let applied = Index(state.applied);
            let reached = self.saved.reached.get(group).copied().unwrap_or_default();
            machines.states.insert(*group, state);
            store.open(*group, *me, applied, reached, now).expect("what was synced is there");
        }
        self.process = Some(Process {
            store,
            machines,
            inbox: Vec::new(),
            writer,
            waiting: Vec::new(),
            writing: None,
            held: BTreeMap::new(),
            out: Output::default(),
            reads: 0,
        });
    }

    /// Power loss.
    pub fn crash(&mut self, seed: u64) {
        self.process = None;
        self.disk.crash(seed);
    }

    /// The data directory is gone; the node comes back under new replica ids.
    pub fn wipe(&mut self, seed: u64) {
        self.process = None;
        self.disk = SimDisk::new(seed);
        self.saved = Saved::default();
        for id in self.replicas.values_mut() {
            *id = ReplicaId(id.0 + 1);
        }
    }

    /// Writes a checkpoint of a group.
    pub fn checkpoint(&mut self, group: ShardId) {
        let Some(p) = &mut self.process else { return };
        let Some(state) = p.machines.states.get(&group) else { return };
        self.saved.checkpoints.insert(group, state.clone());
        p.store.checkpointed(group, Index(state.applied));
    }

    /// When something will happen here by itself.
    pub fn next_event(&self) -> Option<Mono> {
        let p = self.process.as_ref()?;
        let mut next = if p.inbox.is_empty() { p.store.next_wakeup() } else { Mono(0) };
        if let Some((due, _)) = &p.writing {
            next = next.min(*due);
        }
        Some(next.max(self.paused_until))
    }

    /// Runs whatever is due: the log thread first, then a turn.
    pub fn run(&mut self, now: Mono, wishes: &mut Wishes, turn: bool) {
        let Some(p) = self.process.as_mut().filter(|_| now >= self.paused_until) else {
            return;
        };
        p.finish_write(now, wishes);
        if turn || !p.inbox.is_empty() || now >= p.store.next_wakeup() {
            let wall = WallMs(self.wall_offset_ms + now.0 / 1000);
            let mut events = std::mem::take(&mut p.inbox);
            let result = p.store.turn(now, wall, &mut events, &mut p.machines, &mut p.out);
            result.expect("the log takes every record");
            p.collect(wishes);
            if let Some(job) = p.store.maintain() {
                p.store.maintained(job.run()).expect("the disk works");
            }
        }
        p.begin_write(now, self.sync_us);
    }
}

impl Process {
    fn finish_write(&mut self, now: Mono, wishes: &mut Wishes) {
        if self.writing.as_ref().is_none_or(|(due, _)| *due > now) {
            return;
        }
        let Some((_, requests)) = self.writing.take() else { return };
        let completion = self.writer.write(requests).expect("the disk works");
        // The news first, then what waited for it.
        let tickets = completion.tickets.clone();
        self.inbox.push(Event::Written(completion));
        for ticket in tickets {
            wishes.frames.extend(self.held.remove(&ticket).unwrap_or_default());
        }
    }

    fn begin_write(&mut self, now: Mono, sync_us: u64) {
        if self.writing.is_none() && !self.waiting.is_empty() {
            self.writing = Some((Mono(now.0 + sync_us), std::mem::take(&mut self.waiting)));
        }
    }

    fn collect(&mut self, wishes: &mut Wishes) {
        wishes.frames.append(&mut self.out.frames);
        self.waiting.extend(self.out.write.take());
        if let Some(held) = self.out.held.take() {
            self.held.insert(held.ticket, held.frames);
        }
        self.inbox.append(&mut self.out.again);
        self.out.sealed.clear();
        for action in self.out.actions.drain(..) {
            match action {
                Action::ReadEntries(task) => {
                    self.reads += 1;
                    self.inbox.push(Event::EntriesRead(task.run()));
                }
                other => wishes.actions.push(other),
            }
        }
    }

    pub fn reconcile(&mut self, group: ShardId, ids: &[ReplicaId]) {
        let wanted: Vec<Replica> = ids.iter().map(|id| Replica { id: *id, learner: false }).collect();
        self.store.reconcile(group, &wanted);
    }
}
