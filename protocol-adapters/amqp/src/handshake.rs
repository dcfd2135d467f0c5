//! From the first byte to `connection.open-ok`. The danger: nobody is known yet. Frames are held to 4,096 bytes, the
//! whole takes a bounded time, and what a refused client learns is the same whatever was wrong.

use crate::backend::Backend;
use crate::config::{AmqpConfig, RABBITMQ_VERSION};
use crate::connection::Ended;
use crate::exception::Exception;
use crate::session::{ClientCapabilities, Facts, Session};
use bytes::{Bytes, BytesMut};
use longshore_amqp_codec::frame::{self, Greeting};
use longshore_amqp_codec::method::{
    ConnectionCloseOk, ConnectionOpen, ConnectionOpenOk, ConnectionStart, ConnectionStartOk, ConnectionTune,
    ConnectionTuneOk,
};
use longshore_amqp_codec::{
    FRAME_BYTES_BEFORE_TUNE, FrameKind, Method, OutBuffer, ReplyCode, Table, TableBuilder, Value,
};
use longshore_broker::{AuthError, BrokerError, ConnectionInfo, Identity};
use std::net::SocketAddr;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

#[cfg(test)]
mod tests;

/// The capabilities that hold; clients choose by them what they use.
const CAPABILITIES: &[&str] = &[
    "publisher_confirms",
    "exchange_exchange_bindings",
    "basic.nack",
    "consumer_cancel_notify",
    "connection.blocked",
    "consumer_priorities",
    "authentication_failure_close",
    "per_consumer_qos",
    "direct_reply_to",
];
/// Class and method id of `connection.open`, for the close frame.
const OPEN: (u16, u16) = (10, 40);
/// Bytes that a client may be read in one go before it is known.
const READ_BYTES: usize = 512;

/// A socket's two halves and the bytes between them and the protocol.
pub(crate) struct Wire<R, W> {
    pub(crate) reader: R,
    pub(crate) writer: W,
    pub(crate) input: BytesMut,
    pub(crate) out: OutBuffer,
}

/// What both sides agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Agreed {
    pub(crate) channel_max: u16,
    /// Overhead included.
    pub(crate) frame_bytes_max: usize,
    /// 0: none.
    pub(crate) heartbeat_seconds: u16,
}

/// A connection that is open.
pub(crate) struct Opened<B: Backend> {
    pub(crate) session: Session<B::Link>,
    pub(crate) events: B::Events,
    pub(crate) agreed: Agreed,
}

/// Where a client comes from.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub(crate) peer: SocketAddr,
    pub(crate) tls: bool,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Wire<R, W> {
    async fn read(&mut self) -> Result<(), Ended> {
        self.input.reserve(READ_BYTES);
        match self.reader.read_buf(&mut self.input).await {
            Ok(0) => Err(Ended::Lost("the client hung up during the handshake".to_owned())),
            Ok(_) => Ok(()),
            Err(error) => Err(Ended::Lost(error.to_string())),
        }
    }

    async fn write(&mut self) -> Result<(), Ended> {
        let bytes = self.out.take_all();
        let written = async {
            self.writer.write_all(&bytes).await?;
            self.writer.flush().await
        };
        written.await.map_err(|error| Ended::Lost(error.to_string()))
    }

    async fn greeting(&mut self) -> Result<(), Ended> {
        loop {
            match frame::take_greeting(&mut self.input) {
                Greeting::Amqp091 => return Ok(()),
                Greeting::Incomplete => self.read().await?,
                Greeting::Other => {
                    self.out.put_protocol_header();
                    self.write().await?;
                    return Err(Ended::OtherProtocol);
                }
            }
        }
    }

    async fn method(&mut self, frame_bytes_max: usize) -> Result<Method, Ended> {
        loop {
            let frame = match frame::split(&mut self.input, frame_bytes_max) {
                Ok(Some(frame)) => frame,
                Ok(None) => {
                    self.read().await?;
                    continue;
                }
                Err(error) => return Err(self.refuse(&error.into()).await),
            };
            match (frame.kind, frame.channel) {
                (FrameKind::Heartbeat, 0) => {}
                (FrameKind::Method, 0) => match Method::decode(frame.payload) {
                    Ok(method) => return Ok(method),
                    Err(error) => return Err(self.refuse(&error.into()).await),
                },
                _ => {
                    let text = "only methods on channel 0 are expected before connection.open-ok";
                    return Err(self.refuse(&Exception::unexpected(text)).await);
                }
            }
        }
    }

    /// Tells the client why, and ends. The fault is no single method's.
    async fn refuse(&mut self, exception: &Exception) -> Ended {
        self.refuse_method((0, 0), exception).await
    }

    /// The same, where it is `method` (class and method id) that is refused.
    async fn refuse_method(&mut self, method: (u16, u16), exception: &Exception) -> Ended {
        metrics::counter!("longshore_amqp_errors_total", "code" => exception.code.word()).increment(1);
        self.out.put_method(0, &exception.connection_close(method));
        match self.write().await {
            Ok(()) => Ended::Refused(exception.to_string()),
            Err(ended) => ended,
        }
    }

    async fn unexpected(&mut self, method: Method) -> Ended {
        if let Method::ConnectionClose(_) = method {
            self.out.put_method(0, &ConnectionCloseOk {}.into());
            return self.write().await.err().unwrap_or(Ended::Closed);
        }
        let text = format!("{} is not expected now", method.name());
        self.refuse(&Exception::new(ReplyCode::CommandInvalid, text)).await
    }
}

