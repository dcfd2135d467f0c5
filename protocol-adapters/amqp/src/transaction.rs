//! `tx`: publishes and settlements wait for the commit; `commit-ok` is said once everything published is stored.
//! As in RabbitMQ a transaction is not atomic over several queues: a commit that was stored in part closes the
//! channel.

use crate::backend::Link;
use crate::channel::{ChannelState, Message, Mode};
use crate::exception::{Exception, Outcome};
use crate::session::Session;
use crate::unacked::Held;
use longshore_amqp_codec::method::{TxCommitOk, TxRollbackOk, TxSelectOk};
use longshore_broker::{PublishResult, Settlement};
use std::collections::HashSet;

/// Class and method id of `tx.commit`, for the close frame.
pub(crate) const COMMIT: (u16, u16) = (90, 20);

/// What waits for the commit.
#[derive(Debug, Default)]
pub(crate) struct Transaction {
    pub(crate) messages: Vec<Message>,
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

    pub(crate) fn tx_rollback(&mut self, number: u16) -> Outcome<()> {
        let transaction = std::mem::take(self.transaction(number)?);
        let channel = self.channel_mut(number)?;
        for (held, _) in transaction.settled.into_iter().rev() {
            channel.unacked.put_back(held);
        }
        self.say(number, TxRollbackOk {});
        Ok(())
    }

    /// Publishes and settles what was gathered; the channel is busy until every publish has its fate.
    pub(crate) fn tx_commit(&mut self, number: u16) -> Outcome<()> {
        let transaction = std::mem::take(self.transaction(number)?);
        for message in transaction.messages {
            let publish = self.store(number, message, true)?;
            if let Some(n) = publish {
                self.transaction(number)?.open.insert(n);
            }
        }
        for (held, settlement) in transaction.settled {
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
