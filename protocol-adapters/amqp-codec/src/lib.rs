//! AMQP 0-9-1 on the wire, without I/O: bytes in, typed frames and methods out, and back.
//!
//! The danger here is hostile input: everything that a client sends passes through this crate, the first of it
//! before login. Limits are checked in this order: frame length, nesting, lengths inside the frame; no length or
//! count from the wire ever reserves memory. What passes through untouched (message properties, field tables,
//! bodies) stays the bytes that came: order, duplicates and unknown encodings survive.
//!
//! | module | what |
//! |---|---|
//! | [`frame`] | protocol header, frames split out of a read buffer |
//! | [`method`] | the method table, RabbitMQ's extensions included |
//! | [`content`] | content header, message properties |
//! | [`table`] | field tables kept raw, read lazily |
//! | [`short`] | short strings: up to 255 bytes, not necessarily UTF-8 |
//! | [`out`] | the out-buffer: frames encoded in place, large bodies as slices |
//! | [`error`] | reply codes, and errors that carry theirs |
//!
//! Called by `longshore-amqp` (server), `longshore-message` (properties) and the load driver in `bench`.
#![forbid(unsafe_code)]

pub mod content;
pub mod error;
mod fields;
pub mod frame;
pub mod method;
pub mod out;
pub mod short;
pub mod table;

pub use content::{ContentHeader, Properties};
pub use error::{CodecError, ReplyCode};
pub use frame::{Frame, FrameKind};
pub use method::Method;
pub use out::OutBuffer;
pub use short::ShortStr;
pub use table::{Table, TableBuilder, Value};

/// Bytes of a frame around its payload: type, channel, length, end byte.
pub const FRAME_OVERHEAD_BYTES: usize = 8;
/// The largest frame, overhead included, that either side may send before `connection.tune-ok`; the smallest that
/// a client may ask for.
pub const FRAME_BYTES_BEFORE_TUNE: usize = 4_096;
/// What a client sends first, and what a server answers when it got something else.
pub const PROTOCOL_HEADER: [u8; 8] = *b"AMQP\x00\x00\x09\x01";
/// The `basic` class, the only one with content.
pub const BASIC_CLASS: u16 = 60;
