//! ack, nack, reject, recover and qos; consumer timeouts, where one is configured.

use crate::backend::Link;
use crate::channel::Mode;
use crate::consume::Consumer;
use crate::exception::{Exception, Outcome};
use crate::session::Session;
use crate::unacked::Held;
use longshore_amqp_codec::method::{BasicQos, BasicQosOk, BasicRecoverOk};
use longshore_broker::Settlement;
use longshore_wire::batch::DeadReason;

/// Back to its queue, and its delivery count grows.
pub(crate) const RETURNED: Settlement = Settlement::Returned { counted: true };
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
        if settlement != Settlement::Acked && taken.iter().any(|held| held.stream) {
            return Err(Exception::not_implemented(
                "basic.nack and basic.reject not supported by stream queues",
            ));
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
            && self.consumers.get_mut(&tag).is_some_and(Consumer::settled)
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
            let mut tags: Vec<_> = channel.consumers.values().copied().collect();
            tags.sort_unstable();
            for tag in tags {
                let more = self.consumers.get_mut(&tag).map_or(0, |c| c.limited(qos.prefetch_count));
                if more > 0 {
                    self.link.credit(tag, more, 0);
                }
            }
        } else {
            channel.prefetch = qos.prefetch_count;
        }
        self.say(number, BasicQosOk {});
        self.deliver_surplus(number);
        Ok(())
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
