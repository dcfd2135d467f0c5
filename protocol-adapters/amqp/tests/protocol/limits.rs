//! What one client may hold, and what becomes of it when its channel or connection ends in the middle.

use crate::client::{Client, Server, short};
use longshore_amqp::AmqpConfig;
use longshore_amqp_codec::content::PropertiesBuilder;
use longshore_amqp_codec::method::*;
use longshore_amqp_codec::{FrameKind, Method, OutBuffer, Properties, TableBuilder, Value};
use std::time::Duration;

async fn get(client: &mut Client, queue: &str) {
    client.send(1, BasicGet { queue: short(queue), ..Default::default() }).await;
    assert!(matches!(client.message(1).await.method, Method::BasicGetOk(_)));
}

async fn qos(client: &mut Client, prefetch_count: u16) {
    let qos = BasicQos { prefetch_count, global: true, ..Default::default() };
    assert!(matches!(client.call(1, qos).await, Method::BasicQosOk(_)));
}

#[tokio::test]
async fn a_get_whose_connection_closes_gives_its_message_back() {
    let server = Server::new();
    let mut client = server.client().await;
    client.open(1).await;
    client.declare(1, "q").await;
    client.publish(1, "q", b"m").await;
    let mut out = OutBuffer::new();
    out.put_method(1, &BasicGet { queue: short("q"), ..Default::default() }.into());
    out.put_method(0, &ConnectionClose::default().into());
    client.raw(&out.take_all()).await;
    assert!(matches!(client.method(0).await, Method::ConnectionCloseOk(_)));
    assert_eq!((server.fake.ready("q"), server.fake.unacked("q")), (1, 0));
}

#[tokio::test]
async fn a_channels_limit_leaves_the_rest_to_others() {
    let server = Server::new();
    let (mut slow, mut other) = (server.client().await, server.client().await);
    slow.open(1).await;
    other.open(1).await;
    slow.declare(1, "q").await;
    for n in 0..10u8 {
        slow.publish(1, "q", &[n]).await;
    }
    qos(&mut slow, 2).await;
    slow.consume(1, "q", false).await;
    for _ in 0..2 {
        slow.delivery(1).await;
    }
    assert_eq!((server.fake.ready("q"), server.fake.unacked("q")), (8, 2));
    other.consume(1, "q", true).await;
    for n in 2..10u8 {
        assert_eq!(other.delivery(1).await.2, [n]);
    }
}

#[tokio::test]
async fn gets_do_not_count_for_a_channels_limit() {
    let server = Server::new();
    let mut client = server.client().await;
    client.open(1).await;
    client.declare(1, "q").await;
    for n in 0..3u8 {
        client.publish(1, "q", &[n]).await;
    }
    qos(&mut client, 1).await;
    get(&mut client, "q").await;
    client.consume(1, "q", false).await;
    assert_eq!(client.delivery(1).await, (2, false, vec![1]));
    client.ack(1, 2, false).await;
    assert_eq!(client.delivery(1).await, (3, false, vec![2]));
}

#[tokio::test]
async fn transactions_of_all_channels_count_with_their_headers() {
    let server = Server::with(AmqpConfig { transaction_bytes_max: 100 << 10, ..AmqpConfig::default() });
    let mut client = server.client().await;
    let big = "x".repeat(40 << 10);
    let headers = TableBuilder::new().put("h", Value::Text(big.as_bytes())).build();
    let properties = PropertiesBuilder::new().headers(&headers).build();
    let to = BasicPublish { routing_key: short("q"), ..Default::default() };
    for channel in [1, 2] {
        client.open(channel).await;
        assert!(matches!(client.call(channel, TxSelect {}).await, Method::TxSelectOk(_)));
        let bytes = client.publish_bytes(channel, to.clone(), &properties, b"");
        client.raw(&bytes).await;
    }
    // What is rolled back, or goes with its channel, makes room again.
    for _ in 0..5 {
        assert!(matches!(client.call(1, TxRollback {}).await, Method::TxRollbackOk(_)));
        let bytes = client.publish_bytes(1, to.clone(), &properties, b"");
        client.raw(&bytes).await;
    }
    let bytes = client.publish_bytes(2, to.clone(), &properties, b"");
    client.raw(&bytes).await;
    let (code, text) = client.channel_closed(2).await;
    assert!(code == 406 && text.contains("more than 102400 bytes"), "{code} {text}");
    let bytes = client.publish_bytes(1, to, &properties, b"");
    client.raw(&bytes).await;
    assert!(matches!(client.call(1, TxCommit {}).await, Method::TxCommitOk(_)));
}

