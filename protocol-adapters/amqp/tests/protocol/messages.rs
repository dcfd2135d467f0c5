//! Publishing, consuming and settling, as a client sees them.

use crate::client::{Server, short, until_idle};
use longshore_amqp::AmqpConfig;
use longshore_amqp_codec::content::{PropertiesBuilder, Property};
use longshore_amqp_codec::method::*;
use longshore_amqp_codec::{Method, Properties, TableBuilder, Value};
use longshore_broker::{CloseReason, Event};
use std::time::Duration;
use tokio::time::timeout;

#[tokio::test]
async fn what_is_published_with_confirms_is_consumed_with_acks() {
    let server = Server::new();
    let mut client = server.client().await;
    client.open(1).await;
    assert_eq!(client.declare(1, "q").await, ("q".to_owned(), 0, 0));
    assert!(matches!(client.call(1, ConfirmSelect::default()).await, Method::ConfirmSelectOk(_)));
    let properties = PropertiesBuilder::new()
        .headers(
            &TableBuilder::new().put("z", Value::I8(1)).put("a", Value::Void).put("z", Value::U16(2)).build(),
        )
        .delivery_mode(2)
        .build();
    let publish = BasicPublish { routing_key: short("q"), ..Default::default() };
    let mut burst = Vec::new();
    for n in 0..10u8 {
        burst.extend_from_slice(&client.publish_bytes(1, publish.clone(), &properties, &[n; 3]));
    }
    client.raw(&burst).await;
    let Method::BasicAck(ack) = client.method(1).await else { panic!() };
    assert_eq!((ack.delivery_tag, ack.multiple), (10, true), "a burst is confirmed at once");
    assert_eq!(client.declare(1, "q").await.1, 10);
    client.send(1, BasicQos { prefetch_count: 3, ..Default::default() }).await;
    assert!(matches!(client.method(1).await, Method::BasicQosOk(_)));
    let tag = client.consume(1, "q", false).await;
    assert!(tag.starts_with("amq.ctag-"));
    for n in 1..=3u8 {
        let message = client.message(1).await;
        assert_eq!((message.body, message.properties), (vec![n - 1; 3], properties.clone()));
    }
    assert_eq!(server.fake.unacked("q"), 3, "no more than the prefetch");
    client.ack(1, 2, true).await;
    assert_eq!(client.delivery(1).await, (4, false, vec![3; 3]));
    assert_eq!(client.delivery(1).await, (5, false, vec![4; 3]));
    client.send(1, BasicCancel { consumer_tag: short(&tag), nowait: false }).await;
    assert!(matches!(client.method(1).await, Method::BasicCancelOk(_)));
    client.ack(1, 0, true).await;
    assert_eq!(client.declare(1, "q").await, ("q".to_owned(), 5, 0));
    assert_eq!(server.fake.unacked("q"), 0);
}

#[tokio::test]
async fn returned_messages_come_again_marked_and_counted() {
    let server = Server::new();
    let mut client = server.client().await;
    client.open(1).await;
    client.declare(1, "q").await;
    client.publish(1, "q", b"m").await;
    client.consume(1, "q", false).await;
    assert_eq!(client.delivery(1).await, (1, false, b"m".to_vec()));
    client.send(1, BasicNack { delivery_tag: 1, multiple: false, requeue: true }).await;
    let again = client.message(1).await;
    let Method::BasicDeliver(deliver) = &again.method else { panic!() };
    assert!(deliver.redelivered);
    assert_eq!(again.properties.headers().and_then(|h| h.get("x-delivery-count")), Some(Value::I64(1)));
    assert!(matches!(client.call(1, BasicRecover { requeue: true }).await, Method::BasicRecoverOk(_)));
    assert_eq!(client.delivery(1).await, (3, true, b"m".to_vec()));
    client.send(1, BasicReject { delivery_tag: 3, requeue: false }).await;
    assert_eq!(client.declare(1, "q").await.1, 0);
    assert_eq!(server.fake.unacked("q"), 0);
}

