//! Content header and message properties. Properties stay the bytes that came (flags, then the list); they are
//! checked once when a message is taken in, and single ones are looked up where a rule needs them.

use crate::{CodecError, ShortStr, Table, table};
use bytes::{BufMut, Bytes, BytesMut};

const WHAT: &str = "content header";

/// What comes between a method with content and the body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContentHeader {
    /// The class of the method before it; only [`crate::BASIC_CLASS`] has content.
    pub class_id: u16,
    /// Bytes of the body that follows; the client's word, so nothing is reserved for it.
    pub body_bytes: u64,
    /// The message's properties.
    pub properties: Properties,
}

impl ContentHeader {
    /// Reads a header frame's payload; checks the properties' shape.
    pub fn decode(payload: Bytes) -> Result<ContentHeader, CodecError> {
        let head = payload.first_chunk::<12>().ok_or(CodecError::Length(WHAT))?;
        let [c0, c1, w0, w1, size @ ..] = *head;
        if (w0, w1) != (0, 0) {
            return Err(CodecError::Value("weight of a content header is not 0"));
        }
        Ok(ContentHeader {
            class_id: u16::from_be_bytes([c0, c1]),
            body_bytes: u64::from_be_bytes(size),
            properties: Properties::parse(payload.slice(12..))?,
        })
    }

    /// Appends a header frame's payload.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_u16(self.class_id);
        out.put_u16(0);
        out.put_u64(self.body_bytes);
        out.put_slice(self.properties.bytes());
    }
}

/// The properties of class `basic`, each with its flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Property {
    /// Short string.
    ContentType = 1 << 15,
    /// Short string.
    ContentEncoding = 1 << 14,
    /// Field table.
    Headers = 1 << 13,
    /// Octet: 1 transient, 2 persistent.
    DeliveryMode = 1 << 12,
    /// Octet.
    Priority = 1 << 11,
    /// Short string.
    CorrelationId = 1 << 10,
    /// Short string.
    ReplyTo = 1 << 9,
    /// Short string: milliseconds in decimal.
    Expiration = 1 << 8,
    /// Short string.
    MessageId = 1 << 7,
    /// Seconds since the Unix epoch.
    Timestamp = 1 << 6,
    /// Short string.
    Type = 1 << 5,
    /// Short string.
    UserId = 1 << 4,
    /// Short string.
    AppId = 1 << 3,
    /// Short string, reserved.
    ClusterId = 1 << 2,
}

impl Property {
    /// All of them, in the order of the list on the wire.
    pub const ALL: [Property; 14] = [
        Property::ContentType,
        Property::ContentEncoding,
        Property::Headers,
        Property::DeliveryMode,
        Property::Priority,
        Property::CorrelationId,
        Property::ReplyTo,
        Property::Expiration,
        Property::MessageId,
        Property::Timestamp,
        Property::Type,
        Property::UserId,
        Property::AppId,
        Property::ClusterId,
    ];

    /// Bytes that the property takes at the front of `rest`, length prefix included.
    fn encoded_len(self, rest: &[u8]) -> Option<usize> {
        let len = match self {
            Property::DeliveryMode | Property::Priority => 1,
            Property::Timestamp => 8,
            Property::Headers => 4usize.checked_add(u32::from_be_bytes(*rest.first_chunk()?) as usize)?,
            _ => 1 + usize::from(*rest.first()?),
        };
        (len <= rest.len()).then_some(len)
    }

    fn prefix_len(self) -> usize {
        match self {
            Property::DeliveryMode | Property::Priority | Property::Timestamp => 0,
            Property::Headers => 4,
            _ => 1,
        }
    }
}

/// Message properties as they came: two bytes of flags, then the list. Look-ups never fail on odd bytes, they find
/// nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Properties {
    bytes: Bytes,
}

impl Default for Properties {
    fn default() -> Properties {
        Properties { bytes: Bytes::from_static(&[0, 0]) }
    }
}

impl Properties {
    /// Takes flags and list from a client; checks that they fit each other and that the headers are a table.
    pub fn parse(bytes: Bytes) -> Result<Properties, CodecError> {
        let mut rest = bytes.get(2..).ok_or(CodecError::Length(WHAT))?;
        let flags = u16::from_be_bytes([bytes[0], bytes[1]]);
        if flags & 1 != 0 {
            return Err(CodecError::Value("continued property flags"));
        }
        if flags & 2 != 0 {
            return Err(CodecError::Value("unknown property flag"));
        }
        for property in Property::ALL {
            if flags & property as u16 != 0 {
                let len = property.encoded_len(rest).ok_or(CodecError::Length(WHAT))?;
                let (value, tail) = rest.split_at(len);
                if property == Property::Headers {
                    table::check_entries(&value[4..], 1)?;
                }
                rest = tail;
            }
        }
        if rest.is_empty() { Ok(Properties { bytes }) } else { Err(CodecError::Length(WHAT)) }
    }

    /// Takes what was parsed before it was stored; no check.
    pub fn stored(bytes: Bytes) -> Properties {
        Properties { bytes }
    }

