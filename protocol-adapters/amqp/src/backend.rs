//! What the adapter needs of the broker, as traits: the real broker implements them by delegation, tests put a
//! fake in its place. The meaning of each method is that of `longshore_broker`.

use longshore_broker::{
    Attach, AuthError, BindingInfo, Broker, BrokerError, Connection, ConnectionInfo, ConsumerTag, Control,
    Event, EventReceiver, ExchangeInfo, Flow, Got, Handle, Identity, Publish, QueueDeclare, QueueInfo,
    QueueState, Right, Routed, Settlement,
};
use std::future::Future;
use std::net::SocketAddr;

/// Opens connections; see `longshore_broker::Broker`.
pub trait Backend: Clone + Send + Sync + 'static {
    /// The hot path of a connection.
    type Link: Link;
    /// Its events.
    type Events: Events;

    /// Checks a login.
    fn authenticate(
        &self,
        user: &str,
        password: &[u8],
        peer: SocketAddr,
    ) -> impl Future<Output = Result<Identity, AuthError>> + Send;

    /// Opens a connection.
    fn connect(
        &self,
        identity: &Identity,
        namespace: &str,
        info: ConnectionInfo,
    ) -> Result<(Self::Link, Self::Events), BrokerError>;

    /// Why storage refuses publishes now, if it does.
    fn blocked(&self) -> Option<String>;
}

/// A connection's hot path; see `longshore_broker::Connection`.
pub trait Link: Send + Sync + 'static {
    /// Its rare operations.
    type Control: Operations;

    /// Routes and queues a message.
    fn publish(&mut self, publish: &Publish<'_>) -> Result<Routed, BrokerError>;
    /// Settles a delivery.
    fn settle(&mut self, handle: &Handle, settlement: Settlement);
    /// Grants more messages and bytes.
    fn credit(&mut self, tag: ConsumerTag, messages: u64, bytes: u64);
    /// Hands over what was gathered.
    fn flush(&mut self) -> Flow;
    /// Waits until it may send again.
    fn writable(&mut self) -> impl Future<Output = ()> + Send;
    /// Whether the user may do that.
    fn permit(&mut self, right: Right, name: &str) -> bool;
    /// The rare operations.
    fn control(&self) -> Self::Control;
}

/// A connection's rare operations; see `longshore_broker::Control`.
pub trait Operations: Clone + Send + Sync + 'static {
    /// Waits until everything flushed so far has its outcome.
    fn settled(&self) -> impl Future<Output = ()> + Send;
    /// Looks at a queue.
    fn queue(&self, name: &str) -> impl Future<Output = Result<QueueInfo, BrokerError>> + Send;
    /// Counts of a queue.
    fn stat(&self, name: &str) -> impl Future<Output = Result<QueueState, BrokerError>> + Send;
    /// Makes a queue.
    fn declare_queue(
        &self,
        declare: QueueDeclare,
    ) -> impl Future<Output = Result<QueueState, BrokerError>> + Send;
    /// Deletes a queue.
    fn delete_queue(
        &self,
        name: &str,
        if_unused: bool,
        if_empty: bool,
    ) -> impl Future<Output = Result<u64, BrokerError>> + Send;
    /// Drops what is ready.
    fn purge(&self, name: &str) -> impl Future<Output = Result<u64, BrokerError>> + Send;
    /// Looks at an exchange.
    fn exchange(&self, name: &str) -> Option<ExchangeInfo>;
    /// Makes an exchange.
    fn declare_exchange(&self, declare: ExchangeInfo)
    -> impl Future<Output = Result<(), BrokerError>> + Send;
    /// Deletes an exchange.
    fn delete_exchange(
        &self,
        name: &str,
        if_unused: bool,
    ) -> impl Future<Output = Result<(), BrokerError>> + Send;
    /// Makes a binding.
    fn bind(&self, binding: BindingInfo) -> impl Future<Output = Result<(), BrokerError>> + Send;
    /// Removes a binding.
    fn unbind(&self, binding: BindingInfo) -> impl Future<Output = Result<(), BrokerError>> + Send;
    /// Makes a consumer.
    fn attach(&self, attach: Attach) -> impl Future<Output = Result<(), BrokerError>> + Send;
    /// Ends a consumer.
    fn detach(&self, tag: ConsumerTag, keep_leases: bool) -> impl Future<Output = ()> + Send;
    /// Takes one message.
    fn get(&self, queue: &str) -> impl Future<Output = Result<Option<Got>, BrokerError>> + Send;
}

