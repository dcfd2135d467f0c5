//! The sender against a model of a shard: streams that die, leaders that change and lose what was not committed,
//! gaps, refusals, a full disk. Nothing is doubled, nothing that was not given up is lost, order holds.

use super::sender::*;
use super::settles::End;
use super::{Chunk, Upload};
use bytes::Bytes;
use longshore_proto::v1::Refused;
use longshore_wire::batch::{Batch, Item, Returned};
use longshore_wire::outcome::{Outcome, Refusal};
use longshore_wire::record::{Form, NewRecord, flags};
use longshore_wire::{BatchNo, CursorId, LeaseId, LogId, Offset, OffsetRange, SessionId, Term};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

const SESSION: SessionId = SessionId(7);
const LOG: LogId = LogId(1);

fn append(tag: u64, body: &[u8]) -> Chunk<u64> {
    let mut chunk = Chunk::new(SESSION);
    let new = NewRecord::plain(Form::Amqp, &[LOG], b"k", b"");
    chunk.append(None, &new, &[Bytes::copy_from_slice(body)], tag).unwrap();
    chunk
}

fn upload(tag: u64, len: usize) -> Upload<u64> {
    let mut new = NewRecord::plain(Form::Amqp, &[LOG], b"k", b"");
    new.flags = flags::PARTS;
    new.upload = tag;
    let mut last = Chunk::new(SESSION);
    last.append(None, &new, &[], tag).unwrap();
    let body = (0..len).map(|i| Bytes::from(vec![i as u8; 100])).collect();
    Upload { id: tag, body, last }
}

fn number(bytes: &Bytes) -> BatchNo {
    Batch::parse(bytes.clone()).unwrap().number
}

fn stored(count: usize) -> Vec<Outcome> {
    vec![Outcome::Appended(vec![(LOG, Ok(Offset(0)))]); count]
}

fn sender() -> Sender<u64> {
    let limits = Limits { eager_batches: 32, part_bytes: 1000, ..Limits::default() };
    let mut sender = Sender::new(SESSION, limits);
    sender.connected();
    sender
}

#[test]
fn what_arrives_while_batches_are_under_way_goes_together() {
    let mut sender = Sender::new(SESSION, Limits { eager_batches: 2, ..Limits::default() });
    sender.connected();
    for tag in 0..5 {
        sender.push(1, append(tag, b"x"));
        if tag < 2 {
            assert_eq!(number(&sender.poll().unwrap()), BatchNo(tag + 1));
        } else {
            assert_eq!(sender.poll(), None);
        }
    }
    let mut out = Vec::new();
    sender.outcome(BatchNo(1), stored(1), &mut out).unwrap();
    let third = Batch::parse(sender.poll().unwrap()).unwrap();
    assert_eq!((third.number, third.items), (BatchNo(3), 3));
    sender.outcome(BatchNo(3), stored(3), &mut out).unwrap();
    sender.outcome(BatchNo(2), stored(1), &mut out).unwrap();
    let tags: Vec<u64> =
        out.iter().map(|r| if let Resolved::Appended(tag, _) = r { *tag } else { 99 }).collect();
    assert_eq!(tags, [0, 2, 3, 4, 1]);
    assert!(sender.is_idle() && sender.pending_bytes() == 0);
}

#[test]
fn no_more_than_32_batches_have_no_outcome() {
    let mut sender = sender();
    let mut sent = 0;
    for tag in 0..40 {
        sender.push(1, append(tag, &vec![0; 64 << 10]));
        sent += u64::from(sender.poll().is_some());
    }
    assert_eq!(sent, 32);
}

#[test]
fn a_new_leader_gets_the_same_bytes_in_order() {
    let mut sender = sender();
    let mut first = Vec::new();
    for tag in 0..3 {
        sender.push(1, append(tag, b"x"));
        first.push(sender.poll().unwrap());
    }
    sender.disconnected();
    sender.push(1, append(3, b"x"));
    assert_eq!(sender.poll(), None);
    sender.connected();
    let again: Vec<Bytes> = std::iter::from_fn(|| sender.poll()).collect();
    assert_eq!(again[..3], first[..]);
    assert_eq!(number(&again[3]), BatchNo(4));
}

