//! Operations whose client goes before their answer: nothing of them may be left behind.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may end by them")]

mod fake;

use bytes::Bytes;
use fake::Fake;
use fake::client::{PATIENCE, connect, declare, given, message, start_with};
use longshore_broker::*;
use std::time::Duration;

async fn start() -> (Fake, Broker) {
    start_with(|config| config.operation_timeout = PATIENCE).await
}

/// Publishes to the queue `q` and waits for the confirms.
async fn publish(connection: &mut Connection, events: &mut EventReceiver, body: &[Bytes], count: usize) {
    for token in 0..count {
        connection.publish(&message(b"q", token as u64, body)).unwrap();
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
            control.declare_queue(given("q")).await.unwrap();
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
        control.declare_queue(given("q")).await.unwrap();
        (fake.lock().meta_held, fake.lock().held) = (at_meta, !at_meta);
        let declare = declare(QueueName::Given("mine".into()), false);
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
    let name = control.declare_queue(declare(QueueName::Generated("amq.gen-"), false)).await.unwrap().name;
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
    control.declare_queue(given("q")).await.unwrap();
    publish(&mut connection, &mut events, &[Bytes::from_static(b"m")], 3).await;
    let soon = |get| tokio::time::timeout(PATIENCE / 2, get);
    let got = control.get("q").await.unwrap().expect("the first");
    fake.lock().silent = true;
    connection.settle(&got.delivery.handle, Settlement::Acked);
    let _ = connection.flush();
    assert!(soon(control.get("q")).await.expect("the ack is not waited for").unwrap().is_some());

    (fake.lock().silent, fake.lock().full) = (false, true);
    fake.cut_links();
    connection.publish(&message(b"q", 9, &[])).unwrap();
    let _ = connection.flush();
    while !matches!(events.recv().await, Some(Event::Blocked(Some(_)))) {}
    let got = soon(control.get("q")).await.expect("a refused publish is not waited for").unwrap();
    assert!(got.is_some());
    drop(connection);
    broker.shutdown(Duration::ZERO).await;
}
