//! One behaviour a test, on a calm network unless the story says otherwise.

use crate::harness::Cluster;
use longshore_consensus::{ProposeError, Role};
use longshore_wire::{Index, NodeId, ShardId};

const G: ShardId = ShardId(0);

fn put(c: &mut Cluster, n: usize) -> NodeId {
    let leader = c.await_leader(G);
    put_on(c, leader, n, 20);
    leader
}

fn put_on(c: &mut Cluster, leader: NodeId, n: usize, bytes: usize) {
    for _ in 0..n {
        while let Err(e) = c.propose(leader, G, bytes) {
            assert_eq!(e, ProposeError::Busy);
            c.run_ms(5);
        }
    }
    c.run_ms(50);
}

fn acked(c: &Cluster) -> usize {
    c.acked.get(&G).map_or(0, Vec::len)
}

#[test]
fn a_leader_is_elected_within_three_seconds_and_commits() {
    let mut c = Cluster::new(1, 3, 1);
    let started = c.now;
    let leader = put(&mut c, 10);
    assert!(c.now.since(started) < 4_000_000, "{:?}", c.now);
    assert_eq!(acked(&c), 10);
    let follower = c.ids().into_iter().find(|n| *n != leader).unwrap();
    let refused = c.propose(follower, G, 20);
    assert!(matches!(refused, Err(ProposeError::NotLeader { leader: Some(l), .. }) if l.node() == leader));
    c.settle();
}

#[test]
fn a_node_alone_serves() {
    let mut c = Cluster::new(2, 1, 1);
    put(&mut c, 10);
    c.crash(NodeId(1));
    c.start(NodeId(1));
    put(&mut c, 10);
    c.settle();
    assert_eq!(acked(&c), 20);
}

#[test]
fn leaders_spread_over_the_nodes() {
    let mut c = Cluster::new(3, 3, 6);
    c.run_ms(30_000);
    for g in 0..6 {
        let home = NodeId(g % 3 + 1);
        assert_eq!(c.leader(ShardId(g)), Some(home), "group {g}");
    }
    c.settle();
}

#[test]
fn a_lost_leader_is_replaced_within_three_seconds_and_nothing_is_lost() {
    for seed in 0..10 {
        let mut c = Cluster::new(100 + seed, 3, 1);
        let leader = put(&mut c, 20);
        c.crash(leader);
        let lost = c.now;
        let next = put(&mut c, 5);
        assert_ne!(next, leader);
        assert!(c.now.since(lost) < 3_300_000, "seed {seed}: {} us", c.now.since(lost));
        c.settle();
        assert_eq!(acked(&c), 25);
    }
}

#[test]
fn nothing_is_acknowledged_without_a_majority() {
    let mut c = Cluster::new(4, 3, 1);
    let leader = put(&mut c, 5);
    for id in c.ids().into_iter().filter(|n| *n != leader) {
        c.crash(id);
    }
    let _ = c.propose(leader, G, 20);
    c.run_ms(3_000);
    assert_eq!(acked(&c), 5);
    assert!(matches!(c.nodes[&leader].process.as_ref().unwrap().store.role(G), Some(Role::Follower { .. })));
    c.settle();
}

#[test]
fn all_nodes_lose_power_at_once_and_come_back() {
    let mut c = Cluster::new(5, 3, 2);
    put(&mut c, 30);
    for id in c.ids() {
        c.crash(id);
    }
    for id in c.ids() {
        c.start(id);
    }
    put(&mut c, 5);
    c.settle();
    assert_eq!(acked(&c), 35);
}

#[test]
fn a_paused_leader_may_not_deliver_when_it_wakes() {
    let mut c = Cluster::new(6, 3, 1);
    let leader = put(&mut c, 5);
    let until = c.now.plus_ms(5_000);
    c.node(leader).paused_until = until;
    c.run_ms(4_900);
    // It has not run a turn yet and still believes that it leads.
    let p = c.nodes[&leader].process.as_ref().unwrap();
    assert!(matches!(p.store.role(G), Some(Role::Leader { .. })));
    assert!(!p.store.may_deliver(G, c.now));
    let next = c.await_leader(G);
    assert_ne!(next, leader);
    c.settle();
}

