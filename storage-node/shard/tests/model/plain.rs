//! The plain model: one entry per message, one number per session.

use crate::commands::REWIND_SLOT_MS;
use crate::common::Put;
use bytes::Bytes;
use longshore_shard::{BatchResult, Effects, Event, OWN_CURSOR, Shard};
use longshore_wire::batch::Item;
use longshore_wire::outcome::{self, Outcome, Refusal};
use longshore_wire::record::flags;
use longshore_wire::spec::{LogKind, LogSpec};
use longshore_wire::{LeaseId, LogId, LogTime, Offset, OffsetRange};
use std::collections::{BTreeMap, VecDeque};

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
pub struct Model {
    pub now: u64,
    logs: BTreeMap<LogId, LogModel>,
    pub sessions: BTreeMap<u64, (u64, VecDeque<Bytes>)>,
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

    pub fn batch(&mut self, after_ms: u64, session: u64, number: u64, puts: &[Put], effects: &Effects) {
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

    pub fn compare(&self, shard: &Shard) {
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
