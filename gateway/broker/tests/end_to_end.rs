//! The broker against a storage node in memory, over real gRPC.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may end by them")]

mod fake;

use bytes::Bytes;
use fake::Fake;
use fake::client::{PATIENCE, connect, declare, given, message, peer, start_with};
use longshore_broker::*;
use longshore_proto::v1::{self, meta_change::Change};
use longshore_wire::{LogId, ShardId};
use std::time::Duration;

async fn start() -> (Fake, Broker) {
    start_with(|_| {}).await
}

fn publish(connection: &mut Connection, exchange: &str, key: &str, token: u64, body: &[Bytes]) -> Routed {
    publish_copies(connection, exchange, &[key], token, body).unwrap()
}

/// To the first key, with copies to the others.
fn publish_copies(
    connection: &mut Connection,
    exchange: &str,
    keys: &[&str],
    token: u64,
    body: &[Bytes],
) -> Result<Routed, BrokerError> {
    let more_keys: Vec<&[u8]> = keys[1..].iter().map(|key| key.as_bytes()).collect();
    let publish = Publish {
        exchange,
        more_keys: &more_keys,
        properties: b"props",
        ..message(keys[0].as_bytes(), token, body)
    };
    connection.publish(&publish)
}

fn number(n: u64) -> [Bytes; 1] {
    [Bytes::copy_from_slice(&n.to_le_bytes())]
}

async fn next(events: &mut EventReceiver) -> Event {
    tokio::time::timeout(PATIENCE, events.recv()).await.expect("an event in time").expect("an event")
}

async fn published(events: &mut EventReceiver, count: usize) -> Vec<Published> {
    let mut all = Vec::new();
    while all.len() < count {
        match next(events).await {
            Event::Published(lines) => all.extend(lines),
            other => panic!("unexpected {other:?}"),
        }
    }
    all
}

async fn deliveries(events: &mut EventReceiver, count: usize) -> Vec<Delivery> {
    let mut all = Vec::new();
    while all.len() < count {
        match next(events).await {
            Event::Deliveries(some) => all.extend(some),
            Event::Published(_) => {}
            other => panic!("unexpected {other:?}"),
        }
    }
    all
}

