//! Reply codes, and the errors of this crate, each with the code that it is answered with.

/// The reply codes of AMQP 0-9-1, as RabbitMQ uses them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u16)]
pub enum ReplyCode {
    /// Everything is well (close at the client's own wish).
    Success = 200,
    /// A message is too large for the server.
    ContentTooLarge = 311,
    /// A mandatory message reached no queue.
    NoRoute = 312,
    /// An immediate message reached no consumer.
    NoConsumers = 313,
    /// An operator closes the connection, or the server stops.
    ConnectionForced = 320,
    /// The virtual host's name is malformed.
    InvalidPath = 402,
    /// No permission, or a reserved name.
    AccessRefused = 403,
    /// No such exchange, queue or virtual host.
    NotFound = 404,
    /// Someone else owns it exclusively.
    ResourceLocked = 405,
    /// A precondition does not hold: inequivalent declaration, unknown delivery tag, in use.
    PreconditionFailed = 406,
    /// A frame that cannot be read.
    FrameError = 501,
    /// A field with an illegal value.
    SyntaxError = 502,
    /// A method out of its sequence.
    CommandInvalid = 503,
    /// A channel that is not open, or already is.
    ChannelError = 504,
    /// A frame of another kind than expected.
    UnexpectedFrame = 505,
    /// The server lacks resources.
    ResourceError = 506,
    /// Forbidden by the rules of the server.
    NotAllowed = 530,
    /// Not implemented.
    NotImplemented = 540,
    /// The server failed.
    InternalError = 541,
}

impl ReplyCode {
    /// The number on the wire.
    pub fn code(self) -> u16 {
        self as u16
    }

    /// The word that RabbitMQ begins its reply text with.
    pub fn word(self) -> &'static str {
        match self {
            ReplyCode::Success => "OK",
            ReplyCode::ContentTooLarge => "CONTENT_TOO_LARGE",
            ReplyCode::NoRoute => "NO_ROUTE",
            ReplyCode::NoConsumers => "NO_CONSUMERS",
            ReplyCode::ConnectionForced => "CONNECTION_FORCED",
            ReplyCode::InvalidPath => "INVALID_PATH",
            ReplyCode::AccessRefused => "ACCESS_REFUSED",
            ReplyCode::NotFound => "NOT_FOUND",
            ReplyCode::ResourceLocked => "RESOURCE_LOCKED",
            ReplyCode::PreconditionFailed => "PRECONDITION_FAILED",
            ReplyCode::FrameError => "FRAME_ERROR",
            ReplyCode::SyntaxError => "SYNTAX_ERROR",
            ReplyCode::CommandInvalid => "COMMAND_INVALID",
            ReplyCode::ChannelError => "CHANNEL_ERROR",
            ReplyCode::UnexpectedFrame => "UNEXPECTED_FRAME",
            ReplyCode::ResourceError => "RESOURCE_ERROR",
            ReplyCode::NotAllowed => "NOT_ALLOWED",
            ReplyCode::NotImplemented => "NOT_IMPLEMENTED",
            ReplyCode::InternalError => "INTERNAL_ERROR",
        }
    }

    /// Whether it ends the connection (a hard error of the specification), not only the channel.
    pub fn closes_connection(self) -> bool {
        matches!(self, ReplyCode::ConnectionForced | ReplyCode::InvalidPath) || self.code() >= 501
    }
}

/// Why bytes of a client could not be read. All of them end the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The frame's length is above what was agreed (or above 4,096 before that).
    #[error("frame of {found} bytes is larger than the maximum of {max} bytes")]
    FrameTooLarge {
        /// Bytes of the announced frame, overhead included.
        found: u64,
        /// The limit that holds now, overhead included.
        max: u64,
    },
    /// The byte after the payload is not 0xCE.
    #[error("frame ends with 0x{0:02x} instead of 0xce")]
    FrameEnd(u8),
    /// A frame type that does not exist.
    #[error("unknown frame type {0}")]
    FrameType(u8),
    /// Tables or arrays nested deeper than [`crate::table::NESTING_MAX`].
    #[error("field tables are nested too deeply")]
    Nesting,
    /// The payload ended inside a value, or went on after the last one.
    #[error("the payload's length does not fit its content: {0}")]
    Length(&'static str),
    /// A value that the specification does not know.
    #[error("illegal value: {0}")]
    Value(&'static str),
    /// A class or method id that does not exist.
    #[error("unknown method {class}.{method}")]
    UnknownMethod {
        /// Class id.
        class: u16,
        /// Method id.
        method: u16,
    },
}

impl CodecError {
    /// The reply code that the connection is closed with.
    pub fn reply_code(self) -> ReplyCode {
        match self {
            CodecError::FrameTooLarge { .. }
            | CodecError::FrameEnd(_)
            | CodecError::FrameType(_)
            | CodecError::Nesting => ReplyCode::FrameError,
            CodecError::Length(_) | CodecError::Value(_) => ReplyCode::SyntaxError,
            CodecError::UnknownMethod { .. } => ReplyCode::NotImplemented,
        }
    }
}
