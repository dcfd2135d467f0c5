//! What all queues of a shard share: counters that give out ids, the term, open questions, the turn's clock.

use crate::action::{Action, Actions, LoadId};
use crate::command::{ConsumerKey, Held, QueueId};
use crate::config::{Config, Counters};
use longshore_io::Mono;
use longshore_wire::batch::{Item, Returned, Settle};
use longshore_wire::{Index, LeaseId, LogTime, Offset, SessionId, Term};
use std::collections::{BTreeMap, BTreeSet};

/// Most offsets that one proposed item names, so that an item stays far below an entry's size.
pub(crate) const OFFSETS_PER_ITEM_MAX: usize = 4_096;

/// For whom the record store was asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LoadFor {
    pub queue: QueueId,
    /// A reader by position; `None`: the settlement window.
    pub reader: Option<ConsumerKey>,
}

/// A new leader that waits for what gateways hold.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    pub sessions: BTreeSet<SessionId>,
    pub until: Mono,
}

/// What was done early and is remembered, of all sessions.
const DONE_EARLY_MAX: usize = 65_536;

/// Shared by the queues of a shard.
#[derive(Debug)]
pub(crate) struct Core {
    pub config: Config,
    pub counters: Counters,
    pub term: Term,
    /// Entries up to here may have been delivered under an earlier term.
    pub inherited: Index,
    pub waiting: Option<Waiting>,
    /// Sessions that have said in this term all that they hold of earlier ones. What they name later may have been returned
    /// meanwhile, by a settlement that their word has overtaken.
    pub reported: BTreeSet<SessionId>,
    /// What sessions whose stream broke named as held since then, on the new one; until they have reported everything.
    named: BTreeMap<SessionId, BTreeSet<Named>>,
    /// Sessions that may have something here: consumers, leases, queues of their own.
    pub sessions: BTreeSet<SessionId>,
    /// What sessions that had not reported yet were done with: batches meant for an earlier leader, ahead of the report that
    /// still names these messages as held. It claims them no more.
    done_early: BTreeSet<(SessionId, QueueId, Done)>,
    pub loads: BTreeMap<LoadId, LoadFor>,
    /// Queues that could hand over more if the shard's bound on leases allowed it.
    pub starved: BTreeSet<QueueId>,
    /// Number of the turn, from 1; appends since the last turn count to the next.
    pub turn: u64,
    /// Log time of the last turn.
    pub log_time: LogTime,
    /// What happened between turns; goes out at the start of the next.
    pub outbox: Actions,
    next_lease: u64,
    next_load: u64,
}

/// What ended a lease of an earlier term: a return names it, an ack or a rejection says only when it was of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Done {
    pub at: Offset,
    pub term: Term,
    /// `None`: whichever the session had.
    pub lease: Option<LeaseId>,
}

/// A lease, as a session names it.
pub(crate) type Named = (QueueId, Offset, LeaseId, Term);

impl Core {
    pub fn new(config: Config) -> Core {
        Core {
            config,
            counters: Counters::default(),
            term: Term(0),
            inherited: Index(0),
            waiting: None,
            reported: BTreeSet::new(),
            named: BTreeMap::new(),
            sessions: BTreeSet::new(),
            done_early: BTreeSet::new(),
            loads: BTreeMap::new(),
            starved: BTreeSet::new(),
            turn: 1,
            log_time: LogTime(0),
            outbox: Vec::new(),
            next_lease: 0,
            next_load: 0,
        }
    }

    /// A new term: leases count from 1 again, since an id is unique within (shard, term). Questions go on counting,
    /// so that an answer to an earlier term's is known for one.
    pub fn begin(&mut self, term: Term, inherited: Index) {
        self.term = term;
        self.inherited = inherited;
        self.next_lease = 0;
    }

