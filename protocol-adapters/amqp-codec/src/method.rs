//! The method table of AMQP 0-9-1 with RabbitMQ's extensions. One line a method: everything else (struct, decoder,
//! encoder, name) comes from it. Fields keep the names of the specification; `ticket`, `out_of_band` and the like
//! are reserved there and kept as they came.

use crate::fields::{Field, Reader, Writer};
use crate::{CodecError, ShortStr, Table};
use bytes::{BufMut, Bytes, BytesMut};

#[cfg(test)]
mod tests;

macro_rules! methods {
    ($( $class:literal, $method:literal $text:literal $name:ident { $( $field:ident: $ty:ty ),* } )*) => {
        $(
            #[doc = concat!("`", $text, "`")]
            #[derive(Clone, Debug, PartialEq, Eq, Default)]
            pub struct $name {
                $(
                    #[doc = concat!("`", stringify!($field), "` of `", $text, "` in the specification.")]
                    pub $field: $ty,
                )*
            }

            impl From<$name> for Method {
                fn from(method: $name) -> Method {
                    Method::$name(method)
                }
            }
        )*

        /// Any method.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Method {
            $( #[doc = concat!("`", $text, "`")] $name($name), )*
        }

        impl Method {
            /// Every method's class id, method id and name, in the order of the table.
            pub const ALL: &'static [(u16, u16, &'static str)] = &[$( ($class, $method, $text), )*];

            /// Reads a method frame's payload. Strings and tables share its buffer.
            pub fn decode(payload: Bytes) -> Result<Method, CodecError> {
                let mut r = Reader::new(payload);
                let (class, method) = (u16::read(&mut r)?, u16::read(&mut r)?);
                let decoded = match (class, method) {
                    $( ($class, $method) => Method::$name($name { $( $field: <$ty>::read(&mut r)?, )* }), )*
                    _ => return Err(CodecError::UnknownMethod { class, method }),
                };
                r.finish()?;
                Ok(decoded)
            }

            /// Appends the payload of a method frame.
            pub fn encode(&self, out: &mut BytesMut) {
                match self {
                    $(
                        Method::$name(m) => {
                            out.put_u16($class);
                            out.put_u16($method);
                            let $name { $( $field, )* } = m;
                            #[allow(unused_mut, unused_variables, reason = "methods without arguments")]
                            let mut w = Writer::new(out);
                            $( $field.write(&mut w); )*
                        }
                    )*
                }
            }

            /// A method of the table with random fields, for tests.
            #[cfg(test)]
            fn sample(id: (u16, u16), random: &mut tests::Random) -> Option<Method> {
                match id {
                    $( ($class, $method) => Some(Method::$name($name {
                        $( $field: tests::Sample::sample(stringify!($field), random), )*
                    })), )*
                    _ => None,
                }
            }

            /// Class and method id.
            pub fn id(&self) -> (u16, u16) {
                match self { $( Method::$name(_) => ($class, $method), )* }
            }

            /// The name of the specification, for example `queue.declare`.
            pub fn name(&self) -> &'static str {
                match self { $( Method::$name(_) => $text, )* }
            }
        }
    };
}

