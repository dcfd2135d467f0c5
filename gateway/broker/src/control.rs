//! The rare operations of a client connection: declare, bind, attach, get. All asynchronous, all checked
//! against the connection's namespace; permissions are the adapter's to check, by `permit`.

use crate::api::*;
use crate::connection_state::{ConnectionState, ConsumerAt};
use crate::engine::{ConsumerPlace, Engine};
use crate::metadata::convert;
use crate::queues;
use crate::requests::{GetFor, Leased, Reply};
use crate::session::consumers::Wanted;
use crate::shard::Owner;
use crate::transients::Purpose;
use longshore_proto::v1::{self, MetaError, answer, gateway_item::Item, meta_command::Command};
use longshore_wire::CursorId;
use std::sync::Arc;
use std::time::Duration;

/// How long a client that leaves is kept waiting for outcomes; below the time in which it expects `close-ok`.
const SETTLED_AT_END: Duration = Duration::from_secs(5);

/// Rare operations of one connection. Clone it into tasks; operations answer `Closed` after the connection ended.
/// All answer within the configured time-out with `Unavailable` where storage does not.
#[derive(Clone, Debug)]
pub struct Control {
    engine: Arc<Engine>,
    state: Arc<ConnectionState>,
}

impl Control {
    pub(crate) fn new(engine: Arc<Engine>, state: Arc<ConnectionState>) -> Control {
        Control { engine, state }
    }

    fn open(&self) -> Result<(), BrokerError> {
        if self.state.is_closed() { Err(BrokerError::Closed) } else { Ok(()) }
    }

    /// Whether the user may do that with `name`, by its permissions as they are now.
    pub fn permit(&self, right: Right, name: &str) -> bool {
        self.state.permissions().permit(right, name)
    }

    /// Waits until everything that the connection flushed so far has its outcome, for its end: 5 s at most, and not for
    /// publishes while storage refuses them.
    pub async fn settled(&self) {
        let settled = self.state.settled(true, || self.engine.blocked().is_some());
        let _ = tokio::time::timeout(SETTLED_AT_END, settled).await;
    }

    /// As [`Control::settled`], for what an operation on a queue may see; acks it does not. At most the time of an
    /// operation.
    async fn published(&self) {
        let settled = self.state.settled(false, || self.engine.blocked().is_some());
        let _ = tokio::time::timeout(self.engine.config.operation_timeout, settled).await;
    }

    /// The queue of that name, durable or transient. Errors: `NotFound`, `Unavailable`.
    pub async fn queue(&self, name: &str) -> Result<QueueInfo, BrokerError> {
        self.open()?;
        Ok(queues::find(&self.engine, &self.state, name, Purpose::Look).await?.info)
    }

    /// Ready messages and consumers of a queue that is declared again, passively or not: where it ends after a time
    /// without use, that begins anew. Errors: `NotFound`, `ResourceLocked`, `Unavailable`.
    pub async fn stat(&self, name: &str) -> Result<QueueState, BrokerError> {
        self.open()?;
        self.published().await;
        let counts = queues::redeclared(&self.engine, &self.state, name).await?;
        let name = name.to_owned();
        Ok(QueueState { name, ready: counts.ready, consumers: counts.consumers, created: false })
    }

    /// Makes a queue, or finds it equal. Returns once every live gateway knows it.
    ///
    /// Errors: `Inequivalent` (byte comparison of what differs; look with [`Control::queue`] first for finer rules:
    /// an equal-enough queue needs no declare, only [`Control::stat`]), `ResourceLocked`, `Limit`, `Unavailable`.
    pub async fn declare_queue(&self, declare: QueueDeclare) -> Result<QueueState, BrokerError> {
        self.open()?;
        queues::declare(&self.engine, &self.state, declare).await
    }

    /// Deletes a queue; returns how many messages were ready in it.
    /// Errors: `NotFound`, `InUse`, `NotEmpty`, `ResourceLocked`, `Unavailable`.
    pub async fn delete_queue(
        &self,
        name: &str,
        if_unused: bool,
        if_empty: bool,
    ) -> Result<u64, BrokerError> {
        self.open()?;
        self.published().await;
        queues::delete(&self.engine, &self.state, name, if_unused, if_empty).await
    }

    /// Drops what is ready in a queue; returns how many. Errors: `NotFound`, `ResourceLocked`, `Unavailable`.
    pub async fn purge(&self, name: &str) -> Result<u64, BrokerError> {
        self.open()?;
        self.published().await;
        queues::purge(&self.engine, &self.state, name).await
    }

    /// The exchange of that name, from the cache; the default exchange has the empty name.
    pub fn exchange(&self, name: &str) -> Option<ExchangeInfo> {
        if name.is_empty() {
            return Some(ExchangeInfo {
                name: String::new(),
                kind: ExchangeKind::Direct,
                durable: true,
                auto_delete: false,
                internal: false,
                arguments: bytes::Bytes::new(),
                alternate: None,
            });
        }
        self.state.namespace.exchange(name).map(|info| (*info).clone())
    }