#[tokio::test]
async fn a_closed_channel_gives_back_what_it_held() {
    let server = Server::new();
    let mut client = server.client().await;
    client.open(1).await;
    client.declare(1, "q").await;
    for body in [b"a", b"b", b"c"] {
        client.publish(1, "q", body).await;
    }
    client.consume(1, "q", false).await;
    for _ in 0..3 {
        client.delivery(1).await;
    }
    client.ack(1, 2, false).await;
    assert!(matches!(client.call(1, ChannelClose::default()).await, Method::ChannelCloseOk(_)));
    assert_eq!((server.fake.ready("q"), server.fake.unacked("q")), (2, 0));
    client.open(1).await;
    let Method::BasicGetOk(got) = client.call(1, BasicGet { queue: short("q"), ..Default::default() }).await
    else {
        panic!()
    };
    assert_eq!((got.delivery_tag, got.redelivered, got.message_count), (1, true, 1));
}

#[tokio::test]
async fn get_takes_one_or_says_empty() {
    let server = Server::new();
    let mut client = server.client().await;
    client.open(1).await;
    client.declare(1, "q").await;
    client.publish(1, "q", b"").await;
    let get = || BasicGet { queue: short("q"), no_ack: true, ..Default::default() };
    client.send(1, get()).await;
    let message = client.message(1).await;
    assert!(matches!(message.method, Method::BasicGetOk(_)) && message.body.is_empty());
    assert_eq!(client.call(1, get()).await, Method::BasicGetEmpty(BasicGetEmpty::default()));
    assert_eq!(server.fake.unacked("q"), 0);
}

#[tokio::test]
async fn mandatory_messages_are_returned_before_their_confirm() {
    let server = Server::new();
    let mut client = server.client().await;
    client.open(1).await;
    client.call(1, ConfirmSelect::default()).await;
    for key in ["nobody", "perhaps"] {
        let publish = BasicPublish { routing_key: short(key), mandatory: true, ..Default::default() };
        let bytes = client.publish_bytes(1, publish, &Properties::default(), b"body");
        client.raw(&bytes).await;
        let message = client.message(1).await;
        let Method::BasicReturn(returned) = message.method else { panic!() };
        assert_eq!((returned.reply_code, &*returned.reply_text.lossy()), (312, "NO_ROUTE"));
        assert_eq!((returned.routing_key, message.body), (short(key), b"body".to_vec()));
        assert!(matches!(client.method(1).await, Method::BasicAck(_)));
    }
    let unnoticed = client.publish_bytes(1, BasicPublish::default(), &Properties::default(), b"");
    client.raw(&unnoticed).await;
    assert!(matches!(client.method(1).await, Method::BasicAck(ack) if ack.delivery_tag == 3));
}

#[tokio::test]
async fn refused_publishes_are_nacked() {
    let server = Server::new();
    let mut client = server.client().await;
    client.open(1).await;
    client.declare(1, "q").await;
    client.call(1, ConfirmSelect::default()).await;
    server.fake.lock().refuse = true;
    client.publish(1, "q", b"x").await;
    assert!(matches!(client.method(1).await, Method::BasicNack(nack) if nack.delivery_tag == 1));
}

#[tokio::test(start_paused = true)]
async fn publishes_wait_while_storage_is_blocked() {
    let server = Server::new();
    let mut client = server.client().await;
    client.open(1).await;
    client.declare(1, "q").await;
    server.fake.tell(&Event::Blocked(Some("low on disk".into())));
    let Method::ConnectionBlocked(blocked) = client.method(0).await else { panic!() };
    assert_eq!(&*blocked.reason.lossy(), "low on disk");
    client.publish(1, "q", b"x").await;
    until_idle().await;
    assert_eq!(server.fake.ready("q"), 0);
    server.fake.tell(&Event::Blocked(None));
    assert!(matches!(client.method(0).await, Method::ConnectionUnblocked(_)));
    assert_eq!(client.declare(1, "q").await.1, 1);
}

