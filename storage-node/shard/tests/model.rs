//! Random commands against a model that keeps one entry per message and one number per session, on three shards at
//! once: the first is never restored, the second is restored from the pages of its checkpoints, the third from
//! snapshots of the first. All three must do the same at every step.
#![cfg(test)]

mod common;

use bytes::Bytes;
use common::{Append, Put, apply, batch};
use longshore_shard::{BatchResult, Effects, Event, OWN_CURSOR, Shard};
use longshore_wire::batch::{DeadReason, Item, Origin, Returned, Settle};
use longshore_wire::outcome::{self, Outcome, Refusal};
use longshore_wire::record::flags;
use longshore_wire::spec::{LogKind, LogSpec};
use longshore_wire::{LeaseId, LogId, LogTime, Offset, OffsetRange, Revision, SessionId, ShardId, Term};
use proptest::prelude::*;
use std::collections::{BTreeMap, VecDeque};

const REWIND_MS: u64 = 640;
const REWIND_SLOT_MS: u64 = 20;

#[derive(Clone, Debug)]
enum Number {
    Next,
    Again(u64),
    Ahead,
}

#[derive(Clone, Debug)]
enum Step {
    Batch { session: u64, number: Number, after_ms: u64, puts: Vec<Put> },
    Garbage { bytes: Vec<u8> },
    Checkpoint,
    Snapshot,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Unsettled { returns: Option<u32>, taken: Option<(LeaseId, LogTime)>, due: LogTime },
    Rewindable { until: u64 },
    Gone,
}

#[derive(Debug)]
struct LogModel {
    spec: LogSpec,
    messages: Vec<State>,
    trimmed: u64,
    freed: Vec<bool>,
}

impl LogModel {
    fn settle(&mut self, offset: u64, keep_from: Option<u64>) -> bool {
        let rewind_ms = self.spec.rewind_ms;
        let Some(state) = self.messages.get_mut(offset as usize) else { return false };
        if !matches!(state, State::Unsettled { .. }) {
            return false;
        }
        *state = match keep_from {
            Some(now) if rewind_ms > 0 => {
                State::Rewindable { until: (now / REWIND_SLOT_MS + 1) * REWIND_SLOT_MS + rewind_ms }
            }
            _ => State::Gone,
        };
        true
    }

    fn apply(&mut self, now: u64, item: &Item) {
        match item {
            Item::Settle(settle) => {
                for range in &settle.acked {
                    self.each(*range).for_each(|at| drop_bool(self.settle(at, Some(now))));
                }
                for (offset, _) in &settle.dead {
                    self.settle(offset.0, Some(now));
                }
                for back in &settle.returned {
                    if let Some(State::Unsettled { returns, taken, .. }) =
                        self.messages.get_mut(back.offset.0 as usize)
                    {
                        *taken = None;
                        *returns = Some(returns.unwrap_or(0) + u32::from(back.counted));
                    }
                }
            }
            Item::Purge { end, leased, .. } => {
                for at in 0..end.0.min(self.messages.len() as u64) {
                    let leased = leased.iter().any(|range| range.contains(Offset(at)));
                    let is_taken = matches!(self.messages[at as usize],
                        State::Unsettled { taken: Some((_, until)), .. } if until.0 > now);
                    if !leased && !is_taken {
                        self.settle(at, None);
                    }
                }
            }
            Item::Expire { ranges, .. } => {
                for range in ranges {
                    self.each(*range).for_each(|at| drop_bool(self.settle(at, None)));
                }
            }
            Item::Take { offset, lease, until, .. } => {
                if let Some(State::Unsettled { taken, .. }) = self.messages.get_mut(offset.0 as usize)
                    && taken.is_none_or(|(held, until)| held == *lease || until.0 <= now)
                {
                    *taken = Some((*lease, *until));
                }
            }
            Item::Rewind { to, .. } => {
                for state in self.messages.iter_mut().skip(to.0 as usize) {
                    if matches!(state, State::Rewindable { .. }) {
                        *state = State::Unsettled { returns: None, taken: None, due: LogTime(0) };
                    }
                }
                (0..to.0.min(self.messages.len() as u64))
                    .for_each(|at| drop_bool(self.settle(at, Some(now))));
            }
            Item::Trim { start, .. } if self.spec.kind == LogKind::Stream => {
                self.trimmed = self.trimmed.max(start.0.min(self.messages.len() as u64));
            }
            _ => {}
        }
    }