    /// A session is done with a message that it had under an earlier leader and does not hold here. What is beyond the bound stays
    /// out with its consumer until that ends.
    pub fn note_done_early(&mut self, session: SessionId, queue: QueueId, done: Done) {
        if !self.reported.contains(&session) && self.done_early.len() < DONE_EARLY_MAX {
            self.done_early.insert((session, queue, done));
        }
    }

    /// Whether the session was done with the message before it named it as held. The session may name it again: streams break,
    /// and an attach that was not answered is sent anew.
    pub fn was_done_early(&self, session: SessionId, queue: QueueId, held: &Held) -> bool {
        let done = |lease| Done { at: held.offset, term: held.term, lease };
        let noted = |done| self.done_early.contains(&(session, queue, done));
        !self.done_early.is_empty() && (noted(done(Some(held.lease))) || noted(done(None)))
    }

    /// The session's stream broke: what it does not name on the next one was lost on its way.
    pub fn stream_broke(&mut self, session: SessionId) {
        if self.sessions.contains(&session) {
            self.named.insert(session, BTreeSet::new());
        }
    }

    /// A session names a lease that stands.
    pub fn note_named(&mut self, session: SessionId, lease: Named) {
        if let Some(named) = self.named.get_mut(&session) {
            named.insert(lease);
        }
    }

    /// What the session named, if its stream broke before.
    pub fn take_named(&mut self, session: SessionId) -> Option<BTreeSet<Named>> {
        self.named.remove(&session)
    }

    /// The session has said what it holds, or is gone.
    pub fn forget_done_early(&mut self, session: SessionId) {
        self.done_early.retain(|(of, ..)| *of != session);
    }

    /// Forgets a term.
    pub fn end(&mut self) {
        self.waiting = None;
        self.reported.clear();
        self.named.clear();
        self.sessions.clear();
        self.done_early.clear();
        self.loads.clear();
        self.starved.clear();
        self.outbox.clear();
        let counters = self.counters;
        self.counters = Counters {
            leases: 0,
            consumers: 0,
            ready: 0,
            transient_queues: 0,
            transient_bytes: 0,
            ..counters
        };
    }

    /// An id for a new lease. From a counter, never from time.
    pub fn new_lease(&mut self) -> LeaseId {
        self.next_lease += 1;
        LeaseId(self.next_lease)
    }

    pub fn new_load(&mut self, load_for: LoadFor) -> LoadId {
        self.next_load += 1;
        let id = LoadId(self.next_load);
        self.loads.insert(id, load_for);
        id
    }

    /// Whether the shard's bound on leases is reached.
    pub fn leases_full(&self) -> bool {
        self.counters.leases >= self.config.leases_max
    }

    /// Proposes the end of leases of `term` (ascending by offset), in items of bounded size.
    pub fn propose_returns(&self, queue: QueueId, term: Term, returned: &[Returned], out: &mut Actions) {
        for chunk in returned.chunks(OFFSETS_PER_ITEM_MAX) {
            out.push(Action::Propose(Item::Settle(Settle {
                log: queue.log,
                cursor: queue.cursor,
                term,
                acked: Vec::new(),
                returned: chunk.to_vec(),
                dead: Vec::new(),
            })));
        }
    }
}

/// One turn's clock, bounds and output.
pub(crate) struct Turn<'a> {
    pub now: Mono,
    pub log_time: LogTime,
    /// Messages that may still be handed over in this turn.
    pub budget: usize,
    pub core: &'a mut Core,
    pub out: &'a mut Actions,
}

impl Turn<'_> {
    /// When log time will be `at`, by this leader's clock.
    pub fn mono_of(&self, at: LogTime) -> Mono {
        self.now.plus_ms(at.0.saturating_sub(self.log_time.0))
    }

    /// When a proposal of now is made again if nothing is heard of it.
    pub fn again(&self) -> Mono {
        self.now.plus_ms(self.core.config.propose_again_ms)
    }
}

/// The earlier of two moments, either of which may be never.
pub(crate) fn earlier(a: Option<Mono>, b: Option<Mono>) -> Option<Mono> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, other) => one.or(other),
    }
}
