//! A broker in front of the fake node, and what its clients say.

use super::Fake;
use bytes::Bytes;
use longshore_broker::*;
use longshore_wire::record::Form;
use longshore_wire::spec::LogSpec;
use std::net::SocketAddr;
use std::time::Duration;

/// What takes longer has failed.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A fake node and a broker with its settings changed.
pub async fn start_with(change: impl FnOnce(&mut BrokerConfig)) -> (Fake, Broker) {
    let fake = Fake::start().await;
    let mut config = BrokerConfig::new(vec![fake.address.to_string()], "test");
    config.operation_timeout = Duration::from_secs(5);
    change(&mut config);
    let broker = Broker::start(config, PATIENCE).await.unwrap();
    (fake, broker)
}

pub fn peer() -> SocketAddr {
    "127.0.0.1:9".parse().unwrap()
}

/// A connection of `guest`; its name is longer than what is kept of a name.
pub async fn connect(broker: &Broker) -> (Connection, EventReceiver) {
    let identity = broker.authenticate("guest", b"guest", peer()).await.unwrap();
    let info = ConnectionInfo { protocol: "test", peer: peer(), client: "c".repeat(1000), tls: false };
    broker.connect(&identity, "/", info).unwrap()
}

/// A durable queue, or an exclusive one.
pub fn declare(name: QueueName, durable: bool) -> QueueDeclare {
    QueueDeclare {
        name,
        durable,
        exclusive: !durable,
        auto_delete: false,
        arguments: Bytes::new(),
        spec: LogSpec::QUEUE,
        expires_ms: 0,
        single_active: false,
        kind: "classic".into(),
    }
}

pub fn given(name: &str) -> QueueDeclare {
    declare(QueueName::Given(name.into()), true)
}

/// To the queue of that name.
pub fn message<'a>(queue: &'a [u8], token: u64, body: &'a [Bytes]) -> Publish<'a> {
    Publish {
        channel: 1,
        token,
        report: true,
        exchange: "",
        routing_key: queue,
        more_keys: &[],
        headers: &NoHeaders,
        form: Form::Amqp,
        properties: b"",
        body,
        priority: 0,
        ttl_ms: None,
        delay_ms: 0,
        client_time_ms: None,
        key_hash: 0,
    }
}
