//! The record store against a simple model: appends (shared, in parts), settlements, drops, flushes, checkpoints, rewrites,
//! crashes at any step of a job and at any other time, reopening with entries applied again.

use crate::common::*;
use longshore_io::sim::SimDisk;
use longshore_records::*;
use longshore_wire::*;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const SEGMENT_BYTES: u64 = 6_000;

#[derive(Clone, Debug)]
enum Op {
    Append(Vec<(Vec<u8>, u16, bool)>),
    Settle(u8, u16, u8),
    Scatter(u8, u8),
    Drop(u8),
    Flush,
    Checkpoint,
    Work(u8),
    Overlap(u8, u8),
    CrashInJob(u8, bool),
    Restart(bool),
    Check,
}

fn any_op() -> impl Strategy<Value = Op> {
    let message = (prop::collection::vec(1u8..5, 1..3), 0u16..700, prop::bool::weighted(0.1));
    prop_oneof![
        6 => prop::collection::vec(message, 1..6).prop_map(Op::Append),
        3 => (1u8..5, any::<u16>(), any::<u8>()).prop_map(|(log, at, n)| Op::Settle(log, at, n)),
        3 => (1u8..5, any::<u8>()).prop_map(|(log, keep)| Op::Scatter(log, keep)),
        1 => (1u8..5).prop_map(Op::Drop),
        2 => Just(Op::Flush),
        3 => Just(Op::Checkpoint),
        4 => (1u8..4).prop_map(Op::Work),
        2 => (1u8..5, any::<u8>()).prop_map(|(log, keep)| Op::Overlap(log, keep)),
        3 => (any::<u8>(), any::<bool>()).prop_map(|(step, lucky)| Op::CrashInJob(step, lucky)),
        1 => any::<bool>().prop_map(Op::Restart),
        2 => Just(Op::Check),
    ]
}

/// What an entry did, to be applied again.
#[derive(Clone)]
enum Entry {
    Rows { place: Place, rows: Vec<row::Row>, data: bytes::Bytes },
    Settled(LogId, Vec<OffsetRange>),
    Dropped(LogId),
}

type Live = BTreeMap<LogId, BTreeMap<u64, (Vec<u8>, row::Row)>>;

#[derive(Clone, Default)]
struct State {
    applied: u64,
    live: Live,
    next: BTreeMap<LogId, u64>,
}

struct World {
    disk: SimDisk,
    log: Arc<FakeLog>,
    records: Records,
    state: State,
    checkpoint: State,
    entries: BTreeMap<u64, Entry>,
    /// The state after each entry since the checkpoint.
    states: BTreeMap<u64, State>,
    segment: u64,
    /// Last index of each sealed segment.
    sealed: BTreeMap<SegmentId, u64>,
    generation: u64,
    /// How often which state was reached.
    reached: BTreeMap<String, u64>,
}

/// And how far the group must be replayed before what is live by its state must be there.
fn open(disk: &SimDisk, log: &Arc<FakeLog>, existing: &[SegmentInfo]) -> (Records, u64) {
    let (records, opened) = Records::open(Arc::new(disk.clone()), log.clone(), small(), existing).unwrap();
    assert!(opened.damaged.is_empty(), "{opened:?}");
    (records, opened.reached.get(&GROUP).map_or(0, |index| index.0))
}

impl World {
    fn new() -> World {
        let (disk, log) = (SimDisk::new(1), Arc::new(FakeLog::default()));
        let (records, _) = open(&disk, &log, &[]);
        let (state, checkpoint) = (State::default(), State::default());
        World {
            disk,
            log,
            records,
            state,
            checkpoint,
            entries: BTreeMap::new(),
            states: BTreeMap::new(),
            segment: 1,
            sealed: BTreeMap::new(),
            generation: 0,
            reached: BTreeMap::new(),
        }
    }

    fn log_id(&self, n: u8) -> LogId {
        LogId(u64::from(n) + 10 * self.generation)
    }

