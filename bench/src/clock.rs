//! Time of one run: nanoseconds since its start, so that stamps fit into a message and into a histogram.

use std::time::{Duration, Instant};

/// A monotonic clock that starts at 0.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// Starts now.
    pub fn start() -> Clock {
        Clock { start: Instant::now() }
    }

    /// Nanoseconds since the start; 0 is never given, since 0 marks an empty slot in the callers' tables.
    pub fn now_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX).max(1)
    }

    /// The moment `ns` nanoseconds after the start.
    pub fn at(&self, ns: u64) -> Instant {
        self.start + Duration::from_nanos(ns)
    }
}

/// Whole nanoseconds of `seconds`; negative and absurd values become 0.
pub fn ns_of(seconds: f64) -> u64 {
    Duration::try_from_secs_f64(seconds).map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

/// Seconds of `ns` nanoseconds.
pub fn seconds_of(ns: u64) -> f64 {
    ns as f64 / 1e9
}
