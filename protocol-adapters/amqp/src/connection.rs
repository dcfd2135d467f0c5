//! The task of one client connection: reads a burst, feeds the session, hands over to the broker once, writes.
//!
//! The danger is memory: a client that sends without end, or reads nothing, must cost a bounded amount. Reading stops
//! while the broker says wait, while too much waits for the client or on busy channels, while too much of all
//! connections is half received, and at a publish while storage refuses publishes; events are not taken while too much waits for the client.

use crate::assembly::Share;
use crate::backend::{Backend, Events, Link};
use crate::config::AmqpConfig;
use crate::exception::Exception;
use crate::handshake::{Agreed, Opened, Origin, Wire, handshake};
use crate::session::{Operation, Phase, Session};
use bytes::BytesMut;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use longshore_amqp_codec::{Frame, FrameKind, OutBuffer, ReplyCode, frame};
use longshore_broker::{CloseReason, Event, Flow};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

/// Bytes of the smallest and the largest read.
const READ_BYTES_MIN: usize = 2 << 10;
const READ_BYTES_MAX: usize = 128 << 10;
/// Bytes read and written before the other connections of the thread have their turn. The runtime's own budget counts calls,
/// and calls as large as these would hold a thread for several milliseconds while a large body comes or goes.
const TURN_BYTES_MAX: usize = 512 << 10;
/// Slices of one vectored write.
const SLICES_MAX: usize = 64;
/// Events taken before what they said is written.
const EVENTS_PER_TURN: usize = 256;
/// How long a socket is drained after the last word, so that the client reads it before a reset.
const LINGER: Duration = Duration::from_secs(1);
/// Class and method id of `basic.publish`, as the first bytes of its frame.
const PUBLISH: [u8; 4] = [0, 60, 0, 40];

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Ended {
    /// Closed in order, by either side.
    #[error("closed")]
    Closed,
    /// The socket broke or was closed without a word; the text says how.
    #[error("lost: {0}")]
    Lost(String),
    /// The client spoke another protocol or version, and was told ours.
    #[error("the client speaks another protocol")]
    OtherProtocol,
    /// The handshake took too long.
    #[error("the handshake took too long")]
    HandshakeTimeout,
    /// User or password was wrong.
    #[error("the login was refused")]
    LoginRefused,
    /// Refused during the handshake, with the reply text.
    #[error("refused: {0}")]
    Refused(String),
    /// The client sent nothing, or took nothing, for two heartbeat intervals.
    #[error("heartbeats missed")]
    HeartbeatMissed,
    /// The client did not answer `connection.close` in time.
    #[error("connection.close was not answered")]
    CloseTimeout,
}

/// Serves one client until its connection ends. `stream` is the plain or decrypted socket, `peer` the client's
/// address (behind a proxy: what the proxy said), `tls` whether the socket is encrypted. When `shutdown` becomes
/// true the client is told 320 CONNECTION_FORCED. Returns when the socket is done with; what went wrong is logged.
pub async fn serve<S, B>(
    stream: S,
    peer: SocketAddr,
    tls: bool,
    backend: B,
    config: Arc<AmqpConfig>,
    mut shutdown: watch::Receiver<bool>,
) where
    S: AsyncRead + AsyncWrite + Send + 'static,
    B: Backend,
{
    metrics::counter!("longshore_amqp_connections_opened_total").increment(1);
    let (reader, writer) = tokio::io::split(stream);
    let mut wire = Wire { reader, writer, input: BytesMut::new(), out: OutBuffer::new() };
    let origin = Origin { peer, tls };
    let opened = tokio::select! {
        result = timeout(config.handshake, handshake(&mut wire, &backend, &config, &origin)) => result,
        () = stopped(&mut shutdown) => Ok(Err(Ended::Closed)),
    };
    let ended = match opened {
        Err(_) => Ended::HandshakeTimeout,
        Ok(Err(ended)) => {
            linger(&mut wire.reader, &mut wire.writer).await;
            ended
        }
        Ok(Ok(Opened { session, events, agreed })) => {
            metrics::gauge!("longshore_amqp_connections").increment(1.0);
            let Wire { reader, writer, input, .. } = wire;
            let task = Task::<S, B>::new(reader, writer, input, session, events, agreed);
            let ended = task.run(shutdown).await;
            metrics::gauge!("longshore_amqp_connections").decrement(1.0);
            ended
        }
    };
    tracing::debug!(%peer, %ended, "an AMQP connection ended");
}

/// Resolves when the gateway stops.
async fn stopped(shutdown: &mut watch::Receiver<bool>) {
    if shutdown.wait_for(|stop| *stop).await.is_err() {
        // Nobody can ask for a stop any more.
        std::future::pending::<()>().await;
    }
}

