//! Publishing: method, content header and body become one message, checked as RabbitMQ checks it and handed to the
//! broker; its fate comes back as a return, a confirm, or the end of a commit.

use crate::backend::Link;
use crate::channel::{Assembling, Message, Mode};
use crate::confirms::Confirms;
use crate::exception::{Exception, Outcome};
use crate::headers::MessageHeaders;
use crate::pieces::Pieces;
use crate::session::Session;
use bytes::Bytes;
use longshore_amqp_codec::content::Property;
use longshore_amqp_codec::method::{BasicPublish, BasicReturn, ConfirmSelectOk};
use longshore_amqp_codec::{
    BASIC_CLASS, ContentHeader, Properties, ReplyCode, ShortStr, TableBuilder, Value,
};
use longshore_broker::{Publish, PublishResult, Published, Right, Routed};
use longshore_message::amqp;
use longshore_wire::record::Form;

/// Messages of the largest size whose bodies one connection may have under way, over all its channels.
const ASSEMBLING_MESSAGES_MAX: u64 = 2;
/// The name that clients give as reply-to and consume from without declaring it.
pub(crate) const DIRECT_REPLY_TO: &str = "amq.rabbitmq.reply-to";

impl<L: Link> Session<L> {
    pub(crate) fn confirm_select(&mut self, number: u16, nowait: bool) -> Outcome<()> {
        let channel = self.channel_mut(number)?;
        match channel.mode {
            Mode::Transaction(_) => {
                return Err(Exception::precondition("cannot switch from tx to confirm mode"));
            }
            Mode::Plain => {
                channel.mode = Mode::Confirm { confirms: Confirms::new(), before: channel.published }
            }
            Mode::Confirm { .. } => {}
        }
        if !nowait {
            self.say(number, ConfirmSelectOk {});
        }
        Ok(())
    }

    /// `basic.publish`: the content follows.
    pub(crate) fn publish_begins(&mut self, number: u16, method: BasicPublish) -> Outcome<()> {
        let channel = self.channel_mut(number)?;
        channel.assembling =
            Some(Assembling { method, properties: None, missing: 0, body: Pieces::default() });
        Ok(())
    }

    /// The content header.
    pub(crate) fn content_header(&mut self, number: u16, payload: Bytes) -> Outcome<()> {
        let max = self.facts.config.message_bytes_max;
        let channel = self.channel_mut(number)?;
        let Some(assembling) = channel.assembling.as_mut() else {
            return Err(Exception::unexpected("expected method frame, got non method frame instead"));
        };
        if assembling.properties.is_some() {
            return Err(Exception::unexpected("expected content body, got non content body frame instead"));
        }
        let header = ContentHeader::decode(payload)?;
        if header.class_id != BASIC_CLASS {
            let text = format!(
                "expected content header for class 60, got one for class {} instead",
                header.class_id
            );
            return Err(Exception::unexpected(text));
        }
        if header.body_bytes > max {
            return Err(Exception::too_large(header.body_bytes, max));
        }
        assembling.missing = header.body_bytes;
        assembling.properties = Some(header.properties);
        if header.body_bytes == 0 { self.content_complete(number) } else { Ok(()) }
    }

    /// A piece of the body.
    pub(crate) fn content_body(&mut self, number: u16, payload: Bytes) -> Outcome<()> {
        let channel = self.channel_mut(number)?;
        let Some(assembling) = channel.assembling.as_mut() else {
            return Err(Exception::unexpected("expected method frame, got non method frame instead"));
        };
        if assembling.properties.is_none() {
            return Err(Exception::unexpected(
                "expected content header for class 60, got non content header frame instead",
            ));
        }
        let bytes = payload.len() as u64;
        assembling.missing = assembling
            .missing
            .checked_sub(bytes)
            .ok_or_else(|| Exception::frame("body is longer than its content header announced"))?;
        let complete = assembling.missing == 0;
        let before = assembling.body.cost();
        assembling.body.push(payload, complete);
        let grown = assembling.body.cost() - before;
        self.assembling_bytes += grown;
        if complete {
            return self.content_complete(number);
        }
        let max = self.facts.config.message_bytes_max.saturating_mul(ASSEMBLING_MESSAGES_MAX);
        if self.assembling_bytes > max {
            let text = format!("more than {max} bytes of unfinished messages on one connection");
            return Err(Exception::new(ReplyCode::ResourceError, text));
        }
        Ok(())
    }

    /// A body is complete, or given up: its bytes do not count any more.
    pub(crate) fn forget_assembling(&mut self, assembling: Option<Assembling>) {
        let cost = assembling.map_or(0, |assembling| assembling.body.cost());
        self.assembling_bytes = self.assembling_bytes.saturating_sub(cost);
    }

