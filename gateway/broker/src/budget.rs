//! What all client connections of a session hold together: bytes of publishes without an outcome, and of events that
//! their clients have not taken. Each is counted by itself against the one bound, since nobody's publishes may wait for
//! somebody else to read.

use std::sync::atomic::{AtomicUsize, Ordering};

/// See the module.
#[derive(Debug)]
pub(crate) struct Budget {
    max: usize,
    publishes: AtomicUsize,
    events: AtomicUsize,
    /// Queues of events.
    queues: AtomicUsize,
}

fn sub(counter: &AtomicUsize, bytes: usize) {
    let before = counter.fetch_sub(bytes, Ordering::AcqRel);
    debug_assert!(before >= bytes, "{bytes} of {before}");
}

impl Budget {
    /// With nothing in it.
    pub fn new(max: usize) -> Budget {
        Budget {
            max,
            publishes: AtomicUsize::new(0),
            events: AtomicUsize::new(0),
            queues: AtomicUsize::new(0),
        }
    }

    /// Publishes are on their way.
    pub fn submit(&self, bytes: usize) {
        self.publishes.fetch_add(bytes, Ordering::AcqRel);
    }

    /// They have their outcomes.
    pub fn complete(&self, bytes: usize) {
        sub(&self.publishes, bytes);
    }

    /// Whether connections may publish.
    pub fn may_publish(&self) -> bool {
        self.publishes.load(Ordering::Acquire) <= self.max
    }

    /// A queue of events begins.
    pub fn add_queue(&self) {
        self.queues.fetch_add(1, Ordering::AcqRel);
    }

    /// A queue of events goes, with what it still holds.
    pub fn remove_queue(&self, held: usize) {
        sub(&self.events, held);
        sub(&self.queues, 1);
    }

    /// An event comes into a queue that holds `held` bytes with it. False: all of them hold too much, and this one more
    /// than its share, so that whoever takes its events goes on. What is held stays below twice the bound so.
    pub fn add_event(&self, bytes: usize, held: usize) -> bool {
        let all = self.events.fetch_add(bytes, Ordering::AcqRel) + bytes;
        all <= self.max || held <= self.max / self.queues.load(Ordering::Acquire).max(1)
    }

    /// An event was taken, or dropped.
    pub fn remove_event(&self, bytes: usize) {
        sub(&self.events, bytes);
    }

    /// Bytes of events.
    #[cfg(test)]
    pub fn events(&self) -> usize {
        self.events.load(Ordering::Acquire)
    }
}
