//! The protocol as a client sees it: a small AMQP client over a pipe, the adapter, and a broker in memory.

#[cfg(test)]
mod client;
#[cfg(test)]
mod errors;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod limits;
#[cfg(test)]
mod messages;
