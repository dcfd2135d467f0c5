//! Channel and connection exceptions, worded as RabbitMQ words them: clients and people match on these texts.

use longshore_amqp_codec::method::{ChannelClose, ConnectionClose};
use longshore_amqp_codec::{CodecError, Method, ReplyCode, ShortStr};
use longshore_broker::{BrokerError, Right};

/// Why a channel or a connection is closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} - {text}", code.word())]
pub(crate) struct Exception {
    pub(crate) code: ReplyCode,
    pub(crate) text: String,
}

/// A result whose error closes something.
pub(crate) type Outcome<T> = Result<T, Exception>;

impl Exception {
    pub(crate) fn new(code: ReplyCode, text: impl Into<String>) -> Exception {
        Exception { code, text: text.into() }
    }

    pub(crate) fn precondition(text: impl Into<String>) -> Exception {
        Exception::new(ReplyCode::PreconditionFailed, text)
    }

    pub(crate) fn not_implemented(text: impl Into<String>) -> Exception {
        Exception::new(ReplyCode::NotImplemented, text)
    }

    pub(crate) fn frame(text: impl Into<String>) -> Exception {
        Exception::new(ReplyCode::FrameError, text)
    }

    pub(crate) fn unexpected(text: impl Into<String>) -> Exception {
        Exception::new(ReplyCode::UnexpectedFrame, text)
    }

    /// No such queue or exchange.
    pub(crate) fn not_found(what: &str, name: &str, vhost: &str) -> Exception {
        Exception::new(ReplyCode::NotFound, format!("no {what} '{name}' in vhost '{vhost}'"))
    }

    /// A permission is missing.
    pub(crate) fn refused(right: Right, what: &str, name: &str, vhost: &str, user: &str) -> Exception {
        let right = match right {
            Right::Configure => "configure",
            Right::Write => "write",
            Right::Read => "read",
        };
        let text = format!("{right} access to {what} '{name}' in vhost '{vhost}' refused for user '{user}'");
        Exception::new(ReplyCode::AccessRefused, text)
    }

    /// The queue belongs to another connection, or its exclusiveness differs.
    pub(crate) fn locked(name: &str, vhost: &str) -> Exception {
        let text = format!(
            "cannot obtain exclusive access to locked queue '{name}' in vhost '{vhost}'. It could be originally \
             declared on another connection or the exclusive property value does not match that of the original \
             declaration."
        );
        Exception::new(ReplyCode::ResourceLocked, text)
    }

    /// A declaration differs from what exists. `received` and `current` are printed as they are.
    pub(crate) fn inequivalent(argument: &str, thing: &str, received: &str, current: &str) -> Exception {
        Exception::precondition(format!(
            "inequivalent arg '{argument}' for {thing}: received {received} but current is {current}"
        ))
    }

    pub(crate) fn internal_exchange(name: &str, vhost: &str) -> Exception {
        let text = format!("cannot publish to internal exchange '{name}' in vhost '{vhost}'");
        Exception::new(ReplyCode::AccessRefused, text)
    }

    pub(crate) fn default_exchange() -> Exception {
        Exception::new(ReplyCode::AccessRefused, "operation not permitted on the default exchange")
    }

    pub(crate) fn reserved_name(what: &str, name: &str) -> Exception {
        let text = format!("{what} name '{name}' contains reserved prefix 'amq.*'");
        Exception::new(ReplyCode::AccessRefused, text)
    }

    /// What a failed broker operation means to the client. `vhost` completes the texts.
    pub(crate) fn from_broker(error: BrokerError, vhost: &str) -> Exception {
        let (code, text) = match error {
            BrokerError::NotFound { what, name } => return Exception::not_found(what, &name, vhost),
            BrokerError::ResourceLocked(name) => return Exception::locked(&name, vhost),
            BrokerError::Inequivalent { what, name } => {
                let thing = format!("'{name}' in vhost '{vhost}'");
                let text = format!("inequivalent arg '{what}' for {thing}: another value is current");
                (ReplyCode::PreconditionFailed, text)
            }
            BrokerError::InUse(name) => {
                (ReplyCode::PreconditionFailed, format!("'{name}' in vhost '{vhost}' in use"))
            }
            BrokerError::NotEmpty(name) => {
                (ReplyCode::PreconditionFailed, format!("'{name}' in vhost '{vhost}' not empty"))
            }
            BrokerError::ExclusiveUse(name) => {
                (ReplyCode::AccessRefused, format!("queue '{name}' in vhost '{vhost}' in exclusive use"))
            }
            BrokerError::AccessRefused { what, name } => {
                (ReplyCode::AccessRefused, format!("access to {what} '{name}' in vhost '{vhost}' refused"))
            }
            BrokerError::NotAllowed(name) => {
                (ReplyCode::NotAllowed, format!("access to vhost '{name}' refused"))
            }
            BrokerError::Forbidden(text) => (ReplyCode::AccessRefused, text),
            BrokerError::TooLarge { bytes, max } => return Exception::too_large(bytes, max),
            BrokerError::Limit(text) | BrokerError::Invalid(text) => (ReplyCode::PreconditionFailed, text),
            BrokerError::NoSpace => (
                ReplyCode::PreconditionFailed,
                "the storage tier is short of disk space: try again once there is room".to_owned(),
            ),
            error @ BrokerError::Unavailable(_) => (ReplyCode::InternalError, error.to_string()),
            BrokerError::Closed => (ReplyCode::ConnectionForced, "the connection is closed".to_owned()),
        };
        Exception::new(code, text)
    }

