//! A world around delivery: the real shard state machine, a record store of rows, proposals that are applied at once.
//! Shared by the transcripts and the model test.

use bytes::Bytes;
use longshore_delivery::{Action, Actions, Attach, Config, ConsumerKey, Delivery, LoadId, Mode, QueueId};
use longshore_io::Mono;
use longshore_shard::{Effects, Shard};
use longshore_wire::batch::{Batch, BatchBuilder, Item};
use longshore_wire::context::EntryContext;
use longshore_wire::record::{Form, NewRecord};
use longshore_wire::row::Row;
use longshore_wire::{
    BatchNo, CursorId, INTERNAL_SESSION, Index, LogId, LogTime, Offset, SessionId, ShardId, Term,
};
use std::collections::BTreeMap;

/// A consumer of a log's own cursor, for the first time, with nothing special about it.
pub fn attach(key: ConsumerKey, log: LogId, credit: u64) -> Attach {
    Attach {
        key,
        queue: QueueId { log, cursor: CursorId(0) },
        mode: Mode::Settle,
        exclusive: false,
        single_active: false,
        priority: 0,
        credit_messages: credit,
        credit_bytes: u64::MAX,
        lease_ms: None,
        held: vec![],
        attempt: 1,
    }
}

pub struct World {
    pub shard: Shard,
    pub delivery: Delivery,
    pub now: Mono,
    pub term: Term,
    pub may_deliver: bool,
    /// While set, rows are not answered and proposals are not applied, but wait here.
    pub hold: bool,
    pub held_items: Vec<Item>,
    pub held_loads: Vec<Action>,
    /// The next questions fail.
    pub failures: u32,
    rows: BTreeMap<LogId, Vec<Row>>,
    numbers: BTreeMap<SessionId, u64>,
    index: u64,
}

/// What a message is sent with.
#[derive(Clone, Copy, Default)]
pub struct Publish {
    pub ttl_ms: Option<u64>,
    pub delay_ms: u64,
    pub priority: u8,
    pub count: u32,
}

impl World {
    pub fn new(config: Config) -> World {
        let mut world = World {
            shard: Shard::new(ShardId(1)),
            delivery: Delivery::new(ShardId(1), config),
            now: Mono(1_000_000),
            term: Term(0),
            may_deliver: true,
            hold: false,
            held_items: Vec::new(),
            held_loads: Vec::new(),
            failures: 0,
            rows: BTreeMap::new(),
            numbers: BTreeMap::new(),
            index: 0,
        };
        world.lead(1);
        world
    }

    /// Log time runs with the clock.
    pub fn log_time(&self) -> LogTime {
        LogTime(self.now.0 / 1_000)
    }

    /// A new leader takes over (the same state, delivery from nothing). What was not applied is lost; what the
    /// record store was asked before is answered late.
    pub fn lead(&mut self, term: u64) -> Actions {
        let mut out = Vec::new();
        self.delivery.resign(&mut out);
        self.held_items.clear();
        let late = std::mem::take(&mut self.held_loads);
        self.term = Term(term);
        self.apply(Bytes::new());
        self.delivery.become_leader(self.now, self.term, &self.shard);
        late.into_iter().for_each(|load| self.answer(load));
        out
    }

    fn apply(&mut self, data: Bytes) -> Effects {
        let mut effects = Effects::default();
        self.index += 1;
        let stamp = EntryContext { stamp: self.log_time() };
        self.shard.apply(Index(self.index), self.term, &stamp, &data, &mut effects);
        for event in &effects.events {
            self.delivery.on_event(self.now, event, &self.shard);
        }
        for row in &effects.rows {
            self.rows.entry(row.log).or_default().push(row.clone());
        }
        self.delivery.appended_rows(&effects.rows, &self.shard);
        effects
    }

    /// A command of the leader's own.
    pub fn command(&mut self, item: Item) {
        let mut builder = BatchBuilder::new(INTERNAL_SESSION);
        builder.push(&item);
        self.apply(builder.finish(BatchNo(0)));
    }

    /// A gateway's batch, as the node treats it: admitted, then applied.
    pub fn submit(&mut self, session: SessionId, items: &[Item]) {
        let number = self.numbers.entry(session).or_insert(0);
        *number += 1;
        let mut builder = BatchBuilder::new(session);
        items.iter().for_each(|item| builder.push(item));
        let batch = Batch::parse(builder.finish(BatchNo(*number))).unwrap();
        let admitted = self.delivery.admit_batch(&batch).unwrap();
        self.apply(admitted.unwrap_or_else(|| batch.bytes().clone()));
    }