#[test]
fn a_cut_off_leader_stops_delivering_before_another_one_begins() {
    for seed in 0..10 {
        let mut c = Cluster::new(200 + seed, 3, 1);
        let leader = put(&mut c, 5);
        for id in c.ids().into_iter().filter(|n| *n != leader) {
            // One way only: it still hears them.
            c.cut.insert((leader, id));
        }
        c.run_ms(5_000);
        assert_ne!(c.leader(G), Some(leader));
        c.settle();
    }
}

#[test]
fn an_orderly_stop_hands_over_without_an_election_timeout() {
    let mut c = Cluster::new(7, 3, 3);
    c.run_ms(30_000);
    let leader = c.await_leader(G);
    c.node(leader).process.as_mut().unwrap().store.transfer_all();
    c.run_ms(300);
    assert_eq!(c.nodes[&leader].process.as_ref().unwrap().store.leads(), 0);
    let next = c.await_leader(G);
    assert_ne!(next, leader);
    c.settle();
}

#[test]
fn leadership_goes_where_it_is_sent() {
    let mut c = Cluster::new(13, 3, 1);
    c.run_ms(10_000);
    let leader = put(&mut c, 5);
    let heir = c.ids().into_iter().find(|n| *n != leader).unwrap();
    c.transfer(G, heir);
    c.run_ms(50);
    assert_eq!(c.leader(G), Some(heir));
    c.settle();
}

#[test]
fn a_hand_over_that_comes_to_nothing_delivers_nothing_until_it_is_harmless() {
    let mut c = Cluster::new(14, 3, 1);
    c.run_ms(10_000);
    let leader = put(&mut c, 5);
    let heir = c.ids().into_iter().find(|n| *n != leader).unwrap();
    let may_deliver = |c: &Cluster| c.nodes[&leader].process.as_ref().unwrap().store.may_deliver(G, c.now);
    assert!(may_deliver(&c));
    c.cut.insert((leader, heir));
    c.transfer(G, heir);
    c.run_ms(20);
    assert!(!may_deliver(&c));
    // Raft gives up after an election timeout. The heir could still hold the message: silence goes on.
    c.run_ms(1_300);
    assert!(!may_deliver(&c));
    // In the end somebody leads in a new term, or the heir answered a later round.
    c.await_leader(G);
    put(&mut c, 5);
    c.settle();
}

#[test]
fn a_slow_follower_is_served_from_disk() {
    let mut c = Cluster::new(8, 3, 1);
    let leader = put(&mut c, 5);
    let slow = c.ids().into_iter().find(|n| *n != leader).unwrap();
    for id in c.ids() {
        c.cut.insert((id, slow));
    }
    put_on(&mut c, leader, 100, 2_000);
    c.settle();
    assert!(c.nodes.values().any(|n| n.process.as_ref().is_some_and(|p| p.reads > 0)));
    assert_eq!(acked(&c), 105);
    assert_eq!(c.snapshots_installed, 0);
}

#[test]
fn a_follower_too_far_behind_gets_a_snapshot() {
    let mut c = Cluster::new(9, 3, 1);
    let leader = put(&mut c, 5);
    let slow = c.ids().into_iter().find(|n| *n != leader).unwrap();
    c.crash(slow);
    for _ in 0..20 {
        put_on(&mut c, leader, 100, 1_000);
        for id in c.ids() {
            c.node(id).checkpoint(G);
        }
        c.run_ms(1_100);
    }
    c.settle();
    assert_eq!(acked(&c), 2_005);
    assert!(c.snapshots_installed > 0);
}

