//! Deliveries: a stored message becomes `basic.deliver` (or `get-ok`), content header and body, its properties byte
//! for byte as published, but for the headers that RabbitMQ adds to returned messages and those of streams.

use crate::backend::Link;
use crate::exception::Outcome;
use crate::session::{Session, deliver_method};
use crate::settle::UNSEEN;
use crate::unacked::Held;
use bytes::Bytes;
use longshore_amqp_codec::method::{BasicGetEmpty, BasicGetOk, ConnectionBlocked, ConnectionUnblocked};
use longshore_amqp_codec::{Properties, ShortStr, TableBuilder, Value};
use longshore_broker::{ConsumerTag, Delivery, Event, Got, Settlement};
use longshore_message::amqp::Stored;
use longshore_wire::record::Form;

impl<L: Link> Session<L> {
    /// Takes an event of the broker; all but `Close`, which is the connection task's.
    pub(crate) fn event(&mut self, event: Event) {
        match event {
            Event::Published(fates) => self.published(fates),
            Event::Deliveries(deliveries) => {
                deliveries.into_iter().for_each(|delivery| self.deliver(delivery))
            }
            Event::Cancelled { tag } => self.consumer_ended(tag),
            Event::Blocked(reason) => self.set_blocked(reason),
            Event::Close(_) => {}
        }
    }

    /// Storage refuses publishes, or takes them again.
    pub(crate) fn set_blocked(&mut self, reason: Option<String>) {
        let was = std::mem::replace(&mut self.blocked, reason.is_some());
        if was == self.blocked || !self.facts.client.connection_blocked {
            return;
        }
        match reason {
            Some(reason) => self.say(0, ConnectionBlocked { reason: ShortStr::cut(&reason) }),
            None => self.say(0, ConnectionUnblocked {}),
        }
    }

    fn deliver(&mut self, delivery: Delivery) {
        let consumer = delivery.handle.tag.and_then(|tag| Some((tag, self.consumers.get(&tag)?)));
        let Some((tag, consumer)) = consumer else {
            // Its consumer was cancelled, or its channel closed, while it was on its way.
            self.link.settle(&delivery.handle, UNSEEN);
            return;
        };
        let (number, no_ack) = (consumer.channel, consumer.no_ack);
        if !no_ack
            && let Some(channel) = self.channels.get_mut(&number)
            && (!channel.surplus.is_empty() || !channel.has_room())
        {
            channel.surplus.push_back(delivery);
            return;
        }
        self.hand_over(tag, delivery);
    }

    /// Hands over what waited for room under the channel's limit.
    pub(crate) fn deliver_surplus(&mut self, number: u16) {
        while let Some(channel) = self.channels.get_mut(&number).filter(|channel| channel.has_room()) {
            let Some(delivery) = channel.surplus.pop_front() else { return };
            match delivery.handle.tag {
                Some(tag) if self.consumers.contains_key(&tag) => self.hand_over(tag, delivery),
                _ => self.link.settle(&delivery.handle, UNSEEN),
            }
        }
    }

    fn hand_over(&mut self, tag: ConsumerTag, delivery: Delivery) {
        let Some(consumer) = self.consumers.get_mut(&tag) else { return };
        let Some(channel) = self.channels.get_mut(&consumer.channel) else { return };
        channel.delivery_tag += 1;
        let mut method = deliver_method(consumer.name.clone(), channel.delivery_tag, delivery.redelivered);
        let (number, no_ack, stream) = (consumer.channel, consumer.no_ack, consumer.stream);
        if !no_ack {
            channel.unacked.push(Held {
                delivery_tag: channel.delivery_tag,
                handle: delivery.handle,
                consumer: Some(tag),
                stream,
                sent_at_seconds: self.now_seconds,
            });
        } else if !stream {
            self.link.settle(&delivery.handle, Settlement::Acked);
        }
        consumer.bytes_due += delivery.charged_bytes;
        if consumer.bytes_due >= self.facts.config.consumer_window_bytes / 4 {
            self.link.credit(tag, 0, std::mem::take(&mut consumer.bytes_due));
        }
        let (exchange, routing_key, properties) = shape(&delivery, stream);
        (method.exchange, method.routing_key) = (exchange, routing_key);
        let body = delivery.body.slices();
        self.out.put_content(number, &method.into(), properties.bytes(), body, self.facts.frame_bytes_max);
    }

    /// The answer to a get.
    pub(crate) fn got(&mut self, number: u16, got: Option<Got>, no_ack: bool) -> Outcome<()> {
        let Some(Got { delivery, ready }) = got else {
            self.say(number, BasicGetEmpty::default());
            return Ok(());
        };
        let sent_at_seconds = self.now_seconds;
        let channel = self.channel_mut(number)?;
        channel.delivery_tag += 1;
        let delivery_tag = channel.delivery_tag;
        if no_ack {
            self.link.settle(&delivery.handle, Settlement::Acked);
        } else {
            let handle = delivery.handle;
            channel.unacked.push(Held {
                delivery_tag,
                handle,
                consumer: None,
                stream: false,
                sent_at_seconds,
            });
        }
        let (exchange, routing_key, properties) = shape(&delivery, false);
        let message_count = u32::try_from(ready).unwrap_or(u32::MAX);
        let redelivered = delivery.redelivered;
        let method = BasicGetOk { delivery_tag, redelivered, exchange, routing_key, message_count };
        let body = delivery.body.slices();
        self.out.put_content(number, &method.into(), properties.bytes(), body, self.facts.frame_bytes_max);
        Ok(())
    }
}

/// Exchange, routing key and properties as the client sees them.
fn shape(delivery: &Delivery, stream: bool) -> (ShortStr, ShortStr, Properties) {
    let stored = match delivery.form {
        Form::Amqp => Stored::decode(delivery.properties.clone()).unwrap_or_else(|error| {
            tracing::error!(log = %delivery.handle.log, offset = %delivery.handle.offset, %error,
                "a stored message's properties cannot be read; it is delivered without them");
            plain()
        }),
        _ => plain(),
    };
    let mut properties = stored.properties;
    if delivery.returns > 0 {
        properties = with_number(&properties, "x-delivery-count", i64::from(delivery.returns));
    }
    if stream {
        properties = with_number(&properties, "x-stream-offset", delivery.handle.offset.0 as i64);
    }
    let key = delivery.routing_key.clone();
    let cut = |key: Bytes| ShortStr::cut(&String::from_utf8_lossy(&key));
    let routing_key = ShortStr::new(key.clone()).unwrap_or_else(|| cut(key));
    (stored.exchange, routing_key, properties)
}

fn plain() -> Stored {
    Stored { exchange: ShortStr::default(), properties: Properties::default() }
}

/// The properties with one header set, in place of one of that name.
fn with_number(properties: &Properties, name: &str, number: i64) -> Properties {
    let mut headers = TableBuilder::new();
    let before = properties.headers();
    for (key, value) in before.iter().flat_map(|headers| headers.iter()) {
        if key != name.as_bytes() {
            headers.push(key, value);
        }
    }
    properties.with_headers(Some(&headers.put(name, Value::I64(number)).build()))
}
