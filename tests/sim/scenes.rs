//! Scenes: faults in an order that makes one kind of mistake show in what clients see, where a storm would come to it
//! seldom or only leave a cluster that does not serve. A sound build passes each of them.
//!
//! Danger: a scene may look into the cluster to choose whom it strikes; the oracle never does.

use crate::sim::faults::both_ways;
use crate::sim::machine::SHARDS;
use crate::sim::world::{CALM, GATEWAYS, HOLD_US, MACHINES, Weather, World};

/// Longest wait for a replacement, in milliseconds.
const REBUILD_MS: u64 = 60_000;
/// A gateway trusts its lease for less than this after a renewal, in microseconds; and a bit less.
const FRESH_US: u64 = 2_960_000;

/// What happens in a run.
#[allow(dead_code, reason = "the simulation plays the storm alone, broken_builds the rest")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scene {
    /// Anything at any time.
    Storm,
    /// One node is cut off. Of the other two one has a slow disk: it loses power and returns, the other stays away. The slow
    /// one and the one that was cut off must know everything that was confirmed.
    MajorityLost,
    /// Everything loses power, gateways too; two nodes return, and one of them dies when the third is back.
    Blackouts,
    /// A node wins an election and stands still; who voted for it loses power, and votes again, for the leader of before.
    VotedTwice,
    /// A leader is alone with a gateway for a while.
    Stranded,
    /// A leader is alone with a gateway; what it wrote there is overwritten, and later it leads again and delivers from its disk.
    Overwritten,
    /// A leader stands still and wakes alone with a gateway, while its successor delivers to another gateway.
    Paused,
    /// Each node in turn loses its disk, as soon as the cluster shows three copies of everything.
    WipedInTurn,
    /// One node is cut off, another one loses its disk, the third dies: what the first does not know must wait.
    WipedUnseen,
}

impl Scene {
    /// Whether consumers are there from the beginning.
    pub fn consumes_at_once(self) -> bool {
        !matches!(self, Scene::WipedInTurn | Scene::Overwritten)
    }

    /// How long a healed cluster has until everything is consumed and equal, in milliseconds.
    pub fn drain_ms(self) -> u64 {
        if self == Scene::Storm { 120_000 } else { 60_000 }
    }
}

impl World {
    /// What breaks in this scene, from its beginning to its end.
    pub fn act(&mut self, scene: Scene) {
        match scene {
            Scene::Storm => self.storm(),
            Scene::MajorityLost => self.majority_lost(),
            Scene::Blackouts => self.blackouts(),
            Scene::VotedTwice => self.voted_twice(),
            Scene::Stranded => self.stranded(),
            Scene::Overwritten => self.overwritten(),
            Scene::Paused => self.paused_alone(),
            Scene::WipedInTurn => self.wiped_in_turn(),
            Scene::WipedUnseen => self.wiped_unseen(),
        }
    }

    fn shuffled(&mut self) -> [usize; MACHINES] {
        let mut slots = [0, 1, 2];
        for at in (1..MACHINES).rev() {
            slots.swap(at, self.rng.below(at as u64 + 1) as usize);
        }
        slots
    }

    /// Nothing goes between these endpoints and all others.
    fn part(&mut self, ends: &[usize]) {
        for end in ends {
            for other in (0..MACHINES + GATEWAYS).filter(|other| !ends.contains(other)) {
                both_ways(&mut self.cut, *end, other);
            }
        }
        self.reached.cut += 1;
        self.note(format!("alone: {ends:?}"));
    }

    /// A machine that leads, if there is one; else any.
    fn some_leader(&mut self) -> usize {
        let slots = self.shuffled();
        slots.into_iter().find(|slot| self.leads(*slot) > 0).unwrap_or(slots[0])
    }

    fn majority_lost(&mut self) {
        let [slow, away, apart] = self.shuffled();
        self.weather = Weather { delay_us: 4_000, double: 400, ..CALM };
        self.part(&[apart]);
        self.run_ms(2_000);
        // Whose word comes too early: the leader's own, or its follower's.
        let leader = if self.rng.one_in(2) { slow } else { away };
        (1..=SHARDS).for_each(|shard| self.hand_over_to(shard, leader));
        self.run_ms(500);
        self.machines[slow].sync_us = 1_500_000;
        self.run_ms(1_000);
        self.kill(slow, true, 200);
        self.kill(away, true, 9_000);
        self.machines[slow].sync_us = 1_000;
        self.cut.clear();
        self.run_ms(10_000);
    }

    fn blackouts(&mut self) {
        // Each hand-over is a term of its own.
        for _ in 0..4 {
            for shard in 0..=SHARDS {
                let to = self.rng.below(MACHINES as u64) as usize;
                self.hand_over_to(shard, to);
            }
            self.run_ms(300);
        }
        for _ in 0..2 {
            let [first, second, late] = self.shuffled();
            (0..GATEWAYS).for_each(|gateway| self.session_over(gateway));
            self.reached.all_died += 1;
            self.kill(first, true, 150);
            self.kill(second, true, 250);
            self.kill(late, true, 4_200);
            self.run_ms(4_000);
            self.kill(second, true, 6_000);
            self.run_ms(8_000);
        }
    }

