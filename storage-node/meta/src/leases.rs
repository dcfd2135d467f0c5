//! Gateway leases and barriers: volatile, on group 0's leader only, without I/O and clock.
//!
//! Duty: say which sessions have ended, so that the leader proposes `CloseGateway`; and when every live gateway has
//! applied a revision, so that a declare may be answered.
//! Danger: a gateway that believes in its lease while this forgot it would go on delivering what others now deliver.
//! A gateway trusts a renewal for 3 s from *sending* it, and only once it was answered; this counts 4 s from
//! *hearing* it, and a new leader begins with 4 s for everyone: so the gateway always stops first.
//! Called by the node crate, which must hand over what it heard before it asks [`Leases::ended`] (after a pause, the
//! renewals of the meantime are still in its queues).

use longshore_io::Mono;
use longshore_wire::{Revision, SessionId};
use std::collections::BTreeMap;

/// How long a lease lasts after it was renewed, in milliseconds.
pub const LEASE_MS: u64 = 4000;
/// How long a gateway may trust an answered renewal, from when it sent it, in milliseconds.
pub const LEASE_TRUST_MS: u64 = 3000;
/// How often a gateway renews, in milliseconds.
pub const LEASE_RENEW_MS: u64 = 1000;
/// How long a gateway may be behind a barrier before its renewals no longer count, in milliseconds. Without it, a
/// gateway that renews but does not apply would hold back every declare.
pub const LAG_MS: u64 = 1000;
/// How often an ended session is reported until it is closed, in milliseconds.
pub const CLOSE_AGAIN_MS: u64 = 1000;
/// Barriers waiting at a time; beyond it the oldest is given up ([`Passed::given_up`]).
pub const BARRIERS_MAX: usize = 65_536;

/// What became of a message of a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// The lease was extended; answer the renewal once a majority has confirmed this leader.
    Renewed,
    /// The gateway is behind a barrier for too long: do not answer the renewal.
    Lagging,
    /// The lease is over, or the session unknown: tell the gateway so.
    Lost,
}

/// A barrier that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passed {
    /// The number given to [`Leases::barrier`].
    pub ticket: u64,
    /// It did not pass: too many wait. Answer `META_UNAVAILABLE`.
    pub given_up: bool,
}

#[derive(Debug)]
struct Lease {
    until: Mono,
    applied: Revision,
    /// When its end was last reported.
    ended: Option<Mono>,
}

/// The leases of all gateways, as the leader of group 0 sees them.
#[derive(Debug, Default)]
pub struct Leases {
    leases: BTreeMap<SessionId, Lease>,
    /// By revision and ticket, each with when it was made.
    barriers: BTreeMap<(Revision, u64), Mono>,
    next_ticket: u64,
    passed: Vec<Passed>,
}

impl Leases {
    /// For a new leader: every session in the state gets one full lease, with nothing known of what it applied.
    pub fn new(now: Mono, sessions: impl IntoIterator<Item = SessionId>) -> Leases {
        let mut leases = Leases::default();
        for session in sessions {
            leases.opened(session, Revision(0), now);
        }
        leases
    }

    /// `OpenGateway` was applied at `revision`. The gateway will take the whole state, of that revision at least.
    pub fn opened(&mut self, session: SessionId, revision: Revision, now: Mono) {
        self.leases.insert(session, Lease { until: now.plus_ms(LEASE_MS), applied: revision, ended: None });
    }

    /// The session is gone from the state.
    pub fn closed(&mut self, session: SessionId, now: Mono) {
        self.leases.remove(&session);
        self.check_barriers(now);
    }

    /// A gateway renews, and says up to where it has applied the changes.
    pub fn renew(&mut self, session: SessionId, applied: Revision, now: Mono) -> Heard {
        self.applied(session, applied, now);
        // Revisions grow with time, so the lowest that this gateway is behind is the oldest.
        let mut behind = self.barriers.range((Revision(applied.0.saturating_add(1)), 0)..);
        let lags = behind.next().is_some_and(|(_, since)| now >= since.plus_ms(LAG_MS));
        match self.leases.get_mut(&session) {
            Some(lease) if lease.ended.is_some() || now >= lease.until => Heard::Lost,
            None => Heard::Lost,
            Some(_) if lags => Heard::Lagging,
            Some(lease) => {
                lease.until = now.plus_ms(LEASE_MS);
                Heard::Renewed
            }
        }
    }

    /// A gateway says up to where it has applied the changes, without renewing.
    pub fn applied(&mut self, session: SessionId, applied: Revision, now: Mono) {
        if let Some(lease) = self.leases.get_mut(&session)
            && applied > lease.applied
        {
            lease.applied = applied;
            self.check_barriers(now);
        }
    }

    /// Sessions whose lease is over and that are still in the state: propose `CloseGateway` for each. Reported again
    /// each second until [`Leases::closed`], since a proposal may be lost.
    pub fn ended(&mut self, now: Mono) -> Vec<SessionId> {
        let mut ended = Vec::new();
        for (session, lease) in &mut self.leases {
            let due = match lease.ended {
                None => now >= lease.until,
                Some(reported) => now >= reported.plus_ms(CLOSE_AGAIN_MS),
            };
            if due {
                lease.ended = Some(now);
                ended.push(*session);
            }
        }
        if !ended.is_empty() {
            self.check_barriers(now);
        }
        ended
    }

    /// Waits until every gateway with a live lease has applied `revision`; the ticket comes back from
    /// [`Leases::passed`], at once if all have. It waits no longer than [`LAG_MS`] and [`LEASE_MS`] together.
    pub fn barrier(&mut self, revision: Revision, now: Mono) -> u64 {
        self.next_ticket += 1;
        let ticket = self.next_ticket;
        if self.slowest(now).is_none_or(|slowest| slowest >= revision) {
            self.passed.push(Passed { ticket, given_up: false });
            return ticket;
        }
        self.barriers.insert((revision, ticket), now);
        if self.barriers.len() > BARRIERS_MAX
            && let Some(((_, ticket), _)) = self.barriers.pop_first()
        {
            self.passed.push(Passed { ticket, given_up: true });
        }
        ticket
    }

    /// Barriers that are over since the last call, in the order of their passing.
    pub fn passed(&mut self) -> Vec<Passed> {
        std::mem::take(&mut self.passed)
    }

    /// Whether a session holds a lease now.
    pub fn is_live(&self, session: SessionId, now: Mono) -> bool {
        self.leases.get(&session).is_some_and(|lease| lease.ended.is_none() && now < lease.until)
    }

    /// When [`Leases::ended`] must be asked next; `None` if there is no session.
    pub fn next_wake(&self) -> Option<Mono> {
        let due =
            |lease: &Lease| lease.ended.map_or(lease.until, |reported| reported.plus_ms(CLOSE_AGAIN_MS));
        self.leases.values().map(due).min()
    }

    /// What the slowest gateway with a live lease has applied; `None` without any.
    fn slowest(&self, now: Mono) -> Option<Revision> {
        let live = self.leases.values().filter(|lease| lease.ended.is_none() && now < lease.until);
        live.map(|lease| lease.applied).min()
    }

    fn check_barriers(&mut self, now: Mono) {
        let slowest = self.slowest(now);
        while let Some(first) = self.barriers.first_entry() {
            let (revision, ticket) = *first.key();
            if slowest.is_some_and(|slowest| slowest < revision) {
                break;
            }
            first.remove();
            self.passed.push(Passed { ticket, given_up: false });
        }
    }
}
