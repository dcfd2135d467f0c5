//! A small AMQP client over a pipe, and the broker in memory behind the adapter.

use crate::fake::Fake;

use bytes::{Bytes, BytesMut};
use longshore_amqp::{AmqpConfig, serve};
use longshore_amqp_codec::frame::split;
use longshore_amqp_codec::method::*;
use longshore_amqp_codec::{
    ContentHeader, Frame, FrameKind, Method, OutBuffer, Properties, ShortStr, TableBuilder, Value,
};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::watch;
use tokio::time::timeout;

pub fn short(text: &str) -> ShortStr {
    ShortStr::cut(text)
}

/// Waits until no task has anything left to do. For tests with a paused clock, which moves only then.
pub async fn until_idle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

/// The adapter with a fake broker.
pub struct Server {
    pub fake: Fake,
    pub config: Arc<AmqpConfig>,
    pub stop: watch::Sender<bool>,
}

impl Server {
    pub fn new() -> Server {
        Server::with(AmqpConfig::default())
    }

    pub fn with(config: AmqpConfig) -> Server {
        let config = AmqpConfig { refused_login_delay: Duration::from_millis(1), ..config };
        Server { fake: Fake::new(), config: Arc::new(config), stop: watch::channel(false).0 }
    }

    /// A connected pipe; nothing was said yet.
    pub fn pipe(&self, bytes: usize) -> Client {
        let (ours, theirs) = tokio::io::duplex(bytes);
        let peer = "127.0.0.1:1".parse().unwrap();
        let served =
            serve(theirs, peer, false, self.fake.clone(), self.config.clone(), self.stop.subscribe());
        tokio::spawn(served);
        Client { stream: ours, input: BytesMut::new(), frame_max: 131_072 }
    }

    /// A client after the handshake.
    pub async fn client(&self) -> Client {
        let mut client = self.pipe(1 << 20);
        client.handshake("guest", 131_072, 0).await;
        client
    }
}

pub struct Client {
    pub stream: DuplexStream,
    pub input: BytesMut,
    pub frame_max: usize,
}

/// A message with its method.
#[derive(Debug)]
pub struct Message {
    pub method: Method,
    pub properties: Properties,
    pub body: Vec<u8>,
}

impl Client {
    pub async fn raw(&mut self, bytes: &[u8]) {
        // The server may have hung up already; what it said before is read next.
        let _ = self.stream.write_all(bytes).await;
    }

    pub async fn send(&mut self, channel: u16, method: impl Into<Method>) {
        let mut out = OutBuffer::new();
        out.put_method(channel, &method.into());
        self.raw(&out.take_all()).await;
    }

