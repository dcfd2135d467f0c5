//! The protocol's state machine of one connection after `connection.open-ok`: frames and broker events in, frames
//! (in the out-buffer), broker calls and operations out. No socket and no clock here; the connection task drives it.
//!
//! The danger is order: within a channel everything happens in the order of its frames, also around operations
//! that wait for storage. While one is under way its channel is busy and later frames of it wait, bounded in bytes.

use crate::backend::{Link, Operations};
use crate::channel::{Channel, ChannelState};
use crate::config::AmqpConfig;
use crate::exception::{Exception, Outcome};
use crate::settle::UNSEEN;
use bytes::BytesMut;
use longshore_amqp_codec::method::{
    AccessRequestOk, BasicDeliver, ChannelCloseOk, ChannelFlowOk, ChannelOpenOk, ConnectionUpdateSecretOk,
};
use longshore_amqp_codec::{Frame, FrameKind, Method, OutBuffer, ReplyCode, ShortStr};
use longshore_broker::{ConsumerTag, Right};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

/// Class and method id of `basic.publish`, for what is wrong with its content.
const PUBLISH: (u16, u16) = (60, 40);

/// What is known of the client after the handshake.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) vhost: String,
    pub(crate) user: String,
    /// As agreed, overhead included.
    pub(crate) frame_bytes_max: usize,
    pub(crate) channel_max: u16,
    pub(crate) client: ClientCapabilities,
    pub(crate) config: AmqpConfig,
}

/// What the client says it understands.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ClientCapabilities {
    pub(crate) consumer_cancel_notify: bool,
    pub(crate) connection_blocked: bool,
    pub(crate) authentication_failure_close: bool,
}

/// Something that waits for storage, run beside the session.
pub(crate) type Operation = Pin<Box<dyn Future<Output = Finished> + Send>>;

/// An operation's end.
pub(crate) struct Finished {
    pub(crate) channel: u16,
    pub(crate) generation: u16,
    /// Class and method id that asked.
    pub(crate) method: (u16, u16),
    pub(crate) outcome: Outcome<Done>,
}

/// What an operation came to.
pub(crate) enum Done {
    /// Nobody waits for it.
    Unnoticed,
    /// The answer, none with `nowait`.
    Answer(Option<Method>),
    /// A queue was declared (and is the channel's current one now).
    Declared { name: String, exclusive: bool, answer: Option<Method> },
    /// A queue was deleted.
    Deleted { name: String, answer: Option<Method> },
    /// A consumer exists.
    Consuming(Box<crate::consume::Consuming>),
    /// A consumer is gone.
    Cancelled { tag: ConsumerTag, answer: Option<Method> },
    /// A get was answered.
    Got { got: Option<Box<longshore_broker::Got>>, no_ack: bool },
    /// The channel's consumers are gone: it may be closed.
    ChannelEmpty,
    /// Nothing of the connection is left: it may be closed.
    ConnectionEmpty,
}

/// How far the connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// In use.
    Open,
    /// `connection.close` was sent; everything but its answer is dropped.
    Closing,
    /// Nothing more is expected: write what is left and hang up.
    Done,
}

/// One connection's protocol state.
pub(crate) struct Session<L: Link> {
    pub(crate) link: L,
    pub(crate) control: L::Control,
    pub(crate) facts: Arc<Facts>,
    pub(crate) out: OutBuffer,
    pub(crate) phase: Phase,
    /// The client was told `connection.close-ok`: closing the socket is up to it.
    pub(crate) client_hangs_up: bool,
    /// Operations to be started after the next flush.
    pub(crate) operations: Vec<Operation>,
    /// Seconds since the connection began, set by the task.
    pub(crate) now_seconds: u32,
    /// Storage refuses publishes.
    pub(crate) blocked: bool,
    pub(crate) channels: HashMap<u16, Channel>,
    pub(crate) consumers: HashMap<ConsumerTag, crate::consume::Consumer>,
    pub(crate) next_consumer: u64,
    /// Channels with confirms to be said.
    pub(crate) unsaid: BTreeSet<u16>,
    /// Bytes in the backlogs of busy channels.
    pub(crate) backlog_bytes: usize,
    pub(crate) scratch: BytesMut,
    /// Exclusive queues that were declared here.
    pub(crate) exclusive: BTreeSet<String>,
    /// Bytes of bodies that are not complete yet.
    pub(crate) assembling_bytes: u64,
    /// Bytes of messages in open transactions, of all channels.
    pub(crate) transaction_bytes: u64,
    /// Kept between settlements for its capacity.
    pub(crate) taken: Vec<crate::unacked::Held>,
    next_generation: u16,
    resumed: VecDeque<u16>,
    /// Class and method id of what is being done, for close frames.
    method: (u16, u16),
}

