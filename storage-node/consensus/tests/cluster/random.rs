//! Seeded choices of a run.

use longshore_io::sim;

/// The simulated disk's generator, with the words that the cluster's tests use.
pub struct Rng(sim::Rng);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(sim::Rng::new(seed))
    }

    pub fn next(&mut self) -> u64 {
        self.0.next_u64()
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.0.below(n)
    }

    pub fn per_mille(&mut self, n: u64) -> bool {
        self.below(1000) < n
    }
}