    fn leads(&self, slot: usize) -> usize {
        self.machines[slot].process.as_ref().map_or(0, |process| process.node.leads())
    }

    fn voted_twice(&mut self) {
        for _ in 0..4 {
            let apart = self.some_leader();
            let others = [(apart + 1) % MACHINES, (apart + 2) % MACHINES];
            // A vote that waits for its sync comes late; the winner's first entry is not synced for a while.
            for slot in others {
                self.machines[slot].sync_us = 1_200_000;
            }
            let led = others.map(|slot| self.leads(slot));
            self.part(&[apart]);
            let mut won = None;
            for _ in 0..600 {
                self.run_ms(5);
                won = (0..2).find(|n| self.leads(others[*n]) > led[*n]);
                if won.is_some() {
                    break;
                }
            }
            let winner = won.unwrap_or(0);
            let (winner, voter) = (others[winner], others[1 - winner]);
            self.kill(voter, true, 100);
            self.machines[winner].paused_until = self.now + 3_500_000;
            self.reached.leader_paused += 1;
            for slot in others {
                self.machines[slot].sync_us = 1_000;
            }
            self.cut.clear();
            self.part(&[winner]);
            self.run_ms(3_400);
            self.cut.clear();
            self.run_ms(2_000);
            // Without new messages replicas come to the same index, where they can be compared.
            self.publishing = false;
            for _ in 0..15 {
                (0..MACHINES).for_each(|slot| self.compare_replicas(slot));
                self.run_ms(200);
            }
            self.publishing = true;
        }
    }

    /// All messages are of one size, so that what was overwritten lies where its successor would lie.
    fn overwritten(&mut self) {
        self.uniform = true;
        let (leader, gateway) = (self.some_leader(), self.rng.below(GATEWAYS as u64) as usize);
        self.part(&[leader, MACHINES + gateway]);
        self.run_ms(3_000);
        self.cut.clear();
        self.run_ms(3_000);
        for _ in 0..4 {
            for shard in 1..=SHARDS {
                self.hand_over_to(shard, leader);
            }
            self.run_ms(500);
        }
        self.consuming = true;
        self.run_ms(3_000);
    }

    fn stranded(&mut self) {
        for _ in 0..3 {
            let (leader, gateway) = (self.some_leader(), self.rng.below(GATEWAYS as u64) as usize);
            self.part(&[leader, MACHINES + gateway]);
            self.run_ms(4_000);
            self.cut.clear();
            self.run_ms(3_000);
        }
    }

    fn paused_alone(&mut self) {
        for round in 0..4 {
            // Slow clients: messages wait in the queues.
            self.hold_us = 3_000_000;
            self.run_ms(2_500);
            let (leader, gateway) = (self.some_leader(), round % GATEWAYS);
            for _ in 0..1_200 {
                if self.gateways[gateway].lease_until >= self.now + FRESH_US {
                    break;
                }
                self.run_ms(1);
            }
            let trust_ends = self.gateways[gateway].lease_until.max(self.now + 1_000_000);
            self.hold_us = HOLD_US;
            (0..GATEWAYS).for_each(|at| self.hurry(at));
            self.part(&[leader, MACHINES + gateway]);
            self.machines[leader].paused_until = trust_ends - 150_000;
            self.reached.leader_paused += 1;
            self.run_ms((trust_ends + 50_000 - self.now) / 1_000);
            self.cut.clear();
            self.run_ms(2_500);
        }
    }

    fn wiped_in_turn(&mut self) {
        self.run_ms(1_500);
        self.publishing = false;
        self.run_ms(1_000);
        self.weather = Weather { bulk_us: 1_500_000, ..CALM };
        for slot in self.shuffled() {
            self.last_words.clear();
            self.wipe_machine(slot);
            let mut waited = 0;
            while waited < REBUILD_MS && !(0..MACHINES).all(|slot| self.is_whole(slot)) {
                (0..MACHINES).for_each(|slot| self.compare_replicas(slot));
                self.run_ms(200);
                waited += 200;
            }
        }
        self.weather = CALM;
        self.consuming = true;
        self.publishing = true;
        self.run_ms(2_000);
    }

    fn wiped_unseen(&mut self) {
        let [wiped, away, apart] = self.shuffled();
        self.part(&[apart]);
        self.run_ms(2_500);
        self.declare_idle_queues();
        (0..GATEWAYS).for_each(|gateway| self.session_over(gateway));
        self.run_ms(2_000);
        self.wipe_machine(wiped);
        self.kill(away, true, 12_000);
        self.cut.clear();
        self.run_ms(14_000);
        self.declare_idle_queues();
        self.run_ms(1_000);
    }
}