impl<L: Link> Session<L> {
    pub(crate) fn new(link: L, facts: Facts, out: OutBuffer) -> Session<L> {
        Session {
            control: link.control(),
            link,
            facts: Arc::new(facts),
            out,
            phase: Phase::Open,
            client_hangs_up: false,
            operations: Vec::new(),
            now_seconds: 0,
            blocked: false,
            channels: HashMap::new(),
            consumers: HashMap::new(),
            next_consumer: 1,
            unsaid: BTreeSet::new(),
            backlog_bytes: 0,
            scratch: BytesMut::new(),
            exclusive: BTreeSet::new(),
            assembling_bytes: 0,
            transaction_bytes: 0,
            taken: Vec::new(),
            next_generation: 1,
            resumed: VecDeque::new(),
            method: (0, 0),
        }
    }

    /// Sends a method on a channel.
    pub(crate) fn say(&mut self, number: u16, method: impl Into<Method>) {
        self.out.put_method(number, &method.into());
    }

    /// The channel, which is there whenever one of its methods is acted on.
    pub(crate) fn channel_mut(&mut self, number: u16) -> Outcome<&mut Channel> {
        self.channels
            .get_mut(&number)
            .ok_or_else(|| Exception::new(ReplyCode::ChannelError, "expected 'channel.open'"))
    }

    /// Takes one frame from the client.
    pub(crate) fn frame(&mut self, frame: Frame) {
        self.method = (0, 0);
        let number = frame.channel;
        let outcome = match (self.phase, number) {
            (Phase::Done, _) => Ok(()),
            (_, 0) => self.connection_frame(frame),
            (Phase::Closing, _) => Ok(()),
            (Phase::Open, _) => self.channel_frame(frame),
        };
        if let Err(exception) = outcome {
            self.raise(number, &exception, self.method);
        }
        self.run_resumed();
    }

    fn connection_frame(&mut self, frame: Frame) -> Outcome<()> {
        match frame.kind {
            FrameKind::Heartbeat => return Ok(()),
            FrameKind::Method => {}
            _ => return Err(Exception::unexpected("content on channel 0")),
        }
        let method = Method::decode(frame.payload)?;
        self.method = method.id();
        match method {
            Method::ConnectionClose(_) if self.phase == Phase::Open => self.client_leaves(),
            Method::ConnectionClose(_) => self.client_left(),
            Method::ConnectionCloseOk(_) if self.phase == Phase::Closing => self.finish(),
            _ if self.phase == Phase::Closing => {}
            // As RabbitMQ for users of its own: only secrets that expire (OAuth 2 tokens) are looked at. A password does
            // not, gives no rights anew, and one that was changed has ended the connection already.
            Method::ConnectionUpdateSecret(_) => self.say(0, ConnectionUpdateSecretOk {}),
            _ => {
                let text = "unexpected method in connection state running";
                return Err(Exception::new(ReplyCode::ChannelError, text));
            }
        }
        Ok(())
    }

    fn channel_frame(&mut self, frame: Frame) -> Outcome<()> {
        let number = frame.channel;
        if frame.kind == FrameKind::Heartbeat {
            return Err(Exception::frame("heartbeat on a channel other than 0"));
        }
        let Some(channel) = self.channels.get_mut(&number) else {
            return self.first_frame(frame);
        };
        match channel.state {
            ChannelState::Open => self.act(frame),
            ChannelState::Busy => {
                self.backlog_bytes += backlog_cost(&frame);
                channel.backlog.push_back(frame);
                Ok(())
            }
            ChannelState::Closing => {
                self.closing_frame(frame);
                Ok(())
            }
        }
    }