#[test]
fn what_a_replica_is_known_to_have_applied_it_applies_again_before_it_hears_of_anybody() {
    let mut c = Cluster::new(13, 3, 1);
    let leader = put(&mut c, 30);
    let applied = |c: &mut Cluster| {
        let process = c.node(leader).process.as_ref();
        process.and_then(|p| p.machines.states.get(&G)).map_or(0, |state| state.applied)
    };
    let before = applied(&mut c);
    for id in c.ids() {
        c.crash(id);
    }
    c.start(leader);
    c.run_ms(100);
    // The last commit was in no write of the log yet.
    assert!(applied(&mut c) < before);
    c.crash(leader);
    c.node(leader).saved.reached.insert(G, Index(before));
    c.start(leader);
    c.run_ms(100);
    assert_eq!(applied(&mut c), before);
}

#[test]
fn a_snapshot_whose_installation_nobody_heard_of_does_not_stop_the_group() {
    let mut c = Cluster::new(12, 3, 1);
    let leader = put(&mut c, 5);
    let slow = c.ids().into_iter().find(|n| *n != leader).unwrap();
    let third = c.ids().into_iter().find(|n| *n != leader && *n != slow).unwrap();
    c.crash(slow);
    for _ in 0..20 {
        put_on(&mut c, leader, 100, 1_000);
        c.node(leader).checkpoint(G);
        c.node(third).checkpoint(G);
        c.run_ms(1_100);
    }
    c.answers_lost = true;
    c.start(slow);
    let fetches = |c: &mut Cluster| {
        c.run_ms(1);
        c.node(slow).process.as_ref().is_some_and(|p| !p.machines.arriving.is_empty())
    };
    assert!((0..10_000).any(|_| fetches(&mut c)));
    // From here on all that the receiver says gets lost, until it dies.
    c.cut.insert((slow, leader));
    assert!((0..1_000).any(|_| {
        c.run_ms(1);
        c.snapshots_installed > 0
    }));
    c.crash(slow);
    c.answers_lost = false;
    c.cut.clear();
    c.start(slow);
    // Now the leader needs that replica.
    c.crash(third);
    put_on(&mut c, leader, 10, 100);
    c.run_ms(5_000);
    assert_eq!(acked(&c), 2_015);
}

#[test]
fn every_replica_in_turn_is_wiped_and_replaced() {
    let mut c = Cluster::new(10, 3, 2);
    put(&mut c, 50);
    for id in c.ids() {
        c.wipe(id);
        put(&mut c, 20);
        c.settle();
    }
    assert_eq!(acked(&c), 110);
    assert!(c.snapshots_installed >= 6, "{}", c.snapshots_installed);
}

#[test]
fn a_wiped_replica_never_votes_so_that_two_wiped_ones_stop_the_group() {
    let mut c = Cluster::new(11, 3, 1);
    let leader = put(&mut c, 20);
    c.crash(leader);
    for id in c.ids().into_iter().filter(|n| *n != leader) {
        c.wipe(id);
    }
    c.run_ms(10_000);
    assert_eq!(c.leader(G), None);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let mut c = Cluster::new(seed, 3, 3);
        put(&mut c, 20);
        let leader = c.await_leader(G);
        c.crash(leader);
        put(&mut c, 20);
        c.settle();
        (c.now, c.history.values(G))
    };
    assert_eq!(run(12), run(12));
}

#[test]
fn a_leader_hears_when_a_majority_is_short_of_space() {
    let mut c = Cluster::new(31, 3, 1);
    let leader = put(&mut c, 1);
    let followers: Vec<_> = c.ids().into_iter().filter(|n| *n != leader).collect();
    let say = |c: &mut Cluster, node: NodeId, short: bool| {
        c.node(node).process.as_mut().unwrap().store.set_short_of_space(short);
        c.run_ms(1_000);
        c.node(leader).process.as_ref().unwrap().store.lacks_space(G)
    };
    assert!(!say(&mut c, followers[0], true), "one of three");
    assert!(say(&mut c, followers[1], true), "both followers, and the leader itself has space");
    assert!(!say(&mut c, followers[0], false));
    assert!(say(&mut c, leader, true), "the leader and a follower");
    assert!(!say(&mut c, followers[1], false), "the leader alone");
}
