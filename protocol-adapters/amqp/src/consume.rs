//! Consumers: basic.consume, cancel, get, and direct reply-to, whose pseudo-queue is an exclusive queue of its own
//! that any gateway can route a reply to.

use crate::arguments::{consumer_priority, stream_start};
use crate::backend::{Link, Operations};
use crate::exception::{Exception, Outcome};
use crate::operations;
use crate::publish::DIRECT_REPLY_TO;
use crate::session::{Done, Session};
use crate::settle::UNSEEN;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use longshore_amqp_codec::method::{BasicCancel, BasicCancelOk, BasicConsume, BasicConsumeOk, BasicGet};
use longshore_amqp_codec::{ReplyCode, ShortStr};
use longshore_broker::{Attach, ConsumerTag, Right, StartAt};
use std::collections::VecDeque;
use std::time::{SystemTime, UNIX_EPOCH};

/// Messages granted to a consumer without prefetch limit: only bytes bound it.
const MESSAGES_UNLIMITED: u64 = 1 << 40;

/// A consumer that the client knows of.
#[derive(Clone, Debug)]
pub(crate) struct Consumer {
    pub(crate) channel: u16,
    /// The client's name for it.
    pub(crate) name: ShortStr,
    pub(crate) no_ack: bool,
    /// Unsettled messages that it may have by its own limit; 0: no limit.
    pub(crate) prefetch: u16,
    /// Unsettled messages that may be out for it: its own limit or the channel's, whichever is less.
    pub(crate) limit: u64,
    /// Messages granted under a higher limit: so many settlements make no room.
    pub(crate) debt: u64,
    /// It reads a stream by position.
    pub(crate) stream: bool,
    /// It receives the replies of direct reply-to.
    pub(crate) replies: bool,
    /// Bytes to be granted again.
    pub(crate) bytes_due: u64,
}

impl Consumer {
    fn new(channel: u16, name: ShortStr, no_ack: bool, prefetch: u16) -> Consumer {
        Consumer {
            channel,
            name,
            no_ack,
            prefetch,
            limit: 0,
            debt: 0,
            stream: false,
            replies: false,
            bytes_due: 0,
        }
    }

    /// The channel's limit is `prefetch_global` now: answers how many messages more may be granted. What is granted
    /// beyond it would be out for this consumer and with nobody.
    pub(crate) fn limited(&mut self, prefetch_global: u16) -> u64 {
        let limits = [self.prefetch, prefetch_global].into_iter().filter(|limit| *limit > 0 && !self.no_ack);
        let limit = limits.min().map_or(MESSAGES_UNLIMITED, u64::from);
        let before = std::mem::replace(&mut self.limit, limit);
        if limit < before {
            self.debt += before - limit;
            return 0;
        }
        let paid = self.debt.min(limit - before);
        self.debt -= paid;
        limit - before - paid
    }

    /// A message of it was settled: whether another one may be granted.
    pub(crate) fn settled(&mut self) -> bool {
        if self.limit >= MESSAGES_UNLIMITED {
            return false;
        }
        let in_debt = self.debt > 0;
        self.debt = self.debt.saturating_sub(1);
        !in_debt
    }
}

/// A consumer that was attached.
#[derive(Debug)]
pub(crate) struct Consuming {
    pub(crate) tag: ConsumerTag,
    pub(crate) consumer: Consumer,
    pub(crate) nowait: bool,
    /// The queue behind direct reply-to.
    pub(crate) reply_queue: Option<String>,
}

/// A name that no client has chosen.
fn generated_name() -> ShortStr {
    let random: [u8; 16] = rand::random();
    ShortStr::cut(&format!("amq.ctag-{}", URL_SAFE_NO_PAD.encode(random)))
}

fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

impl<L: Link> Session<L> {
    pub(crate) fn consume(&mut self, number: u16, method: BasicConsume) -> Outcome<()> {
        let channel = self.channel_mut(number)?;
        let name =
            if method.consumer_tag.is_empty() { generated_name() } else { detached(&method.consumer_tag) };
        if channel.consumers.contains_key(&name) {
            let text = format!("attempt to reuse consumer tag '{}'", name.lossy());
            return Err(Exception::new(ReplyCode::NotAllowed, text));
        }
        let prefetch = if method.no_ack { 0 } else { channel.prefetch };
        let no_ack = method.no_ack;
        let consumer = Consumer::new(number, name, no_ack, prefetch);
        let tag = ConsumerTag(self.next_consumer);
        self.next_consumer += 1;
        if method.queue.as_str() == Some(DIRECT_REPLY_TO) {
            return self.consume_replies(number, &method, tag, consumer);
        }
        let queue = self.queue_name(number, &method.queue)?;
        self.permit(Right::Read, "queue", &queue)?;
        let attach = Attach {
            tag,
            queue,
            exclusive: method.exclusive,
            priority: consumer_priority(&method.arguments)?,
            start: None,
            credit_messages: 0,
            credit_bytes: 0,
        };
        let facts = self.facts.clone();
        let control = self.control.clone();
        let start_at = stream_start(&method.arguments, wall_ms());
        let consuming = Consuming { tag, consumer, nowait: method.nowait, reply_queue: None };
        self.start(
            number,
            async move { operations::consume(&control, &facts, attach, start_at, consuming).await },
        )
    }