    /// A frame on a channel that is not open.
    fn first_frame(&mut self, frame: Frame) -> Outcome<()> {
        let number = frame.channel;
        if frame.kind == FrameKind::Method {
            let method = Method::decode(frame.payload)?;
            self.method = method.id();
            match method {
                Method::ChannelOpen(_) => return self.open_channel(number),
                // Both sides closed it at the same time.
                Method::ChannelCloseOk(_) => return Ok(()),
                _ => {}
            }
        }
        Err(Exception::new(ReplyCode::ChannelError, "expected 'channel.open'"))
    }

    fn open_channel(&mut self, number: u16) -> Outcome<()> {
        let max = self.facts.channel_max;
        if number > max {
            let text =
                format!("number of channels opened ({max}) has reached the negotiated channel_max ({max})");
            return Err(Exception::new(ReplyCode::NotAllowed, text));
        }
        let generation = self.next_generation;
        self.next_generation = self.next_generation.wrapping_add(1);
        self.channels.insert(number, Channel::new(number, generation));
        self.say(number, ChannelOpenOk::default());
        Ok(())
    }

    /// A frame on a channel that the server has closed: only the end of it matters.
    fn closing_frame(&mut self, frame: Frame) {
        let number = frame.channel;
        match Method::decode(frame.payload) {
            Ok(Method::ChannelCloseOk(_)) if frame.kind == FrameKind::Method => {
                self.channels.remove(&number);
            }
            Ok(Method::ChannelClose(_)) if frame.kind == FrameKind::Method => {
                self.say(number, ChannelCloseOk {})
            }
            _ => {}
        }
    }

    /// Acts on a frame of an open channel.
    fn act(&mut self, frame: Frame) -> Outcome<()> {
        let number = frame.channel;
        match frame.kind {
            FrameKind::Method => {
                if self.channel_mut(number)?.assembling.is_some() {
                    return Err(Exception::unexpected(
                        "expected content header for class 60, got non content header frame instead",
                    ));
                }
                let method = Method::decode(frame.payload)?;
                self.method = method.id();
                self.dispatch(number, method)
            }
            FrameKind::Header | FrameKind::Body => {
                if self.channel_mut(number)?.assembling.is_some() {
                    self.method = PUBLISH;
                }
                match frame.kind {
                    FrameKind::Header => self.content_header(number, frame.payload),
                    _ => self.content_body(number, frame.payload),
                }
            }
            FrameKind::Heartbeat => Ok(()),
        }
    }