#[tokio::test]
async fn a_channels_limit_holds_over_its_consumers() {
    let server = Server::new();
    let mut client = server.client().await;
    client.open(1).await;
    for queue in ["a", "b"] {
        client.declare(1, queue).await;
        for n in 0..4u8 {
            client.publish(1, queue, &[n]).await;
        }
    }
    let qos = BasicQos { prefetch_count: 3, global: true, ..Default::default() };
    assert!(matches!(client.call(1, qos).await, Method::BasicQosOk(_)));
    client.consume(1, "a", false).await;
    for _ in 0..3 {
        client.delivery(1).await;
    }
    client.consume(1, "b", false).await;
    client.ack(1, 1, false).await;
    assert_eq!(client.delivery(1).await.0, 4);
    client.ack(1, 0, true).await;
    for tag in 5..=7 {
        assert_eq!(client.delivery(1).await.0, tag);
    }
    // The eighth waits for room; the next answer comes first.
    assert_eq!(client.declare(1, "a").await.2, 1);
    client.ack(1, 0, true).await;
    assert_eq!(client.delivery(1).await.0, 8);
}

#[tokio::test]
async fn transactions_hold_publishes_and_acks_until_the_commit() {
    let server = Server::new();
    let mut client = server.client().await;
    client.open(1).await;
    client.declare(1, "q").await;
    client.publish(1, "q", b"first").await;
    client.send(1, BasicGet { queue: short("q"), ..Default::default() }).await;
    client.message(1).await;
    assert!(matches!(client.call(1, TxSelect {}).await, Method::TxSelectOk(_)));
    client.publish(1, "q", b"lost").await;
    client.ack(1, 1, false).await;
    assert!(matches!(client.call(1, TxRollback {}).await, Method::TxRollbackOk(_)));
    assert_eq!((server.fake.ready("q"), server.fake.unacked("q")), (0, 1));
    client.publish(1, "q", b"kept").await;
    client.ack(1, 1, false).await;
    assert!(matches!(client.call(1, TxCommit {}).await, Method::TxCommitOk(_)));
    assert_eq!((server.fake.ready("q"), server.fake.unacked("q")), (1, 0));
    server.fake.lock().refuse = true;
    client.publish(1, "q", b"refused").await;
    client.send(1, TxCommit {}).await;
    let text = "PRECONDITION_FAILED - partial tx completion";
    assert_eq!(client.channel_closed(1).await, (406, text.to_owned()));
}

#[tokio::test]
async fn consumers_of_a_deleted_queue_are_cancelled() {
    let server = Server::new();
    let mut client = server.client().await;
    client.open(1).await;
    client.open(2).await;
    client.declare(1, "q").await;
    let tag = client.consume(1, "q", false).await;
    assert!(matches!(
        client.call(2, QueueDelete { queue: short("q"), ..Default::default() }).await,
        Method::QueueDeleteOk(_)
    ));
    let Method::BasicCancel(cancel) = client.method(1).await else { panic!() };
    assert_eq!((cancel.consumer_tag, cancel.nowait), (short(&tag), true));
}

#[tokio::test]
async fn large_bodies_are_split_and_put_together() {
    let server = Server::with(AmqpConfig { message_bytes_max: 1 << 20, ..AmqpConfig::default() });
    let mut client = server.pipe(64 << 10);
    client.handshake("guest", 4_096, 0).await;
    client.open(1).await;
    client.declare(1, "q").await;
    let body: Vec<u8> = (0..1u32 << 20).map(|n| (n % 251) as u8).collect();
    client.publish(1, "q", &body).await;
    client.send(1, BasicGet { queue: short("q"), no_ack: true, ..Default::default() }).await;
    assert!(client.message(1).await.body == body);
    client.publish(1, "q", &[0; (1 << 20) + 1]).await;
    let text = "PRECONDITION_FAILED - message size 1048577 is larger than configured max size 1048576";
    assert_eq!(client.channel_closed(1).await, (406, text.to_owned()));
    client.open(1).await;
    assert_eq!(client.declare(1, "q").await.1, 0);
}

