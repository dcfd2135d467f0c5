//! The leases of one queue: which message is out with whom. One live lease per message, by construction.

use crate::blocks::Blocks;
use crate::command::{ConsumerKey, Held};
use longshore_io::Mono;
use longshore_wire::{LeaseId, Offset, OffsetRange, SessionId, Term};
use std::collections::BTreeSet;

/// One message that is out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    pub id: LeaseId,
    /// The term in which it was handed over.
    pub term: Term,
    pub owner: ConsumerKey,
    /// It ends then by itself; while it is ending: its return is proposed again then.
    pub deadline: Option<Mono>,
    /// It ended; the return is being replicated. Still out until that is applied.
    pub ending: bool,
    /// Its owner's return was admitted and is being replicated; nobody else proposes one.
    pub returning: bool,
}

impl Lease {
    /// Whether it is the one that was handed over as `id` in `term`; numbers begin anew with each term.
    pub fn is(&self, id: LeaseId, term: Term) -> bool {
        (self.id, self.term) == (id, term)
    }
}

/// A lease as it is kept: a shard may have a million.
#[derive(Clone, Copy, Debug)]
struct Kept {
    id: LeaseId,
    /// Below the term a bit each: ending, returning.
    term: u64,
    owner: ConsumerKey,
    /// [`NO_DEADLINE`]: none.
    deadline: Mono,
}

const NO_DEADLINE: Mono = Mono(u64::MAX);
const ENDING: u64 = 1;
const RETURNING: u64 = 2;
const FLAG_BITS: u32 = 2;

impl Kept {
    fn new(lease: &Lease) -> Kept {
        let flags = u64::from(lease.ending) * ENDING + u64::from(lease.returning) * RETURNING;
        let term = lease.term.0 << FLAG_BITS | flags;
        Kept { id: lease.id, term, owner: lease.owner, deadline: lease.deadline.unwrap_or(NO_DEADLINE) }
    }

    fn lease(&self) -> Lease {
        Lease {
            id: self.id,
            term: Term(self.term >> FLAG_BITS),
            owner: self.owner,
            deadline: Some(self.deadline).filter(|at| *at != NO_DEADLINE),
            ending: self.term & ENDING != 0,
            returning: self.term & RETURNING != 0,
        }
    }

    /// Nobody is returning it yet.
    fn is_open(&self) -> bool {
        self.term & (ENDING | RETURNING) == 0
    }
}

/// Leases by offset.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    out: Blocks<Kept>,
    deadlines: BTreeSet<(Mono, Offset)>,
}

impl Leases {
    pub fn len(&self) -> usize {
        self.out.len()
    }

    pub fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    pub fn get(&self, at: Offset) -> Option<Lease> {
        self.out.get(at).map(Kept::lease)
    }

    pub fn contains(&self, at: Offset) -> bool {
        !self.out.is_empty() && self.out.get(at).is_some()
    }

    pub fn iter(&self) -> impl Iterator<Item = (Offset, Lease)> {
        self.out.iter().map(|(at, kept)| (at, kept.lease()))
    }

    /// A message goes out, or a lease of an earlier term stands.
    pub fn insert(&mut self, at: Offset, lease: Lease) {
        if let Some(deadline) = lease.deadline {
            self.deadlines.insert((deadline, at));
        }
        let before = self.out.insert(at, Kept::new(&lease));
        debug_assert!(before.is_none(), "a message out twice: {at:?}");
    }

    pub fn remove(&mut self, at: Offset) -> Option<Lease> {
        let kept = self.out.remove(at)?;
        self.deadlines.remove(&(kept.deadline, at));
        Some(kept.lease())
    }

    /// Ends all leases in `range`; how many.
    pub fn remove_range(&mut self, range: OffsetRange) -> u64 {
        let deadlines = &mut self.deadlines;
        self.out.remove_range(range, |at, kept| {
            if kept.deadline != NO_DEADLINE {
                deadlines.remove(&(kept.deadline, at));
            }
        })
    }

    /// Gives a lease that stands to the consumer that holds it now. The session itself (number 0) takes none from
    /// its consumers.
    pub fn hand_on(&mut self, at: Offset, to: ConsumerKey) {
        if to.consumer > 0
            && let Some(kept) = self.out.get_mut(at)
        {
            kept.owner = to;
        }
    }

    /// The owner's return of a message was admitted: its deadline counts no more.
    pub fn set_returning(&mut self, at: Offset) {
        let Some(kept) = self.out.get_mut(at) else { return };
        kept.term |= RETURNING;
        self.deadlines.remove(&(kept.deadline, at));
        kept.deadline = NO_DEADLINE;
    }

