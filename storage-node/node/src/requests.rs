//! The requests under which this node asks meta for new replicas.
//!
//! Danger: a replica that comes back without its memory under an id that it had before breaks what it promised: its
//! leader counts acknowledgements of it, and it could vote twice. What is in doubt here is this node's own memory, so no
//! note on its disk can say which ids it had, and its view of meta may be old. So it joins a group only under an id that meta
//! made for a number which this process drew itself, after it knew that it has no replica (simulation, seeds 40 and 55).

use longshore_wire::ShardId;
use std::collections::BTreeMap;

/// Numbers that this process drew, one per group that it wants a replica of.
#[derive(Debug)]
pub(crate) struct Requests {
    seed: u64,
    drawn: u64,
    open: BTreeMap<ShardId, u64>,
}

impl Requests {
    /// `seed` is another one in each process.
    pub fn new(seed: u64) -> Requests {
        Requests { seed, drawn: 0, open: BTreeMap::new() }
    }

    /// The number to ask under; drawn with the first call.
    pub fn number(&mut self, group: ShardId) -> u64 {
        let (seed, drawn) = (self.seed, &mut self.drawn);
        *self.open.entry(group).or_insert_with(|| {
            *drawn += 1;
            mix(seed ^ mix(*drawn)).max(1)
        })
    }

    /// The number, if one was drawn.
    pub fn get(&self, group: ShardId) -> Option<u64> {
        self.open.get(&group).copied()
    }

    /// The replica made for it was taken: the next one needs another number.
    pub fn close(&mut self, group: ShardId) {
        self.open.remove(&group);
    }
}

/// Spreads the bits (the finalizer of SplitMix64).
fn mix(n: u64) -> u64 {
    let n = (n ^ (n >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    n ^ (n >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_serves_one_replica() {
        let mut requests = Requests::new(7);
        assert_eq!(requests.get(ShardId(1)), None);
        let first = requests.number(ShardId(1));
        assert_eq!((requests.number(ShardId(1)), requests.get(ShardId(1))), (first, Some(first)));
        let other = requests.number(ShardId(2));
        requests.close(ShardId(1));
        let second = requests.number(ShardId(1));
        assert!(first != other && second != first && second != other);
        assert_ne!(Requests::new(8).number(ShardId(1)), first);
    }
}