/// The new leader was told that the message is held; only the batch itself ends that (simulation, a message that stayed out
/// with a consumer that had returned it).
#[test]
fn an_earlier_leaders_outcome_does_not_keep_a_batch_from_the_new_one() {
    let mut sender = sender();
    let returned = [(Offset(3), LeaseId(1), End::Returned { counted: true })];
    sender.settle((LOG, CursorId(0), Term(5)), returned, 9);
    let sent = sender.poll().unwrap();
    sender.connected();
    let mut out = Vec::new();
    sender.outcome(BatchNo(1), vec![Outcome::Done(1)], &mut out).unwrap();
    assert_eq!(out, []);
    assert_eq!(sender.poll(), Some(sent));
    sender.outcome(BatchNo(1), vec![Outcome::Done(1)], &mut out).unwrap();
    assert_eq!(out, [Resolved::Settled(9)]);
    assert!(sender.is_idle());
}

/// The leader ended the return's lease by itself before it came; the message was out again, and acked.
#[test]
fn ends_of_two_leases_of_one_message_go_both() {
    let mut sender = sender();
    let key = (LOG, CursorId(0), Term(1));
    sender.settle(key, [(Offset(3), LeaseId(1), End::Returned { counted: true })], 9);
    sender.settle(key, [(Offset(3), LeaseId(2), End::Acked), (Offset(3), LeaseId(1), End::Acked)], 10);
    let batch = Batch::parse(sender.poll().unwrap()).unwrap();
    let Item::Settle(settle) = batch.items().next().unwrap().unwrap().item else { panic!("a settlement") };
    assert_eq!(settle.acked, [OffsetRange::one(Offset(3))]);
    assert_eq!(settle.returned, [Returned { offset: Offset(3), lease: LeaseId(1), counted: true }]);
}

#[test]
fn settlements_pass_while_there_is_no_space() {
    let mut sender = sender();
    let mut out = Vec::new();
    sender.push(1, append(10, b"x"));
    sender.settle((LOG, CursorId(0), Term(1)), [(Offset(5), LeaseId(1), End::Acked)], 20);
    let mixed = sender.poll().unwrap();
    sender.push(1, append(11, b"y"));
    let second = sender.poll().unwrap();
    sender.refused(number(&mixed), Refused::NoSpace, &mut out).unwrap();
    assert_eq!(sender.poll(), None, "the answer to the second batch is still to come");
    sender.gap(number(&second), BatchNo(1), &mut out).unwrap();
    let only_settles = Batch::parse(sender.poll().unwrap()).unwrap();
    assert_eq!(only_settles.number, BatchNo(1), "the number was never proposed, so it is given again");
    let items: Vec<_> = only_settles.items().map(|item| item.unwrap().item).collect();
    assert!(matches!(&items[..], [Item::Settle(settle)] if settle.acked.len() == 1));
    assert!(sender.is_blocked() && sender.poll().is_none());
    sender.outcome(BatchNo(1), vec![Outcome::Done(1)], &mut out).unwrap();
    assert_eq!(out, [Resolved::Settled(20)]);
    sender.unblocked();
    let batch = Batch::parse(sender.poll().unwrap()).unwrap();
    assert_eq!((batch.number, batch.items), (BatchNo(2), 2), "both appends, in order");
}

#[test]
fn a_batch_that_was_sent_twice_keeps_its_number_and_bytes() {
    let mut sender = sender();
    let mut out = Vec::new();
    sender.push(1, append(1, b"x"));
    let first = sender.poll().unwrap();
    sender.connected();
    assert_eq!(sender.poll().unwrap(), first);
    // The first submission may have been proposed: the refusal is of the second one.
    sender.refused(BatchNo(1), Refused::NoSpace, &mut out).unwrap();
    sender.settle((LOG, CursorId(0), Term(1)), [(Offset(5), LeaseId(1), End::Acked)], 20);
    assert_eq!(sender.poll(), None);
    sender.retry();
    assert_eq!(sender.poll().unwrap(), first);
    sender.outcome(BatchNo(1), stored(1), &mut out).unwrap();
    assert_eq!(number(&sender.poll().unwrap()), BatchNo(2));
}