    fn dispatch(&mut self, number: u16, method: Method) -> Outcome<()> {
        match method {
            Method::BasicPublish(m) => self.publish_begins(number, m),
            Method::BasicAck(m) => self.ack(number, m.delivery_tag, m.multiple),
            Method::BasicNack(m) => self.nack(number, m.delivery_tag, m.multiple, m.requeue),
            Method::BasicReject(m) => self.nack(number, m.delivery_tag, false, m.requeue),
            Method::BasicConsume(m) => self.consume(number, m),
            Method::BasicCancel(m) => self.cancel(number, m),
            Method::BasicGet(m) => self.get(number, m),
            Method::BasicQos(m) => self.qos(number, &m),
            Method::BasicRecover(m) => self.recover(number, m.requeue, true),
            Method::BasicRecoverAsync(m) => self.recover(number, m.requeue, false),
            Method::QueueDeclare(m) => self.queue_declare(number, m),
            Method::QueueBind(m) => self.queue_bind(number, m),
            Method::QueueUnbind(m) => self.queue_unbind(number, m),
            Method::QueuePurge(m) => self.queue_purge(number, &m),
            Method::QueueDelete(m) => self.queue_delete(number, &m),
            Method::ExchangeDeclare(m) => self.exchange_declare(number, m),
            Method::ExchangeDelete(m) => self.exchange_delete(number, &m),
            Method::ExchangeBind(m) => self.exchange_bind(number, m),
            Method::ExchangeUnbind(m) => self.exchange_unbind(number, m),
            Method::ConfirmSelect(m) => self.confirm_select(number, m.nowait),
            Method::TxSelect(_) => self.tx_select(number),
            Method::TxCommit(_) => self.tx_commit(number),
            Method::TxRollback(_) => self.tx_rollback(number),
            Method::ChannelClose(_) => self.client_closes(number),
            Method::ChannelCloseOk(_) | Method::ChannelFlowOk(_) => Ok(()),
            // Old clients ask for a ticket first; as in RabbitMQ it is always the same and nobody looks at it.
            Method::AccessRequest(_) => {
                self.say(number, AccessRequestOk { ticket: 1 });
                Ok(())
            }
            Method::ChannelFlow(m) if m.active => {
                self.say(number, ChannelFlowOk { active: true });
                Ok(())
            }
            Method::ChannelFlow(_) => Err(Exception::not_implemented("active=false")),
            Method::ChannelOpen(_) => {
                Err(Exception::new(ReplyCode::ChannelError, "second 'channel.open' seen"))
            }
            other => Err(Exception::new(
                ReplyCode::CommandInvalid,
                format!("{} is not for clients to send on a channel", other.name()),
            )),
        }
    }

    /// Runs what waited on channels whose operation ended.
    pub(crate) fn run_resumed(&mut self) {
        while let Some(number) = self.resumed.pop_front() {
            while let Some(channel) = self.channels.get_mut(&number).filter(|c| c.state == ChannelState::Open)
            {
                let Some(frame) = channel.backlog.pop_front() else { break };
                self.backlog_bytes = self.backlog_bytes.saturating_sub(backlog_cost(&frame));
                self.method = (0, 0);
                if let Err(exception) = self.act(frame) {
                    self.raise(number, &exception, self.method);
                }
            }
        }
    }

    /// Lets a busy channel go on; its backlog runs at the next [`Session::run_resumed`].
    pub(crate) fn resume(&mut self, number: u16) {
        if let Some(channel) = self.channels.get_mut(&number)
            && channel.state == ChannelState::Busy
        {
            channel.state = ChannelState::Open;
            self.resumed.push_back(number);
        }
    }

    /// Starts an operation for the method being acted on; its channel is busy until it ends.
    pub(crate) fn start<F>(&mut self, number: u16, operation: F) -> Outcome<()>
    where
        F: Future<Output = Outcome<Done>> + Send + 'static,
    {
        let method = self.method;
        let channel = self.channel_mut(number)?;
        channel.state = ChannelState::Busy;
        let generation = channel.generation;
        self.operations.push(Box::pin(async move {
            Finished { channel: number, generation, method, outcome: operation.await }
        }));
        Ok(())
    }

    /// Starts an operation that nobody waits for.
    pub(crate) fn start_unnoticed<F>(&mut self, operation: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.operations.push(Box::pin(async move {
            operation.await;
            Finished { channel: 0, generation: 0, method: (0, 0), outcome: Ok(Done::Unnoticed) }
        }));
    }

    /// Takes an operation's end.
    pub(crate) fn finished(&mut self, finished: Finished) {
        if let Ok(Done::ConnectionEmpty) = finished.outcome {
            return self.client_left();
        }
        let number = finished.channel;
        let current = self.channels.get(&number).is_some_and(|c| c.generation == finished.generation);
        if !current || self.phase != Phase::Open {
            return self.unwanted(finished.outcome);
        }
        self.resume(number);
        self.method = finished.method;
        if let Err(exception) = finished.outcome.and_then(|done| self.done(number, done)) {
            self.raise(number, &exception, finished.method);
        }
        self.run_resumed();
    }

