//! One AMQP connection: handshake, and methods that wait for their answer. The loops of producers and consumers take
//! over its socket once everything is declared.

use super::uri::Uri;
use anyhow::{Context, Result, bail};
use bytes::{Bytes, BytesMut};
use longshore_amqp_codec::method::{
    BasicConsume, BasicQos, ChannelOpen, ConfirmSelect, ConnectionOpen, ConnectionStartOk, ConnectionTuneOk,
    QueueBind, QueueDeclare, QueueDelete,
};
use longshore_amqp_codec::{
    Frame, FrameKind, Method, OutBuffer, PROTOCOL_HEADER, ShortStr, Table, TableBuilder, Value, frame,
};
use std::io;
use std::time::Duration;
use tokio::net::TcpStream;

/// The one channel of a connection.
pub const CHANNEL: u16 = 1;
/// Largest frame that we agree to, in bytes; brokers usually offer the same.
const FRAME_BYTES_MAX: u32 = 131_072;
/// An answer takes no longer, even while the broker is loaded.
const ANSWER_TIME: Duration = Duration::from_secs(60);
const READ_BYTES: usize = 64 << 10;

/// An open connection with one open channel.
#[derive(Debug)]
pub struct Connection {
    /// The socket.
    pub stream: TcpStream,
    /// Bytes read and not yet looked at.
    pub input: BytesMut,
    /// Largest frame agreed, overhead included, in bytes.
    pub frame_bytes_max: usize,
    /// Product and version, as the broker says them.
    pub server: String,
    out: OutBuffer,
}

impl Connection {
    /// Connects, logs in, opens the virtual host and channel 1.
    ///
    /// Errors: the broker cannot be reached, or refuses; its reply text is in the error.
    pub async fn open(uri: &Uri) -> Result<Connection> {
        let opening = Connection::handshake(uri);
        let opened = tokio::time::timeout(ANSWER_TIME, opening).await;
        opened
            .map_err(|_| anyhow::anyhow!("no answer"))
            .and_then(|o| o)
            .with_context(|| format!("cannot connect to amqp://{}@{}:{}", uri.user, uri.host, uri.port))
    }

    async fn handshake(uri: &Uri) -> Result<Connection> {
        let stream = TcpStream::connect((uri.host.as_str(), uri.port)).await?;
        stream.set_nodelay(true)?;
        let mut connection = Connection {
            stream,
            input: BytesMut::new(),
            frame_bytes_max: FRAME_BYTES_MAX as usize,
            server: String::new(),
            out: OutBuffer::new(),
        };
        connection.write_all(&PROTOCOL_HEADER).await?;
        let Method::ConnectionStart(start) = connection.answer().await? else { bail!("no connection.start") };
        let told =
            ["product", "version"].map(|name| start.server_properties.get(name).and_then(|v| v.as_str()));
        connection.server = told.map(|text| text.unwrap_or("?")).join(" ");
        let capabilities = TableBuilder::new()
            .put("publisher_confirms", Value::Bool(true))
            .put("basic.nack", Value::Bool(true))
            .put("connection.blocked", Value::Bool(true))
            .put("consumer_cancel_notify", Value::Bool(true))
            .build();
        let start_ok = ConnectionStartOk {
            client_properties: TableBuilder::new()
                .put("product", Value::Text(b"longshore-bench"))
                .put_table("capabilities", &capabilities)
                .build(),
            mechanism: ShortStr::from_static("PLAIN"),
            response: Bytes::from(format!("\0{}\0{}", uri.user, uri.password)),
            locale: ShortStr::from_static("en_US"),
        };
        connection.send(0, start_ok).await?;
        let Method::ConnectionTune(tune) = connection.answer().await? else { bail!("no connection.tune") };
        let frame_max =
            if tune.frame_max == 0 { FRAME_BYTES_MAX } else { tune.frame_max.min(FRAME_BYTES_MAX) };
        connection.frame_bytes_max = frame_max as usize;
        // No heartbeats: a dead broker shows as a closed socket on loopback, and as a missing confirm elsewhere.
        let tune_ok = ConnectionTuneOk { channel_max: tune.channel_max, frame_max, heartbeat: 0 };
        connection.send(0, tune_ok).await?;
        let open = ConnectionOpen { virtual_host: ShortStr::cut(&uri.vhost), ..Default::default() };
        connection.send(0, open).await?;
        let Method::ConnectionOpenOk(_) = connection.answer().await? else { bail!("no connection.open-ok") };
        connection.call(ChannelOpen::default()).await?;
        Ok(connection)
    }

