//! How channels and connections end: by the client, by an exception, by the broker. What they held is out again and
//! what they owned is gone before the client is told so, as in RabbitMQ: programs rely on it when they come back.

use crate::backend::{Link, Operations};
use crate::channel::{Channel, ChannelState, Mode};
use crate::exception::{Exception, Outcome};
use crate::session::{Done, Finished, Phase, Session, backlog_cost};
use crate::settle::{RETURNED, UNSEEN};
use futures_util::future::join_all;
use longshore_amqp_codec::method::ConnectionCloseOk;
use longshore_broker::ConsumerTag;

/// What is left to do when a channel, or the whole connection, goes.
#[derive(Debug, Default)]
struct Leaving {
    /// To be detached; what they hold is delivered again.
    consumers: Vec<ConsumerTag>,
    /// Exclusive queues that go too.
    queues: Vec<String>,
}

impl Leaving {
    fn is_empty(&self) -> bool {
        self.consumers.is_empty() && self.queues.is_empty()
    }

    /// Does it.
    async fn leave<C: Operations>(self, control: C) {
        join_all(self.consumers.into_iter().map(|tag| control.detach(tag, false))).await;
        join_all(self.queues.iter().map(|queue| delete_own(&control, queue))).await;
    }
}

/// Deletes a queue that this connection owns; a name that by now belongs to somebody else is left alone.
async fn delete_own<C: Operations>(control: &C, queue: &str) {
    let owned = control.queue(queue).await.is_ok_and(|info| info.exclusive && info.accessible);
    if owned && let Err(error) = control.delete_queue(queue, false, false).await {
        tracing::debug!(queue, %error, "an exclusive queue is left to the end of its connection");
    }
}

impl<L: Link> Session<L> {
    /// Closes what an exception closes: the channel, or the connection.
    pub(crate) fn raise(&mut self, number: u16, exception: &Exception, method: (u16, u16)) {
        metrics::counter!("longshore_amqp_errors_total", "code" => exception.code.word()).increment(1);
        if number == 0 || exception.code.closes_connection() {
            tracing::info!(user = %self.facts.user, vhost = %self.facts.vhost, channel = number, error = %exception,
                "closing an AMQP connection");
            self.close_connection(exception, method);
            return;
        }
        tracing::debug!(user = %self.facts.user, vhost = %self.facts.vhost, channel = number, error = %exception,
            "closing an AMQP channel");
        let Some((generation, leaving)) = self.empty_channel(number) else { return };
        self.leave_unnoticed(leaving);
        let mut closing = Channel::new(number, generation);
        closing.state = ChannelState::Closing;
        self.channels.insert(number, closing);
        self.say(number, exception.channel_close(method));
    }

    /// Sends `connection.close` and drops everything but its answer from now on.
    pub(crate) fn close_connection(&mut self, exception: &Exception, method: (u16, u16)) {
        if self.phase != Phase::Open {
            return;
        }
        let leaving = self.empty_connection();
        self.leave_unnoticed(leaving);
        self.phase = Phase::Closing;
        self.say(0, exception.connection_close(method));
    }

    fn leave_unnoticed(&mut self, leaving: Leaving) {
        if !leaving.is_empty() {
            let control = self.control.clone();
            self.start_unnoticed(leaving.leave(control));
        }
    }

    /// `channel.close` of the client: its consumers go first, what it held is out again, then `close-ok`.
    pub(crate) fn client_closes(&mut self, number: u16) -> Outcome<()> {
        let Some((generation, leaving)) = self.empty_channel(number) else { return Ok(()) };
        self.channels.insert(number, Channel::new(number, generation));
        let control = self.control.clone();
        self.start(number, async move {
            leaving.leave(control.clone()).await;
            control.settled().await;
            Ok(Done::ChannelEmpty)
        })
    }

    /// Gives everything back that the connection holds. Answers what is left to do.
    fn empty_connection(&mut self) -> Leaving {
        let mut numbers: Vec<u16> = self.channels.keys().copied().collect();
        numbers.sort_unstable();
        let mut all = Leaving::default();
        for (_, leaving) in numbers.into_iter().filter_map(|number| self.empty_channel(number)) {
            all.consumers.extend(leaving.consumers);
            all.queues.extend(leaving.queues);
        }
        all.queues.extend(std::mem::take(&mut self.exclusive));
        all
    }

    /// `connection.close` of the client. As in RabbitMQ its answer means that what it held is out again and its
    /// exclusive queues are gone; here also that what it published has its outcome.
    pub(crate) fn client_leaves(&mut self) {
        let leaving = self.empty_connection();
        self.phase = Phase::Closing;
        let control = self.control.clone();
        self.operations.push(Box::pin(async move {
            leaving.leave(control.clone()).await;
            control.settled().await;
            Finished { channel: 0, generation: 0, method: (0, 0), outcome: Ok(Done::ConnectionEmpty) }
        }));
    }

    /// Answers `connection.close`.
    pub(crate) fn client_left(&mut self) {
        self.say(0, ConnectionCloseOk {});
        self.client_hangs_up = true;
        self.finish();
    }

    pub(crate) fn finish(&mut self) {
        self.phase = Phase::Done;
        self.channels.clear();
        self.consumers.clear();
    }

    /// Takes a channel away: what its client held is given back, its consumers are to be detached. Answers its
    /// generation and what is left to do.
    fn empty_channel(&mut self, number: u16) -> Option<(u16, Leaving)> {
        let mut channel = self.channels.remove(&number)?;
        let waited: usize = channel.backlog.iter().map(backlog_cost).sum();
        self.backlog_bytes = self.backlog_bytes.saturating_sub(waited);
        self.forget_assembling(channel.assembling.take());
        for delivery in &channel.surplus {
            self.link.settle(&delivery.handle, UNSEEN);
        }
        let mut held = Vec::new();
        channel.unacked.take(0, true, &mut held);
        if let Mode::Transaction(transaction) = &mut channel.mode {
            self.transaction_bytes = self.transaction_bytes.saturating_sub(transaction.message_bytes);
            held.extend(transaction.settled.drain(..).map(|(held, _)| held));
        }
        for held in held.iter().filter(|held| !held.stream) {
            // What an attached consumer holds goes back with its detach.
            if held.consumer.is_none_or(|tag| !self.consumers.contains_key(&tag)) {
                self.link.settle(&held.handle, RETURNED);
            }
        }
        let consumers: Vec<ConsumerTag> = channel.consumers.values().copied().collect();
        for tag in &consumers {
            self.consumers.remove(tag);
        }
        let queues = channel.reply_queue.into_iter().collect();
        Some((channel.generation, Leaving { consumers, queues }))
    }
}