    fn each(&self, range: OffsetRange) -> std::ops::Range<u64> {
        let end = (range.last.0 + 1).min(self.messages.len() as u64);
        range.first.0.min(end)..end
    }

    fn release(&mut self, now: u64) {
        for state in &mut self.messages {
            if matches!(state, State::Rewindable { until } if *until <= now) {
                *state = State::Gone;
            }
        }
    }

    fn is_live(&self, at: usize) -> bool {
        match self.spec.kind {
            LogKind::Queue => self.messages[at] != State::Gone,
            LogKind::Stream => at as u64 >= self.trimmed,
        }
    }
}

fn drop_bool(_: bool) {}

#[derive(Debug, Default)]
struct Model {
    now: u64,
    logs: BTreeMap<LogId, LogModel>,
    sessions: BTreeMap<u64, (u64, VecDeque<Bytes>)>,
    closed: Vec<u64>,
}

fn log_of(item: &Item) -> Option<LogId> {
    match item {
        Item::Settle(settle) => Some(settle.log),
        Item::Purge { log, .. }
        | Item::Expire { log, .. }
        | Item::Take { log, .. }
        | Item::Rewind { log, .. }
        | Item::Trim { log, .. } => Some(*log),
        _ => None,
    }
}

impl Model {
    /// Checks the answer to a batch and tells whether its items were carried out.
    fn admitted(&mut self, session: u64, number: u64, result: &BatchResult) -> bool {
        if session == 0 {
            assert!(matches!(result, BatchResult::Outcomes(_)));
            return true;
        }
        let Some((last, outcomes)) = self.sessions.get_mut(&session) else {
            assert_eq!(*result, BatchResult::UnknownSession);
            return false;
        };
        if number == *last + 1 {
            let BatchResult::Outcomes(bytes) = result else { panic!("{result:?}") };
            *last = number;
            outcomes.push_front(bytes.clone());
            outcomes.truncate(32);
            return true;
        }
        let known = last.checked_sub(number).and_then(|age| outcomes.get(age as usize));
        match known {
            Some(bytes) => assert_eq!(*result, BatchResult::Outcomes(bytes.clone())),
            None => assert_eq!(*result, BatchResult::Gap { expected: longshore_wire::BatchNo(*last + 1) }),
        }
        false
    }

    fn batch(&mut self, after_ms: u64, session: u64, number: u64, puts: &[Put], effects: &Effects) {
        self.now += after_ms;
        let now = self.now;
        self.logs.values_mut().for_each(|log| log.release(now));
        let [(_, _, result)] = &effects.outcomes[..] else { panic!("{:?}", effects.outcomes) };
        if !self.admitted(session, number, result) {
            assert!(effects.rows.is_empty() && effects.events.is_empty());
        } else {
            self.items(puts, effects);
        }
        for (log, ranges) in &effects.released {
            let Some(log) = self.logs.get_mut(log) else { continue };
            for at in ranges.iter().flat_map(|range| range.first.0..=range.last.0) {
                assert!(!log.is_live(at as usize), "{at} was freed but is live");
                log.freed[at as usize] = true;
            }
        }
    }

    fn items(&mut self, puts: &[Put], effects: &Effects) {
        let mut rows = effects.rows.iter();
        let now = self.now;
        let [(_, _, BatchResult::Outcomes(outcomes))] = &effects.outcomes[..] else { panic!("no outcomes") };
        for (put, outcome) in puts.iter().zip(outcome::decode(outcomes.clone()).unwrap()) {
            match put {
                Put::Append(append) => {
                    let Outcome::Appended(targets) = outcome else {
                        assert_eq!(
                            (append.flags, outcome),
                            (flags::PARTS, Outcome::Refused(Refusal::UnknownUpload))
                        );
                        continue;
                    };
                    for (target, result) in targets {
                        let Some(log) = self.logs.get_mut(&target) else {
                            let gone = matches!(result, Err(Refusal::UnknownLog | Refusal::DroppedLog));
                            assert!(gone || append.origin.is_some());
                            continue;
                        };
                        let next = Offset(log.messages.len() as u64);
                        // Whether a token or a sequence is a duplicate is told in the transcripts.
                        if append.origin.is_some() && result != Ok(next) {
                            continue;
                        }
                        let row = rows.next().unwrap();
                        assert_eq!((row.log, Ok(row.offset), row.offset), (target, result, next));
                        assert_eq!((row.time.0, row.count), (now, append.count));
                        let state = State::Unsettled { returns: None, taken: None, due: row.due };
                        let len = log.messages.len() + append.count as usize;
                        log.messages.resize(len, state);
                        log.freed.resize(len, false);
                    }
                }
                Put::Item(Item::CreateLog { log, spec }) => {
                    if effects.events.contains(&Event::Created { log: *log }) {
                        let (messages, freed) = (Vec::new(), Vec::new());
                        self.logs.entry(*log).or_insert(LogModel {
                            spec: *spec,
                            messages,
                            trimmed: 0,
                            freed,
                        });
                    }
                }
                Put::Item(Item::DropLog { log, .. }) => drop(self.logs.remove(log)),
                Put::Item(Item::OpenSession(id)) if !self.closed.contains(&id.0) => {
                    self.sessions.entry(id.0).or_default();
                }
                Put::Item(Item::CloseSession(id)) => {
                    self.sessions.remove(&id.0);
                    self.closed.push(id.0);
                }
                Put::Item(item) => {
                    if let Some(log) = log_of(item).and_then(|log| self.logs.get_mut(&log)) {
                        log.apply(now, item);
                    }
                }
            }
        }
        assert_eq!(rows.next(), None);
    }