    fn content_complete(&mut self, number: u16) -> Outcome<()> {
        let channel = self.channel_mut(number)?;
        let Some(Assembling { method, properties: Some(properties), body, .. }) = channel.assembling.take()
        else {
            return Ok(());
        };
        self.assembling_bytes = self.assembling_bytes.saturating_sub(body.cost());
        let message = self.checked(number, Message { method, properties, body: body.finish() })?;
        let channel = self.channel_mut(number)?;
        if let Mode::Transaction(_) = channel.mode {
            return self.tx_publish(number, message);
        }
        let report = matches!(channel.mode, Mode::Confirm { .. });
        self.store(number, message, report).map(|_| ())
    }

    /// RabbitMQ's checks of a publish, in its order; answers the message as it is stored.
    fn checked(&mut self, number: u16, mut message: Message) -> Outcome<Message> {
        let exchange = message.method.exchange.as_str();
        let exchange = exchange.ok_or_else(|| {
            Exception::not_found("exchange", &message.method.exchange.lossy(), &self.facts.vhost)
        })?;
        let resource = if exchange.is_empty() { "amq.default" } else { exchange };
        self.permit(Right::Write, "exchange", resource)?;
        if let Some(user) = message.properties.raw(Property::UserId)
            && user != self.facts.user.as_bytes()
        {
            let text = format!(
                "user_id property set to '{}' but authenticated user was '{}'",
                String::from_utf8_lossy(user),
                self.facts.user
            );
            return Err(Exception::precondition(text));
        }
        ttl_ms(&message.properties)?;
        if message.method.immediate {
            return Err(Exception::not_implemented("immediate=true"));
        }
        if message.properties.has(Property::ReplyTo)
            && message.properties.raw(Property::ReplyTo) == Some(DIRECT_REPLY_TO.as_bytes())
        {
            let Some(queue) = &self.channel_mut(number)?.reply_queue else {
                return Err(Exception::precondition("fast reply consumer does not exist"));
            };
            message.properties = message.properties.replace_short(Property::ReplyTo, &ShortStr::cut(queue));
        }
        Ok(message)
    }

    /// Hands a message to the broker. With `report`, or if it is mandatory, its fate is heard of later: the answer
    /// is its publish number then, `None` if its fate is decided already.
    pub(crate) fn store(&mut self, number: u16, mut message: Message, report: bool) -> Outcome<Option<u64>> {
        let ttl_ms = ttl_ms(&message.properties)?;
        let copies = Copies::of(&message.properties)?;
        // Neither a queue nor a return shows to whom blind copies went.
        if let Some(without_blind) = copies.without_blind {
            message.properties = without_blind;
        }
        self.scratch.clear();
        amqp::encode_properties(&message.method.exchange, &message.properties, &mut self.scratch);
        let channel = self
            .channels
            .get_mut(&number)
            .ok_or_else(|| Exception::new(ReplyCode::ChannelError, "expected 'channel.open'"))?;
        channel.published += 1;
        let publish_number = channel.published;
        let confirmed = if let Mode::Confirm { confirms, .. } = &mut channel.mode {
            confirms.published();
            true
        } else {
            false
        };
        let mandatory = message.method.mandatory;
        let more_keys: Vec<&[u8]> = copies.keys.iter().map(|key| &key[..]).collect();
        let publish = Publish {
            channel: number,
            token: channel.token(publish_number),
            report: report || mandatory,
            exchange: message.method.exchange.as_str().unwrap_or_default(),
            routing_key: &message.method.routing_key,
            more_keys: &more_keys,
            headers: &MessageHeaders(message.properties.headers()),
            form: Form::Amqp,
            properties: &self.scratch,
            body: &message.body,
            priority: message.properties.priority().unwrap_or(0),
            ttl_ms,
            delay_ms: 0,
            client_time_ms: amqp::client_time_ms(&message.properties),
            key_hash: 0,
        };
        let routed = self.link.publish(&publish);
        match routed
            .map_err(|error| Exception::from_publish(error, &message.method.exchange, &self.facts.vhost))?
        {
            Routed::Queued => {
                if mandatory && let Some(channel) = self.channels.get_mut(&number) {
                    channel.mandatory.insert(publish_number, message);
                }
                Ok(Some(publish_number).filter(|_| report || mandatory))
            }
            Routed::Unroutable => {
                if mandatory {
                    self.say_return(number, &message);
                }
                if confirmed {
                    self.confirm(number, publish_number, true);
                }
                Ok(None)
            }
        }
    }

