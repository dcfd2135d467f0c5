//! Random changes, crashes, full disks and failing syncs against the model: what was reported durable is there, and nothing
//! is there that was not appended. A failing seed is printed; it becomes a named test below.

use super::world::*;
use crate::*;
use bytes::Bytes;
use longshore_io::sim::{Effect, Fault, Operation, Rng, SimDisk};
use longshore_wire::{Index, ShardId};
use std::collections::VecDeque;

const GROUPS: u64 = 4;

struct Run {
    rng: Rng,
    disk: SimDisk,
    /// The model after each change since the last one known durable; the first one is durable.
    states: Vec<Model>,
    /// Changes before `states[0]`.
    before: usize,
    rare: Rare,
}

#[derive(Default, Debug)]
struct Rare {
    crashes: u64,
    lost_changes: u64,
    kept_unreported: u64,
    retired: u64,
    freed: u64,
    full: u64,
    failed_syncs: u64,
    crashes_in_open: u64,
    read_from_disk: u64,
}

/// One process: the log, its writer, and what is between them.
struct Process {
    log: NodeLog,
    writer: LogWriter,
    queue: VecDeque<(WriteRequest, usize)>,
    inside: VecDeque<usize>,
    changes: usize,
    tickets: Vec<u64>,
    job: Option<MaintenanceJob>,
}

impl Run {
    fn new(seed: u64) -> Run {
        Run {
            rng: Rng::new(seed),
            disk: SimDisk::new(seed),
            states: vec![Model::default()],
            before: 0,
            rare: Rare::default(),
        }
    }

    fn now(&self) -> &Model {
        self.states.last().unwrap()
    }

    fn durable_up_to(&mut self, changes: usize) {
        if changes > self.before {
            self.states.drain(..changes - self.before);
            self.before = changes;
        }
    }

    fn open(&mut self) -> Process {
        loop {
            if self.rng.one_in(4) {
                self.disk.crash_at_change(self.rng.below(12), self.rng.one_in(2));
            }
            match open(&self.disk) {
                Ok((log, writer, recovery)) if !self.disk.is_down() => {
                    assert!(recovery.damage.is_empty(), "{recovery:?}");
                    self.disk.crash_at_change(u64::MAX / 2, false);
                    return self.check(log, writer);
                }
                result => {
                    assert!(self.disk.is_down(), "{:?}", result.err());
                    self.rare.crashes_in_open += 1;
                    self.disk.crash(self.rng.next_u64());
                }
            }
        }
    }

    /// The log is the model after some number of changes, at least those that were reported.
    fn check(&mut self, log: NodeLog, writer: LogWriter) -> Process {
        let seen = observe(&log).unwrap();
        let Some(at) = self.states.iter().rposition(|state| *state == seen) else {
            panic!(
                "the log holds what never was:\n{seen:?}\ndurable:\n{:?}\nlast:\n{:?}",
                self.states[0],
                self.now()
            );
        };
        self.rare.lost_changes += (self.states.len() - 1 - at) as u64;
        self.rare.kept_unreported += at as u64;
        self.states = vec![seen];
        self.before = 0;
        Process {
            log,
            writer,
            queue: VecDeque::new(),
            inside: VecDeque::new(),
            changes: 0,
            tickets: Vec::new(),
            job: None,
        }
    }

    fn change(&mut self, process: &mut Process) {
        let group = ShardId(self.rng.below(GROUPS) as u32);
        let model = self.now();
        let plain = model.groups.get(&group).cloned();
        let op = match (plain, self.rng.below(40)) {
            (None, _) => Op::Reset,
            (_, 0) if self.rng.one_in(3) => {
                [Op::Reset, Op::Remove, Op::Aside][self.rng.below(3) as usize].clone()
            }
            (Some(p), 1) => Op::Snapshot(p.last() + self.rng.below(20), p.hard_state.term.0 + 1),
            (Some(p), 2..=5) if !p.entries.is_empty() => {
                let durable = process.log.last_durable(group).unwrap().0.0;
                let to = p.mark.0 + 1 + self.rng.below(p.entries.len() as u64);
                if to > durable {
                    return;
                }
                Op::Compact(to)
            }
            (Some(p), 6..=9) => Op::HardState(p.hard_state.term.0 + self.rng.below(2), p.last()),
            (Some(_), 10) => Op::Conf(data(&mut self.rng, 300)),
            (Some(p), 11 | 12) if !p.entries.is_empty() => {
                let back = 1 + self.rng.below(p.entries.len() as u64);
                Op::Append(p.last() + 1 - back, p.entries.last().unwrap().0 + 1, data(&mut self.rng, 900))
            }
            (Some(p), _) => Op::Append(p.last() + 1, p.entries.last().map_or(p.mark.1, |e| e.0), self.body()),
        };
        apply(&mut process.log, group, &op);
        let mut next = self.now().clone();
        next.apply(group, &op);
        self.states.push(next);
        process.changes += 1;
    }

    fn body(&mut self) -> Bytes {
        let bytes_max = if self.rng.one_in(8) { 3500 } else { 400 };
        data(&mut self.rng, bytes_max)
    }

    /// `false`: the process ended.
    fn step(&mut self, process: &mut Process) -> bool {
        match self.rng.below(20) {
            0..=11 => self.change(process),
            12 | 13 => {
                let ticket = process.changes as u64;
                process.log.ticket(ticket);
                if let Some(request) = process.log.take_request() {
                    process.queue.push_back((request, process.changes));
                }
            }
            14..=16 => return self.write(process),
            17 => {
                if process.job.is_none() {
                    process.job = process.log.maintain();
                }
            }
            18 => return self.run_job(process),
            _ => self.look(process),
        }
        true
    }

