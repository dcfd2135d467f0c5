//! A client connection's hot path: publish, settle, credit; gathered here and handed over at each flush.

use crate::api::*;
use crate::control::Control;

/// The handle of one client connection. Not shared: its calls gather without a lock, [`Connection::flush`] hands
/// over. Dropping it ends the connection: consumers detach, what was unsettled is delivered again, exclusive
/// queues go.
#[derive(Debug)]
pub struct Connection {}

impl Connection {
    /// Routes a message and queues it for the next [`Connection::flush`].
    ///
    /// Errors: `NotFound` (no such exchange), `Forbidden` (internal exchange), `TooLarge`, `Invalid` (key over
    /// 65,535 bytes), `Closed`. Permissions are the adapter's to check, by [`Connection::permit`].
    pub fn publish(&mut self, publish: &Publish<'_>) -> Result<Routed, BrokerError> {
        let _ = publish;
        todo!()
    }

    /// Settles a delivery at the next flush. Unknown and already settled ones are ignored by the storage tier.
    pub fn settle(&mut self, handle: &Handle, settlement: Settlement) {
        let _ = (handle, settlement);
        todo!()
    }

    /// Lets a consumer have that many more messages and bytes (added to what it had), at the next flush.
    pub fn credit(&mut self, tag: ConsumerTag, messages: u64, bytes: u64) {
        let _ = (tag, messages, bytes);
        todo!()
    }

    /// Hands over what was gathered. Call once per read burst, and before awaiting anything of [`Control`].
    pub fn flush(&mut self) -> Flow {
        todo!()
    }

    /// Waits until the connection may send again after [`Flow::Wait`], and hands over what is still gathered;
    /// returns at once if it may, or is closed. Cancel-safe.
    pub async fn writable(&mut self) {
        todo!()
    }

    /// Whether the user may do that with `name`, by its permissions as they are now. Cheap: cached by name.
    pub fn permit(&mut self, right: Right, name: &str) -> bool {
        let _ = (right, name);
        todo!()
    }

    /// The rare operations; clone it into tasks.
    pub fn control(&self) -> Control {
        todo!()
    }

    /// Its id.
    pub fn id(&self) -> ConnectionId {
        todo!()
    }
}

/// The events of one connection; for one task.
#[derive(Debug)]
pub struct EventReceiver {}

impl EventReceiver {
    /// The next event; `None` after [`Event::Close`] or once the connection was dropped. Cancel-safe.
    pub async fn recv(&mut self) -> Option<Event> {
        todo!()
    }

    /// An event that is there already.
    pub fn try_recv(&mut self) -> Option<Event> {
        todo!()
    }
}