/// Leads a client to an open connection.
pub(crate) async fn handshake<B, R, W>(
    wire: &mut Wire<R, W>,
    backend: &B,
    config: &AmqpConfig,
    origin: &Origin,
) -> Result<Opened<B>, Ended>
where
    B: Backend,
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    wire.greeting().await?;
    wire.out.put_method(0, &start(config));
    wire.write().await?;
    let start_ok = match wire.method(FRAME_BYTES_BEFORE_TUNE).await? {
        Method::ConnectionStartOk(m) => m,
        other => return Err(wire.unexpected(other).await),
    };
    let client = capabilities(&start_ok.client_properties);
    let identity = login(wire, backend, config, origin, &start_ok, client).await?;
    let (channel_max, frame_max, heartbeat) = (config.channel_max, config.frame_max, config.heartbeat_s);
    wire.out.put_method(0, &ConnectionTune { channel_max, frame_max, heartbeat }.into());
    wire.write().await?;
    let tune_ok = match wire.method(FRAME_BYTES_BEFORE_TUNE).await? {
        Method::ConnectionTuneOk(m) => m,
        other => return Err(wire.unexpected(other).await),
    };
    let agreed = match agree(config, &tune_ok) {
        Ok(agreed) => agreed,
        Err(exception) => return Err(wire.refuse(&exception).await),
    };
    let open = match wire.method(agreed.frame_bytes_max).await? {
        Method::ConnectionOpen(m) => m,
        other => return Err(wire.unexpected(other).await),
    };
    let info = ConnectionInfo {
        protocol: "AMQP 0-9-1",
        peer: origin.peer,
        client: client_name(&start_ok.client_properties),
        tls: origin.tls,
    };
    open_connection(wire, backend, config, &identity, &open, info, client, agreed).await
}

#[allow(clippy::too_many_arguments, reason = "the last step needs what every step before it found out")]
async fn open_connection<B, R, W>(
    wire: &mut Wire<R, W>,
    backend: &B,
    config: &AmqpConfig,
    identity: &Identity,
    open: &ConnectionOpen,
    info: ConnectionInfo,
    client: ClientCapabilities,
    agreed: Agreed,
) -> Result<Opened<B>, Ended>
where
    B: Backend,
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let vhost = open.virtual_host.lossy().into_owned();
    let (link, events) = match backend.connect(identity, &vhost, info) {
        Ok(connected) => connected,
        Err(error) => {
            let exception = match error {
                BrokerError::NotAllowed(_) | BrokerError::NotFound { .. } => {
                    let text = format!("access to vhost '{vhost}' refused for user '{}'", identity.user);
                    Exception::new(ReplyCode::NotAllowed, text)
                }
                other => Exception::new(ReplyCode::ConnectionForced, other.to_string()),
            };
            return Err(wire.refuse_method(OPEN, &exception).await);
        }
    };
    wire.out.put_method(0, &ConnectionOpenOk::default().into());
    let facts = Facts {
        vhost,
        user: identity.user.to_string(),
        frame_bytes_max: agreed.frame_bytes_max,
        channel_max: agreed.channel_max,
        client,
        config: config.clone(),
    };
    let mut session = Session::new(link, facts, std::mem::take(&mut wire.out));
    session.set_blocked(backend.blocked());
    Ok(Opened { session, events, agreed })
}

fn start(config: &AmqpConfig) -> Method {
    let held =
        CAPABILITIES.iter().fold(TableBuilder::new(), |table, name| table.put(name, Value::Bool(true)));
    let text = |text: &'static str| Value::Text(text.as_bytes());
    let server_properties = TableBuilder::new()
        .put_table("capabilities", &held.build())
        .put("cluster_name", Value::Text(config.cluster_name.as_bytes()))
        .put("copyright", text("The Longshore developers"))
        .put("information", text("Licensed under the Apache License 2.0"))
        .put("platform", text("Rust"))
        .put("product", text("Longshore"))
        .put("version", text(RABBITMQ_VERSION))
        .build();
    ConnectionStart {
        version_major: 0,
        version_minor: 9,
        server_properties,
        mechanisms: Bytes::from_static(b"AMQPLAIN PLAIN"),
        locales: Bytes::from_static(b"en_US"),
    }
    .into()
}