    /// Flags and list.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    fn flags(&self) -> u16 {
        self.bytes.first_chunk().map_or(0, |flags| u16::from_be_bytes(*flags))
    }

    /// Whether the property is there.
    pub fn has(&self, property: Property) -> bool {
        self.flags() & property as u16 != 0
    }

    /// Where the property's value is, length prefix included.
    fn find(&self, wanted: Property) -> Option<std::ops::Range<usize>> {
        let flags = self.flags();
        if flags & wanted as u16 == 0 {
            return None;
        }
        let mut at = 2;
        for property in Property::ALL {
            if flags & property as u16 != 0 {
                let len = property.encoded_len(self.bytes.get(at..)?)?;
                if property == wanted {
                    return Some(at..at + len);
                }
                at += len;
            }
        }
        None
    }

    /// The value's bytes without length prefix.
    pub fn raw(&self, property: Property) -> Option<&[u8]> {
        let range = self.find(property)?;
        self.bytes.get(range.start + property.prefix_len()..range.end)
    }

    /// A short string property, shared.
    pub fn short(&self, property: Property) -> Option<ShortStr> {
        let range = self.find(property)?;
        ShortStr::new(self.bytes.slice(range.start + property.prefix_len()..range.end))
    }

    /// `delivery-mode`: 2 is persistent.
    pub fn delivery_mode(&self) -> Option<u8> {
        self.raw(Property::DeliveryMode)?.first().copied()
    }

    /// `priority`.
    pub fn priority(&self) -> Option<u8> {
        self.raw(Property::Priority)?.first().copied()
    }

    /// `timestamp`, seconds since the Unix epoch.
    pub fn timestamp(&self) -> Option<u64> {
        Some(u64::from_be_bytes(*self.raw(Property::Timestamp)?.first_chunk()?))
    }

    /// `expiration` as it came: milliseconds in decimal, if the client kept to it.
    pub fn expiration(&self) -> Option<&[u8]> {
        self.raw(Property::Expiration)
    }

    /// `headers`.
    pub fn headers(&self) -> Option<table::TableRef<'_>> {
        Some(table::TableRef::new(self.raw(Property::Headers)?))
    }

    /// The same properties with other headers (`None`: without); all else stays byte for byte.
    pub fn with_headers(&self, headers: Option<&Table>) -> Properties {
        let (before, after) = match self.find(Property::Headers) {
            Some(range) => (range.start, range.end),
            None => {
                let at = self.headers_place();
                (at, at)
            }
        };
        let flag = Property::Headers as u16;
        let flags = if headers.is_some() { self.flags() | flag } else { self.flags() & !flag };
        let mut out = BytesMut::with_capacity(self.bytes.len() + headers.map_or(0, |h| h.bytes().len() + 4));
        out.put_u16(flags);
        out.put_slice(self.bytes.get(2..before).unwrap_or_default());
        if let Some(headers) = headers {
            out.put_u32(headers.bytes().len() as u32);
            out.put_slice(headers.bytes());
        }
        out.put_slice(self.bytes.get(after..).unwrap_or_default());
        Properties { bytes: out.freeze() }
    }

    /// The same properties with another value of a short string that is set; unchanged if it is not.
    pub fn replace_short(&self, property: Property, value: &ShortStr) -> Properties {
        let Some(range) = self.find(property).filter(|_| property.prefix_len() == 1) else {
            return self.clone();
        };
        let mut out = BytesMut::with_capacity(self.bytes.len() + value.len());
        out.put_slice(self.bytes.get(..range.start).unwrap_or_default());
        out.put_u8(value.len() as u8);
        out.put_slice(value);
        out.put_slice(self.bytes.get(range.end..).unwrap_or_default());
        Properties { bytes: out.freeze() }
    }

    /// Where headers would stand: after content type and encoding.
    fn headers_place(&self) -> usize {
        let encoding = self.find(Property::ContentEncoding).map(|range| range.end);
        encoding.or_else(|| self.find(Property::ContentType).map(|range| range.end)).unwrap_or(2)
    }
}

/// Makes properties; values are put in the order of the wire whatever the order of the calls.
#[derive(Clone, Debug, Default)]
pub struct PropertiesBuilder {
    values: Vec<(Property, Bytes)>,
}

impl PropertiesBuilder {
    /// No property.
    pub fn new() -> PropertiesBuilder {
        PropertiesBuilder::default()
    }

    /// Sets a short string property.
    #[must_use]
    pub fn short(mut self, property: Property, value: &ShortStr) -> PropertiesBuilder {
        let mut out = BytesMut::with_capacity(1 + value.len());
        out.put_u8(value.len() as u8);
        out.put_slice(value);
        self.values.push((property, out.freeze()));
        self
    }

    /// Sets `delivery-mode`.
    #[must_use]
    pub fn delivery_mode(mut self, mode: u8) -> PropertiesBuilder {
        self.values.push((Property::DeliveryMode, Bytes::copy_from_slice(&[mode])));
        self
    }

    /// Sets `priority`.
    #[must_use]
    pub fn priority(mut self, priority: u8) -> PropertiesBuilder {
        self.values.push((Property::Priority, Bytes::copy_from_slice(&[priority])));
        self
    }

    /// Sets `timestamp`, in seconds.
    #[must_use]
    pub fn timestamp(mut self, seconds: u64) -> PropertiesBuilder {
        self.values.push((Property::Timestamp, Bytes::copy_from_slice(&seconds.to_be_bytes())));
        self
    }

    /// Sets `headers`.
    #[must_use]
    pub fn headers(mut self, headers: &Table) -> PropertiesBuilder {
        let mut out = BytesMut::with_capacity(4 + headers.bytes().len());
        out.put_u32(headers.bytes().len() as u32);
        out.put_slice(headers.bytes());
        self.values.push((Property::Headers, out.freeze()));
        self
    }

    /// The properties; of a property set twice the first counts.
    pub fn build(self) -> Properties {
        let mut flags = 0;
        let mut list = BytesMut::new();
        for property in Property::ALL {
            if let Some((_, value)) = self.values.iter().find(|(set, _)| *set == property) {
                flags |= property as u16;
                list.put_slice(value);
            }
        }
        let mut out = BytesMut::with_capacity(2 + list.len());
        out.put_u16(flags);
        out.put_slice(&list);
        Properties { bytes: out.freeze() }
    }
}