/// Leaves the hanging up to the client, as RabbitMQ does after `connection.close-ok`: clients tell an end of the stream
/// that they see before their own close from an orderly one. One that does not hang up in [`LINGER`] is hung up on.
async fn await_hang_up<R: AsyncRead + Unpin>(reader: &mut R) {
    let mut sink = [0; 1024];
    let drain = async { while matches!(reader.read(&mut sink).await, Ok(1..)) {} };
    let _hung_up_in_time = timeout(LINGER, drain).await;
}

/// Says that nothing more comes, then reads on for a while and drops it: closing a socket with unread input would
/// reset it and take the last words away from the client.
async fn linger<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(reader: &mut R, writer: &mut W) {
    let drain = async {
        writer.shutdown().await?;
        let mut sink = [0; 1024];
        while reader.read(&mut sink).await? > 0 {}
        io::Result::Ok(())
    };
    if let Ok(Err(error)) = timeout(LINGER, drain).await {
        tracing::trace!(%error, "the client was gone already");
    }
}

struct Task<S, B: Backend> {
    reader: ReadHalf<S>,
    writer: WriteHalf<S>,
    input: BytesMut,
    session: Session<B::Link>,
    events: B::Events,
    operations: FuturesUnordered<Operation>,
    agreed: Agreed,
    /// Of the messages that are half received over all connections.
    share: Share,
    /// The broker wants no more publishes now.
    flow: Flow,
    /// A publish that came while storage refuses publishes.
    held_back: Option<Frame>,
    /// The input cannot be read on, or has ended.
    deaf: bool,
    /// The broker says nothing more.
    events_ended: bool,
    /// Bytes were written that the stream may still hold.
    unflushed: bool,
    read_bytes: usize,
    /// Read and written since the others had their turn.
    turn_bytes: usize,
    began: Instant,
    last_read: Instant,
    last_write: Instant,
    next_tick: Instant,
    /// When `connection.close` stops waiting.
    close_deadline: Option<Instant>,
}

/// What woke the task.
enum Wake {
    Wrote(io::Result<usize>),
    Read(io::Result<usize>),
    Finished(Option<crate::session::Finished>),
    Event(Option<Event>),
    Writable,
    Room,
    Tick,
    Stop,
}

