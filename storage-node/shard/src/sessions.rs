//! Gateway sessions: the half of "exactly one hand-over" that lives in the state.
//!
//! Danger: if a number or an outcome is lost, over a snapshot for instance, a batch that a gateway sends again is
//! stored twice. Called by `apply`; ids come from meta and are never reused.

use crate::bounds::{SESSIONS_MAX, UPLOAD_BYTES_MAX, UPLOAD_PARTS_MAX, UPLOADS_OPEN_MAX};
use crate::id_ranges::IdRanges;
use bytes::Bytes;
use longshore_mutations::{self as mutations, Mutation};
use longshore_wire::outcome::Refusal;
use longshore_wire::row::Source;
use longshore_wire::{BATCHES_IN_FLIGHT_MAX, BatchNo, SessionId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

mod page;

/// A large body on its way: pieces that wait for their record.
#[derive(Clone, Debug, Default)]
struct Upload {
    parts: Vec<Source>,
    bytes: u64,
    /// A piece was refused: the record will be, too.
    broken: bool,
}

/// An open gateway session.
#[derive(Clone, Debug, Default)]
pub struct Session {
    last: u64,
    /// Encoded outcomes of the last batches, oldest first.
    outcomes: VecDeque<Bytes>,
    uploads: BTreeMap<u64, Upload>,
    /// One upload was refused for want of room: no other can begin, or its later pieces would be taken for a whole.
    uploads_refused: bool,
}

impl Session {
    /// The number of the last applied batch, 0 if there was none.
    pub fn last(&self) -> BatchNo {
        BatchNo(self.last)
    }

    /// How many uploads wait for their record.
    pub fn uploads_open(&self) -> usize {
        self.uploads.len()
    }

    fn outcome(&self, number: u64) -> Option<&Bytes> {
        let age = self.last.checked_sub(number)?;
        let i = (self.outcomes.len() as u64).checked_sub(age + 1)?;
        self.outcomes.get(i as usize)
    }
}

/// What is to be done with a batch.
#[derive(Debug)]
pub(crate) enum Admission {
    /// It is the next one.
    Apply,
    /// It was applied; this was the answer.
    Known(Bytes),
    /// Another number is next.
    Gap(BatchNo),
    /// The session is not open.
    Unknown,
}

/// All sessions of the shard.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sessions {
    open: BTreeMap<SessionId, Session>,
    closed: IdRanges,
    dirty: BTreeSet<SessionId>,
    dirty_uploads: BTreeSet<(SessionId, u64)>,
    dirty_closed: bool,
}

impl Sessions {
    pub(crate) fn get(&self, id: SessionId) -> Option<&Session> {
        self.open.get(&id)
    }

    pub(crate) fn is_closed(&self, id: SessionId) -> bool {
        self.closed.contains(id.0)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (SessionId, &Session)> + '_ {
        self.open.iter().map(|(id, session)| (*id, session))
    }

    /// True if it was opened now, false if it was open. Refused once it was closed.
    pub(crate) fn open(&mut self, id: SessionId) -> Result<bool, Refusal> {
        if self.open.contains_key(&id) {
            return Ok(false);
        }
        if self.closed.contains(id.0) {
            return Err(Refusal::UnknownSession);
        }
        if self.open.len() >= SESSIONS_MAX {
            return Err(Refusal::LimitReached);
        }
        self.open.insert(id, Session::default());
        self.dirty.insert(id);
        Ok(true)
    }

    /// Closes a session for ever, also one that was never open here. True if it was open.
    pub(crate) fn close(&mut self, id: SessionId) -> bool {
        self.dirty_closed |= self.closed.insert(id.0);
        let Some(session) = self.open.remove(&id) else { return false };
        self.dirty.insert(id);
        self.dirty_uploads.extend(session.uploads.keys().map(|upload| (id, *upload)));
        true
    }

    pub(crate) fn admit(&mut self, id: SessionId, number: BatchNo) -> Admission {
        let Some(session) = self.open.get_mut(&id) else { return Admission::Unknown };
        if session.last == 0 && mutations::on(Mutation::BatchNumberLost) {
            session.last = number.0.saturating_sub(1);
        }
        match session.last.checked_add(1) {
            Some(next) if next == number.0 => Admission::Apply,
            next => match session.outcome(number.0) {
                Some(outcome) => Admission::Known(outcome.clone()),
                None => Admission::Gap(BatchNo(next.unwrap_or(u64::MAX))),
            },
        }
    }

    /// Remembers what the next batch came to, unless that batch closed its own session.
    pub(crate) fn applied(&mut self, id: SessionId, number: BatchNo, outcomes: Bytes) {
        let Some(session) = self.open.get_mut(&id) else { return };
        session.last = number.0;
        session.outcomes.push_back(outcomes);
        if session.outcomes.len() > BATCHES_IN_FLIGHT_MAX {
            session.outcomes.pop_front();
        }
        self.dirty.insert(id);
    }

    /// Adds a piece to an upload, which the first one begins.
    pub(crate) fn part(&mut self, id: SessionId, upload: u64, part: Source) -> Result<(), Refusal> {
        let session = self.open.get_mut(&id).ok_or(Refusal::UnknownUpload)?;
        if !session.uploads.contains_key(&upload) {
            if session.uploads.len() >= UPLOADS_OPEN_MAX {
                session.uploads_refused = true;
                self.dirty.insert(id);
            }
            if session.uploads_refused {
                return Err(Refusal::LimitReached);
            }
        }
        let open = session.uploads.entry(upload).or_default();
        open.bytes = open.bytes.saturating_add(u64::from(part.len));
        self.dirty_uploads.insert((id, upload));
        if open.broken || open.parts.len() >= UPLOAD_PARTS_MAX || open.bytes > UPLOAD_BYTES_MAX {
            // Nothing of it is pinned any longer.
            *open = Upload { broken: true, ..Upload::default() };
            return Err(Refusal::LimitReached);
        }
        open.parts.push(part);
        Ok(())
    }

    /// Ends an upload: its pieces, if it is whole.
    pub(crate) fn end_upload(&mut self, id: SessionId, upload: u64) -> Option<Vec<Source>> {
        let ended = self.open.get_mut(&id)?.uploads.remove(&upload)?;
        self.dirty_uploads.insert((id, upload));
        (!ended.broken).then_some(ended.parts)
    }

    /// Where the pieces of open uploads lie.
    pub(crate) fn upload_sources(&self) -> impl Iterator<Item = Source> + '_ {
        self.open
            .values()
            .flat_map(|session| session.uploads.values())
            .flat_map(|upload| upload.parts.iter().copied())
    }
}
