//! Bytes of messages that are half received, over all connections of the gateway.
//!
//! The danger is memory: each connection may have messages of 128 MiB under way, and there may be thousands. Beyond the
//! bound a connection is not read on, until others are through with theirs. The one that began first is always read
//! on, so that there is always one that comes to an end. Called by the connections' tasks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// What every connection may have under way without being counted: about a frame.
const OWN_BYTES: u64 = 128 << 10;

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    total: u64,
    /// Bytes of each connection that is counted, in the order of their beginning.
    shares: BTreeMap<u64, u64>,
}

/// The bound, shared by all connections.
#[derive(Debug)]
pub struct Assembly {
    bytes_max: u64,
    inner: Mutex<Inner>,
    freed: Notify,
}

impl Assembly {
    /// Lets all connections together have about so many bytes of unfinished messages, and one message more.
    pub fn new(bytes_max: u64) -> Arc<Assembly> {
        Arc::new(Assembly { bytes_max, inner: Mutex::default(), freed: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one connection has under way.
#[derive(Debug)]
pub(crate) struct Share {
    assembly: Arc<Assembly>,
    /// Its place among those that are counted.
    place: Option<u64>,
    bytes: u64,
}

impl Share {
    pub(crate) fn of(assembly: &Arc<Assembly>) -> Share {
        Share { assembly: assembly.clone(), place: None, bytes: 0 }
    }

    /// So many bytes are under way now.
    pub(crate) fn set(&mut self, bytes: u64) {
        let counted = if bytes > OWN_BYTES { bytes } else { 0 };
        if counted == self.bytes {
            return;
        }
        let mut inner = self.assembly.lock();
        inner.total = inner.total.saturating_sub(self.bytes).saturating_add(counted);
        if counted > 0 {
            let place = *self.place.get_or_insert_with(|| {
                inner.next += 1;
                inner.next
            });
            inner.shares.insert(place, counted);
        } else if let Some(place) = self.place.take() {
            inner.shares.remove(&place);
        }
        let freed = counted < self.bytes;
        self.bytes = counted;
        drop(inner);
        if freed {
            self.assembly.freed.notify_waiters();
        }
    }

    /// Whether the connection may be read on.
    pub(crate) fn may_grow(&self) -> bool {
        if self.bytes == 0 {
            return true;
        }
        let inner = self.assembly.lock();
        inner.total <= self.assembly.bytes_max || inner.shares.keys().next().copied() == self.place
    }

    /// Returns once it may be read on. Cancel-safe.
    pub(crate) async fn room(&self) {
        loop {
            let freed = self.assembly.freed.notified();
            tokio::pin!(freed);
            // Before the look, so that nothing between the two is missed.
            freed.as_mut().enable();
            if self.may_grow() {
                return;
            }
            freed.await;
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    const MIB: u64 = 1 << 20;

    #[test]
    fn beyond_the_bound_only_the_first_goes_on() {
        let assembly = Assembly::new(10 * MIB);
        let [mut first, mut second, mut small] = [(); 3].map(|()| Share::of(&assembly));
        first.set(6 * MIB);
        second.set(4 * MIB);
        assert!(first.may_grow() && second.may_grow());
        second.set(5 * MIB);
        assert!(first.may_grow() && !second.may_grow());
        small.set(OWN_BYTES);
        assert!(small.may_grow(), "a frame's worth is not counted");
        first.set(12 * MIB);
        assert!(first.may_grow(), "else nobody would ever be done");
        let room = second.room();
        tokio::pin!(room);
        assert_eq!(room.as_mut().now_or_never(), None);
        first.set(0);
        assert_eq!(second.room().now_or_never(), Some(()));
    }

    #[test]
    fn the_next_in_order_goes_on_when_the_first_is_gone() {
        let assembly = Assembly::new(MIB);
        let [mut first, mut second, mut third] = [(); 3].map(|()| Share::of(&assembly));
        first.set(2 * MIB);
        second.set(2 * MIB);
        third.set(2 * MIB);
        drop(first);
        assert!(second.may_grow() && !third.may_grow());
        second.set(0);
        second.set(2 * MIB);
        assert!(!second.may_grow() && third.may_grow(), "it stands in line anew");
        drop((second, third));
        let inner = assembly.lock();
        assert_eq!((inner.total, inner.shares.len()), (0, 0));
    }
}
