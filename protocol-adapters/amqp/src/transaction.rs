//! `tx`: publishes and settlements wait for the commit; `commit-ok` is said once everything published is stored.
//! As in RabbitMQ a transaction is not atomic over several queues: a commit that was stored in part closes the
//! channel.

use crate::backend::{Link, Operations};
use crate::channel::{ChannelState, Message, Mode};
use crate::exception::{Exception, Outcome};
use crate::session::Session;
use crate::unacked::Held;
use bytes::Bytes;
use longshore_amqp_codec::method::{TxCommitOk, TxRollbackOk, TxSelectOk};
use longshore_broker::{PublishResult, Settlement};
use std::collections::HashSet;

/// Class and method id of `tx.commit`, for the close frame.
pub(crate) const COMMIT: (u16, u16) = (90, 20);

/// What a message costs beside body and properties.
const MESSAGE_OVERHEAD: u64 = 256;

/// What waits for the commit.
#[derive(Debug, Default)]
pub(crate) struct Transaction {
    pub(crate) messages: Vec<Message>,
    /// What `messages` count in the session's `transaction_bytes`.
    pub(crate) message_bytes: u64,
    pub(crate) settled: Vec<(Held, Settlement)>,
    /// While committing: publishes without a fate.
    pub(crate) open: HashSet<u64>,
    /// While committing: something was not stored.
    pub(crate) failed: bool,
}

impl<L: Link> Session<L> {
    pub(crate) fn tx_select(&mut self, number: u16) -> Outcome<()> {
        let channel = self.channel_mut(number)?;
        match channel.mode {
            Mode::Confirm { .. } => {
                return Err(Exception::precondition("cannot switch from confirm to tx mode"));
            }
            Mode::Plain => channel.mode = Mode::Transaction(Box::default()),
            Mode::Transaction(_) => {}
        }
        self.say(number, TxSelectOk {});
        Ok(())
    }

    fn transaction(&mut self, number: u16) -> Outcome<&mut Transaction> {
        match &mut self.channel_mut(number)?.mode {
            Mode::Transaction(transaction) => Ok(transaction),
            _ => Err(Exception::precondition("channel is not transactional")),
        }
    }

    /// A publish waits for the commit. RabbitMQ looks for its exchange now, so that a commit does not fail for it.
    pub(crate) fn tx_publish(&mut self, number: u16, message: Message) -> Outcome<()> {
        let exchange = &message.method.exchange;
        if !exchange.is_empty() {
            let name = self.name("exchange", exchange)?;
            match self.control.exchange(&name) {
                None => return Err(Exception::not_found("exchange", &name, &self.facts.vhost)),
                Some(found) if found.internal => {
                    return Err(Exception::internal_exchange(&name, &self.facts.vhost));
                }
                Some(_) => {}
            }
        }
        let body: usize = message.body.iter().map(Bytes::len).sum();
        let bytes = (body + message.properties.bytes().len()) as u64 + MESSAGE_OVERHEAD;
        let max = self.facts.config.transaction_bytes_max;
        if self.transaction_bytes + bytes > max {
            let text = format!("more than {max} bytes in the transactions of one connection");
            return Err(Exception::precondition(text));
        }
        let transaction = self.transaction(number)?;
        transaction.message_bytes += bytes;
        transaction.messages.push(message);
        self.transaction_bytes += bytes;
        Ok(())
    }

    /// Takes what a channel's transaction gathered; its messages do not count any more.
    fn take_transaction(&mut self, number: u16) -> Outcome<Transaction> {
        let transaction = std::mem::take(self.transaction(number)?);
        self.transaction_bytes = self.transaction_bytes.saturating_sub(transaction.message_bytes);
        Ok(transaction)
    }

    pub(crate) fn tx_rollback(&mut self, number: u16) -> Outcome<()> {
        let transaction = self.take_transaction(number)?;
        let channel = self.channel_mut(number)?;
        for (held, _) in transaction.settled.into_iter().rev() {
            channel.unacked.put_back(held);
        }
        self.say(number, TxRollbackOk {});
        Ok(())
    }

    /// Publishes and settles what was gathered; the channel is busy until every publish has its fate.
    pub(crate) fn tx_commit(&mut self, number: u16) -> Outcome<()> {
        let Transaction { messages, settled, .. } = self.take_transaction(number)?;
        for message in messages {
            match self.store(number, message, true) {
                Ok(Some(n)) => {
                    self.transaction(number)?.open.insert(n);
                }
                Ok(None) => {}
                Err(exception) => {
                    // The channel closes and gives back what it holds: this too.
                    self.transaction(number)?.settled = settled;
                    return Err(exception);
                }
            }
        }
        for (held, settlement) in settled {
            self.settle_now(&held, settlement);
        }
        if self.transaction(number)?.open.is_empty() {
            self.say(number, TxCommitOk {});
        } else {
            self.channel_mut(number)?.state = ChannelState::Busy;
        }
        Ok(())
    }

    /// The fate of a publish of a commit. Errors: the last one came and some were not stored.
    pub(crate) fn tx_published(&mut self, number: u16, publish: u64, result: &PublishResult) -> Outcome<()> {
        let transaction = self.transaction(number)?;
        if !transaction.open.remove(&publish) {
            return Ok(());
        }
        transaction.failed |= matches!(result, PublishResult::Refused(_));
        if !transaction.open.is_empty() {
            return Ok(());
        }
        if std::mem::take(&mut transaction.failed) {
            return Err(Exception::precondition("partial tx completion"));
        }
        self.say(number, TxCommitOk {});
        self.resume(number);
        Ok(())
    }
}