    fn compare(&self, shard: &Shard) {
        assert_eq!(shard.log_time().0, self.now);
        assert_eq!(
            shard.logs().map(|log| log.id()).collect::<Vec<_>>(),
            self.logs.keys().copied().collect::<Vec<_>>()
        );
        let numbers: Vec<_> = shard.sessions().map(|(id, session)| (id.0, session.last().0)).collect();
        assert_eq!(numbers, self.sessions.iter().map(|(id, (last, _))| (*id, *last)).collect::<Vec<_>>());
        for (id, model) in &self.logs {
            compare_log(shard, *id, model, self.now);
        }
    }
}

fn compare_log(shard: &Shard, id: LogId, model: &LogModel, now: u64) {
    let log = shard.log(id).unwrap();
    assert_eq!(log.next().0, model.messages.len() as u64);
    let live: Vec<usize> = (0..model.messages.len()).filter(|at| model.is_live(*at)).collect();
    let listed: Vec<usize> =
        shard.live_ranges(id).flat_map(|range| range.first.0 as usize..=range.last.0 as usize).collect();
    assert_eq!(listed, live);
    assert_eq!(log.first().0, live.first().map_or(log.next().0, |at| *at as u64));
    assert!(
        (0..model.freed.len()).all(|at| model.freed[at] != model.is_live(at)),
        "freed is not what is gone"
    );
    let Some(cursor) = log.cursor(OWN_CURSOR) else { return };
    let unsettled: Vec<u64> = (0..model.messages.len() as u64)
        .filter(|at| matches!(model.messages[*at as usize], State::Unsettled { .. }))
        .collect();
    assert_eq!(cursor.unsettled_count(), unsettled.len() as u64);
    assert_eq!(cursor.rewindable_count(), (live.len() - unsettled.len()) as u64);
    assert_eq!(cursor.floor().0, unsettled.first().copied().unwrap_or(log.next().0));
    let by_range: Vec<u64> =
        cursor.unsettled_ranges(Offset(0)).flat_map(|range| range.first.0..=range.last.0).collect();
    assert_eq!(by_range, unsettled);
    // Where a chunk ends and where the log does; the rest is alike.
    let len = model.messages.len() as u64;
    let near =
        (0..len.min(40)).chain(65_500.min(len)..len.min(65_580)).chain(len.saturating_sub(40)..len + 2);
    for at in near {
        let offset = Offset(at);
        let state = model.messages.get(at as usize);
        assert_eq!(cursor.is_settled(offset), matches!(state, Some(State::Rewindable { .. } | State::Gone)));
        assert_eq!(cursor.is_rewindable(offset), matches!(state, Some(State::Rewindable { .. })));
        assert_eq!(cursor.next_unsettled(offset).map(|o| o.0), unsettled.iter().find(|o| **o >= at).copied());
        let (returns, taken, due) = match state {
            Some(State::Unsettled { returns, taken, due }) => (*returns, *taken, *due),
            _ => (None, None, LogTime(0)),
        };
        assert_eq!(cursor.redelivered(offset), returns.is_some());
        assert_eq!(cursor.returns(offset), returns.unwrap_or(0));
        assert_eq!(cursor.taken(offset).map(|taken| (taken.lease, taken.until)), taken);
        match cursor.delayed_until(offset) {
            Some(until) => assert_eq!(until, due),
            None => assert!(due.0 <= now),
        }
    }
}

fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0..40_u64, 4 => 65_520..65_560_u64, 1 => 0..140_000_u64, 1 => 131_060..131_080_u64]
}

fn range() -> impl Strategy<Value = OffsetRange> {
    let length = prop_oneof![6 => 0..3_u64, 3 => 0..40_u64, 1 => 0..70_000_u64];
    (offset(), length)
        .prop_map(|(first, length)| OffsetRange { first: Offset(first), last: Offset(first + length) })
}

fn spec(log: u64) -> LogSpec {
    match log {
        2 => LogSpec { rewind_ms: REWIND_MS, ..LogSpec::QUEUE },
        3 => LogSpec { kind: LogKind::Stream, ..LogSpec::QUEUE },
        _ => LogSpec { ttl_ms: Some(500), ..LogSpec::QUEUE },
    }
}

fn append() -> impl Strategy<Value = Put> {
    let origin = prop_oneof![
        6 => Just(None),
        1 => (0..20_u64).prop_map(|id| Some(Origin::Token { scope: 1, id, attempt: 0 })),
        1 => (0..2_u16, 0..12_u32).prop_map(|(epoch, sequence)| Some(Origin::Producer { id: 5, epoch, sequence })),
    ];
    let count = prop_oneof![9 => 1..4_u32, 2 => 60_000..66_000_u32];
    let targets = prop::collection::vec((1..5_u64).prop_map(LogId), 1..4);
    (targets, origin, count, prop_oneof![3 => Just(0), 1 => 1..200_u64], any::<bool>()).prop_map(
        |(targets, origin, count, delay_ms, parts)| {
            // A delayed record of many offsets is not what this test is about.
            let count = if delay_ms > 0 { count.min(3) } else { count };
            let flags = if parts && delay_ms % 3 == 1 { flags::PARTS } else { 0 };
            Put::Append(Append { targets, origin, count, delay_ms, flags, upload: 1, ..Append::to(1) })
        },
    )
}

fn settle() -> impl Strategy<Value = Item> {
    let acked = prop::collection::vec(range(), 0..6);
    let returned = prop::collection::vec((offset(), any::<bool>()), 0..4);
    let dead = prop::collection::vec(offset(), 0..2);
    (1..4_u64, acked, returned, dead).prop_map(|(log, acked, returned, dead)| {
        Item::Settle(Settle {
            log: LogId(log),
            cursor: OWN_CURSOR,
            term: Term(1),
            acked,
            returned: returned
                .into_iter()
                .map(|(offset, counted)| Returned { offset: Offset(offset), counted })
                .collect(),
            dead: dead.into_iter().map(|offset| (Offset(offset), DeadReason::Rejected)).collect(),
        })
    })
}

fn item() -> impl Strategy<Value = Item> {
    let cursor = OWN_CURSOR;
    let log = || (1..5_u64).prop_map(LogId);
    prop_oneof![
        12 => settle(),
        2 => (log(), offset(), prop::collection::vec(range(), 0..3))
            .prop_map(move |(log, end, leased)| Item::Purge { log, cursor, end: Offset(end), leased }),
        2 => (log(), prop::collection::vec(range(), 0..3))
            .prop_map(move |(log, ranges)| Item::Expire { log, cursor, ranges }),
        3 => (log(), offset(), 0..4_u64, 0..3_000_u64).prop_map(move |(log, offset, lease, until)| {
            Item::Take { log, cursor, offset: Offset(offset), lease: LeaseId(lease), until: LogTime(until) }
        }),
        3 => (1..4_u64, offset())
            .prop_map(move |(log, to)| Item::Rewind { log: LogId(log), cursor, to: Offset(to) }),
        2 => offset().prop_map(|start| Item::Trim { log: LogId(3), start: Offset(start) }),
        1 => log().prop_map(|log| Item::CreateLog { log, spec: spec(log.0) }),
        1 => Just(Item::DropLog { log: LogId(4), revision: Revision(1) }),
        1 => (log(), offset()).prop_map(|(log, offset)| {
            Item::CommitPosition { log, name: Bytes::from(format!("r{}", offset % 3)), offset: Offset(offset) }
        }),
        1 => Just(Item::Part { upload: 1, crc: crc_of_piece(), bytes: Bytes::from_static(b"piece") }),
        1 => (7..10_u64).prop_map(|id| Item::OpenSession(SessionId(id))),
        1 => Just(Item::CloseSession(SessionId(9))),
    ]
}