    /// Appends one message; its first offset.
    pub fn publish(&mut self, log: LogId, body: &str, how: Publish) -> Offset {
        let offset = self.shard.log(log).unwrap().next();
        let mut builder = BatchBuilder::new(INTERNAL_SESSION);
        let targets = [log];
        let new = record(&targets, how);
        builder.append(None, &new, &[Bytes::copy_from_slice(body.as_bytes())]).unwrap();
        self.apply(builder.finish(BatchNo(0)));
        offset
    }

    /// Turns until nothing more happens; what went to gateways, and what was proposed (and applied).
    pub fn pump(&mut self) -> Actions {
        let mut seen = Vec::new();
        for _ in 0..10_000 {
            let mut actions = Vec::new();
            let log_time = self.log_time();
            self.delivery.turn(self.now, log_time, self.may_deliver, &self.shard, &mut actions);
            let idle = actions.is_empty();
            let mut items = Vec::new();
            for action in actions {
                self.must_be_unsettled(&action);
                match action {
                    Action::Propose(item) => {
                        seen.push(Action::Propose(item.clone()));
                        items.push(item);
                    }
                    Action::LoadRows { .. } | Action::FindTime { .. } => self.held_loads.push(action),
                    other => seen.push(other),
                }
            }
            self.held_items.extend(items);
            if !self.hold {
                self.release();
            }
            if idle && self.delivery.next_deadline().is_none_or(|at| at > self.now || !self.may_deliver) {
                return seen;
            }
        }
        panic!("the turns do not end: {:?}", self.delivery.counters());
    }

    fn must_be_unsettled(&self, action: &Action) {
        let (Action::Deliver { handed, .. } | Action::Got { result: Ok(Some(handed)), .. }) = action else {
            return;
        };
        let cursor = self.shard.log(handed.log).and_then(|log| log.cursor(handed.cursor));
        if handed.lease.0 > 0
            && let Some(cursor) = cursor
        {
            assert!(!cursor.is_settled(handed.offset), "settled and delivered: {handed:?}");
        }
    }

    /// Answers what waits and applies what was proposed.
    pub fn release(&mut self) {
        self.release_loads();
        for item in std::mem::take(&mut self.held_items) {
            self.command(item);
        }
    }

    /// Answers the loads that wait.
    pub fn release_loads(&mut self) {
        for load in std::mem::take(&mut self.held_loads) {
            self.answer(load);
        }
    }

    /// Applies the first of what was proposed and waits.
    pub fn release_one(&mut self) {
        if !self.held_items.is_empty() {
            let item = self.held_items.remove(0);
            self.command(item);
        }
    }

    fn answer(&mut self, load: Action) {
        match load {
            Action::LoadRows { id, .. } | Action::FindTime { id, .. } if self.failures > 0 => {
                self.failures -= 1;
                self.delivery.load_failed(self.now, id);
            }
            Action::LoadRows { id, log, from, max } => {
                let rows = self.read(log, from, max);
                self.delivery.rows_loaded(self.now, id, rows, &self.shard);
            }
            Action::FindTime { id, log, time } => self.find(id, log, time),
            _ => {}
        }
    }

    fn read(&self, log: LogId, from: Offset, max: u32) -> Vec<Row> {
        let first = self.shard.log(log).map_or(Offset(0), |log| log.first());
        let rows = self.rows.get(&log).map_or(&[][..], Vec::as_slice);
        let start = rows.partition_point(|row| row.end() <= from.max(first));
        rows[start..].iter().take(max as usize).cloned().collect()
    }

    fn find(&mut self, id: LoadId, log: LogId, time: LogTime) {
        let rows = self.rows.get(&log).map_or(&[][..], Vec::as_slice);
        let at = rows.iter().find(|row| row.time >= time).map(|row| row.offset);
        let next = self.shard.log(log).map_or(Offset(0), |log| log.next());
        self.delivery.time_found(id, at.unwrap_or(next));
    }

    /// Lets time pass, as far as the next timer at most at each step, so that nothing is skipped.
    pub fn wait(&mut self, ms: u64) -> Actions {
        let end = self.now.plus_ms(ms);
        let mut seen = self.pump();
        while let Some(at) = self.delivery.next_deadline()
            && at <= end
            && self.may_deliver
        {
            self.now = self.now.max(at);
            seen.extend(self.pump());
        }
        self.now = end;
        seen.extend(self.pump());
        seen
    }
}

/// A record with the options of `how`.
pub fn record<'a>(targets: &'a [LogId], how: Publish) -> NewRecord<'a> {
    let mut new = NewRecord::plain(Form::Amqp, targets, b"key", b"");
    new.ttl_ms = how.ttl_ms.unwrap_or(new.ttl_ms);
    new.delay_ms = how.delay_ms;
    new.priority = how.priority;
    new.count = how.count.max(1);
    new
}
