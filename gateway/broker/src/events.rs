//! The queue of events from the broker to one connection. Joins what is of a kind, so that a confirm or a delivery
//! costs no wake-up of its own.

use crate::api::*;
use crate::budget::Budget;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// What a connection may leave untaken, in bytes of bodies and 64 for each event line; beyond, it is closed. So it is
/// when it holds more than its share while all connections together hold too much ([`Budget`]).
/// Credit and the bound of pending publishes keep well-behaved adapters far below.
const WEIGHT_MAX: usize = 512 << 20;
const LINE_WEIGHT: usize = 64;

#[derive(Debug, Default)]
struct Inner {
    events: VecDeque<Event>,
    weight: usize,
    /// The last event is in.
    ended: bool,
}

/// Shared by the broker (which pushes) and one [`EventReceiver`].
#[derive(Debug)]
pub(crate) struct EventQueue {
    inner: Mutex<Inner>,
    notify: Notify,
    budget: Arc<Budget>,
}

impl Drop for EventQueue {
    fn drop(&mut self) {
        self.budget.remove_queue(self.lock().weight);
    }
}

fn weight(event: &Event) -> usize {
    match event {
        Event::Published(lines) => lines.len() * LINE_WEIGHT,
        Event::Deliveries(all) => all.iter().map(|d| d.body.len() + LINE_WEIGHT).sum(),
        _ => LINE_WEIGHT,
    }
}

impl EventQueue {
    /// Without an event.
    pub fn new(budget: Arc<Budget>) -> EventQueue {
        budget.add_queue();
        EventQueue { inner: Mutex::default(), notify: Notify::new(), budget }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event; joined with the last one if it is of the same kind.
    pub fn push(&self, event: Event) {
        let mut inner = self.lock();
        if inner.ended {
            return;
        }
        let weight = weight(&event);
        inner.weight += weight;
        let has_room = self.budget.add_event(weight, inner.weight);
        if inner.weight > WEIGHT_MAX || !has_room {
            self.budget.remove_event(inner.weight);
            inner.events.clear();
            inner.events.push_back(Event::Close(CloseReason::Overrun));
            inner.weight = 0;
            inner.ended = true;
        } else {
            match (inner.events.back_mut(), event) {
                (Some(Event::Published(last)), Event::Published(mut more)) => last.append(&mut more),
                (Some(Event::Deliveries(last)), Event::Deliveries(mut more)) => last.append(&mut more),
                (_, event) => inner.events.push_back(event),
            }
        }
        drop(inner);
        self.notify.notify_one();
    }

    /// Adds the last event. What is before it is still taken.
    pub fn close(&self, reason: CloseReason) {
        let mut inner = self.lock();
        if !inner.ended {
            inner.ended = true;
            inner.events.push_back(Event::Close(reason));
        }
        drop(inner);
        self.notify.notify_one();
    }

    /// Ends the queue without a word: the connection was dropped.
    pub fn end(&self) {
        self.lock().ended = true;
        self.notify.notify_one();
    }

    fn pop(&self) -> (Option<Event>, bool) {
        let mut inner = self.lock();
        let event = inner.events.pop_front();
        if let Some(event) = &event {
            // The last one was never counted.
            let weight = weight(event).min(inner.weight);
            inner.weight -= weight;
            self.budget.remove_event(weight);
        }
        (event, inner.ended)
    }
}

/// The events of one connection; for one task.
#[derive(Debug)]
pub struct EventReceiver {
    queue: Arc<EventQueue>,
}

impl EventReceiver {
    pub(crate) fn new(queue: Arc<EventQueue>) -> EventReceiver {
        EventReceiver { queue }
    }

    /// The next event; `None` after [`Event::Close`] or once the connection was dropped. Cancel-safe.
    pub async fn recv(&mut self) -> Option<Event> {
        loop {
            let notified = self.queue.notify.notified();
            match self.queue.pop() {
                (Some(event), _) => return Some(event),
                (None, true) => return None,
                (None, false) => notified.await,
            }
        }
    }

    /// An event that is there already.
    pub fn try_recv(&mut self) -> Option<Event> {
        self.queue.pop().0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(count: usize) -> Event {
        let line = Published { channel: 1, token: 1, result: PublishResult::Stored };
        Event::Published(vec![line; count])
    }

    #[test]
    fn whoever_takes_nothing_is_closed_and_the_others_go_on() {
        // Room for 100 lines in all.
        let budget = Arc::new(Budget::new(100 * LINE_WEIGHT));
        let queues: Vec<_> = (0..4).map(|_| Arc::new(EventQueue::new(budget.clone()))).collect();
        let mut receivers: Vec<_> = queues.iter().map(|queue| EventReceiver::new(queue.clone())).collect();
        for _ in 0..60 {
            for (queue, receiver) in queues.iter().zip(&mut receivers).skip(1) {
                queue.push(lines(1));
                assert!(matches!(receiver.try_recv(), Some(Event::Published(_))));
            }
            queues[0].push(lines(1));
        }
        assert_eq!(budget.events(), 60 * LINE_WEIGHT, "one that is slow may have what the others do not use");
        queues[1].push(lines(20));
        queues[2].push(lines(20));
        queues[3].push(lines(20));
        assert_eq!(budget.events(), 120 * LINE_WEIGHT, "too much, but these hold less than their share");
        queues[0].push(lines(1));
        assert!(matches!(receivers[0].try_recv(), Some(Event::Close(CloseReason::Overrun))));
        for receiver in &mut receivers[1..] {
            assert!(matches!(receiver.try_recv(), Some(Event::Published(lines)) if lines.len() == 20));
        }
        assert_eq!(budget.events(), 0);
        queues[2].push(lines(7));
        queues[2].close(CloseReason::Shutdown);
        drop((queues, receivers));
        assert_eq!(budget.events(), 0, "what nobody took goes with its connection");
    }
}