    async fn write_all(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            self.stream.writable().await?;
            match self.stream.try_write(bytes) {
                Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    async fn send(&mut self, channel: u16, method: impl Into<Method>) -> Result<()> {
        self.out.put_method(channel, &method.into());
        let bytes = self.out.take_all();
        self.write_all(&bytes).await
    }

    async fn frame(&mut self) -> Result<Frame> {
        loop {
            if let Some(frame) = frame::split(&mut self.input, self.frame_bytes_max)? {
                return Ok(frame);
            }
            self.stream.readable().await?;
            self.input.reserve(READ_BYTES);
            match self.stream.try_read_buf(&mut self.input) {
                Ok(0) => bail!("the broker closed the connection"),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The next method that is an answer: signs of life and notices of blocking are passed over.
    async fn answer(&mut self) -> Result<Method> {
        loop {
            let frame = self.frame().await?;
            if frame.kind != FrameKind::Method {
                continue;
            }
            match Method::decode(frame.payload)? {
                Method::ConnectionBlocked(_) | Method::ConnectionUnblocked(_) => {}
                method => match refusal(&method) {
                    Some(refusal) => bail!(refusal),
                    None => return Ok(method),
                },
            }
        }
    }

    /// Sends a method on the channel and waits for its answer.
    ///
    /// Errors: a refusal by the broker with its code and text; no answer within a minute.
    pub async fn call(&mut self, method: impl Into<Method>) -> Result<Method> {
        let method = method.into();
        let name = method.name();
        self.send(CHANNEL, method).await.context(name)?;
        match tokio::time::timeout(ANSWER_TIME, self.answer()).await {
            Ok(answer) => answer.context(name),
            Err(_) => bail!("{name}: no answer within {} s", ANSWER_TIME.as_secs()),
        }
    }

    /// Declares a durable queue; answers how many messages wait in it.
    pub async fn declare(&mut self, queue: &str, arguments: &Table) -> Result<u32> {
        let declare = QueueDeclare {
            queue: ShortStr::cut(queue),
            durable: true,
            arguments: arguments.clone(),
            ..Default::default()
        };
        match self.call(declare).await? {
            Method::QueueDeclareOk(ok) => Ok(ok.message_count),
            other => bail!("{} in answer to queue.declare", other.name()),
        }
    }

    /// Declares an exclusive queue; answers its name. An empty `queue` lets the broker choose one.
    pub async fn declare_exclusive(&mut self, queue: &str) -> Result<ShortStr> {
        let declare = QueueDeclare { queue: ShortStr::cut(queue), exclusive: true, ..Default::default() };
        match self.call(declare).await? {
            Method::QueueDeclareOk(ok) => Ok(ok.queue),
            other => bail!("{} in answer to queue.declare", other.name()),
        }
    }

    /// Binds a queue to an exchange by the queue's name.
    pub async fn bind(&mut self, queue: &ShortStr, exchange: &ShortStr) -> Result<()> {
        let bind = QueueBind {
            queue: queue.clone(),
            exchange: exchange.clone(),
            routing_key: queue.clone(),
            ..Default::default()
        };
        self.call(bind).await.map(drop)
    }

    /// Deletes a queue with what is in it; one that does not exist is fine in RabbitMQ's protocol.
    pub async fn delete(&mut self, queue: &ShortStr) -> Result<()> {
        self.call(QueueDelete { queue: queue.clone(), ..Default::default() }).await.map(drop)
    }

    /// Turns publisher confirms on.
    pub async fn confirm_select(&mut self) -> Result<()> {
        self.call(ConfirmSelect::default()).await.map(drop)
    }

    /// Starts consuming with manual acknowledgement and at most `prefetch` deliveries out (0: no limit).
    pub async fn consume(&mut self, queue: &str, prefetch: u16) -> Result<()> {
        self.call(BasicQos { prefetch_count: prefetch, ..Default::default() }).await?;
        let consumer_tag = ShortStr::from_static("c");
        let consume = BasicConsume { queue: ShortStr::cut(queue), consumer_tag, ..Default::default() };
        self.call(consume).await.map(drop)
    }
}

/// What a close by the broker says.
pub fn refusal(method: &Method) -> Option<String> {
    match method {
        Method::ConnectionClose(close) => Some(format!("{} {}", close.reply_code, close.reply_text.lossy())),
        Method::ChannelClose(close) => Some(format!("{} {}", close.reply_code, close.reply_text.lossy())),
        _ => None,
    }
}