    fn confirm(&mut self, number: u16, publish: u64, stored: bool) {
        if let Some(channel) = self.channels.get_mut(&number)
            && let Mode::Confirm { confirms, before } = &mut channel.mode
            && let Some(sequence) = publish.checked_sub(*before)
        {
            confirms.resolved(sequence, stored);
            self.unsaid.insert(number);
        }
    }

    fn say_return(&mut self, number: u16, message: &Message) {
        metrics::counter!("longshore_amqp_returned_total").increment(1);
        let method = BasicReturn {
            reply_code: ReplyCode::NoRoute.code(),
            reply_text: ShortStr::from_static(ReplyCode::NoRoute.word()),
            exchange: message.method.exchange.clone(),
            routing_key: message.method.routing_key.clone(),
        };
        let properties = message.properties.bytes();
        self.out.put_content(number, &method.into(), properties, &message.body, self.facts.frame_bytes_max);
    }

    /// Fates of publishes.
    pub(crate) fn published(&mut self, fates: Vec<Published>) {
        for fate in fates {
            let number = fate.channel;
            let Some(channel) = self.channels.get_mut(&number) else { continue };
            let Some(publish) = channel.publish_of(fate.token) else { continue };
            let mandatory = channel.mandatory.remove(&publish);
            if fate.result == PublishResult::Unroutable
                && let Some(message) = mandatory
            {
                self.say_return(number, &message);
            }
            let stored = !matches!(fate.result, PublishResult::Refused(_));
            let in_transaction = self
                .channels
                .get(&number)
                .is_some_and(|channel| matches!(channel.mode, Mode::Transaction(_)));
            if !in_transaction {
                self.confirm(number, publish, stored);
            } else if let Err(exception) = self.tx_published(number, publish, &fate.result) {
                self.resume(number);
                self.raise(number, &exception, crate::transaction::COMMIT);
            }
        }
        self.run_resumed();
    }
}

/// The expiration as a number.
fn ttl_ms(properties: &Properties) -> Outcome<Option<u64>> {
    amqp::ttl_ms(properties).map_err(|_| {
        let text = String::from_utf8_lossy(properties.expiration().unwrap_or_default()).into_owned();
        Exception::precondition(format!("invalid expiration '{text}': not a number of milliseconds"))
    })
}

/// What the CC and BCC headers ask for.
#[derive(Debug, Default)]
struct Copies {
    /// More routing keys.
    keys: Vec<Bytes>,
    /// The properties without BCC, if there was one.
    without_blind: Option<Properties>,
}

impl Copies {
    fn of(properties: &Properties) -> Outcome<Copies> {
        let Some(headers) = properties.headers() else { return Ok(Copies::default()) };
        let mut copies = Copies::default();
        let mut blind = false;
        for (name, value) in headers.iter() {
            if name != b"CC" && name != b"BCC" {
                continue;
            }
            let Value::Array(array) = value else {
                let text =
                    format!("header '{}' is not an array of routing keys", String::from_utf8_lossy(name));
                return Err(Exception::precondition(text));
            };
            blind |= name == b"BCC";
            copies.keys.extend(array.iter().filter_map(|item| match item {
                Value::Text(key) => Some(Bytes::copy_from_slice(key)),
                _ => None,
            }));
        }
        if blind {
            let mut kept = TableBuilder::new();
            headers
                .iter()
                .filter(|(name, _)| *name != b"BCC")
                .for_each(|(name, value)| kept.push(name, value));
            copies.without_blind = Some(properties.with_headers(Some(&kept.build())));
        }
        Ok(copies)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use longshore_amqp_codec::content::PropertiesBuilder;

    #[test]
    fn blind_copies_are_routed_and_not_stored() {
        let headers = TableBuilder::new()
            .put("before", Value::I8(1))
            .put_texts("BCC", &["hidden"])
            .put_texts("CC", &["seen", "too"])
            .build();
        let properties = PropertiesBuilder::new().headers(&headers).build();
        let copies = Copies::of(&properties).unwrap();
        assert_eq!(copies.keys, [&b"hidden"[..], b"seen", b"too"]);
        let stored = copies.without_blind.unwrap();
        let names: Vec<&[u8]> = stored.headers().unwrap().iter().map(|(name, _)| name).collect();
        assert_eq!(names, [&b"before"[..], b"CC"]);
    }

    #[test]
    fn copies_must_be_arrays() {
        let headers = TableBuilder::new().put("CC", Value::Text(b"key")).build();
        let properties = PropertiesBuilder::new().headers(&headers).build();
        assert_eq!(Copies::of(&properties).unwrap_err().code.code(), 406);
    }
}