    fn write(&mut self, process: &mut Process) -> bool {
        let taken: Vec<_> = process.queue.drain(..).collect();
        process.inside.extend(taken.iter().map(|(_, changes)| *changes));
        let requests = taken.into_iter().map(|(request, _)| request).collect();
        match process.writer.write(requests) {
            Ok(completion) => {
                assert_eq!(completion.no_space, process.writer.is_waiting());
                self.rare.full += u64::from(completion.no_space);
                let progress = process.log.completed(completion);
                for ticket in progress.tickets {
                    assert_eq!(process.inside.pop_front(), Some(ticket as usize), "tickets come in order");
                    process.tickets.push(ticket);
                    self.durable_up_to(ticket as usize);
                }
                true
            }
            Err(error) => {
                assert!(matches!(error, LogError::Failed { .. }));
                assert!(process.writer.write(Vec::new()).is_err());
                false
            }
        }
    }

    fn run_job(&mut self, process: &mut Process) -> bool {
        let Some(job) = process.job.take() else { return true };
        let (retired, freed) = (job.change.retire.len() as u64, job.change.free.len() as u64);
        if process.log.maintained(job.run()).is_err() {
            return false;
        }
        self.rare.retired += retired;
        self.rare.freed += freed;
        true
    }

    /// Reads some group and compares; lets segments go.
    fn look(&mut self, process: &mut Process) {
        let group = ShardId(self.rng.below(GROUPS) as u32);
        if let Some(plain) = self.now().groups.get(&group).cloned() {
            process.log.applied(group, Index(plain.mark.0 + self.rng.below(plain.entries.len() as u64 + 1)));
            let from_disk = matches!(
                process.log.entries(group, Index(plain.mark.0 + 1), Index(u64::MAX), 1),
                Ok(Fetched::Read(_))
            );
            self.rare.read_from_disk += u64::from(from_disk);
            let read: Vec<_> =
                read_all(&process.log, group).unwrap().into_iter().map(|e| (e.term.0, e.data)).collect();
            assert_eq!(read, plain.entries);
        }
        for segment in process.log.segments() {
            if segment.state == SegmentState::Retired && self.rng.one_in(2) {
                process.log.release(segment.id);
            }
        }
        process.log.wants_checkpoint();
    }

    fn fault(&mut self) {
        match self.rng.below(5) {
            0 => {
                let used = self.disk.used_bytes();
                self.disk.set_capacity(Some(used + self.rng.below(2 * SEGMENT_BYTES)));
            }
            1 | 2 => self.disk.set_capacity(None),
            _ => {
                let effect = match self.rng.below(4) {
                    0 => Effect::LostSync,
                    1 => Effect::Short(self.rng.below(2000) as usize),
                    _ => Effect::Eio,
                };
                let operation = match effect {
                    Effect::LostSync => Operation::Sync,
                    Effect::Short(_) => Operation::Write,
                    _ => [Operation::Sync, Operation::Write, Operation::Rename][self.rng.below(3) as usize],
                };
                self.rare.failed_syncs += 1;
                self.disk.inject(Fault {
                    operation,
                    path_prefix: String::new(),
                    after: self.rng.below(6),
                    effect,
                });
            }
        }
    }

    fn run(mut self, lives: u64) -> Rare {
        for _ in 0..lives {
            let mut process = self.open();
            if self.rng.one_in(2) {
                self.disk.crash_at_change(self.rng.below(60), self.rng.one_in(2));
            }
            for _ in 0..self.rng.below(400) {
                if self.rng.one_in(100) {
                    self.fault();
                }
                if !self.step(&mut process) || self.disk.is_down() {
                    break;
                }
            }
            drop(process);
            self.disk.set_capacity(None);
            self.rare.crashes += 1;
            // A process can also die alone, while what it wrote stays in the cache.
            if !self.disk.is_down() && self.rng.one_in(2) {
                self.disk.restart();
            } else {
                self.disk.crash(self.rng.next_u64());
            }
        }
        self.rare
    }
}

#[test]
fn random_lives_keep_what_was_reported() {
    let first: u64 = std::env::var("LOG_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(0);
    let count: u64 = std::env::var("LOG_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(150);
    let mut all = Rare::default();
    for seed in first..first + count {
        let result = std::panic::catch_unwind(|| Run::new(seed).run(12));
        let rare =
            result.unwrap_or_else(|_| panic!("seed {seed}: run again with LOG_SEED={seed} LOG_SEEDS=1"));
        all.crashes += rare.crashes;
        all.lost_changes += rare.lost_changes;
        all.kept_unreported += rare.kept_unreported;
        all.retired += rare.retired;
        all.freed += rare.freed;
        all.full += rare.full;
        all.failed_syncs += rare.failed_syncs;
        all.crashes_in_open += rare.crashes_in_open;
        all.read_from_disk += rare.read_from_disk;
    }
    eprintln!("{all:?}");
    if count >= 100 {
        let reached = [
            all.lost_changes,
            all.kept_unreported,
            all.retired,
            all.freed,
            all.full,
            all.failed_syncs,
            all.crashes_in_open,
            all.read_from_disk,
        ];
        assert!(reached.iter().all(|n| *n >= 25), "rare states were not reached: {all:?}");
    }
}

/// Seed 2 found: a mark, then entries above the next index because those between were overwritten in a segment that is retired,
/// then their overwriting. Recovery took that for a hole and set the group aside.
#[test]
fn overwritten_entries_of_a_retired_segment_leave_no_hole() {
    Run::new(2).run(12);
}

/// Seed 2057 found: an entry in flight, a reset, another entry of the same index and term; the completion of the first write
/// made the second entry durable, and reads went to the first one's place.
#[test]
fn a_completion_is_never_taken_for_that_of_a_later_write() {
    Run::new(2057).run(12);
}