impl<S: AsyncRead + AsyncWrite + Send + 'static, B: Backend> Task<S, B> {
    fn new(
        reader: ReadHalf<S>,
        writer: WriteHalf<S>,
        input: BytesMut,
        session: Session<B::Link>,
        events: B::Events,
        agreed: Agreed,
    ) -> Task<S, B> {
        let now = Instant::now();
        let assembly = session.facts.config.assembly.clone();
        Task {
            reader,
            writer,
            input,
            session,
            events,
            share: Share::of(&assembly),
            operations: FuturesUnordered::new(),
            agreed,
            flow: Flow::Open,
            held_back: None,
            deaf: false,
            events_ended: false,
            unflushed: false,
            read_bytes: READ_BYTES_MIN,
            turn_bytes: 0,
            began: now,
            last_read: now,
            last_write: now,
            next_tick: now,
            close_deadline: None,
        }
    }

    async fn run(mut self, mut shutdown: watch::Receiver<bool>) -> Ended {
        self.next_tick = Instant::now() + self.tick_period();
        loop {
            self.feed();
            self.hand_over();
            if self.session.phase == Phase::Done && self.session.out.is_empty() && !self.unflushed {
                let Task { mut reader, mut writer, session, operations, .. } = self;
                let client_hangs_up = session.client_hangs_up;
                drop(operations);
                drop(session);
                if client_hangs_up {
                    await_hang_up(&mut reader).await;
                }
                linger(&mut reader, &mut writer).await;
                return Ended::Closed;
            }
            let wake = self.wait(&mut shutdown).await;
            if let Err(ended) = self.woken(wake) {
                return ended;
            }
            if self.turn_bytes >= TURN_BYTES_MAX {
                self.turn_bytes = 0;
                tokio::task::yield_now().await;
            }
        }
    }

    /// Feeds whole frames to the session while it may take them.
    fn feed(&mut self) {
        self.session.now_seconds = self.began.elapsed().as_secs() as u32;
        while !self.deaf && self.may_take_frames() {
            let next = match self.held_back.take() {
                Some(frame) => Ok(Some(frame)),
                None => frame::split(&mut self.input, self.agreed.frame_bytes_max),
            };
            match next {
                Ok(Some(frame)) if self.must_wait(&frame) => {
                    self.held_back = Some(frame);
                    return;
                }
                Ok(Some(frame)) => {
                    self.session.frame(frame);
                    self.share.set(self.session.assembling_bytes);
                }
                Ok(None) => return,
                Err(error) => {
                    self.deaf = true;
                    self.session.raise(0, &error.into(), (0, 0));
                    // Its answer could not be read either.
                    self.session.phase = Phase::Done;
                }
            }
        }
    }

    fn may_take_frames(&self) -> bool {
        let config = &self.session.facts.config;
        (self.flow == Flow::Open || self.session.phase != Phase::Open)
            && self.session.out.len() < config.out_bytes_max
            && self.session.backlog_bytes < config.backlog_bytes_max
            && (self.share.may_grow() || self.session.phase != Phase::Open)
    }

    /// Whether the frame begins a publish while storage refuses them.
    fn must_wait(&self, frame: &Frame) -> bool {
        self.session.blocked
            && self.session.phase == Phase::Open
            && frame.kind == FrameKind::Method
            && frame.payload.starts_with(&PUBLISH)
    }

    fn may_read(&self) -> bool {
        !self.deaf && self.held_back.is_none() && self.may_take_frames()
    }

    /// Hands over to the broker what the turn gathered, and starts the operations that the turn asked for.
    fn hand_over(&mut self) {
        self.session.say_confirms();
        // Also when the connection was closed in this turn: what was published before that counts.
        self.flow = self.session.link.flush();
        self.operations.extend(self.session.operations.drain(..));
        if self.session.phase == Phase::Closing && self.close_deadline.is_none() {
            self.close_deadline = Some(Instant::now() + self.session.facts.config.close_timeout);
        }
    }

    async fn wait(&mut self, shutdown: &mut watch::Receiver<bool>) -> Wake {
        let open = self.session.phase == Phase::Open;
        let may_read = self.may_read();
        let may_write = !self.session.out.is_empty() || self.unflushed;
        let may_hear =
            open && !self.events_ended && self.session.out.len() < self.session.facts.config.out_bytes_max;
        let may_flow = open && self.flow == Flow::Wait;
        let is_full = open && !self.share.may_grow();
        let deadline = self.close_deadline.map_or(self.next_tick, |close| close.min(self.next_tick));
        if may_read {
            self.make_room();
        }
        tokio::select! {
            result = write_some(&mut self.writer, &self.session.out), if may_write => Wake::Wrote(result),
            finished = self.operations.next(), if !self.operations.is_empty() => Wake::Finished(finished),
            event = self.events.recv(), if may_hear => Wake::Event(event),
            result = self.reader.read_buf(&mut self.input), if may_read => Wake::Read(result),
            () = self.session.link.writable(), if may_flow => Wake::Writable,
            () = self.share.room(), if is_full => Wake::Room,
            () = sleep_until(deadline) => Wake::Tick,
            () = stopped(shutdown), if open => Wake::Stop,
        }
    }

    /// Room for the next read: what the frame under way still needs, or the usual burst.
    fn make_room(&mut self) {
        let wanted = frame::wanted(&self.input, self.agreed.frame_bytes_max).unwrap_or(0);
        self.input.reserve(self.read_bytes.max(wanted.saturating_sub(self.input.len())));
    }

    fn woken(&mut self, wake: Wake) -> Result<(), Ended> {
        match wake {
            Wake::Wrote(result) => self.wrote(result)?,
            Wake::Read(result) => self.read(result)?,
            Wake::Finished(Some(finished)) => self.session.finished(finished),
            Wake::Finished(None) => {}
            Wake::Event(event) => self.hear(event),
            Wake::Writable => self.flow = Flow::Open,
            Wake::Room => {}
            Wake::Tick => self.tick()?,
            Wake::Stop => self.force("broker forced connection closure with reason 'shutdown'"),
        }
        Ok(())
    }

    fn wrote(&mut self, result: io::Result<usize>) -> Result<(), Ended> {
        match result {
            Ok(0) if !self.session.out.is_empty() => Err(Ended::Lost("the socket takes no bytes".to_owned())),
            Ok(n) => {
                self.unflushed = n > 0;
                self.session.out.advance(n);
                self.turn_bytes += n;
                self.last_write = Instant::now();
                Ok(())
            }
            Err(error) => Err(Ended::Lost(error.to_string())),
        }
    }

    fn read(&mut self, result: io::Result<usize>) -> Result<(), Ended> {
        match result {
            Ok(0) if self.session.phase == Phase::Open => {
                Err(Ended::Lost("the client hung up without connection.close".to_owned()))
            }
            Ok(0) => Err(Ended::Closed),
            Ok(n) => {
                self.turn_bytes += n;
                self.last_read = Instant::now();
                if n >= self.read_bytes {
                    self.read_bytes = (self.read_bytes * 2).min(READ_BYTES_MAX);
                } else if n < self.read_bytes / 4 {
                    self.read_bytes = (self.read_bytes / 2).max(READ_BYTES_MIN);
                }
                Ok(())
            }
            Err(error) => Err(Ended::Lost(error.to_string())),
        }
    }

    /// Takes an event and those behind it.
    fn hear(&mut self, first: Option<Event>) {
        if first.is_none() {
            self.events_ended = true;
            self.force("the gateway ended the connection");
        }
        let mut next = first;
        for turn in 1.. {
            match next {
                Some(Event::Close(reason)) => {
                    let text = self.close_text(&reason);
                    return self.force(&text);
                }
                Some(event) => self.session.event(event),
                None => return,
            }
            if turn >= EVENTS_PER_TURN || self.session.out.len() >= self.session.facts.config.out_bytes_max {
                return;
            }
            next = self.events.try_recv();
        }
    }

    fn close_text(&self, reason: &CloseReason) -> String {
        let facts = &self.session.facts;
        match reason {
            CloseReason::UserChanged => format!("user '{}' was deleted or changed", facts.user),
            CloseReason::NamespaceDeleted => format!("vhost '{}' was deleted", facts.vhost),
            CloseReason::Admin(text) => text.clone(),
            CloseReason::LeaseLost => "the gateway lost its lease: connect again".to_owned(),
            CloseReason::Shutdown => "broker forced connection closure with reason 'shutdown'".to_owned(),
            CloseReason::Overrun => "the client does not take what is sent to it".to_owned(),
        }
    }

    fn force(&mut self, text: &str) {
        self.session.close_connection(&Exception::new(ReplyCode::ConnectionForced, text), (0, 0));
    }

    fn tick_period(&self) -> Duration {
        tick_period(self.agreed.heartbeat_seconds, self.session.facts.config.consumer_timeout)
    }

    /// Heartbeats both ways, and what else depends on time.
    fn tick(&mut self) -> Result<(), Ended> {
        let now = Instant::now();
        if self.close_deadline.is_some_and(|deadline| now >= deadline) {
            return Err(Ended::CloseTimeout);
        }
        if now < self.next_tick {
            return Ok(());
        }
        self.next_tick = now + self.tick_period();
        self.session.now_seconds = self.began.elapsed().as_secs() as u32;
        self.session.check_consumer_timeout();
        let seconds = u64::from(self.agreed.heartbeat_seconds);
        if seconds == 0 {
            return Ok(());
        }
        if !self.may_read() {
            // Nothing could be heard of the client because nothing was read from it.
            self.last_read = now;
        }
        let silence = Duration::from_secs(2 * seconds);
        let stuck = !self.session.out.is_empty() && now - self.last_write > silence;
        if now - self.last_read > silence || stuck {
            tracing::info!(user = %self.session.facts.user, "missed heartbeats from an AMQP client");
            return Err(Ended::HeartbeatMissed);
        }
        if self.session.out.is_empty() && now - self.last_write >= Duration::from_millis(seconds * 450) {
            self.session.out.put_heartbeat();
        }
        Ok(())
    }
}

