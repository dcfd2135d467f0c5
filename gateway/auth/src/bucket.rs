//! A rate limit in one number: the moment at which everything taken so far would be paid off. Called by `verifier`.

use std::time::{Duration, Instant};

/// Costs are durations: something that may happen once a second costs a second.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    paid_at: Instant,
}

impl Bucket {
    pub fn new(now: Instant) -> Bucket {
        Bucket { paid_at: now }
    }

    /// Whether nothing is owed: the bucket need not be kept.
    pub fn is_full(&self, now: Instant) -> bool {
        self.paid_at <= now
    }

    /// How long until `cost` may be taken, if at most `burst` may be owed; zero: now. Whatever it costs, it may be
    /// taken while nothing is owed.
    pub fn wait(&self, cost: Duration, burst: Duration, now: Instant) -> Duration {
        let owed = self.paid_at.saturating_duration_since(now);
        if owed.is_zero() { owed } else { (owed + cost).saturating_sub(burst) }
    }

    /// Takes, without asking.
    pub fn take(&mut self, cost: Duration, now: Instant) {
        self.paid_at = self.paid_at.max(now) + cost;
    }

    /// Gives back what was taken.
    pub fn give(&mut self, cost: Duration, now: Instant) {
        self.paid_at = self.paid_at.checked_sub(cost).map_or(now, |earlier| earlier.max(now));
    }
}
