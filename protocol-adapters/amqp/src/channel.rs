//! One channel's state: what it is waiting for, what its client holds, how it publishes.

use crate::confirms::Confirms;
use crate::pieces::Pieces;
use crate::transaction::Transaction;
use crate::unacked::Unacked;
use bytes::Bytes;
use longshore_amqp_codec::method::BasicPublish;
use longshore_amqp_codec::{Frame, Properties, ShortStr};
use longshore_broker::{ConsumerTag, Delivery};
use std::collections::{HashMap, VecDeque};

/// Bits of a publish token that count; the bits above name the channel's generation, so that the fate of a publish
/// on a closed channel is not taken for one on its successor.
const TOKEN_BITS: u32 = 48;

/// A message whose method frame has come, and not yet all of its body.
#[derive(Debug)]
pub(crate) struct Assembling {
    pub(crate) method: BasicPublish,
    /// `None` until the content header came.
    pub(crate) properties: Option<Properties>,
    /// Bytes of body that are still to come.
    pub(crate) missing: u64,
    pub(crate) body: Pieces,
}

/// A message to be published, complete.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) method: BasicPublish,
    pub(crate) properties: Properties,
    pub(crate) body: Vec<Bytes>,
}

/// How publishes and settlements of a channel count.
#[derive(Debug)]
pub(crate) enum Mode {
    /// At once and unreported.
    Plain,
    /// With publisher confirms.
    Confirm {
        confirms: Confirms,
        /// Publishes before `confirm.select`.
        before: u64,
    },
    /// In transactions.
    Transaction(Box<Transaction>),
}

/// What happens with frames of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChannelState {
    /// They are acted on.
    Open,
    /// An operation is under way: they wait.
    Busy,
    /// `channel.close` was sent: they are dropped until `close-ok`.
    Closing,
}

/// One channel.
#[derive(Debug)]
pub(crate) struct Channel {
    pub(crate) number: u16,
    pub(crate) generation: u16,
    pub(crate) state: ChannelState,
    /// Frames that came while busy.
    pub(crate) backlog: VecDeque<Frame>,
    pub(crate) assembling: Option<Assembling>,
    /// The queue declared last: what an empty queue name means.
    pub(crate) current_queue: Option<String>,
    pub(crate) mode: Mode,
    /// Publishes so far.
    pub(crate) published: u64,
    /// Mandatory messages whose fate is open, by publish number: they may have to be returned.
    pub(crate) mandatory: HashMap<u64, Message>,
    pub(crate) unacked: Unacked,
    pub(crate) delivery_tag: u64,
    /// Consumers by their clients' names.
    pub(crate) consumers: HashMap<ShortStr, ConsumerTag>,
    /// For consumers made from now on; 0: no limit.
    pub(crate) prefetch: u16,
    /// For the channel as a whole; 0: no limit.
    pub(crate) prefetch_global: u16,
    /// Deliveries beyond the channel's limit; not seen by the client yet.
    pub(crate) surplus: VecDeque<Delivery>,
    /// The queue behind `amq.rabbitmq.reply-to`.
    pub(crate) reply_queue: Option<String>,
}

impl Channel {
    pub(crate) fn new(number: u16, generation: u16) -> Channel {
        Channel {
            number,
            generation,
            state: ChannelState::Open,
            backlog: VecDeque::new(),
            assembling: None,
            current_queue: None,
            mode: Mode::Plain,
            published: 0,
            mandatory: HashMap::new(),
            unacked: Unacked::default(),
            delivery_tag: 0,
            consumers: HashMap::new(),
            prefetch: 0,
            prefetch_global: 0,
            surplus: VecDeque::new(),
            reply_queue: None,
        }
    }

    /// The token of publish number `n`.
    pub(crate) fn token(&self, n: u64) -> u64 {
        u64::from(self.generation) << TOKEN_BITS | n
    }

    /// The publish number of a token, if it belongs to this channel and not to a predecessor of its number.
    pub(crate) fn publish_of(&self, token: u64) -> Option<u64> {
        (token >> TOKEN_BITS == u64::from(self.generation)).then_some(token & ((1 << TOKEN_BITS) - 1))
    }

    /// Whether the client may be handed another message that it must settle. As in RabbitMQ what it took by gets does
    /// not count.
    pub(crate) fn has_room(&self) -> bool {
        self.prefetch_global == 0 || self.unacked.delivered() < usize::from(self.prefetch_global)
    }
}
