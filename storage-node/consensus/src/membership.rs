//! Which change brings a group nearer to the members it shall have: a pure decision, taken by its leader each tick.
//!
//! Danger: a learner is promoted only when it holds everything, and what it holds includes the bodies of its
//! snapshot (it acknowledges a snapshot only then). A replica whose node has come back under a new id is dead for
//! certain and goes at once, together with the arrival of the new one; any other surplus replica goes in the same
//! change that lets the last of the wanted ones vote. Never one after the other: with the dead voter still in, four
//! voters need three, and the loss of one more would stop the group for ever (simulation, seeds 101 and 119).

use crate::api::{Membership, Replica};
use crate::codec::conf::Step;
use longshore_wire::ReplicaId;

/// What the leader shall do next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// The members are as wanted, or a learner still has to catch up.
    Nothing,
    /// End the change that is under way.
    Leave,
    /// Propose this change.
    Change(Vec<Step>),
    /// This leader must go itself: somebody else leads first.
    HandOver(ReplicaId),
}

/// Decides. `caught_up` says of a learner whether it holds everything committed.
pub(crate) fn plan(
    current: &Membership,
    wanted: &[Replica],
    me: ReplicaId,
    caught_up: impl Fn(ReplicaId) -> bool,
) -> Plan {
    if current.is_joint() {
        return Plan::Leave;
    }
    let is_voter = |id: ReplicaId| current.voters.contains(&id);
    if wanted.is_empty() || !wanted.iter().any(|w| !w.learner) {
        return Plan::Nothing;
    }
    if !wanted.iter().any(|w| w.id == me && !w.learner) {
        let heir = wanted.iter().find(|w| !w.learner && is_voter(w.id));
        if let Some(heir) = heir {
            return Plan::HandOver(heir.id);
        }
    }
    let all_vote = wanted.iter().all(|w| w.learner || is_voter(w.id));
    let mut steps = Vec::new();
    for id in current.voters.iter().chain(&current.learners).copied() {
        let unwanted = !wanted.iter().any(|w| w.id == id) && id != me;
        let replaced = wanted.iter().any(|w| w.id.node() == id.node());
        if unwanted && (replaced || all_vote || !is_voter(id)) {
            steps.push(Step::Remove(id));
        }
    }
    let removed_voters = steps.iter().filter(|s| matches!(s, Step::Remove(id) if is_voter(*id))).count();
    if removed_voters >= current.voters.len() {
        return Plan::Nothing;
    }
    for w in wanted {
        if !current.contains(w.id) || (w.learner && is_voter(w.id) && w.id != me) {
            steps.push(Step::AddLearner(w.id));
        }
    }
    if steps.is_empty() {
        let waits = |w: &&Replica| !w.learner && !is_voter(w.id);
        let ready = |w: &&Replica| waits(w) && current.learners.contains(&w.id) && caught_up(w.id);
        if let Some(w) = wanted.iter().find(ready) {
            steps.push(Step::Promote(w.id));
            if wanted.iter().filter(waits).count() == 1 {
                let surplus = |id: &&ReplicaId| **id != me && !wanted.iter().any(|w| w.id == **id);
                steps.extend(current.voters.iter().filter(surplus).map(|id| Step::Remove(*id)));
            }
        }
    }
    if steps.is_empty() { Plan::Nothing } else { Plan::Change(steps) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use longshore_wire::NodeId;

    fn id(node: u32, incarnation: u16) -> ReplicaId {
        ReplicaId::new(NodeId(node), incarnation)
    }

    fn voter(id: ReplicaId) -> Replica {
        Replica { id, learner: false }
    }

    #[test]
    fn a_wiped_replica_goes_and_its_successor_learns_in_one_change_and_votes_last() {
        let (a, b, c, c2) = (id(1, 1), id(2, 1), id(3, 1), id(3, 2));
        let wanted = [voter(a), voter(b), voter(c2)];
        let mut now = Membership::of_voters(vec![a, b, c]);
        let change = plan(&now, &wanted, a, |_| false);
        assert_eq!(change, Plan::Change(vec![Step::Remove(c), Step::AddLearner(c2)]));

        now.outgoing = now.voters.clone();
        assert_eq!(plan(&now, &wanted, a, |_| false), Plan::Leave);

        let now = Membership { voters: vec![a, b], learners: vec![c2], ..Membership::default() };
        assert_eq!(plan(&now, &wanted, a, |_| false), Plan::Nothing);
        assert_eq!(plan(&now, &wanted, a, |r| r == c2), Plan::Change(vec![Step::Promote(c2)]));
        assert_eq!(plan(&Membership::of_voters(vec![a, b, c2]), &wanted, a, |_| true), Plan::Nothing);
    }

    #[test]
    fn a_surplus_replica_goes_in_the_change_that_lets_its_successor_vote() {
        let (a, b, c, d) = (id(1, 1), id(2, 1), id(3, 1), id(4, 1));
        let wanted = [voter(a), voter(b), voter(d)];
        let now = Membership::of_voters(vec![a, b, c]);
        assert_eq!(plan(&now, &wanted, a, |_| false), Plan::Change(vec![Step::AddLearner(d)]));
        let now = Membership { learners: vec![d], ..now };
        assert_eq!(plan(&now, &wanted, a, |_| false), Plan::Nothing);
        let change = plan(&now, &wanted, a, |_| true);
        assert_eq!(change, Plan::Change(vec![Step::Promote(d), Step::Remove(c)]));
        let now = Membership::of_voters(vec![a, b, c, d]);
        assert_eq!(plan(&now, &wanted, a, |_| false), Plan::Change(vec![Step::Remove(c)]));
    }

    #[test]
    fn a_leader_that_must_go_hands_over_first() {
        let (a, b, c, a2) = (id(1, 1), id(2, 1), id(3, 1), id(4, 1));
        let now = Membership::of_voters(vec![a, b, c]);
        assert_eq!(plan(&now, &[voter(b), voter(c), voter(a2)], a, |_| true), Plan::HandOver(b));
    }

    #[test]
    fn nothing_wanted_changes_nothing() {
        let now = Membership::of_voters(vec![id(1, 1)]);
        assert_eq!(plan(&now, &[], id(1, 1), |_| true), Plan::Nothing);
        assert_eq!(
            plan(&now, &[voter(id(2, 1))], id(2, 1), |_| true),
            Plan::Change(vec![Step::AddLearner(id(2, 1))])
        );
    }
}
