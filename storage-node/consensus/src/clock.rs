//! Log time: a monotonic clock anchored to the median of the replicas' wall clocks.
//!
//! Danger: TTL, delay, retention and rewind obey these stamps. A step of one machine's clock must never enter them,
//! so each clock is one vote among the group's nodes, and without a majority of clocks the anchor stays.

use longshore_io::{Mono, WallMs};
use longshore_wire::{LogTime, NodeId};
use std::collections::BTreeMap;

/// A lone clock may pull its anchor by this many parts in a thousand of the time that passed.
const LONE_SLEW_PER_MILLE: u64 = 10;

#[derive(Clone, Copy)]
struct Sample {
    /// Wall milliseconds at monotonic zero.
    offset_ms: i64,
    taken: Mono,
}

/// What this node knows of all nodes' wall clocks.
#[derive(Default)]
pub(crate) struct Clocks {
    samples: BTreeMap<NodeId, Sample>,
}

fn offset(wall: WallMs, at: Mono) -> i64 {
    wall.0 as i64 - (at.0 / 1000) as i64
}

impl Clocks {
    /// Notes this node's own clock.
    pub(crate) fn own(&mut self, node: NodeId, now: Mono, wall: WallMs) {
        self.samples.insert(node, Sample { offset_ms: offset(wall, now), taken: now });
    }

    /// Notes a peer's clock, read somewhere between the two moments.
    pub(crate) fn answered(&mut self, node: NodeId, sent: Mono, received: Mono, wall: WallMs) {
        let middle = Mono(sent.0 + received.since(sent) / 2);
        self.samples.insert(node, Sample { offset_ms: offset(wall, middle), taken: received });
    }

    fn fresh(&self, nodes: &[NodeId], now: Mono, age_us_max: u64) -> Vec<i64> {
        let known = nodes.iter().filter_map(|n| self.samples.get(n));
        let mut offsets: Vec<i64> =
            known.filter(|s| now.since(s.taken) <= age_us_max).map(|s| s.offset_ms).collect();
        offsets.sort_unstable();
        offsets
    }
}

/// The clock of one group on its leader.
#[derive(Default)]
pub(crate) struct LogClock {
    anchor_ms: Option<i64>,
    adjusted: Mono,
    last: LogTime,
}

impl LogClock {
    /// Follows the clocks of the group's voters, if a majority of them is fresh.
    pub(crate) fn adjust(&mut self, clocks: &Clocks, voters: &[NodeId], now: Mono, age_us_max: u64) {
        let offsets = clocks.fresh(voters, now, age_us_max);
        if offsets.len() * 2 <= voters.len() {
            return;
        }
        let Some(median) = self.median(&offsets) else {
            return;
        };
        let Some(anchor) = self.anchor_ms.filter(|_| voters.len() == 1) else {
            self.anchor_ms = Some(median);
            self.adjusted = now;
            return;
        };
        let pull = (now.since(self.adjusted) / 1000 * LONE_SLEW_PER_MILLE / 1000) as i64;
        if pull > 0 {
            self.anchor_ms = Some(anchor + (median - anchor).clamp(-pull, pull));
            self.adjusted = now;
        }
    }

    /// The middle one; of two middle ones that which is nearer to the anchor, so that one of two clocks that
    /// steps is outvoted by the past.
    fn median(&self, sorted: &[i64]) -> Option<i64> {
        let high = *sorted.get(sorted.len() / 2)?;
        if sorted.len() % 2 == 1 {
            return Some(high);
        }
        let low = *sorted.get(sorted.len() / 2 - 1)?;
        Some(match self.anchor_ms {
            Some(a) if high.abs_diff(a) < low.abs_diff(a) => high,
            _ => low,
        })
    }

    /// The stamp of this moment: never below an earlier one. `None` until a majority's clocks were known once.
    pub(crate) fn stamp(&mut self, now: Mono) -> Option<LogTime> {
        let at = (now.0 / 1000) as i64 + self.anchor_ms?;
        self.last = self.last.max(LogTime(u64::try_from(at).unwrap_or(0)));
        Some(self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODES: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];
    const AGE: u64 = 2_000_000;

    fn clocks(at_ms: u64, walls: [u64; 3]) -> Clocks {
        let mut c = Clocks::default();
        for (node, wall) in NODES.into_iter().zip(walls) {
            c.own(node, Mono(at_ms * 1000), WallMs(wall));
        }
        c
    }

    #[test]
    fn a_stepped_clock_is_outvoted() {
        let mut clock = LogClock::default();
        clock.adjust(&clocks(0, [1000, 1002, 1001]), &NODES, Mono(0), AGE);
        assert_eq!(clock.stamp(Mono(0)), Some(LogTime(1001)));
        clock.adjust(&clocks(10, [9_000_000, 1012, 1011]), &NODES, Mono(10_000), AGE);
        assert_eq!(clock.stamp(Mono(10_000)), Some(LogTime(1012)));
    }

    #[test]
    fn of_two_clocks_the_one_that_stepped_loses() {
        let mut clock = LogClock::default();
        clock.adjust(&clocks(0, [1000, 1000, 1000]), &NODES, Mono(0), AGE);
        let mut two = Clocks::default();
        two.own(NodeId(1), Mono(10_000), WallMs(9_000_000));
        two.own(NodeId(2), Mono(10_000), WallMs(1010));
        clock.adjust(&two, &NODES, Mono(10_000), AGE);
        assert_eq!(clock.stamp(Mono(10_000)), Some(LogTime(1010)));
    }

    #[test]
    fn without_a_majority_the_anchor_stays() {
        let mut clock = LogClock::default();
        let mut one = Clocks::default();
        one.own(NodeId(1), Mono(0), WallMs(1000));
        clock.adjust(&one, &NODES, Mono(0), AGE);
        assert_eq!(clock.stamp(Mono(0)), None);
        clock.adjust(&clocks(0, [1000, 1000, 1000]), &NODES, Mono(0), AGE);
        one.own(NodeId(1), Mono(5_000_000), WallMs(50));
        clock.adjust(&one, &NODES, Mono(5_000_000), AGE);
        assert_eq!(clock.stamp(Mono(5_000_000)), Some(LogTime(6000)));
    }

    #[test]
    fn stamps_never_go_back() {
        let mut clock = LogClock::default();
        clock.adjust(&clocks(0, [5000; 3]), &NODES, Mono(0), AGE);
        assert_eq!(clock.stamp(Mono(0)), Some(LogTime(5000)));
        clock.adjust(&clocks(0, [4000; 3]), &NODES, Mono(0), AGE);
        assert_eq!(clock.stamp(Mono(100_000)), Some(LogTime(5000)));
    }

    #[test]
    fn a_lone_clock_that_steps_pulls_slowly() {
        let mut clock = LogClock::default();
        let node = [NodeId(1)];
        let mut c = Clocks::default();
        c.own(NodeId(1), Mono(0), WallMs(1000));
        clock.adjust(&c, &node, Mono(0), AGE);
        c.own(NodeId(1), Mono(1_000_000), WallMs(3_600_000));
        clock.adjust(&c, &node, Mono(1_000_000), AGE);
        assert_eq!(clock.stamp(Mono(1_000_000)), Some(LogTime(2010)));
    }
}
