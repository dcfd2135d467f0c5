//! The queue of events from the broker to one connection. Joins what is of a kind, so that a confirm or a delivery
//! costs no wake-up of its own.

use crate::api::*;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// What a connection may leave untaken, in bytes of bodies and 64 for each event line; beyond, it is closed.
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
#[derive(Debug, Default)]
pub(crate) struct EventQueue {
    inner: Mutex<Inner>,
    notify: Notify,
}

fn weight(event: &Event) -> usize {
    match event {
        Event::Published(lines) => lines.len() * LINE_WEIGHT,
        Event::Deliveries(all) => all.iter().map(|d| d.body.len() + LINE_WEIGHT).sum(),
        _ => LINE_WEIGHT,
    }
}

impl EventQueue {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event; joined with the last one if it is of the same kind.
    pub fn push(&self, event: Event) {
        let mut inner = self.lock();
        if inner.ended {
            return;
        }
        inner.weight += weight(&event);
        if inner.weight > WEIGHT_MAX {
            inner.events.clear();
            inner.events.push_back(Event::Close(CloseReason::Overrun));
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
            inner.weight = inner.weight.saturating_sub(weight(event));
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