    /// Begins the end of a lease, which it answers: its return is proposed again at `again` unless it is applied before.
    pub fn end(&mut self, at: Offset, again: Mono) -> Option<Lease> {
        let kept = self.out.get_mut(at)?;
        self.deadlines.remove(&(kept.deadline, at));
        kept.deadline = again;
        kept.term |= ENDING;
        self.deadlines.insert((again, at));
        Some(kept.lease())
    }

    /// Offsets whose deadline has come.
    pub fn due(&self, now: Mono) -> Vec<Offset> {
        self.deadlines.iter().take_while(|(deadline, _)| *deadline <= now).map(|(_, at)| *at).collect()
    }

    /// The earliest deadline.
    pub fn next_deadline(&self) -> Option<Mono> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// What one consumer has out and nobody is returning yet, in order.
    pub fn of_consumer(&self, owner: ConsumerKey) -> Vec<Offset> {
        self.open_of(owner).map(|(at, _)| at).collect()
    }

    fn open_of(&self, owner: ConsumerKey) -> impl Iterator<Item = (Offset, Lease)> {
        let open = self.out.iter().filter(move |(_, kept)| kept.owner == owner && kept.is_open());
        open.map(|(at, kept)| (at, kept.lease()))
    }

    /// What a consumer has out but does not name as held: it was lost on its way. A message that it names under an earlier lease
    /// counts as lost, too.
    pub fn unnamed(&self, owner: ConsumerKey, held: &[Held]) -> Vec<Offset> {
        let mut named: Vec<_> = held.iter().map(|held| (held.offset, held.lease, held.term)).collect();
        named.sort_unstable();
        let lost = |(at, lease): (Offset, Lease)| {
            named.binary_search(&(at, lease.id, lease.term)).is_err().then_some(at)
        };
        self.open_of(owner).filter_map(lost).collect()
    }

    /// What a session has out without a consumer (gets, ended consumers; `is_consumer` tells) and nobody is returning yet.
    pub fn loose_of(&self, session: SessionId, is_consumer: impl Fn(ConsumerKey) -> bool) -> Vec<Offset> {
        let loose = |kept: &Kept| kept.owner.session == session && kept.is_open() && !is_consumer(kept.owner);
        self.out.iter().filter(|(_, kept)| loose(kept)).map(|(at, _)| at).collect()
    }

    /// What an ended session has out, in order. Its own returns count no more: a closed session's batches
    /// are refused by apply.
    pub fn of_session(&self, session: SessionId) -> Vec<Offset> {
        let mine = |kept: &Kept| kept.owner.session == session && kept.term & ENDING == 0;
        self.out.iter().filter(|(_, kept)| mine(kept)).map(|(at, _)| at).collect()
    }

    /// The leases within `range`.
    pub fn range(&self, range: OffsetRange) -> impl Iterator<Item = (Offset, Lease)> {
        self.out.range(range).map(|(at, kept)| (at, kept.lease()))
    }

    /// What a session has out of a range under leases of this term and nobody is returning yet.
    pub fn of_term(&self, session: SessionId, term: Term, range: OffsetRange) -> Vec<Offset> {
        let open = |lease: &Lease| !lease.ending && !lease.returning;
        let mine = |lease: &Lease| lease.owner.session == session && lease.term == term && open(lease);
        self.range(range).filter(|(_, lease)| mine(lease)).map(|(at, _)| at).collect()
    }

    /// Ends the leases for which `ended` says so; how many.
    pub fn remove_if(&mut self, mut ended: impl FnMut(Offset) -> bool) -> u64 {
        let gone: Vec<Offset> = self.out.iter().map(|(at, _)| at).filter(|at| ended(*at)).collect();
        for at in &gone {
            self.remove(*at);
        }
        gone.len() as u64
    }

    /// Everything that is out, as runs.
    pub fn ranges(&self) -> Vec<OffsetRange> {
        runs(self.out.iter().map(|(at, _)| at))
    }
}

/// Ascending offsets as runs.
pub(crate) fn runs(offsets: impl Iterator<Item = Offset>) -> Vec<OffsetRange> {
    let mut ranges: Vec<OffsetRange> = Vec::new();
    for at in offsets {
        match ranges.last_mut() {
            Some(last) if last.last.plus(1) == at => last.last = at,
            _ => ranges.push(OffsetRange::one(at)),
        }
    }
    ranges
}