    fn place(&mut self, data: &bytes::Bytes) -> Place {
        let index = self.state.applied + 1;
        if self.log.size(SegmentId(self.segment)) > SEGMENT_BYTES {
            let id = SegmentId(self.segment);
            self.sealed.insert(id, index - 1);
            let last = vec![(GROUP, Index(index - 1))];
            let bytes = self.log.size(id);
            self.records.segment_sealed(&SegmentInfo { id, bytes, sealed: true, retired: false, last });
            self.segment += 1;
        }
        self.log.append(
            SegmentId(self.segment),
            EntryKey { group: GROUP, index: Index(index), term: Term(2) },
            data,
        )
    }

    fn apply(&mut self, entry: Entry) {
        let index = self.state.applied + 1;
        self.apply_to_records(index, &entry);
        self.entries.insert(index, entry);
        self.state.applied = index;
        self.states.insert(index, self.state.clone());
    }

    fn apply_to_records(&mut self, index: u64, entry: &Entry) {
        let records = &mut self.records;
        let none = bytes::Bytes::new();
        match entry {
            Entry::Rows { place, rows, data } => {
                records.applied(GROUP, Index(index), Some(*place), rows.clone(), data).unwrap();
            }
            Entry::Settled(log, ranges) => {
                records.applied(GROUP, Index(index), None, Vec::new(), &none).unwrap();
                records.settled(*log, ranges);
            }
            Entry::Dropped(log) => {
                records.applied(GROUP, Index(index), None, Vec::new(), &none).unwrap();
                records.dropped(*log);
            }
        }
    }

    fn append(&mut self, messages: Vec<(Vec<u8>, u16, bool)>) {
        let mut batch_of = Vec::new();
        let mut bodies = Vec::new();
        for (n, (logs, len, in_parts)) in messages.into_iter().enumerate() {
            let seed = self.state.applied as u8 ^ (n as u8).wrapping_mul(31);
            let body: Vec<u8> = (0..len).map(|i| (i as u8).wrapping_add(seed)).collect();
            let mut parts = Vec::new();
            let mut whole = Vec::new();
            if in_parts {
                for k in 0..2u8 {
                    let bytes = vec![seed ^ k; usize::from(len) + 1];
                    let (data, source) = piece(self.state.applied + 1, &bytes);
                    let place = self.place(&data);
                    self.apply(Entry::Rows { place, rows: Vec::new(), data });
                    parts.push(source);
                    whole.extend(bytes);
                }
            }
            let mut targets: Vec<LogId> = logs.iter().map(|n| self.log_id(*n)).collect();
            targets.sort();
            targets.dedup();
            whole.extend(&body);
            bodies.push(whole);
            batch_of.push(Message { targets, body, parts });
        }
        let (data, rows) = batch(self.state.applied + 1, &batch_of, &mut self.state.next);
        let place = self.place(&data);
        let of_rows = batch_of.iter().zip(&bodies).flat_map(|(m, body)| m.targets.iter().map(move |_| body));
        for (row, body) in rows.iter().zip(of_rows) {
            let log = self.state.live.entry(row.log).or_default();
            log.insert(row.offset.0, (body.clone(), row.clone()));
        }
        self.apply(Entry::Rows { place, rows, data });
    }

    fn settle(&mut self, log: LogId, offsets: BTreeSet<u64>) {
        let Some(live) = self.state.live.get_mut(&log) else { return };
        offsets.iter().for_each(|offset| {
            live.remove(offset);
        });
        let ranges = offsets.into_iter().map(|offset| OffsetRange::one(Offset(offset))).collect();
        self.apply(Entry::Settled(log, ranges));
    }

    fn checkpoint(&mut self) {
        flush(&mut self.records);
        assert_eq!(self.records.rows_durable(GROUP), Index(self.state.applied));
        self.checkpoint = self.state.clone();
        self.records.uploads_from(GROUP, Index(self.state.applied + 1));
        self.entries.clear();
        self.states.clear();
        for (segment, last) in &self.sealed {
            if *last <= self.checkpoint.applied {
                self.records.segment_retired(*segment);
            }
        }
    }

