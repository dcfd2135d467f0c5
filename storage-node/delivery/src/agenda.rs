//! Which queues have work now, and which will by themselves later. A queue that is on neither list costs nothing.

use crate::command::QueueId;
use longshore_io::Mono;
use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

/// Queues with work, in the order in which it came; timers of the others.
#[derive(Debug, Default)]
pub(crate) struct Agenda {
    dirty: VecDeque<QueueId>,
    /// The same as `dirty`, for looking up; its order is never seen.
    marked: HashSet<QueueId>,
    timers: BTreeSet<(Mono, QueueId)>,
    wakes: BTreeMap<QueueId, Mono>,
}

impl Agenda {
    /// `queue` has work.
    pub fn mark(&mut self, queue: QueueId) {
        if self.marked.insert(queue) {
            self.dirty.push_back(queue);
        }
    }

    /// `queue` has work at `at`; replaces what was said before.
    pub fn wake(&mut self, queue: QueueId, at: Option<Mono>) {
        let before = match at {
            Some(at) => self.wakes.insert(queue, at),
            None => self.wakes.remove(&queue),
        };
        if before == at {
            return;
        }
        if let Some(before) = before {
            self.timers.remove(&(before, queue));
        }
        if let Some(at) = at {
            self.timers.insert((at, queue));
        }
    }

    /// Marks the queues whose time has come.
    pub fn ring(&mut self, now: Mono) {
        while let Some((at, queue)) = self.timers.first().copied()
            && at <= now
        {
            self.timers.remove(&(at, queue));
            self.wakes.remove(&queue);
            self.mark(queue);
        }
    }

    /// The next queue with work.
    pub fn pop(&mut self) -> Option<QueueId> {
        let queue = self.dirty.pop_front()?;
        self.marked.remove(&queue);
        Some(queue)
    }

    /// How many queues have work.
    pub fn len(&self) -> usize {
        self.dirty.len()
    }

    /// The earliest timer.
    pub fn next_timer(&self) -> Option<Mono> {
        self.timers.first().map(|(at, _)| *at)
    }

    pub fn clear(&mut self) {
        *self = Agenda::default();
    }
}
