//! Errors by code and in RabbitMQ's words: of channels, of connections, of the handshake; and bytes that are no AMQP.

use crate::client::{Client, Server, short};
use bytes::Bytes;
use longshore_amqp_codec::content::{PropertiesBuilder, Property};
use longshore_amqp_codec::method::*;
use longshore_amqp_codec::{Method, Properties, ShortStr, TableBuilder, Value};

fn declare(name: &str) -> QueueDeclare {
    QueueDeclare { queue: short(name), durable: true, ..Default::default() }
}

fn exchange(name: &str, kind: &str) -> ExchangeDeclare {
    ExchangeDeclare { exchange: short(name), kind: short(kind), ..Default::default() }
}

/// A method that closes its channel, with code and text.
type Closing = (Method, u16, &'static str);

/// Of queues.
fn queue_errors() -> Vec<Closing> {
    let q = || short("q");
    let none = || short("none");
    vec![
        (
            QueueDeclare { passive: true, ..declare("none") }.into(),
            404,
            "NOT_FOUND - no queue 'none' in vhost '/'",
        ),
        (
            QueueDeclare { durable: false, ..declare("q") }.into(),
            406,
            "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'q' in vhost '/': received 'false' but current is 'true'",
        ),
        (
            declare("amq.mine").into(),
            403,
            "ACCESS_REFUSED - queue name 'amq.mine' contains reserved prefix 'amq.*'",
        ),
        (
            declare("theirs").into(),
            405,
            "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue 'theirs' in vhost '/'.",
        ),
        (QueueDeclare { exclusive: true, ..declare("q") }.into(), 405, "RESOURCE_LOCKED - "),
        (
            QueueDeclare {
                arguments: TableBuilder::new().put("x-max-length", Value::I32(1)).build(),
                ..declare("new")
            }
            .into(),
            406,
            "PRECONDITION_FAILED - arg 'x-max-length' for queue 'new' in vhost '/' is not supported yet",
        ),
        (
            QueuePurge { queue: none(), ..Default::default() }.into(),
            404,
            "NOT_FOUND - no queue 'none' in vhost '/'",
        ),
        (
            QueueDelete { queue: q(), if_empty: true, ..Default::default() }.into(),
            406,
            "PRECONDITION_FAILED - queue 'q' in vhost '/' not empty",
        ),
        (
            QueueDelete { queue: short("used"), if_unused: true, ..Default::default() }.into(),
            406,
            "PRECONDITION_FAILED - queue 'used' in vhost '/' in use",
        ),
        (
            QueueDeclare { passive: true, ..declare("amq.rabbitmq.reply-to.gone") }.into(),
            404,
            "NOT_FOUND - no queue 'amq.rabbitmq.reply-to.gone' in vhost '/'",
        ),
    ]
}

/// Of bindings.
fn bind_errors() -> Vec<Closing> {
    let q = || short("q");
    let none = || short("none");
    vec![
        (
            QueueBind { queue: none(), exchange: short("amq.direct"), ..Default::default() }.into(),
            404,
            "NOT_FOUND - no queue 'none' in vhost '/'",
        ),
        (
            QueueBind { queue: q(), exchange: none(), ..Default::default() }.into(),
            404,
            "NOT_FOUND - no exchange 'none' in vhost '/'",
        ),
        (
            QueueBind { queue: q(), ..Default::default() }.into(),
            403,
            "ACCESS_REFUSED - operation not permitted on the default exchange",
        ),
        (
            QueueBind {
                queue: q(),
                exchange: short("amq.headers"),
                arguments: TableBuilder::new().put("x-match", Value::Text(b"some")).build(),
                ..Default::default()
            }
            .into(),
            406,
            "PRECONDITION_FAILED - Invalid x-match field value",
        ),
    ]
}

/// Of exchanges.
fn exchange_errors() -> Vec<Closing> {
    vec![
        (
            ExchangeDeclare { passive: true, ..exchange("none", "direct") }.into(),
            404,
            "NOT_FOUND - no exchange 'none' in vhost '/'",
        ),
        (
            ExchangeDeclare { durable: true, ..exchange("amq.direct", "fanout") }.into(),
            406,
            "PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'amq.direct' in vhost '/': received 'fanout' but current is 'direct'",
        ),
        (
            exchange("amq.mine", "direct").into(),
            403,
            "ACCESS_REFUSED - exchange name 'amq.mine' contains reserved prefix 'amq.*'",
        ),
        (
            exchange("", "direct").into(),
            403,
            "ACCESS_REFUSED - operation not permitted on the default exchange",
        ),
        (
            ExchangeDelete { exchange: short("amq.direct"), ..Default::default() }.into(),
            403,
            "ACCESS_REFUSED - deletion of system exchange 'amq.direct' in vhost '/' not allowed",
        ),
        (
            ExchangeDeclare { passive: true, ..exchange("", "direct") }.into(),
            403,
            "ACCESS_REFUSED - operation not permitted on the default exchange",
        ),
    ]
}

/// Of consumers.
fn consume_errors() -> Vec<Closing> {
    let none = || short("none");
    vec![
        (
            BasicConsume { queue: none(), ..Default::default() }.into(),
            404,
            "NOT_FOUND - no queue 'none' in vhost '/'",
        ),
        (
            BasicConsume { queue: short("used"), exclusive: true, ..Default::default() }.into(),
            403,
            "ACCESS_REFUSED - queue 'used' in vhost '/' in exclusive use",
        ),
        (
            BasicConsume { queue: short("stream"), ..Default::default() }.into(),
            406,
            "PRECONDITION_FAILED - consumer prefetch count is not set for stream",
        ),
        (
            BasicConsume { queue: short("amq.rabbitmq.reply-to"), ..Default::default() }.into(),
            406,
            "PRECONDITION_FAILED - reply consumer cannot acknowledge",
        ),
        (BasicConsume::default().into(), 404, "NOT_FOUND - no previously declared queue"),
        (
            BasicConsume { queue: short("single"), exclusive: true, ..Default::default() }.into(),
            403,
            "ACCESS_REFUSED - queue 'single' in vhost '/' in exclusive use",
        ),
    ]
}

/// Of gets, acknowledgements and transactions.
fn message_errors() -> Vec<Closing> {
    let none = || short("none");
    vec![
        (
            BasicGet { queue: none(), ..Default::default() }.into(),
            404,
            "NOT_FOUND - no queue 'none' in vhost '/'",
        ),
        (BasicGet { queue: short("theirs"), ..Default::default() }.into(), 405, "RESOURCE_LOCKED - "),
        (
            BasicGet { queue: ShortStr::new(Bytes::from_static(b"\xff")).unwrap(), ..Default::default() }
                .into(),
            404,
            "NOT_FOUND - no queue",
        ),
        (
            BasicAck { delivery_tag: 5, multiple: false }.into(),
            406,
            "PRECONDITION_FAILED - unknown delivery tag 5",
        ),
        (
            BasicNack { delivery_tag: 5, multiple: true, requeue: true }.into(),
            406,
            "PRECONDITION_FAILED - unknown delivery tag 5",
        ),
        (
            BasicReject { delivery_tag: 0, requeue: true }.into(),
            406,
            "PRECONDITION_FAILED - unknown delivery tag 0",
        ),
        (TxCommit {}.into(), 406, "PRECONDITION_FAILED - channel is not transactional"),
    ]
}

#[tokio::test]
async fn channel_errors_close_the_channel_and_nothing_else() {
    let server = Server::new();
    server.fake.foreign_queue("theirs", "exclusive");
    server.fake.foreign_queue("stream", "stream");
    server.fake.foreign_queue("single", "single active");
    let mut client = server.client().await;
    client.open(9).await;
    client.declare(9, "q").await;
    client.declare(9, "used").await;
    client.publish(9, "q", b"m").await;
    client.consume(9, "used", false).await;
    let all = [queue_errors(), bind_errors(), exchange_errors(), consume_errors(), message_errors()];
    for (method, code, text) in all.into_iter().flatten() {
        client.open(1).await;
        client.send(1, method.clone()).await;
        // What follows on the channel is dropped, the declare too.
        client.publish(1, "q", b"dropped").await;
        client.send(1, declare("made-by-a-closed-channel")).await;
        let (found, words) = client.channel_closed(1).await;
        assert!(
            found == code && words.starts_with(text),
            "{}: {found} {words}, not {code} {text}",
            method.name()
        );
    }
    assert_eq!(client.declare(9, "q").await.1, 1);
    assert!(!server.fake.has_queue("made-by-a-closed-channel"));
}

/// Publishes that close their channel.
fn publish_errors() -> Vec<(BasicPublish, Properties, u16, &'static str)> {
    let plain = Properties::default;
    let set = |property, text: &str| PropertiesBuilder::new().short(property, &short(text)).build();
    let to = |exchange: &str| BasicPublish { exchange: short(exchange), ..Default::default() };
    vec![
        (to("none"), plain(), 404, "NOT_FOUND - no exchange 'none' in vhost '/'"),
        (
            to("inner"),
            plain(),
            403,
            "ACCESS_REFUSED - cannot publish to internal exchange 'inner' in vhost '/'",
        ),
        (
            to(""),
            set(Property::UserId, "root"),
            406,
            "PRECONDITION_FAILED - user_id property set to 'root' but authenticated user was 'guest'",
        ),
        (to(""), set(Property::Expiration, "soon"), 406, "PRECONDITION_FAILED - invalid expiration 'soon'"),
        (
            to(""),
            set(Property::ReplyTo, "amq.rabbitmq.reply-to"),
            406,
            "PRECONDITION_FAILED - fast reply consumer does not exist",
        ),
    ]
}

#[tokio::test]
async fn publishes_that_are_refused_close_the_channel() {
    let server = Server::new();
    let mut client = server.client().await;
    for (publish, properties, code, text) in publish_errors() {
        client.open(1).await;
        let bytes = client.publish_bytes(1, publish, &properties, b"body");
        client.raw(&bytes).await;
        let (found, words) = client.channel_closed(1).await;
        assert!(found == code && words.starts_with(text), "{found} {words}, not {code} {text}");
    }
    client.open(1).await;
    let fine = PropertiesBuilder::new().short(Property::UserId, &short("guest")).build();
    let bytes = client.publish_bytes(1, BasicPublish::default(), &fine, b"");
    client.raw(&bytes).await;
    client.declare(1, "q").await;
}

/// Methods that close the connection when sent on channel 1, which is open.
fn connection_errors() -> Vec<(u16, Method, u16, &'static str)> {
    let q = || short("q");
    vec![
        (2, declare("q").into(), 504, "CHANNEL_ERROR - expected 'channel.open'"),
        (1, ChannelOpen::default().into(), 504, "CHANNEL_ERROR - second 'channel.open' seen"),
        (2_048, ChannelOpen::default().into(), 530, "NOT_ALLOWED - number of channels opened"),
        (
            1,
            exchange("x", "x-delayed-message").into(),
            503,
            "COMMAND_INVALID - unknown exchange type 'x-delayed-message'",
        ),
        (
            1,
            BasicQos { prefetch_size: 1, ..Default::default() }.into(),
            540,
            "NOT_IMPLEMENTED - prefetch_size!=0 (1)",
        ),
        (1, BasicRecover { requeue: false }.into(), 540, "NOT_IMPLEMENTED - requeue=false"),
        (1, ChannelFlow { active: false }.into(), 540, "NOT_IMPLEMENTED - active=false"),
        (1, BasicGetEmpty::default().into(), 503, "COMMAND_INVALID - "),
        (0, ConnectionOpen::default().into(), 504, "CHANNEL_ERROR - unexpected method"),
        (
            1,
            BasicConsume { queue: q(), consumer_tag: short("tag"), ..Default::default() }.into(),
            530,
            "NOT_ALLOWED - attempt to reuse consumer tag 'tag'",
        ),
        (
            1,
            BasicConsume { queue: short("stream"), no_ack: true, ..Default::default() }.into(),
            540,
            "NOT_IMPLEMENTED - ",
        ),
        (
            1,
            BasicGet { queue: short("stream"), ..Default::default() }.into(),
            540,
            "NOT_IMPLEMENTED - basic.get not supported by stream queues",
        ),
    ]
}

#[tokio::test]
async fn connection_errors_close_the_connection() {
    let server = Server::new();
    server.fake.foreign_queue("stream", "stream");
    for (channel, method, code, text) in connection_errors() {
        let mut client = server.client().await;
        client.open(1).await;
        client.declare(1, "q").await;
        client
            .call(1, BasicConsume { queue: short("q"), consumer_tag: short("tag"), ..Default::default() })
            .await;
        client.send(channel, method.clone()).await;
        let (found, words) = client.connection_closed().await;
        assert!(
            found == code && words.starts_with(text),
            "{}: {found} {words}, not {code} {text}",
            method.name()
        );
        assert!(client.frame().await.is_none());
    }
}

/// Frames that are wrong as such, on an open channel 1.
fn frame_errors() -> Vec<(&'static str, Vec<u8>, u16)> {
    let frame = |kind: u8, channel: u8, payload: &[u8]| {
        let mut bytes = vec![kind, 0, channel, 0, 0, 0, payload.len() as u8];
        bytes.extend_from_slice(payload);
        bytes.push(0xCE);
        bytes
    };
    let publish = frame(1, 1, b"\x00\x3c\x00\x28\x00\x00\x00\x00\x00");
    let header = frame(2, 1, b"\x00\x3c\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00");
    let join = |parts: &[&[u8]]| parts.concat();
    vec![
        ("longer than agreed", vec![1, 0, 1, 0x7f, 0, 0, 0], 501),
        ("unknown type", frame(7, 1, b""), 501),
        ("wrong end", [&publish[..publish.len() - 1], &[0]].concat(), 501),
        ("heartbeat on a channel", frame(8, 1, b""), 501),
        ("unknown method", frame(1, 1, b"\x00\x3c\x00\x99"), 540),
        ("cut arguments", frame(1, 1, b"\x00\x3c\x00\x28\x00"), 502),
        ("header without method", header.clone(), 505),
        ("body without method", frame(3, 1, b"x"), 505),
        ("body without header", join(&[&publish, &frame(3, 1, b"x")]), 505),
        ("method inside content", join(&[&publish, &publish]), 505),
        ("header twice", join(&[&publish, &header, &header]), 505),
        ("body too long", join(&[&publish, &header, &frame(3, 1, b"xyz")]), 501),
        ("content on channel 0", frame(3, 0, b"x"), 505),
        (
            "bad properties",
            join(&[&publish, &frame(2, 1, b"\x00\x3c\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\xff\xff")]),
            502,
        ),
    ]
}

#[tokio::test]
async fn wrong_frames_close_the_connection_by_code() {
    let server = Server::new();
    for (what, bytes, code) in frame_errors() {
        let mut client = server.client().await;
        client.open(1).await;
        client.raw(&bytes).await;
        assert_eq!(client.connection_closed().await.0, code, "{what}");
    }
}

async fn refusal(client: &mut Client, method: Method) -> Option<(u16, String)> {
    match method {
        Method::ConnectionClose(close) => Some((close.reply_code, close.reply_text.lossy().into_owned())),
        Method::ConnectionCloseOk(_) => None,
        other => panic!("{other:?} of {:?}", client.input),
    }
}

#[tokio::test]
async fn a_wrong_password_is_told_only_to_clients_that_understand() {
    let server = Server::new();
    let mut client = server.pipe(1 << 16);
    let answer = client.start_ok("guest", "wrong", true).await;
    let text = "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN. For details see the broker logfile.";
    assert_eq!(refusal(&mut client, answer).await, Some((403, text.to_owned())));
    let mut client = server.pipe(1 << 16);
    let answer = client.start_ok("guest", "wrong", false).await;
    assert_eq!(refusal(&mut client, answer).await, None, "the socket is closed without a word");
}

#[tokio::test]
async fn other_protocols_are_told_ours() {
    let server = Server::new();
    for greeting in [&b"AMQP\x00\x01\x00\x00"[..], b"GET / HTTP/1.1\r\n\r\n", b"AMQP\x01\x01\x00\x09"] {
        let mut client = server.pipe(1 << 16);
        client.raw(greeting).await;
        let mut answer = Vec::new();
        tokio::io::AsyncReadExt::read_to_end(&mut client.stream, &mut answer).await.unwrap();
        assert_eq!(answer, b"AMQP\x00\x00\x09\x01");
    }
}

#[tokio::test]
async fn foreign_virtual_hosts_and_wrong_limits_are_refused() {
    let server = Server::new();
    let mut client = server.pipe(1 << 16);
    assert!(matches!(client.start_ok("guest", "secret", true).await, Method::ConnectionTune(_)));
    client.send(0, ConnectionTuneOk { channel_max: 10, frame_max: 4_096, heartbeat: 0 }).await;
    let open = ConnectionOpen { virtual_host: short("other"), ..Default::default() };
    client.send(0, open).await;
    let text = "NOT_ALLOWED - access to vhost 'other' refused for user 'guest'";
    assert_eq!(client.connection_closed().await, (530, text.to_owned()));
    let mut client = server.pipe(1 << 16);
    client.start_ok("guest", "secret", true).await;
    client.send(0, ConnectionTuneOk { channel_max: 10, frame_max: 1 << 20, heartbeat: 0 }).await;
    assert_eq!(client.connection_closed().await.0, 530);
    let mut client = server.pipe(1 << 16);
    client.start_ok("guest", "secret", true).await;
    client.send(1, ChannelOpen::default()).await;
    assert_eq!(client.connection_closed().await.0, 505);
}

#[tokio::test]
async fn frames_before_tune_are_held_to_4096_bytes() {
    let server = Server::new();
    let mut client = server.pipe(1 << 16);
    client.raw(&longshore_amqp_codec::PROTOCOL_HEADER).await;
    client.method(0).await;
    client.raw(&[1, 0, 0, 0, 0, 0x10, 0x00]).await;
    assert_eq!(client.connection_closed().await.0, 501);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_nothing_is_hung_up_on() {
    let server = Server::new();
    let mut client = server.pipe(1 << 16);
    client.raw(b"AMQP").await;
    assert!(client.frame().await.is_none());
}

fn with_default_alternate() -> ExchangeDeclare {
    let arguments = TableBuilder::new().put("alternate-exchange", Value::Text(b"")).build();
    ExchangeDeclare { arguments, ..exchange("with-default-alternate", "fanout") }
}

/// What each operation needs: (right, name) that is taken away, the method, and the text.
fn permissions() -> Vec<(&'static str, &'static str, Method, &'static str)> {
    let q = || short("q");
    let bind = || QueueBind { queue: q(), exchange: short("amq.direct"), ..Default::default() };
    vec![
        ("configure", "q", declare("q").into(), "configure access to queue 'q'"),
        (
            "configure",
            "q",
            QueueDelete { queue: q(), ..Default::default() }.into(),
            "configure access to queue 'q'",
        ),
        ("read", "q", QueuePurge { queue: q(), ..Default::default() }.into(), "read access to queue 'q'"),
        ("read", "q", BasicGet { queue: q(), ..Default::default() }.into(), "read access to queue 'q'"),
        ("read", "q", BasicConsume { queue: q(), ..Default::default() }.into(), "read access to queue 'q'"),
        ("write", "q", bind().into(), "write access to queue 'q'"),
        ("read", "amq.direct", bind().into(), "read access to exchange 'amq.direct'"),
        ("configure", "x", exchange("x", "direct").into(), "configure access to exchange 'x'"),
        ("write", "amq.default", with_default_alternate().into(), "write access to exchange 'amq.default'"),
        (
            "configure",
            "x",
            ExchangeDelete { exchange: short("x"), ..Default::default() }.into(),
            "configure access to exchange 'x'",
        ),
        (
            "write",
            "x",
            ExchangeBind { destination: short("x"), source: short("amq.direct"), ..Default::default() }
                .into(),
            "write access to exchange 'x'",
        ),
        (
            "read",
            "amq.direct",
            ExchangeUnbind { destination: short("x"), source: short("amq.direct"), ..Default::default() }
                .into(),
            "read access to exchange 'amq.direct'",
        ),
    ]
}

#[tokio::test]
async fn each_operation_needs_its_permission() {
    let server = Server::new();
    let mut client = server.client().await;
    client.open(9).await;
    client.declare(9, "q").await;
    let deny = |right, name: &str| ("guest".to_owned(), right, name.to_owned());
    for (right, name, method, text) in permissions() {
        server.fake.lock().denied.insert(deny(right, name));
        client.open(1).await;
        client.send(1, method).await;
        let expected = format!("ACCESS_REFUSED - {text} in vhost '/' refused for user 'guest'");
        assert_eq!(client.channel_closed(1).await, (403, expected));
        server.fake.lock().denied.clear();
    }
    server.fake.lock().denied.insert(deny("write", "amq.default"));
    client.open(1).await;
    client.publish(1, "q", b"x").await;
    let expected =
        "ACCESS_REFUSED - write access to exchange 'amq.default' in vhost '/' refused for user 'guest'";
    assert_eq!(client.channel_closed(1).await, (403, expected.to_owned()));
}

#[tokio::test]
async fn exclusive_queues_are_gone_when_close_is_answered() {
    let server = Server::new();
    let mut client = server.client().await;
    client.open(1).await;
    let mine = QueueDeclare { exclusive: true, ..QueueDeclare::default() };
    let Method::QueueDeclareOk(ok) = client.call(1, mine).await else { panic!() };
    client.declare(1, "q").await;
    client.publish(1, "q", b"m").await;
    client.consume(1, "q", false).await;
    client.delivery(1).await;
    assert!(matches!(client.call(0, ConnectionClose::default()).await, Method::ConnectionCloseOk(_)));
    assert!(!server.fake.has_queue(&ok.queue.lossy()));
    assert_eq!((server.fake.ready("q"), server.fake.unacked("q")), (1, 0));
}

#[tokio::test]
async fn noise_never_stops_the_server() {
    let server = Server::new();
    let mut random = 0x1234_5678_9ABC_DEF1u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for _ in 0..300 {
        let mut client = server.client().await;
        let mut bytes = Vec::new();
        let publish = client.publish_bytes(1, BasicPublish::default(), &Properties::default(), b"some body");
        for _ in 0..4 {
            bytes.extend_from_slice(&[1, 0, 1, 0, 0, 0, 5, 0, 20, 0, 10, 0, 0xCE]);
            bytes.extend_from_slice(&publish);
        }
        for _ in 0..1 + next() % 6 {
            let at = next() as usize % bytes.len();
            bytes[at] = next() as u8;
        }
        client.raw(&bytes).await;
    }
    let mut client = server.client().await;
    client.open(1).await;
    client.declare(1, "still-there").await;
}