    /// Submits to meta; returns the reply once every live gateway has applied it.
    async fn change(
        &self,
        command: Command,
        paced: bool,
        what: &'static str,
        name: &str,
    ) -> Result<v1::MetaReply, BrokerError> {
        let submitted = self.engine.meta.submit(command, paced).await?;
        let gone = submitted.reply.error() == MetaError::MetaNotFound;
        if !(gone && submitted.repeated) {
            queues::meta_error(&submitted.reply, what, name)?;
        }
        self.engine.applied_everywhere(submitted.reply.revision).await?;
        Ok(submitted.reply)
    }

    /// Makes an exchange, or finds it equal. Errors: `Inequivalent`, `Limit`, `Unavailable`, `Forbidden`.
    pub async fn declare_exchange(&self, declare: ExchangeInfo) -> Result<(), BrokerError> {
        self.open()?;
        let name = declare.name.clone();
        if let Some(existing) = self.exchange(&name) {
            return match convert::exchange_difference(&declare, &existing) {
                Some(what) => Err(BrokerError::Inequivalent { what, name }),
                None => Ok(()),
            };
        }
        let exchange = convert::exchange_message(self.state.namespace.id, &declare);
        let command = Command::DeclareExchange(v1::DeclareExchange { exchange: Some(exchange) });
        let submitted = self.engine.meta.submit(command, false).await?;
        if submitted.reply.error() == MetaError::MetaInequivalent
            && let Some(existing) = &submitted.reply.exchange
        {
            let existing = convert::exchange_info(existing);
            let what = convert::exchange_difference(&declare, &existing).unwrap_or("arguments");
            return Err(BrokerError::Inequivalent { what, name });
        }
        queues::meta_error(&submitted.reply, "exchange", &name)?;
        self.engine.applied_everywhere(submitted.reply.revision).await
    }

    /// Deletes an exchange. Errors: `NotFound`, `InUse`, `Forbidden` (predeclared), `Unavailable`.
    pub async fn delete_exchange(&self, name: &str, if_unused: bool) -> Result<(), BrokerError> {
        self.open()?;
        if name.is_empty() {
            return Err(BrokerError::Forbidden("the default exchange cannot be deleted".into()));
        }
        let namespace = self.state.namespace.id.0;
        let delete = v1::DeleteExchange { namespace, name: name.to_owned(), if_unused };
        self.change(Command::DeleteExchange(delete), false, "exchange", name).await.map(|_| ())
    }

    /// Checks a binding's ends; whether it belongs to a transient queue, and whose that is (session, connection).
    async fn ends(&self, binding: &BindingInfo) -> Result<(bool, (u64, u64)), BrokerError> {
        let missing = |name: &str| BrokerError::NotFound { what: "exchange", name: name.to_owned() };
        let forbidden = || BrokerError::Forbidden("the default exchange has no bindings".into());
        if binding.source.is_empty() {
            return Err(forbidden());
        }
        self.exchange(&binding.source).ok_or_else(|| missing(&binding.source))?;
        match &binding.destination {
            Destination::Exchange(name) if name.is_empty() => Err(forbidden()),
            Destination::Exchange(name) => {
                self.exchange(name).ok_or_else(|| missing(name)).map(|_| (false, (0, 0)))
            }
            Destination::Queue(name) if queues::own_queue(&self.engine, &self.state, name).is_some() => {
                Ok((true, (self.engine.session.0, self.state.id.0)))
            }
            Destination::Queue(name) => {
                let found = queues::find_mine(&self.engine, &self.state, name).await?;
                if found.info.durable {
                    return Ok((false, (0, 0)));
                }
                let owner = if found.info.exclusive { self.state.id.0 } else { 0 };
                Ok((true, (self.engine.session.0, owner)))
            }
        }
    }

    /// Makes a binding, or finds it. Returns once every live gateway routes by it.
    /// Errors: `NotFound` (source or destination), `ResourceLocked`, `Forbidden` (default exchange), `Unavailable`.
    pub async fn bind(&self, binding: BindingInfo) -> Result<(), BrokerError> {
        self.open()?;
        let (transient, owner) = self.ends(&binding).await?;
        if self.state.namespace.is_bound(&binding) {
            return Ok(());
        }
        let message = convert::binding_message(self.state.namespace.id, &binding, owner);
        let bind = Command::Bind(v1::Bind { binding: Some(message) });
        let (Destination::Queue(name) | Destination::Exchange(name)) = &binding.destination;
        let claim = match transient {
            true => queues::claim_for_binding(&self.engine, &self.state, name),
            false => None,
        };
        let Some(claim) = claim else {
            return self.change(bind, transient, "binding", name).await.map(|_| ());
        };
        let (claimed, bound) = self.engine.meta.submit_both(claim, bind, true).await?;
        queues::meta_error(&claimed.reply, "queue", name)?;
        if !self.engine.transients.claimed(self.state.namespace.id.0, name) {
            self.engine.meta.forget_queue(self.state.namespace.id, name);
        }
        queues::meta_error(&bound.reply, "binding", name)?;
        let revision = bound.reply.revision.max(claimed.reply.revision);
        self.engine.applied_everywhere(revision).await
    }

