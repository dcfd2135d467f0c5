//! One committed entry: whether its batch is the session's next, then item by item.
//!
//! Danger: everything here runs on every replica and must come to the same state everywhere, whatever the bytes. No
//! item may fail half-way: it is checked first and carried out then. Called by the node's turn loop.

use crate::effects::{BatchResult, Effects, Event};
use crate::producers::Claim;
use crate::sessions::Admission;
use crate::tokens::Targets;
use crate::{Log, Position, Shard, Taken};
use bytes::Bytes;
use longshore_wire::batch::{Batch, HEADER_BYTES, Item, Located, Origin, Settle};
use longshore_wire::context::EntryContext;
use longshore_wire::outcome::{self, Outcome, Refusal};
use longshore_wire::record::{NO_TTL, Record, flags};
use longshore_wire::row::{NEVER, Row, Source};
use longshore_wire::{
    BatchNo, CursorId, DecodeError, INTERNAL_SESSION, Index, LogId, LogTime, Offset, OffsetRange, SessionId,
    Term,
};

/// What all items of an entry share.
#[derive(Clone, Copy, Debug)]
struct Entry {
    index: Index,
    session: SessionId,
    now: LogTime,
}

/// Reads all items, or none: a batch is malformed as a whole.
fn read_items(batch: &Batch) -> Result<Vec<Located>, DecodeError> {
    let mut items = Vec::with_capacity(batch.items.min(1024));
    for located in batch.items() {
        items.push(located?);
    }
    let end = items.last().map_or(HEADER_BYTES, |last| last.start as usize + last.len as usize);
    if end == batch.bytes().len() { Ok(items) } else { Err(DecodeError::Invalid("batch length")) }
}

impl Shard {
    /// Applies one committed entry and adds what it caused to `out`. Never fails: a batch that cannot be read
    /// (or that is empty, as the first entry of a leader's term) changes nothing but the applied index. An
    /// entry at or below the applied index was applied before and changes nothing at all.
    pub fn apply(&mut self, index: Index, term: Term, ctx: &EntryContext, data: &Bytes, out: &mut Effects) {
        if index <= self.applied {
            return;
        }
        self.applied = index;
        self.applied_term = term;
        let Ok(batch) = Batch::parse(data.clone()) else { return };
        let (session, number) = match batch.session {
            INTERNAL_SESSION => (INTERNAL_SESSION, BatchNo(0)),
            session => (session, batch.number),
        };
        let Ok(items) = read_items(&batch) else {
            out.outcomes.push((session, number, BatchResult::Malformed));
            return;
        };
        self.log_time = self.log_time.max(ctx.stamp);
        self.release_rewindable(out);
        let admission = match session {
            INTERNAL_SESSION => Admission::Apply,
            session => self.sessions.admit(session, number),
        };
        let result = match admission {
            Admission::Apply => {
                let entry = Entry { index, session, now: self.log_time };
                let outcomes: Vec<_> =
                    items.into_iter().map(|located| self.item(entry, located, out)).collect();
                let encoded = outcome::encode(&outcomes);
                self.sessions.applied(session, number, encoded.clone());
                BatchResult::Outcomes(encoded)
            }
            Admission::Known(outcomes) => BatchResult::Outcomes(outcomes),
            Admission::Gap(expected) => BatchResult::Gap { expected },
            Admission::Unknown => BatchResult::UnknownSession,
        };
        out.outcomes.push((session, number, result));
    }

    /// Frees rewindable messages whose time is over.
    fn release_rewindable(&mut self, out: &mut Effects) {
        while let Some((at, log, cursor)) = self.releases.first().copied()
            && at <= self.log_time
        {
            self.releases.pop_first();
            let now = self.log_time;
            let Ok(changed) = self.logs.change(log) else { continue };
            let rewind_ms = changed.spec().rewind_ms;
            let Ok(state) = changed.cursor_mut(cursor) else { continue };
            out.release(log, state.release(now, rewind_ms));
            if let Some(next) = state.next_release(rewind_ms) {
                self.releases.insert((next, log, cursor));
            }
        }
    }