#[tokio::test]
async fn replies_reach_whoever_asked() {
    let server = Server::new();
    let (mut asker, mut helper) = (server.client().await, server.client().await);
    asker.open(1).await;
    helper.open(1).await;
    helper.declare(1, "rpc").await;
    helper.consume(1, "rpc", true).await;
    asker.consume(1, "amq.rabbitmq.reply-to", true).await;
    let publish = BasicPublish { routing_key: short("rpc"), ..Default::default() };
    let properties =
        PropertiesBuilder::new().short(Property::ReplyTo, &short("amq.rabbitmq.reply-to")).build();
    let bytes = asker.publish_bytes(1, publish, &properties, b"ping");
    asker.raw(&bytes).await;
    let request = helper.message(1).await;
    let reply_to = request.properties.short(Property::ReplyTo).unwrap();
    assert!(reply_to.lossy().starts_with("amq.rabbitmq.reply-to."), "{reply_to:?}");
    let there = QueueDeclare { queue: reply_to.clone(), passive: true, ..Default::default() };
    let Method::QueueDeclareOk(there) = helper.call(1, there).await else { panic!("anybody may ask") };
    assert_eq!((there.message_count, there.consumer_count), (0, 1));
    helper.publish(1, &reply_to.lossy(), b"pong").await;
    assert_eq!(asker.delivery(1).await.2, b"pong");
    assert!(matches!(asker.call(1, ChannelClose::default()).await, Method::ChannelCloseOk(_)));
    assert!(!server.fake.has_queue(&reply_to.lossy()));
}

#[tokio::test]
async fn copies_go_to_more_keys() {
    let server = Server::new();
    let mut client = server.client().await;
    client.open(1).await;
    for queue in ["one", "two", "three"] {
        client.declare(1, queue).await;
    }
    let headers = TableBuilder::new().put_texts("CC", &["two"]).put_texts("BCC", &["three"]).build();
    let properties = PropertiesBuilder::new().headers(&headers).build();
    let publish = BasicPublish { routing_key: short("one"), ..Default::default() };
    let bytes = client.publish_bytes(1, publish, &properties, b"x");
    client.raw(&bytes).await;
    for queue in ["one", "two", "three"] {
        client.send(1, BasicGet { queue: short(queue), no_ack: true, ..Default::default() }).await;
        let message = client.message(1).await;
        let headers = message.properties.headers().unwrap();
        assert!(headers.get("CC").is_some() && headers.get("BCC").is_none());
    }
    let headers = TableBuilder::new().put_texts("BCC", &["nowhere either"]).build();
    let properties = PropertiesBuilder::new().headers(&headers).build();
    let publish = BasicPublish { routing_key: short("nowhere"), mandatory: true, ..Default::default() };
    let bytes = client.publish_bytes(1, publish, &properties, b"x");
    client.raw(&bytes).await;
    let returned = client.message(1).await;
    assert!(matches!(returned.method, Method::BasicReturn(_)));
    assert!(returned.properties.headers().is_none_or(|headers| headers.get("BCC").is_none()));
}

#[tokio::test]
async fn what_was_read_from_a_stream_can_only_be_acked() {
    let server = Server::new();
    let mut client = server.client().await;
    client.open(1).await;
    let arguments = TableBuilder::new().put("x-queue-type", Value::Text(b"stream")).build();
    let declare = QueueDeclare { queue: short("s"), durable: true, arguments, ..Default::default() };
    assert!(matches!(client.call(1, declare).await, Method::QueueDeclareOk(_)));
    assert!(matches!(
        client.call(1, BasicQos { prefetch_count: 10, ..Default::default() }).await,
        Method::BasicQosOk(_)
    ));
    client.consume(1, "s", false).await;
    client.publish(1, "s", b"one").await;
    let delivery_tag = client.delivery(1).await.0;
    client.send(1, BasicNack { delivery_tag, requeue: true, ..Default::default() }).await;
    let text = "NOT_IMPLEMENTED - basic.nack and basic.reject not supported by stream queues";
    assert_eq!(client.connection_closed().await, (540, text.to_owned()));
}