    /// The next frame; `None` at the end of the stream. Panics after ten minutes of silence.
    pub async fn frame(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = split(&mut self.input, 0).unwrap() {
                return Some(frame);
            }
            let read = timeout(Duration::from_secs(600), self.stream.read_buf(&mut self.input));
            if read.await.expect("the server says nothing").unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    /// The next method on `channel`.
    pub async fn method(&mut self, channel: u16) -> Method {
        let frame = self.frame().await.expect("the server hung up");
        assert_eq!((frame.channel, frame.kind), (channel, FrameKind::Method), "{frame:?}");
        Method::decode(frame.payload).unwrap()
    }

    pub async fn call(&mut self, channel: u16, method: impl Into<Method>) -> Method {
        self.send(channel, method).await;
        self.method(channel).await
    }

    /// The content behind a method that was read.
    pub async fn content(&mut self, method: Method) -> Message {
        let header = ContentHeader::decode(self.frame().await.unwrap().payload).unwrap();
        let mut body = Vec::new();
        while (body.len() as u64) < header.body_bytes {
            let frame = self.frame().await.unwrap();
            assert!(frame.kind == FrameKind::Body && frame.payload.len() + 8 <= self.frame_max);
            body.extend_from_slice(&frame.payload);
        }
        Message { method, properties: header.properties, body }
    }

    pub async fn message(&mut self, channel: u16) -> Message {
        let method = self.method(channel).await;
        self.content(method).await
    }

    /// A delivery: (delivery tag, redelivered, body).
    pub async fn delivery(&mut self, channel: u16) -> (u64, bool, Vec<u8>) {
        let message = self.message(channel).await;
        let Method::BasicDeliver(deliver) = message.method else { panic!("{:?}", message.method) };
        (deliver.delivery_tag, deliver.redelivered, message.body)
    }

    pub async fn start_ok(&mut self, user: &str, password: &str, capable: bool) -> Method {
        self.raw(&longshore_amqp_codec::PROTOCOL_HEADER).await;
        let Method::ConnectionStart(start) = self.method(0).await else { panic!() };
        assert_eq!(&start.mechanisms[..], b"AMQPLAIN PLAIN");
        let names = ["consumer_cancel_notify", "connection.blocked", "authentication_failure_close"];
        let held =
            names.iter().fold(TableBuilder::new(), |table, name| table.put(name, Value::Bool(capable)));
        let ok = ConnectionStartOk {
            client_properties: TableBuilder::new().put_table("capabilities", &held.build()).build(),
            mechanism: short("PLAIN"),
            response: Bytes::from(format!("\0{user}\0{password}")),
            locale: short("en_US"),
        };
        self.send(0, ok).await;
        match self.frame().await {
            Some(frame) => Method::decode(frame.payload).unwrap(),
            None => Method::ConnectionCloseOk(ConnectionCloseOk {}),
        }
    }

    pub async fn handshake(&mut self, user: &str, frame_max: u32, heartbeat: u16) {
        let Method::ConnectionTune(tune) = self.start_ok(user, "secret", true).await else { panic!() };
        assert_eq!((tune.channel_max, tune.frame_max), (2_047, 131_072));
        self.send(0, ConnectionTuneOk { channel_max: tune.channel_max, frame_max, heartbeat }).await;
        self.frame_max = frame_max as usize;
        let open = ConnectionOpen { virtual_host: short("/"), ..Default::default() };
        assert!(matches!(self.call(0, open).await, Method::ConnectionOpenOk(_)));
    }

    pub async fn open(&mut self, channel: u16) {
        assert!(matches!(self.call(channel, ChannelOpen::default()).await, Method::ChannelOpenOk(_)));
    }

    /// Declares a durable queue; answers its name, messages and consumers.
    pub async fn declare(&mut self, channel: u16, name: &str) -> (String, u32, u32) {
        let declare = QueueDeclare { queue: short(name), durable: true, ..Default::default() };
        let Method::QueueDeclareOk(ok) = self.call(channel, declare).await else { panic!() };
        (ok.queue.lossy().into_owned(), ok.message_count, ok.consumer_count)
    }

    pub fn publish_bytes(
        &self,
        channel: u16,
        publish: BasicPublish,
        properties: &Properties,
        body: &[u8],
    ) -> Bytes {
        let mut out = OutBuffer::new();
        let body = [Bytes::copy_from_slice(body)];
        out.put_content(channel, &publish.into(), properties.bytes(), &body, self.frame_max);
        out.take_all()
    }

    /// Publishes to the default exchange.
    pub async fn publish(&mut self, channel: u16, queue: &str, body: &[u8]) {
        let publish = BasicPublish { routing_key: short(queue), ..Default::default() };
        let bytes = self.publish_bytes(channel, publish, &Properties::default(), body);
        self.raw(&bytes).await;
    }

    pub async fn consume(&mut self, channel: u16, queue: &str, no_ack: bool) -> String {
        let consume = BasicConsume { queue: short(queue), no_ack, ..Default::default() };
        let Method::BasicConsumeOk(ok) = self.call(channel, consume).await else { panic!() };
        ok.consumer_tag.lossy().into_owned()
    }

    pub async fn ack(&mut self, channel: u16, delivery_tag: u64, multiple: bool) {
        self.send(channel, BasicAck { delivery_tag, multiple }).await;
    }

    /// Expects the channel to be closed; answers code and text.
    pub async fn channel_closed(&mut self, channel: u16) -> (u16, String) {
        let Method::ChannelClose(close) = self.method(channel).await else { panic!("no channel.close") };
        self.send(channel, ChannelCloseOk {}).await;
        (close.reply_code, close.reply_text.lossy().into_owned())
    }

    /// Reads on until the connection is closed; answers code and text.
    pub async fn connection_closed(&mut self) -> (u16, String) {
        loop {
            let frame = self.frame().await.expect("hung up without connection.close");
            if frame.kind == FrameKind::Method
                && let Ok(Method::ConnectionClose(close)) = Method::decode(frame.payload)
            {
                self.send(0, ConnectionCloseOk {}).await;
                return (close.reply_code, close.reply_text.lossy().into_owned());
            }
        }
    }
}
