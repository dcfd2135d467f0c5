//! Random faults from many seeds. `SEEDS=500 cargo test` runs more, `SEED=7 cargo test` repeats one.

use crate::harness::{CALM, Cluster, Weather};
use longshore_wire::ShardId;

const ROUGH: Weather = Weather { delay_us_max: 40_000, loss_per_mille: 30, double_per_mille: 200 };
const GROUPS: u32 = 2;

/// One random fault.
fn disturb(c: &mut Cluster) {
    let ids = c.ids();
    let id = ids[c.rng.below(ids.len() as u64) as usize];
    let other = ids[c.rng.below(ids.len() as u64) as usize];
    match c.rng.below(16) {
        0 | 1 => c.crash(id),
        2 => ids.into_iter().for_each(|n| c.start(n)),
        3 | 12 => c.start(id),
        13 => ids.into_iter().for_each(|n| c.crash(n)),
        14 | 15 => [id, other].into_iter().for_each(|n| c.crash(n)),
        4 => {
            c.cut.insert((id, other));
        }
        5 => c.cut.clear(),
        6 => {
            let ms = c.rng.below(3_000);
            let until = c.now.plus_ms(ms);
            c.node(id).paused_until = until;
        }
        7 => c.weather = ROUGH,
        8 => c.weather = CALM,
        9 => c.node(id).sync_us = [500, 2_000, 20_000, 300_000][(other.0 % 4) as usize],
        10 => (0..GROUPS).for_each(|g| c.node(id).checkpoint(ShardId(g))),
        _ => c.node(id).wall_offset_ms += 3_600_000 * u64::from(other.0 % 2),
    }
}

/// A run: clients propose to whoever leads while things break; then everything heals and must agree.
pub fn run(seed: u64) -> Cluster {
    let mut c = Cluster::new(seed, 3, GROUPS);
    let mut wiped = false;
    for round in 0..150 {
        if c.rng.per_mille(250) {
            disturb(&mut c);
        }
        // One replica at a time may lose everything, when the others are there.
        if !wiped && round > 60 && c.rng.per_mille(20) {
            wiped = true;
            let ids = c.ids();
            let id = ids[c.rng.below(3) as usize];
            ids.iter().for_each(|n| c.start(*n));
            c.wipe(id);
        }
        for g in 0..GROUPS {
            let n = c.rng.below(8);
            for _ in 0..n {
                for id in c.ids() {
                    let bytes = c.rng.below(1_500) as usize;
                    let _ = c.propose(id, ShardId(g), bytes);
                }
            }
        }
        let ms = 10 + c.rng.below(200);
        c.run_ms(ms);
    }
    c.settle();
    c
}

#[test]
fn nothing_acknowledged_is_lost_whatever_breaks() {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    if let Some(seed) = number("SEED") {
        run(seed);
        return;
    }
    let (mut acked, mut snapshots) = (0, 0);
    let seeds = number("SEEDS").unwrap_or(25);
    for seed in 0..seeds {
        let c = run(seed);
        acked += c.acked.values().map(Vec::len).sum::<usize>();
        snapshots += c.snapshots_installed;
    }
    if seeds >= 25 {
        assert!(acked > 1_000, "the runs hardly did anything: {acked} acknowledged");
        assert!(snapshots > 0);
    }
}
