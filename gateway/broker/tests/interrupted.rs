//! Operations whose client goes before their answer: nothing of them may be left behind.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may end by them")]

mod fake;

use bytes::Bytes;
use fake::Fake;
use longshore_broker::*;
use longshore_wire::record::Form;
use longshore_wire::spec::LogSpec;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(10);

async fn start() -> (Fake, Broker) {
    let fake = Fake::start().await;
    let mut config = BrokerConfig::new(vec![fake.address.to_string()], "test");
    config.operation_timeout = PATIENCE;
    let broker = Broker::start(config, PATIENCE).await.unwrap();
    (fake, broker)
}

async fn connect(broker: &Broker) -> (Connection, EventReceiver) {
    let peer = "127.0.0.1:9".parse().unwrap();
    let identity = broker.authenticate("guest", b"guest", peer).await.unwrap();
    let info = ConnectionInfo { protocol: "test", peer, client: String::new(), tls: false };
    broker.connect(&identity, "/", info).unwrap()
}

fn queue(name: QueueName, exclusive: bool) -> QueueDeclare {
    QueueDeclare {
        name,
        durable: !exclusive,
        exclusive,
        auto_delete: false,
        arguments: Bytes::new(),
        spec: LogSpec::QUEUE,
        expires_ms: 0,
        single_active: false,
        kind: "classic".into(),
    }
}

/// Publishes to the queue `q` and waits for the confirms.
async fn publish(connection: &mut Connection, events: &mut EventReceiver, body: &[Bytes], count: usize) {
    for token in 0..count {
        let publish = Publish {
            channel: 1,
            token: token as u64,
            report: true,
            exchange: "",
            routing_key: b"q",
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
        };
        connection.publish(&publish).unwrap();
    }
    let _ = connection.flush();
    let mut confirmed = 0;
    while confirmed < count {
        if let Some(Event::Published(lines)) = events.recv().await {
            confirmed += lines.len();
        }
    }
}

fn out(state: &fake::State) -> usize {
    state.logs.values().flat_map(|queue| &queue.messages).filter(|stored| stored.out.is_some()).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_get_that_nobody_waits_for_gives_its_message_back() {
    // A small one, and one that comes in pieces.
    for bytes in [10, 3 << 20] {
        for connection_ends in [true, false] {
            let (fake, broker) = start().await;
            let (mut connection, mut events) = connect(&broker).await;
            let control = connection.control();
            control.declare_queue(queue(QueueName::Given("q".into()), false)).await.unwrap();
            publish(&mut connection, &mut events, &[Bytes::from(vec![7; bytes])], 1).await;
            fake.lock().held = true;
            let asking = tokio::spawn(async move { control.get("q").await });
            fake.until(|state| out(state) == 1).await;
            asking.abort();
            assert!(asking.await.unwrap_err().is_cancelled());
            let connection = (!connection_ends).then_some(connection);
            fake.release();
            fake.until(|state| out(state) == 0).await;
            let (other, _events) = connect(&broker).await;
            let got = other.control().get("q").await.unwrap().expect("it is in its queue again");
            assert_eq!(got.delivery.body.len(), bytes);
            drop(connection);
            broker.shutdown(Duration::ZERO).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exclusive_name_is_free_after_a_declare_that_was_cut_off() {
    // Cut off while meta, and while the leader, has carried it out and not said so.
    for at_meta in [true, false] {
        let (fake, broker) = start().await;
        let (connection, _events) = connect(&broker).await;
        let control = connection.control();
        // So that the view and the link are known to be there.
        control.declare_queue(queue(QueueName::Given("q".into()), false)).await.unwrap();
        (fake.lock().meta_held, fake.lock().held) = (at_meta, !at_meta);
        let declare = queue(QueueName::Given("mine".into()), true);
        let asking = tokio::spawn(async move { control.declare_queue(declare).await.map(|_| ()) });
        let key = (1, "mine".to_owned());
        let is_mine = |queue: &fake::Queue| queue.transient.as_ref().is_some_and(|(name, _)| name == "mine");
        fake.until(|state| state.queues.contains_key(&key)).await;
        if !at_meta {
            fake.until(|state| state.logs.values().any(is_mine)).await;
        }
        asking.abort();
        assert!(asking.await.unwrap_err().is_cancelled());
        drop(connection);
        fake.release();
        fake.until(|state| !state.queues.contains_key(&key) && !state.logs.values().any(is_mine)).await;
        broker.shutdown(Duration::ZERO).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bind_that_was_cut_off_leaves_no_queue_in_meta() {
    let (fake, broker) = start().await;
    let (connection, _events) = connect(&broker).await;
    let control = connection.control();
    let name = control.declare_queue(queue(QueueName::Generated("amq.gen-"), true)).await.unwrap().name;
    fake.lock().meta_held = true;
    let binding = BindingInfo {
        source: "amq.topic".into(),
        destination: Destination::Queue(name.clone()),
        routing_key: Bytes::from_static(b"key"),
        arguments: Bytes::new(),
    };
    let asking = tokio::spawn(async move { control.bind(binding).await });
    let key = (1, name);
    fake.until(|state| state.queues.contains_key(&key)).await;
    asking.abort();
    assert!(asking.await.unwrap_err().is_cancelled());
    drop(connection);
    fake.release();
    fake.until(|state| !state.queues.contains_key(&key)).await;
    broker.shutdown(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_get_does_not_wait_for_acks_and_for_publishes_that_are_refused() {
    let (fake, broker) = start().await;
    let (mut connection, mut events) = connect(&broker).await;
    let control = connection.control();
    control.declare_queue(queue(QueueName::Given("q".into()), false)).await.unwrap();
    publish(&mut connection, &mut events, &[Bytes::from_static(b"m")], 3).await;
    let soon = |get| tokio::time::timeout(PATIENCE / 2, get);
    let got = control.get("q").await.unwrap().expect("the first");
    fake.lock().silent = true;
    connection.settle(&got.delivery.handle, Settlement::Acked);
    let _ = connection.flush();
    assert!(soon(control.get("q")).await.expect("the ack is not waited for").unwrap().is_some());

    (fake.lock().silent, fake.lock().full) = (false, true);
    fake.cut_links();
    let (key, no_props) = (b"q", b"");
    let refused = Publish {
        channel: 1,
        token: 9,
        report: true,
        exchange: "",
        routing_key: key,
        more_keys: &[],
        headers: &NoHeaders,
        form: Form::Amqp,
        properties: no_props,
        body: &[],
        priority: 0,
        ttl_ms: None,
        delay_ms: 0,
        client_time_ms: None,
        key_hash: 0,
    };
    connection.publish(&refused).unwrap();
    let _ = connection.flush();
    while !matches!(events.recv().await, Some(Event::Blocked(Some(_)))) {}
    let got = soon(control.get("q")).await.expect("a refused publish is not waited for").unwrap();
    assert!(got.is_some());
    drop(connection);
    broker.shutdown(Duration::ZERO).await;
}