    fn item(&mut self, entry: Entry, located: Located, out: &mut Effects) -> Outcome {
        let place = Source { index: entry.index, start: located.start, len: located.len };
        let done = match located.item {
            Item::Append { origin, record } => return self.append(entry, origin, &record, place, out),
            Item::Part { upload, .. } => self.sessions.part(entry.session, upload, place).map(|()| 1),
            Item::Settle(settle) => self.settle(entry, settle, out),
            Item::CreateLog { log, spec } => {
                let created = self.logs.create(log, spec, entry.now);
                out.events.extend(match created {
                    Ok(true) => Some(Event::Created { log }),
                    Ok(false) => None,
                    Err(why) => Some(Event::NotCreated { log, why }),
                });
                created.map(u64::from)
            }
            Item::DropLog { log, .. } => {
                let dropped = self.logs.remove(log);
                out.events.extend(dropped.then_some(Event::Dropped { log }));
                Ok(u64::from(dropped))
            }
            Item::Purge { log, cursor, end, leased } => self.purge(entry, (log, cursor), end, &leased, out),
            Item::OpenSession(session) => self.sessions.open(session).map(|opened| {
                out.events.extend(opened.then_some(Event::SessionOpened(session)));
                u64::from(opened)
            }),
            Item::CloseSession(session) => {
                let closed = self.sessions.close(session);
                out.events.extend(closed.then_some(Event::SessionClosed(session)));
                Ok(u64::from(closed))
            }
            Item::Expire { log, cursor, ranges } => self.expire(log, cursor, &ranges, out),
            Item::Take { log, cursor, offset, lease, until } => {
                let taken = Taken { lease, until };
                self.take(entry, (log, cursor), offset, taken, out)
            }
            Item::CommitPosition { log, name, offset } => self.commit_position(entry, log, name, offset, out),
            Item::Rewind { log, cursor, to } => self.rewind(entry, log, cursor, to, out),
            Item::Trim { log, start } => self.trim(log, start, out),
        };
        done.map_or_else(Outcome::Refused, Outcome::Done)
    }

    fn append(
        &mut self,
        entry: Entry,
        origin: Option<Origin>,
        record: &Record,
        place: Source,
        out: &mut Effects,
    ) -> Outcome {
        // The record ends its upload whatever becomes of it.
        let parts = match record.flags() & flags::PARTS {
            0 => Vec::new(),
            _ => match self.sessions.end_upload(entry.session, record.upload()) {
                Some(parts) => parts,
                None => return Outcome::Refused(Refusal::UnknownUpload),
            },
        };
        let token = match origin {
            Some(Origin::Token { scope, id, attempt }) => Some((scope, id, attempt)),
            _ => None,
        };
        if let Some(targets) = token.and_then(|token| self.tokens.get(token)) {
            return Outcome::Appended(targets.clone());
        }
        let claim = match origin {
            Some(Origin::Producer { id, epoch, sequence }) => {
                Some(Claim { producer: id, epoch, sequence, count: record.count() })
            }
            _ => None,
        };
        let mut targets: Targets = Vec::with_capacity(record.target_count());
        for log in record.targets() {
            let result = self.append_to(entry, log, claim, record, (place, &parts), out);
            targets.push((log, result));
        }
        if let Some(token) = token
            && targets.iter().any(|(_, result)| result.is_ok())
        {
            self.tokens.remember(token, targets.clone(), entry.now);
        }
        Outcome::Appended(targets)
    }

    fn append_to(
        &mut self,
        entry: Entry,
        log: LogId,
        claim: Option<Claim>,
        record: &Record,
        (place, parts): (Source, &[Source]),
        out: &mut Effects,
    ) -> Result<Offset, Refusal> {
        let target = self.logs.change(log)?;
        if let Some(claim) = claim
            && let Some(offset) = self.producers.check(claim, log)?
        {
            return Ok(offset);
        }
        let count = record.count();
        let delay = Some(record.delay_ms()).filter(|delay| *delay > 0);
        let due = delay.map(|delay| LogTime(entry.now.0.saturating_add(delay)));
        let ttl = record.ttl_ms().min(target.spec().ttl_ms.unwrap_or(NO_TTL));
        let expiry = if ttl == NO_TTL { NEVER } else { LogTime(entry.now.0.saturating_add(ttl)) };
        let offset = target.append(count, due, entry.now)?;
        let next = target.next();
        if let Some(claim) = claim {
            self.producers.appended(claim, log, offset, entry.now);
        }
        out.rows.push(Row {
            log,
            offset,
            count,
            time: entry.now,
            client_time_ms: record.client_time_ms(),
            due: due.unwrap_or_default(),
            expiry,
            priority: record.priority(),
            key_hash: record.key_hash(),
            record: place,
            parts: parts.to_vec(),
        });
        out.appended(log, offset, next);
        Ok(offset)
    }