#[test]
fn a_large_body_leaves_room_while_others_publish() {
    let limits = Limits { part_bytes: 1000, part_bytes_beside: 300, parts_beside: 2, ..Limits::default() };
    let mut sender = Sender::new(SESSION, limits);
    sender.connected();
    sender.push_upload(1, upload(50, 60));
    sender.published_beside();
    let parts = |bytes: Bytes| {
        let items: Vec<_> = Batch::parse(bytes).unwrap().items().map(|item| item.unwrap().item).collect();
        items.iter().map(|item| if let Item::Part { bytes, .. } = item { bytes.len() } else { 0 }).sum()
    };
    let mut sent: Vec<Vec<usize>> = Vec::new();
    for first in [1, 2, 3] {
        sent.push(std::iter::from_fn(|| sender.poll()).map(parts).collect());
        sender.outcome(BatchNo(first), stored(1), &mut Vec::new()).unwrap();
    }
    assert_eq!(sent, [vec![300], vec![300, 1000, 1000], vec![1000]]);
}

#[test]
fn a_large_body_goes_in_parts_and_only_its_own_stream_waits() {
    let mut sender = sender();
    sender.push_upload(1, upload(50, 25));
    sender.push(1, append(51, b"after"));
    sender.push(2, append(60, b"other"));
    let mut order = Vec::new();
    let mut part_bytes = 0;
    while let Some(bytes) = sender.poll() {
        for item in Batch::parse(bytes).unwrap().items() {
            match item.unwrap().item {
                Item::Append { record, .. } if record.upload() == 50 => order.push("end"),
                Item::Append { record, .. } => {
                    order.push(if &record.body()[..] == b"after" { "after" } else { "other" });
                }
                Item::Part { upload, bytes, .. } => {
                    assert_eq!(upload, 50);
                    part_bytes += bytes.len();
                    order.push("part");
                }
                _ => {}
            }
        }
    }
    assert_eq!(part_bytes, 2500);
    assert_eq!(order, ["other", "part", "part", "part", "end", "after"]);
}

#[test]
fn parts_without_an_outcome_are_few_and_others_pass_them() {
    let mut sender = sender();
    let mut out = Vec::new();
    sender.push_upload(1, upload(50, 100));
    let sent = std::iter::from_fn(|| sender.poll()).count();
    assert_eq!(sent, Limits::default().parts_in_flight_max);
    sender.push(2, append(60, b"other"));
    assert!(sender.poll().is_some(), "a small message of another stream goes at once");
    assert_eq!(sender.poll(), None);
    sender.outcome(BatchNo(1), vec![Outcome::Done(0)], &mut out).unwrap();
    assert!(sender.poll().is_some(), "the next part follows the outcome of one");
    assert_eq!(sender.poll(), None);
}

#[test]
fn dropped_targets_count_as_gone_and_one_that_is_left_as_stored() {
    let mut sender = sender();
    let mut out = Vec::new();
    for tag in 0..3 {
        sender.push(1, append(tag, b"x"));
    }
    sender.poll().unwrap();
    let dropped = (LogId(2), Err(Refusal::DroppedLog));
    let outcomes = vec![
        Outcome::Appended(vec![dropped]),
        Outcome::Appended(vec![dropped, (LOG, Ok(Offset(3)))]),
        Outcome::Appended(vec![(LOG, Err(Refusal::LimitReached)), (LOG, Ok(Offset(4)))]),
    ];
    sender.outcome(BatchNo(1), outcomes, &mut out).unwrap();
    assert_eq!(
        out,
        [
            Resolved::Appended(0, Appended::Gone),
            Resolved::Appended(1, Appended::Stored),
            Resolved::Appended(2, Appended::Refused(Refusal::LimitReached)),
        ]
    );
}