    fn free_segments(&mut self) {
        for segment in self.records.removable() {
            *self.reached.entry("segment freed".into()).or_default() += 1;
            self.log.remove(segment);
            self.sealed.remove(&segment);
            self.records.segment_removed(segment);
        }
    }

    fn work(&mut self, jobs: u8) {
        for _ in 0..jobs {
            let Some(job) = self.records.next_job() else { break };
            *self.reached.entry(format!("{:?} done", job.what())).or_default() += 1;
            let outcome = self.records.job_done(job.run());
            assert!(!matches!(outcome, JobOutcome::Failed(..)), "{outcome:?}");
            self.free_segments();
        }
    }

    fn view(state: &State) -> View {
        let mut view = View { applied: state.applied, uploads_from: state.applied + 1, ..View::default() };
        for (log, live) in &state.live {
            let next = state.next.get(log).copied().unwrap_or_default();
            let first = live.keys().next().copied().unwrap_or(next);
            let dead = (first..next).filter(|at| !live.contains_key(at));
            let dead = dead.map(|at| OffsetRange::one(Offset(at))).collect();
            view.logs.insert(*log, (first, dead));
        }
        view
    }

    fn restart(&mut self, lucky: bool) {
        // A killed process leaves what it wrote; a power loss leaves an arbitrary part of what was not synced.
        if lucky && !self.disk.is_down() {
            self.disk.restart();
        } else {
            self.disk.crash(self.state.applied ^ self.segment << 32);
        }
        let existing: Vec<SegmentInfo> = self
            .log
            .ids()
            .into_iter()
            .map(|id| {
                let last = self.sealed.get(&id);
                let retired = last.is_some_and(|last| *last <= self.checkpoint.applied);
                let last_known = last.map(|last| (GROUP, Index(*last))).into_iter().collect();
                SegmentInfo {
                    id,
                    bytes: self.log.size(id),
                    sealed: last.is_some(),
                    retired,
                    last: last_known,
                }
            })
            .collect();
        let (records, reached) = open(&self.disk, &self.log, &existing);
        self.records = records;
        self.records.recover(GROUP, &World::view(&self.checkpoint));
        let mut entries = self.entries.clone();
        let later = entries.split_off(&(reached + 1));
        for (index, entry) in entries {
            self.apply_to_records(index, &entry);
        }
        // Nobody may have told the replica that the rest is committed: what it calls live now must be there.
        let known = self.states.get(&reached).unwrap_or(&self.checkpoint).clone();
        *self.reached.entry("let go above the checkpoint".into()).or_default() +=
            u64::from(reached > self.checkpoint.applied);
        self.check_bodies(&known);
        for (index, entry) in later {
            self.apply_to_records(index, &entry);
        }
        self.check();
    }

    /// What is live by a state can be read.
    fn check_bodies(&mut self, state: &State) {
        for (log, live) in &state.live {
            for (offset, (body, row)) in live {
                let stored = read(&mut self.records, *log, *offset).unwrap();
                let stored = stored.unwrap_or_else(|| panic!("{log} {offset} is missing"));
                let mut bytes = stored.parts.concat();
                bytes.extend(record::Record::parse(stored.record).unwrap().body());
                assert_eq!((&stored.row, &bytes), (row, body), "{log} {offset}");
                let one = [OffsetRange::one(Offset(*offset))];
                assert!(self.records.missing(*log, &one).is_empty());
            }
        }
    }

    fn check(&mut self) {
        for n in 0..=self.generation {
            for k in 1..5 {
                let log = LogId(k + 10 * n);
                let live = self.state.live.get(&log).cloned().unwrap_or_default();
                let rows = all_rows(&mut self.records, log, 0, 7);
                let expected: Vec<_> = live.values().map(|(_, row)| row.clone()).collect();
                assert_eq!(rows, expected, "rows of {log}");
            }
        }
        let state = self.state.clone();
        self.check_bodies(&state);
    }

