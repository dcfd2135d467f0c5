//! Which settlements may be proposed. **The node passes every gateway batch through [`Delivery::admit_batch`] before it
//! proposes it**; apply believes what it gets.
//!
//! The rule: an ack or a refusal is dropped if the message is out to another session (a settle of an older term, or of a
//! lease that ended); a return is kept only if the message is out under the very lease that it names, and the leader is not
//! ending that one by itself already: the return would be counted twice.
//! A changed batch is encoded anew with the same session, number and items, so that outcomes keep their places.

use crate::command::QueueId;
use crate::core::Done;
use crate::delivery::Delivery;
use crate::durable::Durable;
use crate::leases::Lease;
use crate::view::{CursorView, View};
use bytes::Bytes;
use longshore_wire::batch::{Batch, BatchBuilder, Item, Returned, Settle};
use longshore_wire::{DecodeError, Offset, OffsetRange, SessionId, Term};

/// Of what one settlement settled in vain: as many messages are not claimed by a report that comes after the answer.
const SETTLED_IN_VAIN_MAX: usize = 4_096;

impl Delivery {
    /// The settle to propose instead of `settle`, `None`: as it is. Its returns count as under way from now on.
    pub fn admit_settle(&mut self, settle: &Settle, session: SessionId) -> Option<Settle> {
        if !self.leading {
            return None;
        }
        let queue = QueueId { log: settle.log, cursor: settle.cursor };
        if settle.term < self.core.term {
            let durable = self.durable.get(&queue);
            let is_out = |back: &Returned| {
                let lease = durable.and_then(|durable| durable.desk.leases.get(back.offset));
                lease.is_some_and(|lease| lease.is(back.lease, settle.term))
            };
            for back in settle.returned.iter().filter(|back| !is_out(back)) {
                self.core.note_done_early(session, queue, returned_under(settle.term, back));
            }
        }
        let Some(durable) = self.durable.get_mut(&queue) else {
            let nothing_out = Settle { returned: Vec::new(), ..settle.clone() };
            return (!settle.returned.is_empty()).then_some(nothing_out);
        };
        let admitted = Settle {
            acked: not_with_others(&settle.acked, session, durable),
            returned: own_returns(&settle.returned, (session, settle.term), durable),
            dead: settle.dead.iter().copied().filter(|(at, _)| !with_other(*at, session, durable)).collect(),
            ..*settle
        };
        (admitted != *settle).then_some(admitted)
    }

    /// A batch with `settle` was answered with what it led to before this term; `session` still named what it settles as held
    /// when it attached here, so that is out with it for nothing: what it returned, and what it acked or refused in vain,
    /// because the message was out to another session then (simulation, seeds 1128 and 1573).
    pub fn already_applied(&mut self, session: SessionId, settle: &Settle, shard: &impl View) {
        if !self.leading || settle.term >= self.core.term {
            // Of this term the leases say it all, and one may be of a later delivery to the same session.
            return;
        }
        let queue = QueueId { log: settle.log, cursor: settle.cursor };
        let cursor = shard.cursor(settle.log, settle.cursor);
        // A queue where nothing is out may be forgotten; the report is still to come then.
        let mut durable = self.durable.get_mut(&queue);
        for back in &settle.returned {
            let lease = durable.as_ref().and_then(|durable| durable.desk.leases.get(back.offset));
            let Some(lease) = lease else {
                // (simulation, seed 3735)
                self.core.note_done_early(session, queue, returned_under(settle.term, back));
                continue;
            };
            if lease.owner.session == session
                && lease.is(back.lease, settle.term)
                && let Some(durable) = &mut durable
            {
                durable.returned(back, settle.term, &mut self.core);
                self.agenda.mark(queue);
            }
        }
        let mut notes = if self.core.reported.contains(&session) { 0 } else { SETTLED_IN_VAIN_MAX };
        let dead = settle.dead.iter().map(|(at, _)| OffsetRange::one(*at));
        for range in settle.acked.iter().copied().chain(dead) {
            if let Some(durable) = &mut durable {
                for at in durable.desk.leases.of_term(session, settle.term, range) {
                    durable.take_back(at, &mut self.core);
                    self.agenda.mark(queue);
                }
            }
            let unsettled = cursor.iter().flat_map(|cursor| unsettled_in(cursor, range));
            for at in unsettled.take(notes) {
                notes -= 1;
                if durable.as_ref().is_none_or(|durable| !durable.desk.leases.contains(at)) {
                    self.core.note_done_early(session, queue, Done { at, term: settle.term, lease: None });
                }
            }
        }
    }

    /// The bytes to propose instead of `batch`, `None`: as it is.
    ///
    /// Errors: an item that cannot be read; the batch must be refused.
    pub fn admit_batch(&mut self, batch: &Batch) -> Result<Option<Bytes>, DecodeError> {
        let mut changed = None;
        for (n, located) in batch.items().enumerate() {
            if let Item::Settle(settle) = located?.item
                && let Some(admitted) = self.admit_settle(&settle, batch.session)
            {
                changed.get_or_insert_with(Vec::new).push((n, admitted));
            }
        }
        let Some(changed) = changed else { return Ok(None) };
        let mut changed = changed.into_iter().peekable();
        let mut builder = BatchBuilder::new(batch.session);
        for (n, located) in batch.items().enumerate() {
            let item = located?.item;
            match changed.next_if(|(at, _)| *at == n) {
                Some((_, settle)) => builder.push(&Item::Settle(settle)),
                None => builder.push(&item),
            }
        }
        Ok(Some(builder.finish(batch.number)))
    }
}

fn returned_under(term: Term, back: &Returned) -> Done {
    Done { at: back.offset, term, lease: Some(back.lease) }
}

/// The offsets of a range that are not settled.
fn unsettled_in(cursor: &impl CursorView, range: OffsetRange) -> impl Iterator<Item = Offset> {
    let next = move |from: Offset| cursor.next_unsettled(from).filter(|at| *at <= range.last);
    std::iter::successors(next(range.first), move |at| next(at.plus(1)))
}

fn with_other(at: Offset, session: SessionId, durable: &Durable) -> bool {
    durable.desk.leases.get(at).is_some_and(|lease| lease.owner.session != session)
}

/// `ranges` without what is out to other sessions.
fn not_with_others(ranges: &[OffsetRange], session: SessionId, durable: &Durable) -> Vec<OffsetRange> {
    let mut kept = Vec::with_capacity(ranges.len());
    for range in ranges {
        let mut first = range.first;
        let others = durable.desk.leases.range(*range).filter(|(_, lease)| lease.owner.session != session);
        for (at, _) in others {
            if at > first {
                kept.push(OffsetRange { first, last: Offset(at.0 - 1) });
            }
            first = at.plus(1);
        }
        if first <= range.last {
            kept.push(OffsetRange { first, last: range.last });
        }
    }
    kept
}

fn own_returns(
    returned: &[Returned],
    (session, term): (SessionId, Term),
    durable: &mut Durable,
) -> Vec<Returned> {
    let leases = &mut durable.desk.leases;
    let mut kept = Vec::with_capacity(returned.len());
    for back in returned {
        let own =
            |lease: &Lease| lease.owner.session == session && lease.is(back.lease, term) && !lease.ending;
        if leases.get(back.offset).as_ref().is_some_and(own) {
            leases.set_returning(back.offset);
            kept.push(*back);
        }
    }
    kept
}