    /// Consumes from `amq.rabbitmq.reply-to`.
    fn consume_replies(
        &mut self,
        number: u16,
        method: &BasicConsume,
        tag: ConsumerTag,
        consumer: Consumer,
    ) -> Outcome<()> {
        if !method.no_ack {
            return Err(Exception::precondition("reply consumer cannot acknowledge"));
        }
        if self.channel_mut(number)?.reply_queue.is_some() {
            return Err(Exception::precondition("reply consumer already set"));
        }
        let facts = self.facts.clone();
        let control = self.control.clone();
        let consuming = Consuming { tag, consumer, nowait: method.nowait, reply_queue: None };
        self.start(number, async move { operations::consume_replies(&control, &facts, consuming).await })
    }

    /// A consumer is attached: tell the client, then let messages come.
    pub(crate) fn consuming(&mut self, number: u16, consuming: Consuming) -> Outcome<()> {
        let Consuming { tag, mut consumer, nowait, reply_queue } = consuming;
        let channel = self.channel_mut(number)?;
        channel.consumers.insert(consumer.name.clone(), tag);
        if reply_queue.is_some() {
            channel.reply_queue = reply_queue;
        }
        let messages = consumer.limited(channel.prefetch_global);
        if !nowait {
            self.say(number, BasicConsumeOk { consumer_tag: consumer.name.clone() });
        }
        self.consumers.insert(tag, consumer);
        self.link.credit(tag, messages, self.facts.config.consumer_window_bytes);
        Ok(())
    }

    pub(crate) fn cancel(&mut self, number: u16, method: BasicCancel) -> Outcome<()> {
        let answer = BasicCancelOk { consumer_tag: detached(&method.consumer_tag) };
        let Some(tag) = self.channel_mut(number)?.consumers.get(&method.consumer_tag).copied() else {
            if !method.nowait {
                self.say(number, answer);
            }
            return Ok(());
        };
        let control = self.control.clone();
        let answer = (!method.nowait).then(|| answer.into());
        self.start(number, async move {
            control.detach(tag, true).await;
            Ok(Done::Cancelled { tag, answer })
        })
    }

    /// A consumer is detached; the channel still owes settlements for what it was handed.
    pub(crate) fn cancelled(
        &mut self,
        number: u16,
        tag: ConsumerTag,
        answer: Option<longshore_amqp_codec::Method>,
    ) {
        self.forget_consumer(tag);
        if let Some(method) = answer {
            self.say(number, method);
        }
    }

    fn forget_consumer(&mut self, tag: ConsumerTag) -> Option<Consumer> {
        let consumer = self.consumers.remove(&tag)?;
        let channel = self.channels.get_mut(&consumer.channel)?;
        channel.consumers.remove(&consumer.name);
        if consumer.replies {
            channel.reply_queue = None;
        }
        let (gone, kept): (VecDeque<_>, VecDeque<_>) =
            channel.surplus.drain(..).partition(|delivery| delivery.handle.tag == Some(tag));
        channel.surplus = kept;
        for delivery in gone.iter().filter(|_| !consumer.stream) {
            self.link.settle(&delivery.handle, UNSEEN);
        }
        Some(consumer)
    }

    /// The broker ended a consumer: its queue is gone.
    pub(crate) fn consumer_ended(&mut self, tag: ConsumerTag) {
        let Some(consumer) = self.forget_consumer(tag) else { return };
        if self.facts.client.consumer_cancel_notify {
            self.say(consumer.channel, BasicCancel { consumer_tag: consumer.name, nowait: true });
        }
    }

    pub(crate) fn get(&mut self, number: u16, method: BasicGet) -> Outcome<()> {
        let queue = self.queue_name(number, &method.queue)?;
        self.permit(Right::Read, "queue", &queue)?;
        let facts = self.facts.clone();
        let control = self.control.clone();
        self.start(number, async move { operations::get(&control, &facts, &queue, method.no_ack).await })
    }
}

/// A short string that keeps no read buffer alive.
fn detached(name: &ShortStr) -> ShortStr {
    ShortStr::new(bytes::Bytes::copy_from_slice(name)).unwrap_or_default()
}

/// The stream position of a consumer, if its queue is one; RabbitMQ's demands on such a consumer.
pub(crate) fn check_stream(
    consumer: &Consumer,
    queue: &str,
    vhost: &str,
    start_at: Outcome<StartAt>,
) -> Outcome<StartAt> {
    if consumer.no_ack {
        return Err(Exception::not_implemented("no_ack=true is not supported by stream queues"));
    }
    if consumer.prefetch == 0 {
        let text =
            format!("consumer prefetch count is not set for stream 'queue '{queue}' in vhost '{vhost}''");
        return Err(Exception::precondition(text));
    }
    start_at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_consumer_is_granted_what_both_limits_allow() {
        let mut consumer = Consumer::new(1, ShortStr::default(), false, 5);
        assert_eq!(consumer.limited(2), 2);
        assert!(consumer.settled());
        assert_eq!(consumer.limited(4), 2, "a higher limit grants the difference");
        assert_eq!(consumer.limited(1), 0);
        assert_eq!(
            [(); 4].map(|()| consumer.settled()),
            [false, false, false, true],
            "three were granted too many"
        );
        assert_eq!(consumer.limited(0), 4, "without the channel's limit its own one holds");
    }

    #[test]
    fn without_limits_only_bytes_bound_a_consumer() {
        for (no_ack, prefetch, global) in [(false, 0, 0), (true, 0, 3)] {
            let mut consumer = Consumer::new(1, ShortStr::default(), no_ack, prefetch);
            assert_eq!(consumer.limited(global), MESSAGES_UNLIMITED);
            assert!(!consumer.settled());
        }
    }
}