fn consumer(queue: &str) -> Attach {
    Attach {
        tag: ConsumerTag(1),
        queue: queue.into(),
        exclusive: false,
        priority: 0,
        start: None,
        credit_messages: 1000,
        credit_bytes: 1 << 30,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_goes_from_publish_to_ack() {
    let (fake, broker) = start().await;
    let (mut connection, mut events) = connect(&broker).await;
    let control = connection.control();
    let state = control.declare_queue(given("q")).await.unwrap();
    assert!(state.created && !control.declare_queue(given("q")).await.unwrap().created);
    let mut other = given("q");
    other.auto_delete = true;
    let error = control.declare_queue(other).await.unwrap_err();
    assert!(matches!(error, BrokerError::Inequivalent { what: "auto_delete", .. }), "{error}");
    let binding = BindingInfo {
        source: "amq.topic".into(),
        destination: Destination::Queue("q".into()),
        routing_key: Bytes::from_static(b"a.#"),
        arguments: Bytes::new(),
    };
    control.bind(binding.clone()).await.unwrap();
    for n in 0..300 {
        assert_eq!(publish(&mut connection, "amq.topic", "a.b", n, &number(n)), Routed::Queued);
    }
    assert_eq!(publish(&mut connection, "amq.topic", "b", 999, &number(0)), Routed::Unroutable);
    assert_eq!(connection.flush(), Flow::Open);
    let lines = published(&mut events, 300).await;
    assert!(
        lines
            .iter()
            .enumerate()
            .all(|(n, line)| { line.token == n as u64 && line.result == PublishResult::Stored })
    );

    control.attach(consumer("q")).await.unwrap();
    let got = deliveries(&mut events, 300).await;
    for (n, delivery) in got.iter().enumerate() {
        assert_eq!(delivery.body.slices(), &number(n as u64));
        assert_eq!((&delivery.properties[..], &delivery.routing_key[..]), (&b"props"[..], &b"a.b"[..]));
        connection.settle(&delivery.handle, Settlement::Acked);
    }
    assert_eq!(connection.flush(), Flow::Open);
    control.settled().await;
    assert!(fake.lock().logs[&1].messages.iter().all(|stored| stored.done));

    control.detach(ConsumerTag(1), true).await;
    publish(&mut connection, "", "q", 1000, &number(7));
    let _ = connection.flush();
    let got = control.get("q").await.unwrap().expect("a get sees what was published before it");
    assert_eq!((got.ready, got.delivery.handle.tag), (0, None));
    assert!(control.get("q").await.unwrap().is_none());
    connection.settle(&got.delivery.handle, Settlement::Returned { counted: true });
    let _ = connection.flush();
    let again = control.get("q").await.unwrap().expect("returned");
    assert!(again.delivery.redelivered);
    control.unbind(binding).await.unwrap();
    assert_eq!(publish(&mut connection, "amq.topic", "a.b", 1, &number(1)), Routed::Unroutable);
    publish(&mut connection, "", "q", 1001, &number(8));
    let _ = connection.flush();
    assert!(matches!(control.delete_queue("q", false, true).await, Err(BrokerError::NotEmpty(_))));
    assert!(control.get("q").await.unwrap().is_some());
    // As in RabbitMQ, what is out does not count.
    assert_eq!(control.delete_queue("q", false, true).await, Ok(0));
    drop(connection);
    broker.shutdown(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_declare_renews_the_time_of_a_queue_without_use() {
    let (fake, broker) = start().await;
    let (connection, _events) = connect(&broker).await;
    let control = connection.control();
    let transient = declare(QueueName::Given("transient".into()), false);
    for (name, declare) in [("durable", given("durable")), ("transient", transient)] {
        control.declare_queue(declare).await.unwrap();
        let before = fake.lock().uses;
        control.queue(name).await.unwrap();
        broker.admin().queues("/", true).await.unwrap();
        assert_eq!(fake.lock().uses, before, "{name}: a look at it, or a list");
        control.stat(name).await.unwrap();
        assert_eq!(fake.lock().uses, before + 1, "{name}: declared again");
        control.delete_queue(name, false, false).await.unwrap();
        assert_eq!(fake.lock().uses, before + 1, "{name}: deleted");
    }
    drop(connection);
    broker.shutdown(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_connections_wait_while_they_have_too_much_pending_together() {
    let (fake, broker) = start_with(|config| config.pending_bytes_max = 100_000).await;
    let (mut connection, mut events) = connect(&broker).await;
    let (mut other, _others) = connect(&broker).await;
    connection.control().declare_queue(given("q")).await.unwrap();
    fake.lock().silent = true;
    publish(&mut other, "", "q", 1, &number(1));
    assert_eq!(other.flush(), Flow::Open);
    publish(&mut connection, "", "q", 2, &[Bytes::from(vec![7; 100_000])]);
    assert_eq!(connection.flush(), Flow::Wait);
    assert_eq!(other.flush(), Flow::Wait, "whoever it is from");
    fake.lock().silent = false;
    fake.cut_links();
    tokio::time::timeout(PATIENCE, other.writable()).await.expect("writable again");
    assert_eq!(published(&mut events, 1).await[0].result, PublishResult::Stored);
    // What a connection had pending when it went is given back with its outcome.
    fake.lock().silent = true;
    publish(&mut connection, "", "q", 3, &[Bytes::from(vec![7; 100_000])]);
    drop((connection, events));
    assert_eq!(other.flush(), Flow::Wait);
    fake.lock().silent = false;
    fake.cut_links();
    tokio::time::timeout(PATIENCE, other.writable()).await.expect("writable again");
    drop(other);
    broker.shutdown(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_without_an_outcome_go_again_and_are_stored_once() {
    let (fake, broker) = start().await;
    let (mut connection, mut events) = connect(&broker).await;
    connection.control().declare_queue(given("q")).await.unwrap();
    fake.lock().silent = true;
    let submissions = || fake.lock().submissions.values().sum::<u32>();
    let mut before = 0;
    for n in 0..100 {
        publish(&mut connection, "", "q", n, &number(n));
        let _ = connection.flush();
        if n % 25 == 10 {
            until("a batch is out on this stream", || submissions() > before).await;
            before = submissions();
            fake.cut_links();
        }
    }
    until("a batch is out on the last stream", || submissions() > before).await;
    fake.lock().silent = false;
    fake.cut_links();
    let lines = published(&mut events, 100).await;
    assert!(lines.iter().all(|line| line.result == PublishResult::Stored));
    assert!(fake.lock().submissions.values().any(|times| *times > 1), "something went twice");
    let bodies: Vec<Bytes> = fake.bodies("q");
    assert_eq!(bodies, (0..100).map(|n| number(n)[0].clone()).collect::<Vec<_>>());
    drop(connection);
    broker.shutdown(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consumers_come_back_after_a_lost_stream_with_what_they_hold() {
    let (fake, broker) = start().await;
    let (mut connection, mut events) = connect(&broker).await;
    let control = connection.control();
    control.declare_queue(given("q")).await.unwrap();
    control.attach(Attach { credit_messages: 2, ..consumer("q") }).await.unwrap();
    for n in 0..4 {
        publish(&mut connection, "", "q", n, &number(n));
    }
    let _ = connection.flush();
    let first = deliveries(&mut events, 2).await;
    fake.cut_links();
    connection.settle(&first[0].handle, Settlement::Acked);
    connection.credit(ConsumerTag(1), 2, 0);
    let _ = connection.flush();
    let rest = deliveries(&mut events, 2).await;
    let offsets: Vec<u64> = rest.iter().map(|delivery| delivery.handle.offset.0).collect();
    assert_eq!(offsets, [2, 3], "what is held does not come again, and only the credit that is left counts");
    drop(connection);
    until("what a gone connection held is given back", || {
        let state = fake.lock();
        state.logs[&1].messages.iter().all(|stored| stored.out.is_none() || stored.done)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_blocks_publishes_and_lets_acks_pass() {
    let (fake, broker) = start().await;
    let (mut connection, mut events) = connect(&broker).await;
    let control = connection.control();
    control.declare_queue(given("q")).await.unwrap();
    publish(&mut connection, "", "q", 1, &number(1));
    let _ = connection.flush();
    published(&mut events, 1).await;
    control.attach(consumer("q")).await.unwrap();
    let got = deliveries(&mut events, 1).await;
    fake.lock().full = true;
    publish(&mut connection, "", "q", 2, &number(2));
    connection.settle(&got[0].handle, Settlement::Acked);
    let _ = connection.flush();
    assert!(matches!(next(&mut events).await, Event::Blocked(Some(_))));
    until("the ack passes", || fake.lock().logs[&1].messages[0].done).await;
    fake.lock().full = false;
    let mut seen = (false, false);
    while seen != (true, true) {
        match next(&mut events).await {
            Event::Published(lines) => seen.0 = lines[0].result == PublishResult::Stored,
            Event::Blocked(None) => seen.1 = true,
            Event::Deliveries(_) | Event::Blocked(Some(_)) => {}
            other => panic!("unexpected {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_body_arrives_whole() {
    let (_fake, broker) = start().await;
    let (mut connection, mut events) = connect(&broker).await;
    let control = connection.control();
    control.declare_queue(given("q")).await.unwrap();
    control.attach(consumer("q")).await.unwrap();
    let body: Vec<Bytes> = (0..50_u8).map(|n| Bytes::from(vec![n; 100_000])).collect();
    publish(&mut connection, "", "q", 1, &body);
    publish(&mut connection, "", "q", 2, &number(2));
    let _ = connection.flush();
    connection.writable().await;
    let got = deliveries(&mut events, 2).await;
    assert_eq!(got[0].body.slices().concat(), body.concat());
    assert_eq!(got[1].body.slices(), &number(2), "in the order of sending");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_body_reaches_a_queue_in_memory_in_pieces_and_in_order() {
    let (_fake, broker) = start().await;
    let (mut connection, mut events) = connect(&broker).await;
    let control = connection.control();
    control.declare_queue(declare(QueueName::Given("t".into()), false)).await.unwrap();
    control.attach(consumer("t")).await.unwrap();
    let body: Vec<Bytes> = (0..50_u8).map(|n| Bytes::from(vec![n; 100_000])).collect();
    publish(&mut connection, "", "t", 1, &number(1));
    publish(&mut connection, "", "t", 2, &body);
    publish(&mut connection, "", "t", 3, &number(3));
    let _ = connection.flush();
    let got = deliveries(&mut events, 3).await;
    assert_eq!(got[0].body.slices(), &number(1));
    assert_eq!(got[1].body.slices().concat(), body.concat());
    assert_eq!(got[2].body.slices(), &number(3), "in the order of sending");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reply_queues_need_no_meta_and_go_with_their_connection() {
    let (fake, broker) = start().await;
    let (requester, mut replies) = connect(&broker).await;
    let (mut server, mut events) = connect(&broker).await;
    let before = fake.lock().meta_entries;
    let control = requester.control();
    let queue = control.declare_queue(declare(QueueName::Generated("amq.gen-"), false)).await.unwrap();
    assert!(queue.created && queue.name.starts_with("amq.gen-"));
    control.attach(consumer(&queue.name)).await.unwrap();
    for n in 0..10 {
        publish(&mut server, "", &queue.name, n, &number(n));
    }
    let _ = server.flush();
    assert!(published(&mut events, 10).await.iter().all(|line| line.result == PublishResult::Stored));
    let got = deliveries(&mut replies, 10).await;
    assert!(got.iter().enumerate().all(|(n, delivery)| delivery.body.slices() == number(n as u64)));
    assert_eq!(fake.lock().meta_entries, before, "meta heard nothing of it");
    let error = server.control().attach(consumer(&queue.name)).await.unwrap_err();
    assert!(matches!(error, BrokerError::ResourceLocked(_)), "{error}");

    // The stream dies and the leader's memory with it: the queue is made again under its name.
    fake.lock().logs.retain(|_, queue| queue.transient.is_none());
    fake.cut_links();
    let is_there = || {
        let state = fake.lock();
        state.logs.values().any(|log| log.transient.as_ref().is_some_and(|(name, _)| *name == queue.name))
    };
    until("the queue is made again", is_there).await;
    publish(&mut server, "", &queue.name, 20, &number(20));
    let _ = server.flush();
    assert_eq!(deliveries(&mut replies, 1).await[0].body.slices(), &number(20));
    assert_eq!(published(&mut events, 1).await[0].result, PublishResult::Stored);

    drop(requester);
    until("the queue goes with its connection", || !is_there()).await;
    publish(&mut server, "", &queue.name, 30, &number(30));
    let _ = server.flush();
    assert_eq!(published(&mut events, 1).await[0].result, PublishResult::Unroutable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_go_to_every_queue_that_only_storage_knows() {
    let (fake, broker) = start().await;
    let (mut connection, mut events) = connect(&broker).await;
    // One that this gateway has made, and two that it has not heard of; meta knows none of them.
    let made =
        connection.control().declare_queue(declare(QueueName::Generated("amq.gen-"), false)).await.unwrap();
    for (at, name) in ["elsewhere-1", "elsewhere-2"].into_iter().enumerate() {
        let queue = fake::Queue { transient: Some((name.to_owned(), 0)), ..fake::Queue::default() };
        fake.lock().logs.insert(LogId::transient(ShardId(1), 100 + at as u64).0, queue);
    }
    let names = [&*made.name, "elsewhere-1", "elsewhere-2"];
    for token in [1, 2] {
        let keys = ["nowhere", names[2], names[0], names[1], names[2]];
        publish_copies(&mut connection, "", &keys, token, &number(token)).unwrap();
    }
    let _ = connection.flush();
    assert!(published(&mut events, 2).await.iter().all(|line| line.result == PublishResult::Stored));
    for name in names {
        let state = fake.lock();
        let queue =
            state.logs.values().find(|queue| queue.transient.as_ref().is_some_and(|(n, _)| n == name));
        assert_eq!(queue.unwrap().messages.len(), 2, "{name}: each once");
    }
    // A bound on what one message may have looked for.
    let many: Vec<String> = (0..1001).map(|n| format!("missing-{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let error = publish_copies(&mut connection, "", &many, 3, &number(3)).unwrap_err();
    assert!(matches!(error, BrokerError::Limit(_)), "{error}");
}

/// Looks until it is so, or the test's patience is over.
async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !so() {
        assert!(tokio::time::Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn binding(queue: &str) -> BindingInfo {
    BindingInfo {
        source: "amq.topic".into(),
        destination: Destination::Queue(queue.into()),
        routing_key: Bytes::from(queue.to_owned()),
        arguments: Bytes::new(),
    }
}

// In one thread: the change of leader is known before the task that declares goes on.
#[tokio::test]
async fn a_queue_that_a_lost_leader_had_just_made_is_made_again() {
    let (fake, broker) = start().await;
    let (connection, _events) = connect(&broker).await;
    fake.lock().depose = true;
    let generated = declare(QueueName::Generated("amq.gen-"), false);
    let queue = connection.control().declare_queue(generated).await.unwrap();
    until("the queue is there again", || {
        fake.lock().logs.values().any(|q| q.transient.as_ref().is_some_and(|(name, _)| *name == queue.name))
    })
    .await;
}

// In one thread: what a task sends when it goes on is sent before what is asked for later.
#[tokio::test]
async fn a_queue_that_was_deleted_elsewhere_is_not_made_again() {
    let (fake, broker) = start().await;
    let (connection, _events) = connect(&broker).await;
    let control = connection.control();
    let shared =
        |name: &str| QueueDeclare { exclusive: false, ..declare(QueueName::Given(name.into()), false) };
    for name in ["gone", "kept"] {
        control.declare_queue(shared(name)).await.unwrap();
    }
    let is_there = |name: &str| {
        let state = fake.lock();
        state.logs.values().any(|queue| queue.transient.as_ref().is_some_and(|(known, _)| known == name))
    };
    assert!(is_there("gone") && is_there("kept"));
    {
        let mut state = fake.lock();
        let key = (1, "gone".to_owned());
        let log = state.queues.remove(&key).unwrap().log;
        let gone = v1::QueueDeleted { namespace: key.0, name: key.1, log, ..v1::QueueDeleted::default() };
        state.change(Change::QueueDeleted(gone));
        // Their leader changes, and has neither.
        state.logs.retain(|_, queue| queue.transient.is_none());
    }
    // Its answer comes once the gateway has seen all that came before.
    control.declare_queue(given("q")).await.unwrap();
    fake.cut_links();
    until("the other one is made again", || is_there("kept")).await;
    control.declare_queue(shared("later")).await.unwrap();
    assert!(!is_there("gone"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_bound_reply_queue_rides_in_the_next_entry() {
    const CYCLES: u64 = 30;
    let (fake, broker) = start().await;
    let (connection, _events) = connect(&broker).await;
    let control = connection.control();
    let before = fake.lock().meta_entries;
    for _ in 0..CYCLES {
        let generated = declare(QueueName::Generated("amq.gen-"), false);
        let queue = control.declare_queue(generated).await.unwrap();
        control.bind(binding(&queue.name)).await.unwrap();
        control.delete_queue(&queue.name, false, false).await.unwrap();
    }
    until("nothing is left behind", || fake.lock().queues.is_empty()).await;
    let entries = fake.lock().meta_entries - before;
    assert!(entries <= CYCLES + 10, "{entries} entries in meta");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_declared_again_is_not_taken_away_by_the_end_of_the_one_before() {
    let (fake, broker) = start().await;
    let (connection, _events) = connect(&broker).await;
    let control = connection.control();
    let mut names = Vec::new();
    for _ in 0..10 {
        let generated = declare(QueueName::Generated("amq.gen-"), false);
        let name = control.declare_queue(generated).await.unwrap().name;
        control.bind(binding(&name)).await.unwrap();
        control.delete_queue(&name, false, false).await.unwrap();
        let again = control.declare_queue(declare(QueueName::Given(name.clone()), false)).await.unwrap();
        assert!(again.created);
        names.push(name);
    }
    // Whatever waited goes before it, or with it.
    control.declare_queue(given("q")).await.unwrap();
    let state = fake.lock();
    assert!(names.iter().all(|name| state.queues.contains_key(&(1, name.clone()))), "each name is claimed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logins_and_namespaces_are_checked_and_deleted_users_go() {
    let (fake, broker) = start().await;
    assert_eq!(broker.authenticate("guest", b"wrong", peer()).await.unwrap_err(), AuthError::Refused);
    assert_eq!(broker.authenticate("nobody", b"guest", peer()).await.unwrap_err(), AuthError::Refused);
    let identity = broker.authenticate("other:guest", b"guest", peer()).await.unwrap();
    assert_eq!(&*identity.namespace, "other");
    let info = ConnectionInfo { protocol: "test", peer: peer(), client: String::new(), tls: false };
    let refused = broker.connect(&identity, "other", info).map(|_| ()).unwrap_err();
    assert_eq!(refused, BrokerError::NotAllowed("other".into()));
    let (mut connection, mut events) = connect(&broker).await;
    assert!(connection.permit(Right::Write, "anything"));
    assert_eq!(broker.admin().connections().len(), 1);
    fake.lock().change(Change::UserDeleted("guest".into()));
    assert!(matches!(next(&mut events).await, Event::Close(CloseReason::UserChanged)));
    assert!(events.recv().await.is_none());
    drop(connection);
    assert!(broker.admin().connections().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_lease_a_gateway_stops_and_starts_anew() {
    let (fake, broker) = start().await;
    let (mut connection, mut events) = connect(&broker).await;
    connection.control().declare_queue(given("q")).await.unwrap();
    let session = broker.session();
    fake.lock().deaf = true;
    until("no renewal was answered for 3 s", || !broker.is_ready()).await;
    publish(&mut connection, "", "q", 1, &number(1));
    assert_eq!(connection.flush(), Flow::Wait);
    {
        let mut state = fake.lock();
        state.live.clear();
        state.deaf = false;
    }
    let close = next(&mut events).await;
    assert!(matches!(close, Event::Close(CloseReason::LeaseLost)), "{close:?}");
    drop(connection);
    until("a new session", || broker.is_ready() && broker.session() > session).await;
    assert!(fake.bodies("q").is_empty(), "what had no outcome never goes out under another session");
    let (mut connection, mut events) = connect(&broker).await;
    publish(&mut connection, "", "q", 2, &number(2));
    let _ = connection.flush();
    assert_eq!(published(&mut events, 1).await[0].result, PublishResult::Stored);
}