    /// What an operation came to whose channel was closed meanwhile.
    fn unwanted(&mut self, outcome: Outcome<Done>) {
        match outcome {
            Ok(Done::Consuming(consuming)) => {
                let control = self.control.clone();
                self.start_unnoticed(async move { control.detach(consuming.tag, false).await });
            }
            Ok(Done::Got { got: Some(got), .. }) => self.link.settle(&got.delivery.handle, UNSEEN),
            Ok(Done::Declared { name, exclusive: true, .. }) => {
                self.exclusive.insert(name);
            }
            Ok(Done::Deleted { name, .. }) => {
                self.exclusive.remove(&name);
            }
            _ => {}
        }
    }

    fn done(&mut self, number: u16, done: Done) -> Outcome<()> {
        match done {
            Done::Unnoticed | Done::ConnectionEmpty => {}
            Done::Answer(answer) => {
                if let Some(method) = answer {
                    self.say(number, method);
                }
            }
            Done::Declared { name, exclusive, answer } => {
                if exclusive {
                    self.exclusive.insert(name.clone());
                }
                self.channel_mut(number)?.current_queue = Some(name);
                if let Some(method) = answer {
                    self.say(number, method);
                }
            }
            Done::Deleted { name, answer } => {
                self.exclusive.remove(&name);
                if let Some(method) = answer {
                    self.say(number, method);
                }
            }
            Done::Consuming(consuming) => self.consuming(number, *consuming)?,
            Done::Cancelled { tag, answer } => self.cancelled(number, tag, answer),
            Done::Got { got, no_ack } => self.got(number, got.map(|got| *got), no_ack)?,
            Done::ChannelEmpty => {
                if let Some(channel) = self.channels.remove(&number) {
                    let waited: usize = channel.backlog.iter().map(backlog_cost).sum();
                    self.backlog_bytes = self.backlog_bytes.saturating_sub(waited);
                }
                self.say(number, ChannelCloseOk {});
            }
        }
        Ok(())
    }

    /// Refuses what the user's permissions do not allow.
    pub(crate) fn permit(&mut self, right: Right, what: &'static str, name: &str) -> Outcome<()> {
        // The default exchange has this name where permissions are asked.
        let name = if name.is_empty() && what == "exchange" { "amq.default" } else { name };
        if self.link.permit(right, name) {
            return Ok(());
        }
        Err(Exception::refused(right, what, name, &self.facts.vhost, &self.facts.user))
    }

    /// A name as text. Names that are not UTF-8 exist nowhere.
    pub(crate) fn name(&self, what: &'static str, name: &ShortStr) -> Outcome<String> {
        let text = name.as_str().map(str::to_owned);
        text.ok_or_else(|| Exception::not_found(what, &name.lossy(), &self.facts.vhost))
    }

    /// A queue's name, where the empty one means the queue declared last on the channel.
    pub(crate) fn queue_name(&mut self, number: u16, name: &ShortStr) -> Outcome<String> {
        if !name.is_empty() {
            return self.name("queue", name);
        }
        let current = self.channel_mut(number)?.current_queue.clone();
        current.ok_or_else(|| Exception::new(ReplyCode::NotFound, "no previously declared queue"))
    }

    /// Says the confirms that the events of this turn brought.
    pub(crate) fn say_confirms(&mut self) {
        for number in std::mem::take(&mut self.unsaid) {
            if let Some(Channel { mode: crate::channel::Mode::Confirm { confirms, .. }, .. }) =
                self.channels.get_mut(&number)
            {
                confirms.report(|method| self.out.put_method(number, &method));
            }
        }
    }
}

/// What a frame that waits costs: without its bytes too it is remembered.
pub(crate) fn backlog_cost(frame: &Frame) -> usize {
    const FRAME_OVERHEAD: usize = 64;
    frame.payload.len() + FRAME_OVERHEAD
}

/// An empty deliver; its fields are filled by `deliver`.
pub(crate) fn deliver_method(consumer_tag: ShortStr, delivery_tag: u64, redelivered: bool) -> BasicDeliver {
    BasicDeliver { consumer_tag, delivery_tag, redelivered, ..BasicDeliver::default() }
}