fn crc_of_piece() -> u32 {
    // Apply leaves checksums to the replica's write and to reads.
    0
}

fn step() -> impl Strategy<Value = Step> {
    let number = prop_oneof![8 => Just(Number::Next), 2 => (0..40_u64).prop_map(Number::Again), 1 => Just(Number::Ahead)];
    let put = prop_oneof![4 => append(), 6 => item().prop_map(Put::Item)];
    let session = prop_oneof![3 => Just(0_u64), 5 => Just(7), 2 => Just(8), 1 => Just(9)];
    prop_oneof![
        20 => (session, number, 0..60_u64, prop::collection::vec(put, 0..5)).prop_map(
            |(session, number, after_ms, puts)| Step::Batch { session, number, after_ms, puts }
        ),
        1 => prop::collection::vec(any::<u8>(), 0..80).prop_map(|bytes| Step::Garbage { bytes }),
        2 => Just(Step::Checkpoint),
        1 => Just(Step::Snapshot),
    ]
}

/// The shard, its twins and the pages that the second one's checkpoints left.
struct Trio {
    shards: [Shard; 3],
    stored: BTreeMap<Bytes, Bytes>,
}

impl Trio {
    fn apply(&mut self, stamp: u64, data: &Bytes) -> Effects {
        let [first, second, third] = self.shards.each_mut().map(|shard| apply(shard, stamp, data));
        assert_eq!(first, second, "after a restore from a checkpoint");
        assert_eq!(first, third, "after a restore from a snapshot");
        first
    }

    fn checkpoint(&mut self) {
        for (key, page) in self.shards[1].take_dirty_pages() {
            match page {
                Some(page) => drop(self.stored.insert(key, page)),
                None => drop(self.stored.remove(&key)),
            }
        }
        self.shards[1] = Shard::restore(ShardId(3), self.stored.clone()).unwrap();
        assert_eq!(self.stored.clone().into_iter().collect::<Vec<_>>(), self.shards[1].all_pages());
        self.same();
    }

    fn snapshot(&mut self) {
        self.shards[2] = Shard::restore(ShardId(3), self.shards[0].all_pages()).unwrap();
        self.same();
    }

    fn same(&self) {
        let [a, b, c] = self.shards.each_ref().map(Shard::state_hash);
        assert_eq!((a, a), (b, c));
    }
}

fn run(steps: Vec<Step>) {
    let mut trio = Trio { shards: [0; 3].map(|_| Shard::new(ShardId(3))), stored: BTreeMap::new() };
    let mut model = Model::default();
    let mut setup: Vec<Put> =
        (1..5_u64).map(|log| Put::Item(Item::CreateLog { log: LogId(log), spec: spec(log) })).collect();
    setup.extend([7, 8].map(|id| Put::Item(Item::OpenSession(SessionId(id)))));
    let effects = trio.apply(0, &batch(0, 0, &setup));
    model.batch(0, 0, 0, &setup, &effects);
    for step in steps {
        match step {
            Step::Batch { session, number, after_ms, puts } => {
                let last = model.sessions.get(&session).map_or(0, |(last, _)| *last);
                let number = match number {
                    Number::Next => last + 1,
                    Number::Again(back) => last.saturating_sub(back),
                    Number::Ahead => last + 2,
                };
                let effects = trio.apply(model.now + after_ms, &batch(session, number, &puts));
                model.batch(after_ms, session, number, &puts, &effects);
                model.compare(&trio.shards[0]);
            }
            Step::Garbage { bytes } => {
                let pages = trio.shards[0].all_pages();
                let effects = trio.apply(model.now + 1_000, &Bytes::from(bytes));
                assert!(effects.rows.is_empty() && effects.released.is_empty() && effects.events.is_empty());
                // The first page names the applied index; no other may differ.
                assert_eq!(trio.shards[0].all_pages()[1..], pages[1..]);
            }
            Step::Checkpoint => trio.checkpoint(),
            Step::Snapshot => trio.snapshot(),
        }
    }
    trio.checkpoint();
    trio.snapshot();
}

/// `PROPTEST_CASES` for a longer run.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(24)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn does_what_a_plain_model_does(steps in prop::collection::vec(step(), 1..60)) {
        run(steps);
    }
}