#[test]
fn an_unknown_session_is_doubted_for_a_while_and_then_believed() {
    let mut sender = Sender::new(SESSION, Limits { tries_max: 2, ..Limits::default() });
    sender.connected();
    sender.push(1, append(1, b"x"));
    for _ in 0..2 {
        let batch = sender.poll().unwrap();
        sender.refused(number(&batch), Refused::Session, &mut Vec::new()).unwrap();
        sender.retry();
    }
    let batch = sender.poll().unwrap();
    let error = sender.refused(number(&batch), Refused::Session, &mut Vec::<Resolved<u64>>::new());
    assert_eq!(error, Err(SenderError::SessionClosed));
    assert_eq!(sender.into_tags(), [1]);
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// A shard as the gateway may see it: a committed log of applied batches, a leader with a tail that may be lost, and
/// a stream in each direction that may die.
#[derive(Default)]
struct Shard {
    applied: u64,
    outcomes: BTreeMap<u64, usize>,
    appended: Vec<u64>,
    settled: BTreeSet<u64>,
    settled_count: usize,
    parts: BTreeMap<u64, usize>,
    proposed: VecDeque<Bytes>,
    full: bool,
}

enum Answer {
    Outcome(u64, usize),
    Gap(u64, u64),
    Refused(u64, Refused),
}

impl Shard {
    fn submit(&mut self, bytes: Bytes, random: &mut Random, answers: &mut VecDeque<Answer>) {
        let batch = Batch::parse(bytes.clone()).unwrap();
        batch.verify().unwrap();
        let has_append =
            batch.items().any(|i| matches!(i.unwrap().item, Item::Append { .. } | Item::Part { .. }));
        if self.full && has_append {
            answers.push_back(Answer::Refused(batch.number.0, Refused::NoSpace));
        } else if random.below(20) == 0 {
            answers.push_back(Answer::Refused(batch.number.0, Refused::Busy));
        } else {
            self.proposed.push_back(bytes);
        }
    }

    /// Applies the oldest proposal: numbers without gaps, a second one is answered with the first one's outcome.
    fn apply(&mut self, answers: &mut VecDeque<Answer>) {
        let Some(bytes) = self.proposed.pop_front() else { return };
        let batch = Batch::parse(bytes).unwrap();
        let number = batch.number.0;
        if number > self.applied + 1 {
            return answers.push_back(Answer::Gap(number, self.applied + 1));
        }
        if number <= self.applied {
            let outcome = self.outcomes.get(&number).copied();
            return answers.push_back(Answer::Outcome(number, outcome.expect("within the last 32")));
        }
        for item in batch.items() {
            match item.unwrap().item {
                Item::Append { record, .. } => {
                    let body = record.body();
                    let tag = if record.upload() != 0 {
                        assert_eq!(
                            self.parts.get(&record.upload()),
                            Some(&2500),
                            "an upload without all parts"
                        );
                        record.upload()
                    } else {
                        u64::from_le_bytes(body[..8].try_into().unwrap())
                    };
                    self.appended.push(tag);
                }
                Item::Part { upload, bytes, .. } => *self.parts.entry(upload).or_default() += bytes.len(),
                Item::Settle(settle) => {
                    for range in settle.acked {
                        for offset in range.first.0..=range.last.0 {
                            self.settled.insert(offset);
                            self.settled_count += 1;
                        }
                    }
                }
                _ => {}
            }
        }
        self.applied = number;
        self.outcomes.insert(number, batch.items);
        self.outcomes.retain(|n, _| n + 32 > number);
        answers.push_back(Answer::Outcome(number, batch.items));
    }
}

struct World {
    sender: Sender<u64>,
    shard: Shard,
    random: Random,
    to_shard: VecDeque<Bytes>,
    answers: VecDeque<Answer>,
    resolved: BTreeMap<u64, usize>,
    next: u64,
}

impl World {
    fn new(seed: u64) -> World {
        let limits = Limits {
            batch_bytes_max: 4096,
            eager_batches: 4,
            eager_bytes: 512,
            part_bytes: 700,
            tries_max: 1000,
            ..Limits::default()
        };
        World {
            sender: Sender::new(SESSION, limits),
            shard: Shard::default(),
            random: Random(seed),
            to_shard: VecDeque::new(),
            answers: VecDeque::new(),
            resolved: BTreeMap::new(),
            next: 0,
        }
    }

    /// Streams: tags are `n * 4 + stream`; settlements have odd thousands.
    fn send(&mut self) {
        let n = self.next;
        self.next += 1;
        let stream = self.random.below(4);
        let tag = n * 4 + stream;
        match self.random.below(10) {
            0 => self.sender.push_upload(stream, upload(1 << 40 | tag, 25)),
            1..=3 => {
                let tag = 1 << 50 | tag;
                self.sender.settle((LOG, CursorId(0), Term(1)), [(Offset(n), LeaseId(1), End::Acked)], tag);
            }
            _ => {
                let mut body = tag.to_le_bytes().to_vec();
                body.resize(8 + self.random.below(300) as usize, 0);
                self.sender.push(stream, append(tag, &body));
            }
        }
    }

    fn pump(&mut self) {
        while let Some(batch) = self.sender.poll() {
            self.to_shard.push_back(batch);
        }
    }

    fn answer(&mut self) {
        let Some(answer) = self.answers.pop_front() else { return };
        let mut out = Vec::new();
        match answer {
            Answer::Outcome(number, items) => {
                // The model needs only the kinds, which follow from the tags.
                self.sender.outcome(BatchNo(number), stored(items), &mut out).unwrap();
            }
            Answer::Gap(number, expected) => {
                self.sender.gap(BatchNo(number), BatchNo(expected), &mut out).unwrap();
            }
            Answer::Refused(number, why) => self.sender.refused(BatchNo(number), why, &mut out).unwrap(),
        }
        for resolved in out {
            let (Resolved::Appended(tag, _) | Resolved::Settled(tag)) = resolved;
            *self.resolved.entry(tag).or_default() += 1;
        }
    }

    /// The stream dies; a new leader may have lost proposals that were not committed.
    fn reconnect(&mut self) {
        self.to_shard.clear();
        self.answers.clear();
        let lost = self.random.below(self.shard.proposed.len() as u64 + 1) as usize;
        let kept = self.shard.proposed.len() - lost;
        self.shard.proposed.truncate(kept);
        self.sender.disconnected();
        self.sender.connected();
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..=29 => self.send(),
            30..=59 => {
                if let Some(batch) = self.to_shard.pop_front() {
                    self.shard.submit(batch, &mut self.random, &mut self.answers);
                }
            }
            60..=79 => self.shard.apply(&mut self.answers),
            80..=94 => self.answer(),
            95 => self.reconnect(),
            96 => self.shard.full = true,
            97 => {
                self.shard.full = false;
                self.sender.unblocked();
            }
            _ => self.sender.retry(),
        }
        self.pump();
    }

    fn finish(&mut self) {
        self.shard.full = false;
        self.sender.connected();
        self.to_shard.clear();
        self.answers.clear();
        for _ in 0..100_000 {
            self.pump();
            if self.sender.is_idle() {
                break;
            }
            match self.to_shard.pop_front() {
                Some(batch) => self.shard.submit(batch, &mut self.random, &mut self.answers),
                None if self.answers.is_empty() && self.shard.proposed.is_empty() => self.sender.retry(),
                None => {}
            }
            self.shard.apply(&mut self.answers);
            self.answer();
        }
    }
}