#[tokio::test]
async fn an_access_ticket_is_given_to_who_asks() {
    let server = Server::new();
    let mut client = server.client().await;
    client.open(1).await;
    let request = AccessRequest { realm: short("/data"), active: true, read: true, ..Default::default() };
    assert!(matches!(client.call(1, request).await, Method::AccessRequestOk(ok) if ok.ticket == 1));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_costs_a_bounded_amount() {
    let config =
        AmqpConfig { out_bytes_max: 64 << 10, consumer_window_bytes: 64 << 10, ..AmqpConfig::default() };
    let server = Server::with(config);
    let mut client = server.pipe(16 << 10);
    client.handshake("guest", 131_072, 0).await;
    client.open(1).await;
    client.declare(1, "q").await;
    for _ in 0..1_000 {
        client.publish(1, "q", &[1; 1_000]).await;
    }
    assert_eq!(client.declare(1, "q").await.1, 1_000);
    client.send(1, BasicConsume { queue: short("q"), no_ack: true, ..Default::default() }).await;
    until_idle().await;
    let taken = server.fake.lock().delivered_bytes;
    assert!((1..300_000).contains(&taken), "{taken} bytes were taken for a client that reads nothing");
    assert!(matches!(client.method(1).await, Method::BasicConsumeOk(_)));
    for tag in 1..=1_000 {
        assert_eq!(client.delivery(1).await.0, tag);
    }
}

#[tokio::test]
async fn the_brokers_close_reaches_the_client() {
    let server = Server::new();
    let mut client = server.client().await;
    server.fake.tell(&Event::Close(CloseReason::Admin("maintenance".into())));
    assert_eq!(client.connection_closed().await, (320, "CONNECTION_FORCED - maintenance".to_owned()));
    assert!(client.frame().await.is_none());
    let mut client = server.client().await;
    server.stop.send_replace(true);
    assert_eq!(client.connection_closed().await.0, 320);
}

#[tokio::test(start_paused = true)]
async fn heartbeats_go_both_ways() {
    let server = Server::new();
    let mut client = server.pipe(1 << 20);
    client.handshake("guest", 131_072, 10).await;
    for _ in 0..3 {
        let frame = client.frame().await.unwrap();
        assert_eq!((frame.kind, frame.channel), (longshore_amqp_codec::FrameKind::Heartbeat, 0));
    }
    // The client never sent one: it is hung up on after two intervals.
    while client.frame().await.is_some() {}
}

#[tokio::test(start_paused = true)]
async fn beyond_the_bound_on_half_received_messages_the_later_one_waits() {
    let assembly = longshore_amqp::Assembly::new(1 << 20);
    let server = Server::with(AmqpConfig { assembly, ..AmqpConfig::default() });
    let body = vec![7; 2 << 20];
    let mut clients = Vec::new();
    for queue in ["first", "second"] {
        let mut client = server.pipe(64 << 10);
        client.handshake("guest", 131_072, 0).await;
        client.open(1).await;
        client.declare(1, queue).await;
        let publish = BasicPublish { routing_key: short(queue), ..Default::default() };
        let bytes = client.publish_bytes(1, publish, &PropertiesBuilder::new().build(), &body);
        clients.push((client, bytes));
    }
    let (mut second, later) = clients.pop().unwrap();
    let (mut first, sooner) = clients.pop().unwrap();
    let (begun, rest) = sooner.split_at(sooner.len() - 10);
    first.raw(begun).await;
    assert!(timeout(Duration::from_millis(300), second.raw(&later)).await.is_err(), "it is not read on");
    first.raw(rest).await;
    first.send(1, BasicGet { queue: short("first"), no_ack: true, ..Default::default() }).await;
    assert_eq!(first.message(1).await.body.len(), body.len());
}
