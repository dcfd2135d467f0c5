//! The AMQP form. Of a record it uses:
//!
//! ```text
//! routing key   as published
//! properties    u8 length, exchange name, then property flags and list as the client sent them, but without the header
//!               BCC, and with a direct reply-to replaced by its queue (the adapter does both before)
//! body          as published
//! ```
//! Nothing is decoded beyond what a rule asks for; what else a client made of its properties comes out byte for byte.

use bytes::{BufMut, Bytes, BytesMut};
use longshore_amqp_codec::{Properties, ShortStr};

#[cfg(test)]
mod tests;

/// Why stored bytes are not an AMQP message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormError {
    /// The exchange's name or the flags are cut off: the record was not written by this crate.
    #[error("stored AMQP properties end too early")]
    Truncated,
    /// The expiration is not a number of milliseconds.
    #[error("expiration is not a decimal number of milliseconds")]
    Expiration,
}

/// Encodes `Record.properties` of an AMQP message.
pub fn encode_properties(exchange: &ShortStr, properties: &Properties, out: &mut BytesMut) {
    out.reserve(1 + exchange.len() + properties.bytes().len());
    out.put_u8(exchange.len() as u8);
    out.put_slice(exchange);
    out.put_slice(properties.bytes());
}

/// The stored properties of an AMQP message: where it was published, and with which properties.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The exchange, empty for the default one.
    pub exchange: ShortStr,
    /// The properties as published.
    pub properties: Properties,
}

impl Stored {
    /// Reads `Record.properties`. Shares the bytes.
    pub fn decode(mut stored: Bytes) -> Result<Stored, FormError> {
        let len = usize::from(*stored.first().ok_or(FormError::Truncated)?);
        // The flags are always there, so a record has at least two bytes after the name.
        if stored.len() < 1 + len + 2 {
            return Err(FormError::Truncated);
        }
        let mut exchange = stored.split_to(1 + len);
        let exchange = ShortStr::new(exchange.split_off(1)).ok_or(FormError::Truncated)?;
        Ok(Stored { exchange, properties: Properties::stored(stored) })
    }
}

/// The message's time to live in milliseconds, if it has an expiration. RabbitMQ takes decimal digits only.
pub fn ttl_ms(properties: &Properties) -> Result<Option<u64>, FormError> {
    let Some(text) = properties.expiration() else { return Ok(None) };
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return Err(FormError::Expiration);
    }
    let number = text.iter().try_fold(0u64, |n, digit| {
        n.checked_mul(10)?.checked_add(u64::from(digit - b'0')).filter(|n| *n <= TTL_MS_MAX)
    });
    number.map(Some).ok_or(FormError::Expiration)
}

/// The longest time to live that RabbitMQ accepts: 100 years, in milliseconds.
pub const TTL_MS_MAX: u64 = 365 * 100 * 24 * 60 * 60 * 1000;

/// The client's timestamp in milliseconds since 1970, if there is one.
pub fn client_time_ms(properties: &Properties) -> Option<i64> {
    i64::try_from(properties.timestamp()?.checked_mul(1_000)?).ok()
}