    fn crash_in_job(&mut self, step: u8, lucky: bool) {
        let Some(job) = self.records.next_job().or_else(|| self.records.flush()) else { return };
        self.disk.crash_at_change(u64::from(step % 12), step & 0x40 != 0);
        let what = format!("{:?} interrupted", job.what());
        let done = job.run();
        if self.disk.is_down() {
            *self.reached.entry(what).or_default() += 1;
        }
        if step & 0x80 != 0 {
            // The store thread heard of it, and let the segments go, before the lights went out.
            if !matches!(self.records.job_done(done), JobOutcome::Failed(..)) {
                self.free_segments();
            }
        }
        self.restart(lucky);
    }

    /// Settles while a job is under way.
    fn overlap(&mut self, log: u8, keep: u8) {
        let Some(job) = self.records.next_job() else { return };
        if job.what() == What::Rewrite {
            *self.reached.entry("settled meanwhile".into()).or_default() += 1;
        }
        let done = job.run();
        self.run(Op::Scatter(log, keep));
        self.append(vec![(vec![log], 9, keep & 1 == 1)]);
        self.records.job_done(done);
        self.check();
        self.free_segments();
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Append(messages) => self.append(messages),
            Op::Settle(log, at, n) => {
                let log = self.log_id(log);
                let next = self.state.next.get(&log).copied().unwrap_or_default();
                let first = u64::from(at) % (next + 1);
                self.settle(log, (first..(first + u64::from(n % 40)).min(next)).collect());
            }
            Op::Scatter(log, keep) => {
                let log = self.log_id(log);
                let live = self.state.live.get(&log).cloned().unwrap_or_default();
                let keep = u64::from(keep % 7) + 2;
                self.settle(log, live.into_keys().filter(|at| at % keep != 0).collect());
            }
            Op::Drop(log) => {
                let log = self.log_id(log);
                if self.state.live.remove(&log).is_some() {
                    self.state.next.remove(&log);
                    self.apply(Entry::Dropped(log));
                    // A dropped id is never used again.
                    self.generation += 1;
                }
            }
            Op::Flush => flush(&mut self.records),
            Op::Checkpoint => self.checkpoint(),
            Op::Work(jobs) => self.work(jobs),
            Op::Overlap(log, keep) => self.overlap(log, keep),
            Op::CrashInJob(step, lucky) => self.crash_in_job(step, lucky),
            Op::Restart(lucky) => self.restart(lucky),
            Op::Check => self.check(),
        }
    }
}

fn scenario(ops: Vec<Op>) -> World {
    let mut world = World::new();
    for op in ops {
        world.run(op);
    }
    world.check();
    // With everything settled nothing may be held.
    let logs: Vec<LogId> = world.state.live.keys().copied().collect();
    for log in logs {
        let all = world.state.live[&log].keys().copied().collect();
        world.settle(log, all);
    }
    world.checkpoint();
    world.work(100);
    world.free_segments();
    settle_down(&mut world.records);
    assert_eq!(world.records.garbage().live_pointers, 0);
    assert!(world.log.ids().into_iter().all(|id| id.0 == world.segment));
    assert!(names(&world.disk).iter().all(|name| !name.ends_with(".store")));
    world
}

#[test]
fn what_is_live_is_found_with_its_bytes_whatever_happens() {
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    let reached: RefCell<BTreeMap<String, u64>> = RefCell::default();
    TestRunner::new(config)
        .run(&prop::collection::vec(any_op(), 1..90), |ops| {
            for (what, times) in scenario(ops).reached {
                *reached.borrow_mut().entry(what).or_default() += times;
            }
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
    let reached = reached.into_inner();
    println!("{reached:?}");
    let cases = u64::from(ProptestConfig::default().cases);
    for (what, times_min) in [
        ("Rewrite done", cases / 8),
        ("Index done", cases / 8),
        ("Remove done", cases / 4),
        ("settled meanwhile", cases / 20),
        ("Rewrite interrupted", cases / 40),
        ("Index interrupted", cases / 8),
        ("segment freed", cases),
        ("let go above the checkpoint", cases / 10),
    ] {
        let times = reached.get(what).copied().unwrap_or_default();
        assert!(times >= times_min, "{what}: {times} times only, {reached:?}");
    }
}