    /// A publish that the broker did not take.
    pub(crate) fn from_publish(error: BrokerError, exchange: &ShortStr, vhost: &str) -> Exception {
        match error {
            BrokerError::Forbidden(_) => Exception::internal_exchange(&exchange.lossy(), vhost),
            other => Exception::from_broker(other, vhost),
        }
    }

    pub(crate) fn too_large(bytes: u64, max: u64) -> Exception {
        Exception::precondition(format!("message size {bytes} is larger than configured max size {max}"))
    }

    fn reply_text(&self) -> ShortStr {
        ShortStr::cut(&self.to_string())
    }

    /// The frame that closes the channel; `method` is the class and method id that failed, 0 for none.
    pub(crate) fn channel_close(&self, (class_id, method_id): (u16, u16)) -> Method {
        ChannelClose { reply_code: self.code.code(), reply_text: self.reply_text(), class_id, method_id }
            .into()
    }

    /// The frame that closes the connection.
    pub(crate) fn connection_close(&self, (class_id, method_id): (u16, u16)) -> Method {
        ConnectionClose { reply_code: self.code.code(), reply_text: self.reply_text(), class_id, method_id }
            .into()
    }
}

impl From<CodecError> for Exception {
    fn from(error: CodecError) -> Exception {
        Exception::new(error.reply_code(), error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_rabbitmqs() {
        let text = |e: Exception| e.to_string();
        assert_eq!(text(Exception::not_found("queue", "q", "/")), "NOT_FOUND - no queue 'q' in vhost '/'");
        assert_eq!(
            text(Exception::inequivalent("durable", "queue 'q' in vhost '/'", "'true'", "'false'")),
            "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'q' in vhost '/': received 'true' but \
             current is 'false'"
        );
        assert_eq!(
            text(Exception::refused(Right::Write, "exchange", "amq.default", "/", "joe")),
            "ACCESS_REFUSED - write access to exchange 'amq.default' in vhost '/' refused for user 'joe'"
        );
    }

    #[test]
    fn long_names_are_cut_in_reply_texts() {
        let close = Exception::not_found("queue", &"é".repeat(200), "/").channel_close((50, 10));
        let Method::ChannelClose(close) = close else { panic!("{close:?}") };
        assert!(close.reply_text.as_str().is_some() && close.reply_text.len() <= 255);
    }

    #[test]
    fn every_broker_error_has_a_code() {
        let name = || "x".to_owned();
        let all = [
            (BrokerError::NotFound { what: "queue", name: name() }, 404),
            (BrokerError::AccessRefused { what: "queue", name: name() }, 403),
            (BrokerError::Inequivalent { what: "durable", name: name() }, 406),
            (BrokerError::InUse(name()), 406),
            (BrokerError::NotEmpty(name()), 406),
            (BrokerError::ResourceLocked(name()), 405),
            (BrokerError::ExclusiveUse(name()), 403),
            (BrokerError::NotAllowed(name()), 530),
            (BrokerError::Forbidden(name()), 403),
            (BrokerError::Unavailable("no leader"), 541),
            (BrokerError::NoSpace, 406),
            (BrokerError::TooLarge { bytes: 2, max: 1 }, 406),
            (BrokerError::Limit(name()), 406),
            (BrokerError::Invalid(name()), 406),
            (BrokerError::Closed, 320),
        ];
        for (error, code) in all {
            assert_eq!(Exception::from_broker(error, "/").code.code(), code);
        }
    }
}
