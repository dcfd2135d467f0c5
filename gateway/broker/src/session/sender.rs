//! The numbered batches of one session to one shard: exactly one hand-over.
//!
//! Danger: two batches under one number, or one message under two, is a loss or a doubling that nobody sees.
//! Called by `shard.rs` of the runtime, and by the simulation.
//!
//! - A batch gathers whatever arrived while earlier ones were under way; no timer. At most
//!   [`Limits::in_flight_max`] have no outcome. Its bytes are fixed when it is first sent.
//! - Batches without an outcome are sent again, in order, to each new leader or stream; the shard tells a second
//!   submission by its number and answers with the first one's outcome.
//! - A number that the leader declined (no space, busy, a gap before it) holds back all later ones. What was
//!   submitted *exactly once* and declined was never proposed, so it may be taken apart again: that lets
//!   settlements pass while there is no space for publishes. What was submitted twice keeps its number.
//! - Appends without an outcome never go out under another session: a sender is for one session and ends with it.

use super::settles::{End, ITEM_BYTES_MAX, Settles};
use super::work::{Chunk, Line, Tag, Upload};
use bytes::Bytes;
use longshore_proto::v1::Refused;
use longshore_wire::batch::{Batch, Item};
use longshore_wire::outcome::{Outcome, Refusal};
use longshore_wire::{BATCH_BYTES_MAX, BATCHES_IN_FLIGHT_MAX};
use longshore_wire::{BatchNo, CursorId, LeaseId, LogId, Offset, SessionId, Term};
use std::collections::VecDeque;

/// Bounds of a sender.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Batches without an outcome, at most 32: the shard remembers as many.
    pub in_flight_max: usize,
    /// Encoded bytes of a batch.
    pub batch_bytes_max: usize,
    /// Up to so many in flight, a new batch goes at once, however small.
    pub eager_batches: usize,
    /// Beyond that, once so many bytes wait.
    pub eager_bytes: usize,
    /// Bytes of one part of a large body.
    pub part_bytes: usize,
    /// Parts without an outcome: more would only lie in front of what others send.
    pub parts_in_flight_max: usize,
    /// Bytes of one part while others publish, and then one at a time: what they send waits behind it in each log.
    pub part_bytes_beside: usize,
    /// So many parts after the last publish of others, parts have their full size again.
    pub parts_beside: u32,
    /// How often an answer that ends the session is doubted, as long as meta says that the session lives.
    pub tries_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            in_flight_max: BATCHES_IN_FLIGHT_MAX,
            batch_bytes_max: BATCH_BYTES_MAX,
            eager_batches: 3,
            eager_bytes: 64 << 10,
            part_bytes: 256 << 10,
            parts_in_flight_max: 4,
            part_bytes_beside: 64 << 10,
            parts_beside: 64,
            tries_max: 50,
        }
    }
}

/// What became of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// Every target that still exists has it.
    Stored,
    /// All targets are gone.
    Gone,
    /// A target refused it.
    Refused(Refusal),
}

/// An outcome for whoever waits.
#[derive(Debug, PartialEq, Eq)]
pub enum Resolved<T> {
    /// Of an append.
    Appended(T, Appended),
    /// Of a settlement.
    Settled(T),
}

