//! The store thread's inbox.
//!
//! Two queues in one: what comes from outside waits for room (counted in bytes), so that a flood of requests holds
//! back its senders; what the node's own threads report never waits, since each report frees something. The own
//! reports are bounded by the work that was handed out.

use longshore_node::Input;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;

/// Bytes of outside inputs that may wait for the store thread.
const OUTSIDE_BYTES_MAX: usize = 64 << 20;
/// An input counts as at least this many bytes.
const INPUT_BYTES_MIN: usize = 256;

#[derive(Default)]
struct Inbox {
    inputs: Vec<Input>,
    outside_bytes: usize,
    closed: bool,
}

struct Shared {
    inbox: Mutex<Inbox>,
    filled: Condvar,
    room: Semaphore,
}

/// Where inputs are dropped. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Mailbox {
    shared: Arc<Shared>,
}

impl Mailbox {
    /// An empty one.
    pub fn new() -> Mailbox {
        let room = Semaphore::new(OUTSIDE_BYTES_MAX);
        Mailbox { shared: Arc::new(Shared { inbox: Mutex::default(), filled: Condvar::new(), room }) }
    }

    /// From outside: waits until `bytes` have room. False: the node has stopped.
    pub async fn send(&self, input: Input, bytes: usize) -> bool {
        let bytes = bytes.clamp(INPUT_BYTES_MIN, OUTSIDE_BYTES_MAX / 4);
        let Ok(permit) = self.shared.room.acquire_many(bytes as u32).await else { return false };
        permit.forget();
        self.push(input, bytes)
    }

    /// From the node's own threads, or something that must not wait. False: the node has stopped.
    pub fn report(&self, input: Input) -> bool {
        self.push(input, 0)
    }

    fn push(&self, input: Input, bytes: usize) -> bool {
        let mut inbox = self.shared.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        if inbox.closed {
            return false;
        }
        inbox.inputs.push(input);
        inbox.outside_bytes += bytes;
        drop(inbox);
        self.shared.filled.notify_one();
        true
    }

    /// Everything that is there, waiting for it at most `patience`. `into` must be empty.
    pub fn take(&self, into: &mut Vec<Input>, patience: Duration) {
        let inbox = self.shared.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.shared.filled.wait_timeout_while(inbox, patience, |inbox| inbox.inputs.is_empty());
        let (mut inbox, _) = waited.unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut inbox.inputs, into);
        let bytes = std::mem::take(&mut inbox.outside_bytes);
        drop(inbox);
        self.shared.room.add_permits(bytes);
    }

    /// Refuses everything from now on; senders that wait are turned away.
    pub fn close(&self) {
        self.shared.inbox.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.shared.room.close();
    }
}