#[tokio::test]
async fn a_transactions_publish_looks_for_its_exchange_at_once() {
    let server = Server::new();
    let mut client = server.client().await;
    for (exchange, code) in [("none", 404), ("inner", 403)] {
        client.open(1).await;
        assert!(matches!(client.call(1, TxSelect {}).await, Method::TxSelectOk(_)));
        let publish = BasicPublish { exchange: short(exchange), ..Default::default() };
        let bytes = client.publish_bytes(1, publish, &Properties::default(), b"x");
        client.raw(&bytes).await;
        assert_eq!(client.channel_closed(1).await.0, code);
    }
}

#[tokio::test]
async fn a_commit_that_fails_gives_back_what_it_would_have_settled() {
    let server = Server::new();
    let mut client = server.client().await;
    client.open(1).await;
    client.declare(1, "q").await;
    client.publish(1, "q", b"m").await;
    assert!(matches!(client.call(1, TxSelect {}).await, Method::TxSelectOk(_)));
    get(&mut client, "q").await;
    client.ack(1, 1, false).await;
    let declare = ExchangeDeclare { exchange: short("brief"), kind: short("fanout"), ..Default::default() };
    assert!(matches!(client.call(1, declare).await, Method::ExchangeDeclareOk(_)));
    let publish = BasicPublish { exchange: short("brief"), ..Default::default() };
    let bytes = client.publish_bytes(1, publish, &Properties::default(), b"x");
    client.raw(&bytes).await;
    let delete = ExchangeDelete { exchange: short("brief"), ..Default::default() };
    assert!(matches!(client.call(1, delete).await, Method::ExchangeDeleteOk(_)));
    client.send(1, TxCommit {}).await;
    assert_eq!(client.channel_closed(1).await.0, 404);
    client.open(1).await;
    get(&mut client, "q").await;
}

#[tokio::test]
async fn a_fault_in_the_content_is_told_as_one_of_the_publish() {
    let server = Server::with(AmqpConfig { message_bytes_max: 10, ..AmqpConfig::default() });
    let mut client = server.client().await;
    client.open(1).await;
    client.publish(1, "q", &[0; 11]).await;
    let Method::ChannelClose(close) = client.method(1).await else { panic!("no channel.close") };
    assert_eq!((close.reply_code, close.class_id, close.method_id), (406, 60, 40));
}

#[tokio::test]
async fn a_delete_that_is_refused_leaves_the_queue_to_the_end_of_its_connection() {
    let server = Server::new();
    let mut client = server.client().await;
    client.open(1).await;
    let declare = QueueDeclare { queue: short("mine"), exclusive: true, ..Default::default() };
    assert!(matches!(client.call(1, declare).await, Method::QueueDeclareOk(_)));
    client.publish(1, "mine", b"m").await;
    client.send(1, QueueDelete { queue: short("mine"), if_empty: true, ..Default::default() }).await;
    assert_eq!(client.channel_closed(1).await.0, 406);
    assert!(server.fake.has_queue("mine"));
    assert!(matches!(client.call(0, ConnectionClose::default()).await, Method::ConnectionCloseOk(_)));
    assert!(!server.fake.has_queue("mine"), "before close-ok");
}

#[tokio::test(start_paused = true)]
async fn the_shortest_heartbeat_goes_with_a_consumer_timeout() {
    let config = AmqpConfig { consumer_timeout: Some(Duration::from_secs(60)), ..AmqpConfig::default() };
    let server = Server::with(config);
    let mut client = server.pipe(1 << 20);
    client.handshake("guest", 131_072, 1).await;
    let frame = client.frame().await.expect("the connection lives");
    assert_eq!(frame.kind, FrameKind::Heartbeat);
}