/// Why the session cannot go on in this shard. What has no outcome is unknown; a new session must begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SenderError {
    /// The shard says that the session is unknown or closed.
    #[error("the shard does not know the session any more")]
    SessionClosed,
    /// The shard's answer contradicts what was sent.
    #[error("the shard's answer does not fit what was sent: {0}")]
    Contradiction(&'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// To be sent, or sent again.
    Unsent,
    /// Under way on the current stream.
    Sent,
    /// Answered: nothing was proposed.
    Declined(Decline),
    /// Its outcome came.
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decline {
    /// An earlier number is missing.
    Gap,
    /// Try later.
    Later,
    /// It will never be taken.
    Malformed,
}

#[derive(Debug)]
struct InFlight<T> {
    bytes: Bytes,
    tags: Vec<Tag<T>>,
    submissions: u32,
    state: State,
    /// It carries a part of a large body.
    part: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Sender<T> {
    session: SessionId,
    limits: Limits,
    line: Line<T>,
    settles: Settles<T>,
    /// Contiguous numbers from `first` on.
    in_flight: VecDeque<InFlight<T>>,
    first: u64,
    in_flight_bytes: usize,
    connected: bool,
    /// A number was declined: nothing is sent until all answers of this stream are in.
    holding: bool,
    /// Storage refuses appends.
    blocked: bool,
    /// While blocked: one batch with appends may try.
    probe: bool,
    settles_left_out: bool,
    /// Parts that still go small and one at a time.
    small_parts: u32,
    tries: u32,
    gap_rounds: u32,
}

/// Resends after gaps without any outcome in between, before the next one waits for [`Sender::retry`].
const GAP_ROUNDS_MAX: u32 = 3;

impl<T> Sender<T> {
    /// A sender that has sent nothing; its first batch has number 1.
    pub fn new(session: SessionId, limits: Limits) -> Sender<T> {
        Sender {
            session,
            limits,
            line: Line::default(),
            settles: Settles::default(),
            in_flight: VecDeque::new(),
            first: 1,
            in_flight_bytes: 0,
            connected: false,
            holding: false,
            blocked: false,
            probe: false,
            settles_left_out: false,
            small_parts: 0,
            tries: 0,
            gap_rounds: 0,
        }
    }

    /// Queues appends of a stream (a client connection); order holds per stream.
    pub fn push(&mut self, stream: u64, chunk: Chunk<T>) {
        if !chunk.is_empty() {
            self.line.push(stream, chunk);
        }
    }

    /// Queues a message whose body goes in parts.
    pub fn push_upload(&mut self, stream: u64, upload: Upload<T>) {
        self.line.push_upload(stream, upload);
    }

    /// Queues settlements of one cursor; `tag` is resolved with them.
    pub fn settle(
        &mut self,
        (log, cursor, term): (LogId, CursorId, Term),
        ends: impl IntoIterator<Item = (Offset, LeaseId, End)>,
        tag: T,
    ) {
        self.settles.add((log, cursor, term), ends, Some(tag));
    }

    /// A leader can be reached by a new stream, or a new leader by an old one: whatever has no outcome goes again.
    pub fn connected(&mut self) {
        self.connected = true;
        self.holding = false;
        for batch in &mut self.in_flight {
            if batch.state != State::Done {
                batch.state = State::Unsent;
            }
        }
    }

    /// No leader can be reached.
    pub fn disconnected(&mut self) {
        self.connected = false;
    }

    /// Something that is not large was published through this gateway, in whichever shard: for a while large bodies leave it
    /// room.
    pub fn published_beside(&mut self) {
        self.small_parts = self.limits.parts_beside;
    }

    /// The next batch to send now. Call until `None` after each of the other calls.
    pub fn poll(&mut self) -> Option<Bytes> {
        if !self.connected || self.holding {
            return None;
        }
        if let Some(batch) = self.in_flight.iter_mut().find(|batch| batch.state == State::Unsent) {
            batch.state = State::Sent;
            batch.submissions += 1;
            return Some(batch.bytes.clone());
        }
        let waiting_bytes = self.line.bytes() + 16 * self.settles.offsets();
        let in_flight = self.in_flight.len();
        if in_flight >= self.limits.in_flight_max
            || (in_flight >= self.limits.eager_batches && waiting_bytes < self.limits.eager_bytes)
        {
            return None;
        }
        let chunk = self.build()?;
        let part = chunk.tags.iter().any(|tag| matches!(tag, Tag::Part));
        self.small_parts = self.small_parts.saturating_sub(u32::from(part));
        let number = BatchNo(self.first + in_flight as u64);
        let bytes = chunk.builder.finish(number);
        self.in_flight_bytes += bytes.len();
        let batch =
            InFlight { bytes: bytes.clone(), tags: chunk.tags, submissions: 1, state: State::Sent, part };
        self.in_flight.push_back(batch);
        Some(bytes)
    }

    fn build(&mut self) -> Option<Chunk<T>> {
        let mut bytes_max = self.limits.batch_bytes_max;
        if !self.settles.is_empty() {
            bytes_max = bytes_max.saturating_sub(ITEM_BYTES_MAX);
        }
        let appends = (!self.blocked || self.probe) && !self.settles_left_out;
        let parts = self.in_flight.iter().filter(|batch| batch.part && batch.state != State::Done).count();
        let Limits { part_bytes, parts_in_flight_max, part_bytes_beside, .. } = self.limits;
        let alone = self.small_parts == 0;
        let (part_bytes, parts_max) =
            if alone { (part_bytes, parts_in_flight_max) } else { (part_bytes_beside, 1) };
        let part_bytes = (parts < parts_max).then_some(part_bytes);
        let mut chunk = if appends { self.line.take(self.session, bytes_max, part_bytes) } else { None };
        if chunk.is_some() {
            self.probe = false;
        }
        self.settles_left_out = false;
        while !self.settles.is_empty() {
            let bytes = chunk.as_ref().map_or(0, Chunk::bytes);
            if bytes + ITEM_BYTES_MAX > self.limits.batch_bytes_max.max(2 * ITEM_BYTES_MAX) {
                self.settles_left_out = true;
                break;
            }
            let Some((item, tag)) = self.settles.take() else { break };
            chunk.get_or_insert_with(|| Chunk::new(self.session)).push(&item, tag);
        }
        chunk
    }

    fn at(&mut self, number: BatchNo) -> Option<&mut InFlight<T>> {
        let at = number.0.checked_sub(self.first)?;
        self.in_flight.get_mut(usize::try_from(at).ok()?)
    }

    /// A batch's outcomes came. A second one for the same number is ignored, and so is one of a batch that must go again: an
    /// earlier leader's word, which the report of what is held has overtaken. The new leader counts as held what was returned
    /// then, until the batch itself reaches it and says otherwise.
    pub fn outcome(
        &mut self,
        number: BatchNo,
        outcomes: Vec<Outcome>,
        out: &mut Vec<Resolved<T>>,
    ) -> Result<(), SenderError> {
        let Some(batch) = self.at(number) else { return Ok(()) };
        if matches!(batch.state, State::Done | State::Unsent) {
            return Ok(());
        }
        if outcomes.len() != batch.tags.len() {
            return Err(SenderError::Contradiction("number of outcomes"));
        }
        batch.state = State::Done;
        let tags = std::mem::take(&mut batch.tags);
        let bytes = std::mem::take(&mut batch.bytes).len();
        self.in_flight_bytes -= bytes;
        self.tries = 0;
        self.gap_rounds = 0;
        if tags.iter().any(|tag| matches!(tag, Tag::Append(_) | Tag::Part)) {
            self.blocked = false;
        }
        for (tag, outcome) in tags.into_iter().zip(outcomes) {
            match tag {
                Tag::Append(tag) => out.push(Resolved::Appended(tag, appended(&outcome))),
                Tag::Part => {}
                Tag::Settle(tags) => out.extend(tags.into_iter().map(Resolved::Settled)),
            }
        }
        while self.in_flight.front().is_some_and(|batch| batch.state == State::Done) {
            self.in_flight.pop_front();
            self.first += 1;
        }
        self.resolve_declined(out)
    }

    /// The leader expected another number: an earlier batch did not reach it.
    pub fn gap(
        &mut self,
        number: BatchNo,
        expected: BatchNo,
        out: &mut Vec<Resolved<T>>,
    ) -> Result<(), SenderError> {
        if self.at(number).is_none_or(|batch| batch.state == State::Done) {
            return Ok(());
        }
        if expected.0 < self.first {
            // A new leader may not have applied everything yet; one that stays behind lost what it had answered.
            self.tries += 1;
            if self.tries > self.limits.tries_max {
                return Err(SenderError::Contradiction("the shard forgot batches that it had answered"));
            }
            return self.decline(number, Decline::Later, out);
        }
        if expected.0 > number.0 {
            return Err(SenderError::Contradiction("the shard forgot the outcome of a batch"));
        }
        self.decline(number, Decline::Gap, out)
    }

    /// The leader refused a batch: nothing was proposed.
    pub fn refused(
        &mut self,
        number: BatchNo,
        reason: Refused,
        out: &mut Vec<Resolved<T>>,
    ) -> Result<(), SenderError> {
        if self.at(number).is_none_or(|batch| batch.state == State::Done) {
            return Ok(());
        }
        match reason {
            Refused::NoSpace => {
                self.blocked = true;
                self.decline(number, Decline::Later, out)
            }
            Refused::Session | Refused::Cluster => {
                // Its opening may be under way, or not applied yet by a new leader.
                self.tries += 1;
                if self.tries > self.limits.tries_max {
                    return Err(SenderError::SessionClosed);
                }
                self.decline(number, Decline::Later, out)
            }
            Refused::Malformed | Refused::Version => self.decline(number, Decline::Malformed, out),
            _ => self.decline(number, Decline::Later, out),
        }
    }

    fn decline(
        &mut self,
        number: BatchNo,
        why: Decline,
        out: &mut Vec<Resolved<T>>,
    ) -> Result<(), SenderError> {
        if let Some(batch) = self.at(number)
            && batch.state == State::Sent
        {
            batch.state = State::Declined(why);
            self.holding = true;
        }
        self.resolve_declined(out)
    }

    /// Once every answer of this stream is in: take apart what never counted, or send again.
    fn resolve_declined(&mut self, out: &mut Vec<Resolved<T>>) -> Result<(), SenderError> {
        let declined = |batch: &InFlight<T>| matches!(batch.state, State::Declined(_));
        let Some(first) = self.in_flight.iter().position(declined) else {
            self.holding = false;
            return Ok(());
        };
        if self.in_flight.iter().any(|batch| batch.state == State::Sent) {
            return Ok(());
        }
        let never_counted = self.in_flight.range(first..).all(|b| declined(b) && b.submissions == 1);
        let malformed = self.in_flight[first].state == State::Declined(Decline::Malformed);
        if malformed && !never_counted {
            return Err(SenderError::Contradiction("a batch was refused after it was sent again"));
        }
        if never_counted && (self.blocked || malformed) {
            return self.take_apart(first, out);
        }
        let only_gaps = self.in_flight.iter().all(|b| b.state != State::Declined(Decline::Later));
        if only_gaps && self.gap_rounds < GAP_ROUNDS_MAX {
            self.gap_rounds += 1;
            self.resend_declined();
        }
        Ok(())
    }

    /// Dissolves the batches from `first` on. Their numbers are given again.
    fn take_apart(&mut self, first: usize, out: &mut Vec<Resolved<T>>) -> Result<(), SenderError> {
        let mut back = self.in_flight.split_off(first);
        while let Some(batch) = back.pop_back() {
            self.in_flight_bytes -= batch.bytes.len();
            let refuse = batch.state == State::Declined(Decline::Malformed);
            let mut appends = Chunk::new(self.session);
            let parsed = Batch::parse(batch.bytes)
                .map_err(|_| SenderError::Contradiction("an own batch cannot be read"))?;
            for (located, tag) in parsed.items().zip(batch.tags) {
                let located =
                    located.map_err(|_| SenderError::Contradiction("an own batch cannot be read"))?;
                match (located.item, tag) {
                    (_, Tag::Append(tag)) if refuse => {
                        out.push(Resolved::Appended(tag, Appended::Refused(Refusal::Malformed)));
                    }
                    (_, Tag::Settle(tags)) if refuse => out.extend(tags.into_iter().map(Resolved::Settled)),
                    (Item::Settle(settle), Tag::Settle(tags)) => self.settles.put_back(settle, tags),
                    (_, Tag::Part) if refuse => {}
                    (item, tag) => appends.push(&item, tag),
                }
            }
            if !appends.is_empty() {
                self.line.put_back(appends);
            }
        }
        self.holding = false;
        Ok(())
    }

    fn resend_declined(&mut self) {
        self.holding = false;
        for batch in &mut self.in_flight {
            if batch.state != State::Done {
                batch.state = State::Unsent;
            }
        }
    }

    /// Whether something was declined and waits for [`Sender::retry`].
    pub fn needs_retry(&self) -> bool {
        self.holding || (self.blocked && !self.line.is_empty())
    }

    /// Tries again what was declined; call some times a second while [`Sender::needs_retry`].
    pub fn retry(&mut self) {
        self.gap_rounds = 0;
        self.probe = self.blocked;
        if self.holding {
            self.resend_declined();
        }
    }

    /// The leader says that there is space again.
    pub fn unblocked(&mut self) {
        self.blocked = false;
        self.retry();
    }

    /// Whether publishes wait because storage has no space.
    pub fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Bytes of appends that wait or have no outcome; what callers are held back by.
    pub fn pending_bytes(&self) -> usize {
        self.line.bytes() + self.in_flight_bytes
    }

    /// Whether nothing waits and everything has its outcome.
    pub fn is_idle(&self) -> bool {
        self.in_flight.is_empty() && self.line.is_empty() && self.settles.is_empty()
    }

    /// The session ended: everything whose fate is unknown.
    pub fn into_tags(self) -> Vec<T> {
        let in_flight = self.in_flight.into_iter().flat_map(|batch| batch.tags).flat_map(Tag::into_all);
        in_flight.chain(self.line.into_tags()).chain(self.settles.into_tags()).collect()
    }
}

fn appended(outcome: &Outcome) -> Appended {
    match outcome {
        Outcome::Appended(targets) => {
            let mut result = Appended::Gone;
            for (_, target) in targets {
                match target {
                    Ok(_) if result == Appended::Gone => result = Appended::Stored,
                    Ok(_) | Err(Refusal::DroppedLog | Refusal::UnknownLog) => {}
                    Err(refusal) => result = Appended::Refused(*refusal),
                }
            }
            result
        }
        Outcome::Done(_) => Appended::Stored,
        Outcome::Refused(Refusal::DroppedLog | Refusal::UnknownLog) => Appended::Gone,
        Outcome::Refused(refusal) => Appended::Refused(*refusal),
    }
}
