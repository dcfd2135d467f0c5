//! The gateway's lease: whether it may route, confirm and deliver now.
//!
//! Danger: a gateway that goes on without a lease confirms by an old view and delivers what others deliver too. It
//! trusts a renewal for 3 s from *sending* it, by the monotonic clock, once it was answered.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// How long an answered renewal may be trusted, from its sending.
pub const TRUST: Duration = Duration::from_millis(3000);
/// How often to renew.
pub const RENEW_EVERY: Duration = Duration::from_millis(1000);

/// The lease of one session.
#[derive(Debug)]
pub(crate) struct Lease {
    start: Instant,
    /// Milliseconds since `start`; 0: never held.
    until_ms: AtomicU64,
    lost: AtomicBool,
    changed: Notify,
}

impl Lease {
    /// Not held yet.
    pub fn new() -> Lease {
        Lease {
            start: Instant::now(),
            until_ms: AtomicU64::new(0),
            lost: AtomicBool::new(false),
            changed: Notify::new(),
        }
    }

    /// A renewal sent at `sent` was answered.
    pub fn renewed(&self, sent: Instant) {
        let until = sent.saturating_duration_since(self.start) + TRUST;
        self.until_ms.fetch_max(until.as_millis() as u64, Ordering::AcqRel);
        self.changed.notify_waiters();
    }

    /// Meta says that it ended, or the gateway gives it up.
    pub fn lose(&self) {
        self.lost.store(true, Ordering::Release);
        self.changed.notify_waiters();
    }

    /// Whether the gateway may act now.
    pub fn holds(&self) -> bool {
        let now = self.start.elapsed().as_millis() as u64;
        !self.is_lost() && now < self.until_ms.load(Ordering::Acquire)
    }

    /// Whether it is over for good.
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// Waits until it holds (true) or is over (false).
    pub async fn wait(&self) -> bool {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.is_lost() {
                return false;
            }
            if self.holds() {
                return true;
            }
            changed.await;
        }
    }
}
