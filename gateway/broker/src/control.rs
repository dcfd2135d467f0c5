//! The rare operations of a client connection: declare, bind, attach, get. All asynchronous, all checked
//! against the connection's namespace; permissions are the adapter's to check, by `permit`.

use crate::api::*;

/// Rare operations of one connection. Clone it into tasks; operations answer `Closed` after the connection ended.
/// All answer within the configured time-out with `Unavailable` where storage does not.
#[derive(Clone, Debug)]
pub struct Control {}

impl Control {
    /// Whether the user may do that with `name`, by its permissions as they are now.
    pub fn permit(&self, right: Right, name: &str) -> bool {
        let _ = (right, name);
        todo!()
    }

    /// Waits until everything that the connection flushed so far has its outcome. The operations below do this
    /// themselves where it matters (get, stat, purge, delete, unbind).
    pub async fn settled(&self) {
        todo!()
    }

    /// The queue of that name, durable or transient. Errors: `NotFound`, `Unavailable`.
    pub async fn queue(&self, name: &str) -> Result<QueueInfo, BrokerError> {
        let _ = name;
        todo!()
    }

    /// Ready messages and consumers of a queue (passive declare). Errors: `NotFound`, `ResourceLocked`, `Unavailable`.
    pub async fn stat(&self, name: &str) -> Result<QueueState, BrokerError> {
        let _ = name;
        todo!()
    }

    /// Makes a queue, or finds it equal. Returns once every live gateway knows it.
    ///
    /// Errors: `Inequivalent` (byte comparison of what differs; look with [`Control::queue`] first for finer rules:
    /// an equal-enough queue needs no declare, only [`Control::stat`]), `ResourceLocked`, `Limit`, `Unavailable`.
    pub async fn declare_queue(&self, declare: QueueDeclare) -> Result<QueueState, BrokerError> {
        let _ = declare;
        todo!()
    }

    /// Deletes a queue; returns how many messages were ready in it.
    /// Errors: `NotFound`, `InUse`, `NotEmpty`, `ResourceLocked`, `Unavailable`.
    pub async fn delete_queue(&self, name: &str, if_unused: bool, if_empty: bool) -> Result<u64, BrokerError> {
        let _ = (name, if_unused, if_empty);
        todo!()
    }

    /// Drops what is ready in a queue; returns how many. Errors: `NotFound`, `ResourceLocked`, `Unavailable`.
    pub async fn purge(&self, name: &str) -> Result<u64, BrokerError> {
        let _ = name;
        todo!()
    }

    /// The exchange of that name, from the cache; the default exchange has the empty name.
    pub fn exchange(&self, name: &str) -> Option<ExchangeInfo> {
        let _ = name;
        todo!()
    }

    /// Makes an exchange, or finds it equal. Errors: `Inequivalent`, `Limit`, `Unavailable`, `Forbidden`.
    pub async fn declare_exchange(&self, declare: ExchangeInfo) -> Result<(), BrokerError> {
        let _ = declare;
        todo!()
    }

    /// Deletes an exchange. Errors: `NotFound`, `InUse`, `Forbidden` (predeclared), `Unavailable`.
    pub async fn delete_exchange(&self, name: &str, if_unused: bool) -> Result<(), BrokerError> {
        let _ = (name, if_unused);
        todo!()
    }

    /// Makes a binding, or finds it. Returns once every live gateway routes by it.
    /// Errors: `NotFound` (source or destination), `ResourceLocked`, `Forbidden` (default exchange), `Unavailable`.
    pub async fn bind(&self, binding: BindingInfo) -> Result<(), BrokerError> {
        let _ = binding;
        todo!()
    }

    /// Removes a binding; one that does not exist is no error (as in RabbitMQ). Errors: as [`Control::bind`].
    pub async fn unbind(&self, binding: BindingInfo) -> Result<(), BrokerError> {
        let _ = binding;
        todo!()
    }

    /// Makes a consumer. Errors: `NotFound`, `ExclusiveUse`, `ResourceLocked`, `Invalid` (tag in use), `Unavailable`.
    pub async fn attach(&self, attach: Attach) -> Result<(), BrokerError> {
        let _ = attach;
        todo!()
    }

    /// Ends a consumer. `keep_leases`: what it holds stays out until settled (AMQP: the channel still owes acks);
    /// else it is delivered again. Deliveries may still come until this returns; an auto-delete queue may go.
    pub async fn detach(&self, tag: ConsumerTag, keep_leases: bool) {
        let _ = (tag, keep_leases);
        todo!()
    }

    /// Takes one message, if there is one. Errors: `NotFound`, `ResourceLocked`, `ExclusiveUse`, `Unavailable`.
    pub async fn get(&self, queue: &str) -> Result<Option<Got>, BrokerError> {
        let _ = queue;
        todo!()
    }
}
