//! The forms in which messages are stored, and (as protocols are added) the conversions between them.
//!
//! A record is stored as it arrived, but for what the form says; this crate is the only one that knows every form.
//! Pure: no I/O, no clock.
//! The danger: these bytes are on disk. A form once written must be readable for ever.
//!
//! | module | form |
//! |---|---|
//! | [`amqp`] | `Form::Amqp`: exchange, then the content header's properties as they came, without BCC, a direct reply-to replaced |
//!
//! Called by the protocol adapters.
#![forbid(unsafe_code)]

pub mod amqp;
