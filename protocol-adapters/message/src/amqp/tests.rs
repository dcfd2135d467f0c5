//! The stored form of AMQP messages.

use super::*;
use longshore_amqp_codec::content::{PropertiesBuilder, Property};

fn with_expiration(text: &'static str) -> Properties {
    PropertiesBuilder::new().short(Property::Expiration, &ShortStr::from_static(text)).build()
}

#[test]
fn exchange_and_properties_come_back_byte_for_byte() {
    let properties = PropertiesBuilder::new().delivery_mode(2).timestamp(1_700_000_000).priority(4).build();
    let exchange = ShortStr::from_static("amq.topic");
    let mut out = BytesMut::new();
    encode_properties(&exchange, &properties, &mut out);
    let stored = Stored::decode(out.freeze()).unwrap();
    assert_eq!(stored, Stored { exchange, properties });
    assert_eq!(stored.properties.delivery_mode(), Some(2));
    assert_eq!(client_time_ms(&stored.properties), Some(1_700_000_000_000));
}

#[test]
fn cut_bytes_are_refused() {
    let mut out = BytesMut::new();
    encode_properties(&ShortStr::from_static("x"), &Properties::default(), &mut out);
    let whole = out.freeze();
    for len in 0..whole.len() {
        assert_eq!(Stored::decode(whole.slice(..len)), Err(FormError::Truncated));
    }
}

#[test]
fn expirations_are_decimal_milliseconds() {
    assert_eq!(ttl_ms(&Properties::default()), Ok(None));
    assert_eq!(ttl_ms(&with_expiration("0")), Ok(Some(0)));
    assert_eq!(ttl_ms(&with_expiration("60000")), Ok(Some(60_000)));
    for wrong in ["", "-1", " 5", "5 ", "1.5", "0x10", "99999999999999999999999"] {
        assert_eq!(ttl_ms(&with_expiration(wrong)), Err(FormError::Expiration), "{wrong:?}");
    }
}