/// How often to look at the clock: twice per heartbeat, more often for a shorter consumer timeout.
fn tick_period(heartbeat_seconds: u16, consumer_timeout: Option<Duration>) -> Duration {
    let heartbeat = match heartbeat_seconds {
        0 => Duration::from_secs(3_600),
        seconds => Duration::from_millis(u64::from(seconds) * 500),
    };
    match consumer_timeout {
        Some(checks) => checks.clamp(Duration::from_secs(1), Duration::from_secs(10)).min(heartbeat),
        None => heartbeat,
    }
}

/// Writes what fits, or flushes if nothing waits. Cancel-safe.
async fn write_some<W: AsyncWrite + Unpin>(writer: &mut W, out: &OutBuffer) -> io::Result<usize> {
    if out.is_empty() {
        writer.flush().await?;
        return Ok(0);
    }
    let mut slices = [IoSlice::new(&[]); SLICES_MAX];
    let filled = out.io_slices(&mut slices);
    writer.write_vectored(slices.get(..filled).unwrap_or_default()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_heartbeat_goes_with_every_consumer_timeout() {
        let ms = |heartbeat, timeout: u64| {
            tick_period(heartbeat, Some(Duration::from_millis(timeout))).as_millis()
        };
        assert_eq!(ms(1, 60_000), 500, "a heartbeat of one second is below the smallest check");
        assert_eq!((ms(0, 60_000), ms(60, 5_000), ms(60, 10)), (10_000, 5_000, 1_000));
        assert_eq!(tick_period(60, None), Duration::from_secs(30));
    }
}