    fn settle(&mut self, entry: Entry, settle: Settle, out: &mut Effects) -> Result<u64, Refusal> {
        let Settle { log, cursor, term, mut acked, returned, dead } = settle;
        // No log has a dead-letter target yet: what is refused for good is done with.
        acked.extend(dead.iter().map(|(offset, _)| OffsetRange::one(*offset)));
        let target = self.logs.change(log)?;
        let keep = target.keep(entry.now);
        let state = target.cursor_mut(cursor)?;
        let ranges = state.settle(&acked, keep);
        let back: Vec<_> =
            returned.into_iter().filter(|back| state.give_back(back.offset, back.counted)).collect();
        let count = ranges.iter().map(OffsetRange::count).sum::<u64>() + back.len() as u64;
        self.settled(log, cursor, &ranges, out);
        if !ranges.is_empty() {
            out.events.push(Event::Settled { log, cursor, ranges });
        }
        if !back.is_empty() {
            out.events.push(Event::Returned { log, cursor, term, returned: back });
        }
        Ok(count)
    }

    /// Frees what was settled, or sees to it that it will be freed once it is no longer rewindable.
    fn settled(&mut self, log: LogId, cursor: CursorId, ranges: &[OffsetRange], out: &mut Effects) {
        if ranges.is_empty() {
            return;
        }
        let Some(target) = self.logs.get(log) else { return };
        let rewind_ms = target.spec().rewind_ms;
        if rewind_ms == 0 {
            out.release(log, ranges.to_vec());
        } else if let Some(at) = target.cursor(cursor).and_then(|state| state.next_release(rewind_ms)) {
            self.releases.insert((at, log, cursor));
        }
    }

    fn purge(
        &mut self,
        entry: Entry,
        (log, cursor): (LogId, CursorId),
        end: Offset,
        leased: &[OffsetRange],
        out: &mut Effects,
    ) -> Result<u64, Refusal> {
        let state = self.logs.change(log)?.cursor_mut(cursor)?;
        let (count, released) = state.purge(end, leased, entry.now);
        out.release(log, released);
        // Also when nothing was left to purge: somebody waits for the answer.
        out.events.push(Event::Purged { log, cursor, end, count });
        Ok(count)
    }

    fn expire(
        &mut self,
        log: LogId,
        cursor: CursorId,
        ranges: &[OffsetRange],
        out: &mut Effects,
    ) -> Result<u64, Refusal> {
        let state = self.logs.change(log)?.cursor_mut(cursor)?;
        let ranges = state.settle(ranges, None);
        if !ranges.is_empty() {
            out.release(log, ranges.clone());
            out.events.push(Event::Expired { log, cursor, ranges: ranges.clone() });
        }
        Ok(ranges.iter().map(OffsetRange::count).sum())
    }

    fn take(
        &mut self,
        entry: Entry,
        (log, cursor): (LogId, CursorId),
        offset: Offset,
        taken: Taken,
        out: &mut Effects,
    ) -> Result<u64, Refusal> {
        let state = self.logs.change(log)?.cursor_mut(cursor)?;
        let done = state.take(offset, taken, entry.now)?;
        if done {
            let Taken { lease, until } = taken;
            out.events.push(Event::Taken { log, cursor, offset, lease, until });
        }
        Ok(u64::from(done))
    }

    fn commit_position(
        &mut self,
        entry: Entry,
        log: LogId,
        name: Bytes,
        offset: Offset,
        out: &mut Effects,
    ) -> Result<u64, Refusal> {
        let position = Position { offset, time: entry.now };
        self.logs.change(log)?.commit_position(name.clone(), position)?;
        out.events.push(Event::PositionCommitted { log, name, offset });
        Ok(1)
    }

    fn rewind(
        &mut self,
        entry: Entry,
        log: LogId,
        cursor: CursorId,
        to: Offset,
        out: &mut Effects,
    ) -> Result<u64, Refusal> {
        let target = self.logs.change(log)?;
        let (keep, to) = (target.keep(entry.now), to.min(target.next()));
        let (count, newly) = target.cursor_mut(cursor)?.rewind(to, keep);
        self.settled(log, cursor, &newly, out);
        out.events.push(Event::Rewound { log, cursor, to, count });
        Ok(count)
    }

    fn trim(&mut self, log: LogId, start: Offset, out: &mut Effects) -> Result<u64, Refusal> {
        let target: &mut Log = self.logs.change(log)?;
        let Some(freed) = target.trim(start) else { return Ok(0) };
        let first = target.first();
        out.release(log, vec![freed]);
        out.events.push(Event::Trimmed { log, first });
        Ok(freed.count())
    }
}
