//! What one frame of a storage node means for the connections, gathered, so that each is told once per frame.

use crate::api::*;
use crate::fan::PublishTicket;
use std::collections::HashMap;

/// How many settlements (flushes, by log) are asked for, or done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settlements {
    /// Those that only end messages.
    pub acked: u64,
    /// Those after which messages are to be had again.
    pub returned: u64,
}

impl Settlements {
    /// One more.
    pub fn count(&mut self, acked: bool) {
        if acked {
            self.acked += 1;
        } else {
            self.returned += 1;
        }
    }
}

/// For one connection.
#[derive(Debug, Default)]
pub(crate) struct Letter {
    /// Fates of publishes.
    pub published: Vec<Published>,
    /// Messages.
    pub deliveries: Vec<Delivery>,
    /// Consumers that ended.
    pub cancelled: Vec<ConsumerTag>,
    /// How many of its publishes were resolved.
    pub done: u64,
    /// How many of its settlements were.
    pub settled: Settlements,
    /// Bytes that are no longer pending.
    pub bytes: usize,
    /// The fate of the publish whose time is being taken is known; whether it was stored.
    pub timed: Option<bool>,
}

/// For all.
#[derive(Debug, Default)]
pub(crate) struct Mail {
    letters: HashMap<ConnectionId, Letter>,
}

impl Mail {
    /// The letter to a connection.
    pub fn to(&mut self, connection: ConnectionId) -> &mut Letter {
        self.letters.entry(connection).or_default()
    }

    /// The fate of a publish, or of its part.
    pub fn resolve(&mut self, ticket: &PublishTicket, result: PublishResult) {
        let letter = self.to(ticket.connection);
        letter.done += 1;
        letter.bytes += ticket.bytes as usize;
        if result == PublishResult::Unroutable {
            metrics::counter!("longshore_gateway_unroutable_total").increment(1);
        }
        if ticket.timed {
            letter.timed = Some(result == PublishResult::Stored);
        }
        letter.published.extend(ticket.resolve(result));
    }

    /// All letters, in no order.
    pub fn into_letters(self) -> impl Iterator<Item = (ConnectionId, Letter)> {
        self.letters.into_iter()
    }
}
