//! ack, nack, reject, recover, qos, and what becomes of a channel's deliveries when it ends.

use crate::backend::{Link, Operations};
use crate::channel::Mode;
use crate::exception::{Exception, Outcome};
use crate::session::{Done, Finished, Session};
use crate::unacked::Held;
use futures_util::future::join_all;
use longshore_amqp_codec::method::{BasicQos, BasicQosOk, BasicRecoverOk};
use longshore_broker::{ConsumerTag, Settlement};
use longshore_wire::batch::DeadReason;

/// Back to its queue, and its delivery count grows.
const RETURNED: Settlement = Settlement::Returned { counted: true };
/// Back to its queue unseen by the client.
pub(crate) const UNSEEN: Settlement = Settlement::Returned { counted: false };

impl<L: Link> Session<L> {
    pub(crate) fn ack(&mut self, number: u16, delivery_tag: u64, multiple: bool) -> Outcome<()> {
        self.settle(number, delivery_tag, multiple, Settlement::Acked)
    }

    pub(crate) fn nack(
        &mut self,
        number: u16,
        delivery_tag: u64,
        multiple: bool,
        requeue: bool,
    ) -> Outcome<()> {
        let settlement = if requeue { RETURNED } else { Settlement::Dead(DeadReason::Rejected) };
        self.settle(number, delivery_tag, multiple, settlement)
    }

    fn settle(
        &mut self,
        number: u16,
        delivery_tag: u64,
        multiple: bool,
        settlement: Settlement,
    ) -> Outcome<()> {
        let mut taken = std::mem::take(&mut self.taken);
        let channel = self.channel_mut(number)?;
        if !channel.unacked.take(delivery_tag, multiple, &mut taken) {
            return Err(Exception::precondition(format!("unknown delivery tag {delivery_tag}")));
        }
        if let Mode::Transaction(transaction) = &mut channel.mode {
            transaction.settled.extend(taken.drain(..).map(|held| (held, settlement)));
        } else {
            for held in taken.drain(..) {
                self.settle_now(&held, settlement);
            }
            self.deliver_surplus(number);
        }
        self.taken = taken;
        Ok(())
    }

    /// Settles one delivery, and gives its consumer the room that it took.
    pub(crate) fn settle_now(&mut self, held: &Held, settlement: Settlement) {
        // A stream is read by position: there is nothing to settle, only credit to give back.
        if !held.stream {
            self.link.settle(&held.handle, settlement);
        }
        if let Some(tag) = held.consumer
            && self.consumers.get(&tag).is_some_and(|consumer| consumer.prefetch > 0)
        {
            self.link.credit(tag, 1, 0);
        }
    }

    pub(crate) fn recover(&mut self, number: u16, requeue: bool, answer: bool) -> Outcome<()> {
        if !requeue {
            return Err(Exception::not_implemented("requeue=false"));
        }
        let mut held = Vec::new();
        self.channel_mut(number)?.unacked.take(0, true, &mut held);
        for held in &held {
            self.settle_now(held, RETURNED);
        }
        if answer {
            self.say(number, BasicRecoverOk {});
        }
        self.deliver_surplus(number);
        Ok(())
    }

    pub(crate) fn qos(&mut self, number: u16, qos: &BasicQos) -> Outcome<()> {
        if qos.prefetch_size != 0 {
            return Err(Exception::not_implemented(format!("prefetch_size!=0 ({})", qos.prefetch_size)));
        }
        let channel = self.channel_mut(number)?;
        if qos.global {
            channel.prefetch_global = qos.prefetch_count;
        } else {
            channel.prefetch = qos.prefetch_count;
        }
        self.say(number, BasicQosOk {});
        self.deliver_surplus(number);
        Ok(())
    }

    /// Takes a channel away: its consumers are detached, what its client held is delivered again. Answers its
    /// generation. With `client_waits` an operation of that channel ends when all of it is done.
    pub(crate) fn empty_channel(&mut self, number: u16, client_waits: bool) -> Option<u16> {
        let mut channel = self.channels.remove(&number)?;
        let waited: usize = channel.backlog.iter().map(|frame| frame.payload.len()).sum();
        self.backlog_bytes = self.backlog_bytes.saturating_sub(waited);
        for delivery in &channel.surplus {
            self.link.settle(&delivery.handle, UNSEEN);
        }
        let mut held = Vec::new();
        channel.unacked.take(0, true, &mut held);
        if let Mode::Transaction(transaction) = &mut channel.mode {
            held.extend(transaction.settled.drain(..).map(|(held, _)| held));
        }
        for held in held.iter().filter(|held| !held.stream) {
            // What an attached consumer holds goes back with its detach.
            if held.consumer.is_none_or(|tag| !self.consumers.contains_key(&tag)) {
                self.link.settle(&held.handle, RETURNED);
            }
        }
        let tags: Vec<ConsumerTag> = channel.consumers.values().copied().collect();
        for tag in &tags {
            self.consumers.remove(tag);
        }
        self.detach_all(number, channel.generation, tags, channel.reply_queue, client_waits);
        Some(channel.generation)
    }

    fn detach_all(
        &mut self,
        number: u16,
        generation: u16,
        tags: Vec<ConsumerTag>,
        reply_queue: Option<String>,
        client_waits: bool,
    ) {
        let method = self.method_id();
        let control = self.control.clone();
        let work = async move {
            join_all(tags.into_iter().map(|tag| control.detach(tag, false))).await;
            if let Some(queue) = reply_queue
                && let Err(error) = control.delete_queue(&queue, false, false).await
            {
                tracing::debug!(queue, %error, "a reply queue goes with its connection");
            }
        };
        if client_waits {
            self.operations.push(Box::pin(async move {
                work.await;
                Finished { channel: number, generation, method, outcome: Ok(Done::ChannelEmpty) }
            }));
        } else {
            self.start_unnoticed(work);
        }
    }

    /// Closes channels whose oldest delivery waits longer than the configured time for its settlement.
    pub(crate) fn check_consumer_timeout(&mut self) {
        let Some(timeout) = self.facts.config.consumer_timeout else { return };
        let now = u64::from(self.now_seconds);
        let late = |held: &Held| u64::from(held.sent_at_seconds) + timeout.as_secs() < now;
        let mut late: Vec<u16> = self
            .channels
            .values()
            .filter(|channel| channel.unacked.oldest().is_some_and(late))
            .map(|channel| channel.number)
            .collect();
        late.sort_unstable();
        for number in late {
            let text = format!(
                "delivery acknowledgement on channel {number} timed out. Timeout value used: {} ms. This timeout \
                 value can be configured, see consumers doc guide to learn more",
                timeout.as_millis()
            );
            self.raise(number, &Exception::precondition(text), (0, 0));
        }
    }
}
