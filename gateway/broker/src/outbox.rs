//! What waits to be sent on one stream to a storage node; the stream takes it in frames.
//!
//! Bounded by its users: at most 32 batches a shard, publishes to transient queues by the connections' bounds; pieces of
//! their large bodies wait for room.

use futures_util::Stream;
use longshore_proto::FRAME_BYTES_TARGET;
use longshore_proto::v1::{GatewayFrame, GatewayItem, gateway_item::Item};
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use tokio::sync::Notify;

/// Pieces of large bodies wait while so many bytes do.
const ROOM_BYTES: usize = 1 << 20;

#[derive(Debug, Default)]
struct Inner {
    items: VecDeque<GatewayItem>,
    bytes: usize,
    waker: Option<Waker>,
    closed: bool,
}

/// One stream's outgoing items.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    inner: Mutex<Inner>,
    drained: Notify,
}

/// About how many bytes an item adds to a frame.
fn size(item: &GatewayItem) -> usize {
    32 + match &item.item {
        Some(Item::Submit(submit)) => submit.batch.len(),
        Some(Item::TransientAppend(append)) => append.record.len(),
        Some(Item::TransientPart(part)) => part.bytes.len(),
        Some(Item::Attach(attach)) => 16 * attach.held.len(),
        Some(Item::Hold(hold)) => 16 * hold.held.len(),
        Some(Item::TransientSettle(settle)) => 9 * (settle.acked.len() + settle.returned.len()),
        Some(Item::TransientDeclare(declare)) => declare.name.len() + declare.arguments.len(),
        _ => 0,
    }
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an item. False: the stream has ended, it goes nowhere. What it was about is settled by the loss of the link
    /// if it was noted before that; whoever notes it later must look at the answer.
    pub fn push(&self, item: GatewayItem) -> bool {
        let waker = {
            let mut inner = self.lock();
            if inner.closed {
                return false;
            }
            inner.bytes += size(&item);
            inner.items.push_back(item);
            inner.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }

    /// Waits until a piece of a large body may be added without holding up what others send. False: the stream ended.
    pub async fn room(&self) -> bool {
        loop {
            let drained = self.drained.notified();
            tokio::pin!(drained);
            // Before the look, so that nothing between the two is missed.
            drained.as_mut().enable();
            let (bytes, closed) = {
                let inner = self.lock();
                (inner.bytes, inner.closed)
            };
            if closed || bytes < ROOM_BYTES {
                return !closed;
            }
            drained.await;
        }
    }

    /// Ends the stream.
    pub fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        inner.items.clear();
        inner.bytes = 0;
        if let Some(waker) = inner.waker.take() {
            waker.wake();
        }
        drop(inner);
        self.drained.notify_waiters();
    }
}

/// The outgoing half of a stream: frames of what waits, up to about [`FRAME_BYTES_TARGET`] each.
#[derive(Debug)]
pub(crate) struct Frames(pub Arc<Outbox>);

impl Stream for Frames {
    type Item = GatewayFrame;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<GatewayFrame>> {
        let mut inner = self.0.lock();
        if inner.closed {
            return Poll::Ready(None);
        }
        let mut frame = GatewayFrame { items: Vec::new() };
        let mut bytes = 0;
        while bytes < FRAME_BYTES_TARGET {
            let Some(item) = inner.items.pop_front() else { break };
            bytes += size(&item);
            frame.items.push(item);
        }
        inner.bytes = inner.bytes.saturating_sub(bytes);
        self.0.drained.notify_waiters();
        if frame.items.is_empty() {
            inner.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Some(frame))
    }
}