#[test]
fn nothing_is_doubled_lost_or_overtaken_whatever_happens() {
    for seed in 0..150 {
        let mut world = World::new(seed * 7919 + 1);
        world.sender.connected();
        for _ in 0..3000 {
            world.step();
        }
        world.finish();
        assert!(world.sender.is_idle(), "seed {seed}: something is stuck");
        assert_eq!(world.sender.pending_bytes(), 0, "seed {seed}");
        assert_eq!(world.resolved.len() as u64, world.next, "seed {seed}: each send has an outcome");
        assert!(world.resolved.values().all(|n| *n == 1), "seed {seed}: and only one");
        let appended = &world.shard.appended;
        let distinct: BTreeSet<u64> = appended.iter().copied().collect();
        assert_eq!(distinct.len(), appended.len(), "seed {seed}: doubled");
        assert_eq!(world.shard.settled.len(), world.shard.settled_count, "seed {seed}: settled twice");
        assert_eq!(distinct.len() + world.shard.settled.len(), world.next as usize, "seed {seed}: lost");
        for stream in 0..4 {
            let mine: Vec<u64> =
                appended.iter().map(|tag| tag & ((1 << 40) - 1)).filter(|tag| tag % 4 == stream).collect();
            assert!(mine.is_sorted(), "seed {seed}: stream {stream} was overtaken");
        }
    }
}