methods! {
    10, 10 "connection.start" ConnectionStart {
        version_major: u8, version_minor: u8, server_properties: Table, mechanisms: Bytes, locales: Bytes }
    10, 11 "connection.start-ok" ConnectionStartOk {
        client_properties: Table, mechanism: ShortStr, response: Bytes, locale: ShortStr }
    10, 20 "connection.secure" ConnectionSecure { challenge: Bytes }
    10, 21 "connection.secure-ok" ConnectionSecureOk { response: Bytes }
    10, 30 "connection.tune" ConnectionTune { channel_max: u16, frame_max: u32, heartbeat: u16 }
    10, 31 "connection.tune-ok" ConnectionTuneOk { channel_max: u16, frame_max: u32, heartbeat: u16 }
    10, 40 "connection.open" ConnectionOpen { virtual_host: ShortStr, capabilities: ShortStr, insist: bool }
    10, 41 "connection.open-ok" ConnectionOpenOk { known_hosts: ShortStr }
    10, 50 "connection.close" ConnectionClose {
        reply_code: u16, reply_text: ShortStr, class_id: u16, method_id: u16 }
    10, 51 "connection.close-ok" ConnectionCloseOk {}
    10, 60 "connection.blocked" ConnectionBlocked { reason: ShortStr }
    10, 61 "connection.unblocked" ConnectionUnblocked {}
    10, 70 "connection.update-secret" ConnectionUpdateSecret { new_secret: Bytes, reason: ShortStr }
    10, 71 "connection.update-secret-ok" ConnectionUpdateSecretOk {}
    20, 10 "channel.open" ChannelOpen { out_of_band: ShortStr }
    20, 11 "channel.open-ok" ChannelOpenOk { channel_id: Bytes }
    20, 20 "channel.flow" ChannelFlow { active: bool }
    20, 21 "channel.flow-ok" ChannelFlowOk { active: bool }
    20, 40 "channel.close" ChannelClose {
        reply_code: u16, reply_text: ShortStr, class_id: u16, method_id: u16 }
    20, 41 "channel.close-ok" ChannelCloseOk {}
    30, 10 "access.request" AccessRequest {
        realm: ShortStr, exclusive: bool, passive: bool, active: bool, write: bool, read: bool }
    30, 11 "access.request-ok" AccessRequestOk { ticket: u16 }
    40, 10 "exchange.declare" ExchangeDeclare {
        ticket: u16, exchange: ShortStr, kind: ShortStr, passive: bool, durable: bool, auto_delete: bool,
        internal: bool, nowait: bool, arguments: Table }
    40, 11 "exchange.declare-ok" ExchangeDeclareOk {}
    40, 20 "exchange.delete" ExchangeDelete { ticket: u16, exchange: ShortStr, if_unused: bool, nowait: bool }
    40, 21 "exchange.delete-ok" ExchangeDeleteOk {}
    40, 30 "exchange.bind" ExchangeBind {
        ticket: u16, destination: ShortStr, source: ShortStr, routing_key: ShortStr, nowait: bool,
        arguments: Table }
    40, 31 "exchange.bind-ok" ExchangeBindOk {}
    40, 40 "exchange.unbind" ExchangeUnbind {
        ticket: u16, destination: ShortStr, source: ShortStr, routing_key: ShortStr, nowait: bool,
        arguments: Table }
    40, 51 "exchange.unbind-ok" ExchangeUnbindOk {}
    50, 10 "queue.declare" QueueDeclare {
        ticket: u16, queue: ShortStr, passive: bool, durable: bool, exclusive: bool, auto_delete: bool,
        nowait: bool, arguments: Table }
    50, 11 "queue.declare-ok" QueueDeclareOk { queue: ShortStr, message_count: u32, consumer_count: u32 }
    50, 20 "queue.bind" QueueBind {
        ticket: u16, queue: ShortStr, exchange: ShortStr, routing_key: ShortStr, nowait: bool, arguments: Table }
    50, 21 "queue.bind-ok" QueueBindOk {}
    50, 30 "queue.purge" QueuePurge { ticket: u16, queue: ShortStr, nowait: bool }
    50, 31 "queue.purge-ok" QueuePurgeOk { message_count: u32 }
    50, 40 "queue.delete" QueueDelete {
        ticket: u16, queue: ShortStr, if_unused: bool, if_empty: bool, nowait: bool }
    50, 41 "queue.delete-ok" QueueDeleteOk { message_count: u32 }
    50, 50 "queue.unbind" QueueUnbind {
        ticket: u16, queue: ShortStr, exchange: ShortStr, routing_key: ShortStr, arguments: Table }
    50, 51 "queue.unbind-ok" QueueUnbindOk {}
    60, 10 "basic.qos" BasicQos { prefetch_size: u32, prefetch_count: u16, global: bool }
    60, 11 "basic.qos-ok" BasicQosOk {}
    60, 20 "basic.consume" BasicConsume {
        ticket: u16, queue: ShortStr, consumer_tag: ShortStr, no_local: bool, no_ack: bool, exclusive: bool,
        nowait: bool, arguments: Table }
    60, 21 "basic.consume-ok" BasicConsumeOk { consumer_tag: ShortStr }
    60, 30 "basic.cancel" BasicCancel { consumer_tag: ShortStr, nowait: bool }
    60, 31 "basic.cancel-ok" BasicCancelOk { consumer_tag: ShortStr }
    60, 40 "basic.publish" BasicPublish {
        ticket: u16, exchange: ShortStr, routing_key: ShortStr, mandatory: bool, immediate: bool }
    60, 50 "basic.return" BasicReturn {
        reply_code: u16, reply_text: ShortStr, exchange: ShortStr, routing_key: ShortStr }
    60, 60 "basic.deliver" BasicDeliver {
        consumer_tag: ShortStr, delivery_tag: u64, redelivered: bool, exchange: ShortStr, routing_key: ShortStr }
    60, 70 "basic.get" BasicGet { ticket: u16, queue: ShortStr, no_ack: bool }
    60, 71 "basic.get-ok" BasicGetOk {
        delivery_tag: u64, redelivered: bool, exchange: ShortStr, routing_key: ShortStr, message_count: u32 }
    60, 72 "basic.get-empty" BasicGetEmpty { cluster_id: ShortStr }
    60, 80 "basic.ack" BasicAck { delivery_tag: u64, multiple: bool }
    60, 90 "basic.reject" BasicReject { delivery_tag: u64, requeue: bool }
    60, 100 "basic.recover-async" BasicRecoverAsync { requeue: bool }
    60, 110 "basic.recover" BasicRecover { requeue: bool }
    60, 111 "basic.recover-ok" BasicRecoverOk {}
    60, 120 "basic.nack" BasicNack { delivery_tag: u64, multiple: bool, requeue: bool }
    85, 10 "confirm.select" ConfirmSelect { nowait: bool }
    85, 11 "confirm.select-ok" ConfirmSelectOk {}
    90, 10 "tx.select" TxSelect {}
    90, 11 "tx.select-ok" TxSelectOk {}
    90, 20 "tx.commit" TxCommit {}
    90, 21 "tx.commit-ok" TxCommitOk {}
    90, 30 "tx.rollback" TxRollback {}
    90, 31 "tx.rollback-ok" TxRollbackOk {}
}
