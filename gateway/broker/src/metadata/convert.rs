//! Between meta's messages and the API's types.

use super::QueueEntry;
use crate::api::*;
use bytes::{Bytes, BytesMut};
use longshore_proto::v1;
use longshore_wire::spec::LogSpec;
use longshore_wire::{LogId, NamespaceId};

/// The default exchange as meta names it where an alternate exchange is meant, whose empty name means none. No other
/// exchange has this name: it is reserved.
const DEFAULT_EXCHANGE: &str = "amq.default";

/// An exchange as the API shows it. A kind that this build does not know routes nothing: a headers exchange
/// without bindings.
pub fn exchange_info(exchange: &v1::Exchange) -> ExchangeInfo {
    ExchangeInfo {
        name: exchange.name.clone(),
        kind: ExchangeKind::parse(&exchange.kind).unwrap_or(ExchangeKind::Headers),
        durable: exchange.durable,
        auto_delete: exchange.auto_delete,
        internal: exchange.internal,
        arguments: exchange.arguments.clone(),
        alternate: match exchange.alternate.as_str() {
            "" => None,
            DEFAULT_EXCHANGE => Some(String::new()),
            name => Some(name.to_owned()),
        },
    }
}

/// An exchange as meta takes it.
pub fn exchange_message(namespace: NamespaceId, info: &ExchangeInfo) -> v1::Exchange {
    v1::Exchange {
        namespace: namespace.0,
        name: info.name.clone(),
        kind: info.kind.as_str().into(),
        durable: info.durable,
        auto_delete: info.auto_delete,
        internal: info.internal,
        arguments: info.arguments.clone(),
        alternate: match info.alternate.as_deref() {
            Some("") => DEFAULT_EXCHANGE.to_owned(),
            name => name.unwrap_or_default().to_owned(),
        },
    }
}

/// A binding as the API shows it.
pub fn binding_info(binding: &v1::Binding) -> BindingInfo {
    let name = binding.destination.clone();
    BindingInfo {
        source: binding.source.clone(),
        destination: if binding.to_exchange { Destination::Exchange(name) } else { Destination::Queue(name) },
        routing_key: binding.routing_key.clone(),
        arguments: binding.arguments.clone(),
    }
}

/// A binding as meta takes it; the owner (session, client connection) is (0, 0) unless it goes with one.
pub fn binding_message(namespace: NamespaceId, info: &BindingInfo, owner: (u64, u64)) -> v1::Binding {
    let (to_exchange, destination) = match &info.destination {
        Destination::Queue(name) => (false, name),
        Destination::Exchange(name) => (true, name),
    };
    v1::Binding {
        namespace: namespace.0,
        source: info.source.clone(),
        to_exchange,
        destination: destination.clone(),
        routing_key: info.routing_key.clone(),
        arguments: info.arguments.clone(),
        owner_session: owner.0,
        owner: owner.1,
    }
}

/// A queue that meta knows, as the API shows it to the connection (`session`, `owner`).
pub fn queue_info(entry: &QueueEntry, session: u64, owner: u64) -> QueueInfo {
    let queue = &entry.queue;
    QueueInfo {
        name: queue.name.clone(),
        log: LogId(queue.log),
        durable: queue.durable,
        exclusive: queue.exclusive,
        auto_delete: queue.auto_delete,
        arguments: queue.arguments.clone(),
        spec: Some(entry.spec),
        expires_ms: queue.expires_ms,
        single_active: queue.single_active,
        kind: queue.kind.clone(),
        accessible: !queue.exclusive || (queue.owner_session == session && queue.owner == owner),
    }
}

/// A durable queue as meta takes it.
pub fn queue_message(namespace: NamespaceId, name: &str, declare: &QueueDeclare) -> v1::Queue {
    v1::Queue {
        namespace: namespace.0,
        name: name.to_owned(),
        spec: encode_spec(&declare.spec),
        durable: true,
        auto_delete: declare.auto_delete,
        arguments: declare.arguments.clone(),
        expires_ms: declare.expires_ms,
        single_active: declare.single_active,
        kind: declare.kind.clone(),
        ..v1::Queue::default()
    }
}

/// The encoded settings of a log.
pub fn encode_spec(spec: &LogSpec) -> Bytes {
    let mut out = BytesMut::new();
    spec.encode(&mut out);
    out.freeze()
}

/// What of an existing queue differs from a declare, if anything: the first of durable, exclusive,
/// auto_delete, arguments.
pub fn queue_difference(
    declare: &QueueDeclare,
    durable: bool,
    exclusive: bool,
    auto_delete: bool,
    arguments: &[u8],
) -> Option<&'static str> {
    if declare.durable != durable {
        Some("durable")
    } else if declare.exclusive != exclusive {
        Some("exclusive")
    } else if declare.auto_delete != auto_delete {
        Some("auto_delete")
    } else if declare.arguments != arguments {
        Some("arguments")
    } else {
        None
    }
}

/// What of an existing exchange differs from a declare, if anything.
pub fn exchange_difference(declare: &ExchangeInfo, existing: &ExchangeInfo) -> Option<&'static str> {
    if declare.kind != existing.kind {
        Some("type")
    } else if declare.durable != existing.durable {
        Some("durable")
    } else if declare.auto_delete != existing.auto_delete {
        Some("auto_delete")
    } else if declare.internal != existing.internal {
        Some("internal")
    } else if declare.alternate != existing.alternate {
        Some("arguments")
    } else {
        None
    }
}
