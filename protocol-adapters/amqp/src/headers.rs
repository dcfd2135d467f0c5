//! Field tables as the broker's headers exchanges see them.

use bytes::{Bytes, BytesMut};
use longshore_amqp_codec::table::{TableRef, Value};
use longshore_broker::{HeaderValue, Headers};

/// A message's headers, looked up only when a headers exchange asks.
pub(crate) struct MessageHeaders<'a>(pub(crate) Option<TableRef<'a>>);

impl Headers for MessageHeaders<'_> {
    fn get(&self, name: &[u8]) -> Option<HeaderValue> {
        let table = self.0?;
        table.iter().find(|(key, _)| *key == name).map(|(_, value)| header_value(&value))
    }
}

/// Binding arguments as (name, value), for `BrokerConfig::arguments`. Unreadable bytes give what was readable.
pub fn binding_arguments(bytes: &[u8]) -> Vec<(Bytes, HeaderValue)> {
    let entries = TableRef::new(bytes).iter();
    entries.map(|(name, value)| (Bytes::copy_from_slice(name), header_value(&value))).collect()
}

fn header_value(value: &Value<'_>) -> HeaderValue {
    match *value {
        Value::Void => HeaderValue::Void,
        Value::Bool(b) => HeaderValue::Bool(b),
        Value::F32(n) => HeaderValue::Double(n.into()),
        Value::F64(n) => HeaderValue::Double(n),
        Value::Text(bytes) | Value::Binary(bytes) => HeaderValue::Bytes(Bytes::copy_from_slice(bytes)),
        Value::Timestamp(n) => HeaderValue::Int(i64::try_from(n).unwrap_or(i64::MAX)),
        _ => value.as_int().map_or_else(|| other(value), HeaderValue::Int),
    }
}

fn other(value: &Value<'_>) -> HeaderValue {
    let mut out = BytesMut::new();
    value.encode(&mut out);
    HeaderValue::Other(out.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;
    use longshore_amqp_codec::TableBuilder;

    #[test]
    fn integers_compare_whatever_their_width() {
        let table = TableBuilder::new()
            .put("a", Value::I8(5))
            .put("b", Value::I64(5))
            .put("c", Value::Void)
            .put("d", Value::Text(b"t"))
            .build();
        let read = binding_arguments(table.bytes());
        assert_eq!(read[0].1, read[1].1);
        assert_eq!(
            (&read[2].1, &read[3].1),
            (&HeaderValue::Void, &HeaderValue::Bytes(Bytes::from_static(b"t")))
        );
        assert_eq!(MessageHeaders(Some(table.view())).get(b"b"), Some(HeaderValue::Int(5)));
        assert_eq!(MessageHeaders(None).get(b"b"), None);
    }
}