    /// Removes a binding; one that does not exist is no error (as in RabbitMQ). Errors: as [`Control::bind`].
    pub async fn unbind(&self, binding: BindingInfo) -> Result<(), BrokerError> {
        self.open()?;
        let (transient, owner) = match self.ends(&binding).await {
            Ok(ends) => ends,
            // What it led from or to is gone, and the binding with it.
            Err(BrokerError::NotFound { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        if !self.state.namespace.is_bound(&binding) {
            return Ok(());
        }
        let message = convert::binding_message(self.state.namespace.id, &binding, owner);
        let unbind = Command::Unbind(v1::Unbind { binding: Some(message) });
        match self.change(unbind, transient, "binding", &binding.source).await {
            Ok(_) | Err(BrokerError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Makes a consumer. Errors: `NotFound`, `ExclusiveUse`, `ResourceLocked`, `Invalid` (tag in use), `Unavailable`.
    pub async fn attach(&self, attach: Attach) -> Result<(), BrokerError> {
        self.open()?;
        let found = queues::find_mine(&self.engine, &self.state, &attach.queue).await?;
        let id = self.engine.next_id();
        let queue: Arc<str> = attach.queue.as_str().into();
        let at = ConsumerAt {
            id,
            shard: found.shard,
            queue: queue.clone(),
            positional: attach.start.is_some(),
            auto_delete: found.info.auto_delete,
        };
        if !self.state.add_consumer(attach.tag, at) {
            return Err(BrokerError::Invalid("the consumer tag is in use".into()));
        }
        let owner = Owner { connection: self.state.id, tag: Some(attach.tag) };
        let place = ConsumerPlace { queue, namespace: self.state.namespace.clone() };
        let answer = self.engine.expect_attach(id, place);
        let wanted = Wanted {
            log: found.info.log,
            cursor: CursorId(0),
            start: attach.start,
            exclusive: attach.exclusive,
            single_active: found.info.single_active,
            priority: attach.priority,
            credit_messages: attach.credit_messages,
            credit_bytes: attach.credit_bytes,
        };
        let shard = self.engine.shard(found.shard);
        shard.attach(id, wanted, owner);
        let result = match tokio::time::timeout(self.engine.config.operation_timeout, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(BrokerError::Closed),
            Err(_) => {
                shard.detach(id, false);
                Err(BrokerError::Unavailable("no leader answered in time"))
            }
        };
        if result.is_err() || self.state.is_closed() {
            self.state.forget_consumer(attach.tag);
            self.engine.forget_consumer(id);
            shard.detach(id, false);
        }
        result
    }

    /// Ends a consumer. `keep_leases`: what it holds stays out until settled (AMQP: the channel still owes acks);
    /// else it is delivered again. Deliveries may still come until this returns; an auto-delete queue may go.
    pub async fn detach(&self, tag: ConsumerTag, keep_leases: bool) {
        let Some(at) = self.state.forget_consumer(tag) else { return };
        self.engine.shard(at.shard).detach(at.id, keep_leases);
        self.engine.forget_consumer(at.id);
        if at.auto_delete {
            queues::delete_if_unused(&self.engine, &self.state, &at.queue).await;
        }
    }

    /// Takes one message, if there is one. Errors: `NotFound`, `ResourceLocked`, `ExclusiveUse`, `Unavailable`.
    pub async fn get(&self, queue: &str) -> Result<Option<Got>, BrokerError> {
        self.open()?;
        self.published().await;
        let found = queues::find_mine(&self.engine, &self.state, queue).await?;
        let (shard, log) = (found.shard, found.info.log);
        let make = |request| Item::Get(v1::Get { request, shard: shard.0, log: log.0, cursor: 0 });
        let get = GetFor { connection: self.state.id, shard };
        match self.engine.ask(shard, Some(get), make).await? {
            // The last thing before the answer: from here on the message is the adapter's.
            Reply::Got { delivery, ready } => {
                Ok(delivery.and_then(Leased::take).map(|delivery| Got { delivery, ready }))
            }
            Reply::Answer(answer::Result::Refused(reason)) => {
                let reason = v1::Refused::try_from(reason).unwrap_or(v1::Refused::Unspecified);
                Err(crate::engine::refused(reason, queue))
            }
            Reply::Answer(_) | Reply::Again => Err(BrokerError::Unavailable("an answer of another kind")),
        }
    }
}
