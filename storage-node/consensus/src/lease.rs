//! When a leader may deliver: while a majority answered a heartbeat round that began recently enough.
//!
//! Why it holds: a replica that answers a round promises not to vote for one election timeout ([`Promise`]), also
//! across a restart; the leader counts from when it *sent* the round and stops two ticks earlier. A leader that hands
//! over stops first; after a hand-over that came to nothing it waits until the chosen replica answered a later round,
//! because that replica then drops the old `MsgTimeoutNow`.

use crate::api::Membership;
use longshore_io::Mono;
use longshore_wire::{ReplicaId, Term};
use std::collections::{BTreeMap, VecDeque};

/// Rounds whose start is remembered; older answers count for nothing.
const ROUNDS_MAX: usize = 256;

/// The numbered heartbeat rounds of this node, to all peers and for all groups at once.
#[derive(Default)]
pub(crate) struct Rounds {
    newest: u64,
    sent: VecDeque<(u64, Mono)>,
}

impl Rounds {
    /// Begins a round.
    pub(crate) fn begin(&mut self, now: Mono) -> u64 {
        self.newest += 1;
        if self.sent.len() == ROUNDS_MAX {
            self.sent.pop_front();
        }
        self.sent.push_back((self.newest, now));
        self.newest
    }

    /// The number that a `MsgTimeoutNow` of this turn carries: no round sent before it is larger.
    pub(crate) fn stamp(&self) -> u64 {
        self.newest + 1
    }

    /// When a round began.
    pub(crate) fn sent(&self, round: u64) -> Option<Mono> {
        let back = self.newest.checked_sub(round)? as usize;
        let at = self.sent.len().checked_sub(back + 1)?;
        self.sent.get(at).map(|(_, at)| *at)
    }
}

#[derive(Clone, Copy)]
struct Answered {
    round: u64,
    sent: Mono,
}

struct Aborted {
    to: ReplicaId,
    round: u64,
    since: Mono,
}

/// What a leader knows of its followers' answers within its term.
#[derive(Default)]
pub(crate) struct Lease {
    answered: BTreeMap<ReplicaId, Answered>,
    aborted: Option<Aborted>,
}

impl Lease {
    /// Notes that `replica` answered a round of this term.
    pub(crate) fn answered(&mut self, replica: ReplicaId, round: u64, sent: Mono) {
        let newest = self.answered.entry(replica).or_insert(Answered { round, sent });
        if newest.round < round {
            *newest = Answered { round, sent };
        }
        if self.aborted.as_ref().is_some_and(|a| a.to == replica && round > a.round) {
            self.aborted = None;
        }
    }

    /// A hand-over to `to` came to nothing; `round` is the newest that its `MsgTimeoutNow` may carry.
    pub(crate) fn transfer_aborted(&mut self, to: ReplicaId, round: u64, now: Mono) {
        self.aborted = Some(Aborted { to, round, since: now });
    }

    /// Since when a failed hand-over keeps this leader from delivering.
    pub(crate) fn blocked_since(&self) -> Option<Mono> {
        self.aborted.as_ref().map(|a| a.since)
    }

    /// When `replica` last answered: the start of that round.
    pub(crate) fn heard(&self, replica: ReplicaId) -> Option<Mono> {
        self.answered.get(&replica).map(|a| a.sent)
    }

    /// The start of the newest round that a majority answered, of both halves of a joint membership.
    pub(crate) fn majority_sent(&self, me: ReplicaId, members: &Membership) -> Option<Mono> {
        if self.aborted.is_some() {
            return None;
        }
        let incoming = self.half(me, &members.voters)?;
        if members.outgoing.is_empty() {
            return Some(incoming);
        }
        Some(incoming.min(self.half(me, &members.outgoing)?))
    }

    fn half(&self, me: ReplicaId, voters: &[ReplicaId]) -> Option<Mono> {
        let sent = |id: &ReplicaId| if *id == me { Some(Mono(u64::MAX)) } else { self.heard(*id) };
        let mut times: Vec<Option<Mono>> = voters.iter().map(sent).collect();
        times.sort_unstable_by(|a, b| b.cmp(a));
        // With n voters, n/2 + 1 are a majority: the one at n/2 is its oldest.
        times.get(voters.len() / 2).copied().flatten()
    }
}