/// A connection's events; see `longshore_broker::EventReceiver`.
pub trait Events: Send + 'static {
    /// The next event. Cancel-safe.
    fn recv(&mut self) -> impl Future<Output = Option<Event>> + Send;
    /// An event that is there already.
    fn try_recv(&mut self) -> Option<Event>;
}

impl Backend for Broker {
    type Link = Connection;
    type Events = EventReceiver;

    async fn authenticate(
        &self,
        user: &str,
        password: &[u8],
        peer: SocketAddr,
    ) -> Result<Identity, AuthError> {
        Broker::authenticate(self, user, password, peer).await
    }

    fn connect(
        &self,
        identity: &Identity,
        namespace: &str,
        info: ConnectionInfo,
    ) -> Result<(Connection, EventReceiver), BrokerError> {
        Broker::connect(self, identity, namespace, info)
    }

    fn blocked(&self) -> Option<String> {
        Broker::blocked(self)
    }
}

impl Link for Connection {
    type Control = Control;

    fn publish(&mut self, publish: &Publish<'_>) -> Result<Routed, BrokerError> {
        Connection::publish(self, publish)
    }
    fn settle(&mut self, handle: &Handle, settlement: Settlement) {
        Connection::settle(self, handle, settlement);
    }
    fn credit(&mut self, tag: ConsumerTag, messages: u64, bytes: u64) {
        Connection::credit(self, tag, messages, bytes);
    }
    fn flush(&mut self) -> Flow {
        Connection::flush(self)
    }
    async fn writable(&mut self) {
        Connection::writable(self).await;
    }
    fn permit(&mut self, right: Right, name: &str) -> bool {
        Connection::permit(self, right, name)
    }
    fn control(&self) -> Control {
        Connection::control(self)
    }
}

impl Operations for Control {
    async fn settled(&self) {
        Control::settled(self).await;
    }
    async fn queue(&self, name: &str) -> Result<QueueInfo, BrokerError> {
        Control::queue(self, name).await
    }
    async fn stat(&self, name: &str) -> Result<QueueState, BrokerError> {
        Control::stat(self, name).await
    }
    async fn declare_queue(&self, declare: QueueDeclare) -> Result<QueueState, BrokerError> {
        Control::declare_queue(self, declare).await
    }
    async fn delete_queue(&self, name: &str, if_unused: bool, if_empty: bool) -> Result<u64, BrokerError> {
        Control::delete_queue(self, name, if_unused, if_empty).await
    }
    async fn purge(&self, name: &str) -> Result<u64, BrokerError> {
        Control::purge(self, name).await
    }
    fn exchange(&self, name: &str) -> Option<ExchangeInfo> {
        Control::exchange(self, name)
    }
    async fn declare_exchange(&self, declare: ExchangeInfo) -> Result<(), BrokerError> {
        Control::declare_exchange(self, declare).await
    }
    async fn delete_exchange(&self, name: &str, if_unused: bool) -> Result<(), BrokerError> {
        Control::delete_exchange(self, name, if_unused).await
    }
    async fn bind(&self, binding: BindingInfo) -> Result<(), BrokerError> {
        Control::bind(self, binding).await
    }
    async fn unbind(&self, binding: BindingInfo) -> Result<(), BrokerError> {
        Control::unbind(self, binding).await
    }
    async fn attach(&self, attach: Attach) -> Result<(), BrokerError> {
        Control::attach(self, attach).await
    }
    async fn detach(&self, tag: ConsumerTag, keep_leases: bool) {
        Control::detach(self, tag, keep_leases).await;
    }
    async fn get(&self, queue: &str) -> Result<Option<Got>, BrokerError> {
        Control::get(self, queue).await
    }
}

impl Events for EventReceiver {
    async fn recv(&mut self) -> Option<Event> {
        EventReceiver::recv(self).await
    }
    fn try_recv(&mut self) -> Option<Event> {
        EventReceiver::try_recv(self)
    }
}