fn capabilities(properties: &Table) -> ClientCapabilities {
    let Some(Value::Table(held)) = properties.get("capabilities") else {
        return ClientCapabilities::default();
    };
    let has = |name: &str| held.get(name) == Some(Value::Bool(true));
    ClientCapabilities {
        consumer_cancel_notify: has("consumer_cancel_notify"),
        connection_blocked: has("connection.blocked"),
        authentication_failure_close: has("authentication_failure_close"),
    }
}

/// What the client calls itself: its connection's name, else its product.
fn client_name(properties: &Table) -> String {
    let text = |name: &str| match properties.get(name) {
        Some(Value::Text(bytes)) => Some(String::from_utf8_lossy(bytes).into_owned()),
        _ => None,
    };
    text("connection_name").or_else(|| text("product")).unwrap_or_default()
}

/// User and password of a SASL response; `None` if it cannot be read.
fn credentials(start_ok: &ConnectionStartOk) -> Option<(String, Bytes)> {
    let response = &start_ok.response;
    match &start_ok.mechanism[..] {
        b"PLAIN" => {
            let mut parts = response.splitn(3, |byte| *byte == 0);
            let (_, user, password) = (parts.next()?, parts.next()?, parts.next()?);
            Some((String::from_utf8(user.to_vec()).ok()?, Bytes::copy_from_slice(password)))
        }
        b"AMQPLAIN" => {
            let table = Table::parse(response.clone()).ok()?;
            let (Some(Value::Text(user)), Some(Value::Text(password))) =
                (table.get("LOGIN"), table.get("PASSWORD"))
            else {
                return None;
            };
            Some((String::from_utf8(user.to_vec()).ok()?, Bytes::copy_from_slice(password)))
        }
        _ => None,
    }
}

async fn login<B, R, W>(
    wire: &mut Wire<R, W>,
    backend: &B,
    config: &AmqpConfig,
    origin: &Origin,
    start_ok: &ConnectionStartOk,
    client: ClientCapabilities,
) -> Result<Identity, Ended>
where
    B: Backend,
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mechanism = start_ok.mechanism.lossy();
    if !["PLAIN", "AMQPLAIN"].contains(&&*mechanism) {
        let text = format!("unknown authentication mechanism '{mechanism}'");
        return Err(wire.refuse(&Exception::new(ReplyCode::CommandInvalid, text)).await);
    }
    let result = match credentials(start_ok) {
        Some((user, password)) => {
            let result = backend.authenticate(&user, &password, origin.peer).await;
            result.inspect_err(
                |error| tracing::warn!(user, peer = %origin.peer, %error, "an AMQP login was refused"),
            )
        }
        None => Err(AuthError::Refused),
    };
    let error = match result {
        Ok(identity) => return Ok(identity),
        Err(error) => error,
    };
    if error == AuthError::Unavailable {
        return Err(wire.refuse(&Exception::new(ReplyCode::ConnectionForced, error.to_string())).await);
    }
    metrics::counter!("longshore_amqp_logins_refused_total").increment(1);
    tokio::time::sleep(config.refused_login_delay).await;
    if client.authentication_failure_close {
        let text = format!(
            "Login was refused using authentication mechanism {mechanism}. For details see the broker logfile."
        );
        wire.refuse(&Exception::new(ReplyCode::AccessRefused, text)).await;
    }
    Err(Ended::LoginRefused)
}

/// Checks `tune-ok` as RabbitMQ does: a client may lower limits, not raise or remove them.
fn agree(config: &AmqpConfig, client: &ConnectionTuneOk) -> Result<Agreed, Exception> {
    let check = |field: &str, min: u32, max: u32, value: u32| {
        let (word, kind, limit) = match value {
            n if n != 0 && n < min => ("lower", "minimum", min),
            n if max != 0 && (n == 0 || n > max) => ("higher", "maximum", max),
            _ => return Ok(()),
        };
        let text = format!("negotiated {field} = {value} is {word} than the {kind} allowed value ({limit})");
        Err(Exception::new(ReplyCode::NotAllowed, text))
    };
    check("frame_max", FRAME_BYTES_BEFORE_TUNE as u32, config.frame_max, client.frame_max)?;
    check("channel_max", 1, config.channel_max.into(), client.channel_max.into())?;
    Ok(Agreed {
        channel_max: client.channel_max,
        frame_bytes_max: client.frame_max as usize,
        heartbeat_seconds: client.heartbeat,
    })
}