/// What a replica owes to leaders it answered: no vote for a while.
pub(crate) struct Promise {
    /// No vote at all before this moment: the process started an election timeout earlier.
    started: Mono,
    /// No vote before this moment, except for a candidate that the leader itself chose.
    answered: Mono,
    newest: (Term, u64),
}

impl Promise {
    /// A process that starts may have promised something before.
    pub(crate) fn at_start(now: Mono, election_us: u64) -> Promise {
        let until = Mono(now.0.saturating_add(election_us));
        Promise { started: until, answered: Mono(0), newest: (Term(0), 0) }
    }

    /// This replica answers a round.
    pub(crate) fn answer(&mut self, term: Term, round: u64, now: Mono, election_us: u64) {
        self.answered = self.answered.max(Mono(now.0.saturating_add(election_us)));
        self.newest = self.newest.max((term, round));
    }

    /// Whether a request for a vote may be considered.
    pub(crate) fn may_vote(&self, now: Mono, chosen_by_leader: bool) -> bool {
        now >= self.started && (chosen_by_leader || now >= self.answered)
    }

    /// Whether a `MsgTimeoutNow` is older than a round of the same leader that was answered since.
    pub(crate) fn is_stale_hand_over(&self, term: Term, round: u64) -> bool {
        self.newest.0 == term && round < self.newest.1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ReplicaId = ReplicaId(1);
    const B: ReplicaId = ReplicaId(2);
    const C: ReplicaId = ReplicaId(3);

    fn three() -> Membership {
        Membership::of_voters(vec![A, B, C])
    }

    #[test]
    fn a_lease_counts_from_the_second_newest_answer_of_three() {
        let mut lease = Lease::default();
        assert_eq!(lease.majority_sent(A, &three()), None);
        lease.answered(B, 4, Mono(400));
        assert_eq!(lease.majority_sent(A, &three()), Some(Mono(400)));
        lease.answered(C, 5, Mono(500));
        lease.answered(C, 3, Mono(300));
        assert_eq!(lease.majority_sent(A, &three()), Some(Mono(500)));
    }

    #[test]
    fn both_halves_of_a_joint_membership_must_answer() {
        let mut lease = Lease::default();
        lease.answered(B, 4, Mono(400));
        let joint = Membership {
            voters: vec![A, ReplicaId(9), ReplicaId(8)],
            outgoing: vec![A, B, C],
            ..Membership::default()
        };
        assert_eq!(lease.majority_sent(A, &joint), None);
        lease.answered(ReplicaId(9), 2, Mono(200));
        assert_eq!(lease.majority_sent(A, &joint), Some(Mono(200)));
    }

    #[test]
    fn after_an_aborted_transfer_only_a_later_round_counts() {
        let mut lease = Lease::default();
        lease.answered(B, 4, Mono(400));
        lease.answered(C, 4, Mono(400));
        lease.transfer_aborted(B, 6, Mono(500));
        lease.answered(C, 7, Mono(700));
        lease.answered(B, 6, Mono(600));
        assert_eq!(lease.majority_sent(A, &three()), None);
        lease.answered(B, 7, Mono(700));
        assert_eq!(lease.majority_sent(A, &three()), Some(Mono(700)));
    }

    #[test]
    fn a_promise_holds_over_a_start_and_after_an_answer() {
        let mut p = Promise::at_start(Mono(0), 1000);
        assert!(!p.may_vote(Mono(999), true) && p.may_vote(Mono(1000), false));
        p.answer(Term(3), 7, Mono(1500), 1000);
        assert!(!p.may_vote(Mono(2499), false));
        assert!(p.may_vote(Mono(1500), true) && p.may_vote(Mono(2500), false));
        assert!(p.is_stale_hand_over(Term(3), 6));
        assert!(!p.is_stale_hand_over(Term(3), 7) && !p.is_stale_hand_over(Term(4), 1));
    }

    #[test]
    fn rounds_remember_when_they_began() {
        let mut r = Rounds::default();
        for i in 0..300 {
            r.begin(Mono(i * 10));
        }
        assert_eq!(r.sent(300), Some(Mono(2990)));
        assert_eq!(r.sent(45), Some(Mono(440)));
        assert_eq!((r.sent(44), r.sent(301)), (None, None));
    }
}
