//! The protocol as a client sees it: a small AMQP client over a pipe, the adapter, and a broker in memory.

mod client;
mod errors;
mod fake;
mod messages;
