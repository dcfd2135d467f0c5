//! A record: a message as stored.
//!
//! ```text
//!  0 u32 crc32c over bytes 4..len        32 u64 ttl, ms (MAX: none)
//!  4 u32 len of the whole record         40 i64 client time, ms (MIN: none)
//!  8 u8  version = 1                     48 u64 key hash
//!  9 u8  form                            56 u64 upload (0: the body is here)
//! 10 u16 flags                           64 u16 routing key length
//! 12 u8  priority                        66 u16 reserved = 0
//! 13 u8  reserved = 0                    68 u32 properties length
//! 14 u16 number of targets               72 targets (u64 each), routing key, properties, body
//! 16 u32 count: offsets that it takes
//! 20 u32 reserved = 0
//! 24 u64 delay, ms
//! ```
//! A record is never re-encoded: a storage node reads the header and passes the bytes on.

use crate::{DecodeError, LogId};
use bytes::{BufMut, Bytes, BytesMut};

/// Bytes before the targets.
pub const HEADER_BYTES: usize = 72;
/// Most logs that one append may name; a gateway splits a wider fan-out into several records.
pub const TARGETS_MAX: usize = 4096;
/// The value of `ttl_ms` that means: lives until it is settled.
pub const NO_TTL: u64 = u64::MAX;
/// The value of `client_time_ms` that means: the client gave none.
pub const NO_CLIENT_TIME: i64 = i64::MIN;
const VERSION: u8 = 1;

/// Header flags. Bits 8 to 15 are reserved for key id (encryption), trace and group hash.
pub mod flags {
    /// The body came before in parts (see `batch::Part`); the record's `upload` names them.
    pub const PARTS: u16 = 1;
}

/// In which protocol's shape properties and body are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Form {
    /// AMQP 0-9-1: exchange, then the content header's property flags and list as they came, but without BCC, and with a
    /// direct reply-to replaced by its queue.
    Amqp = 1,
    /// A Kafka record batch v2, untouched.
    KafkaBatch = 2,
    /// An MQTT publish.
    Mqtt = 3,
    /// A CMQ message.
    Cmq = 4,
}

impl Form {
    /// The form with this number.
    pub fn from_u8(n: u8) -> Option<Form> {
        match n {
            1 => Some(Form::Amqp),
            2 => Some(Form::KafkaBatch),
            3 => Some(Form::Mqtt),
            4 => Some(Form::Cmq),
            _ => None,
        }
    }
}

/// What a gateway says of a message when it encodes it.
#[derive(Clone, Debug)]
pub struct NewRecord<'a> {
    /// Shape of `properties` and body.
    pub form: Form,
    /// See [`flags`].
    pub flags: u16,
    /// 0 (lowest) to 255.
    pub priority: u8,
    /// How many offsets it takes: 1, or the number of records of a Kafka batch. At least 1.
    pub count: u32,
    /// Not visible before log time + this, in milliseconds.
    pub delay_ms: u64,
    /// Expires at log time + this, in milliseconds; [`NO_TTL`]: never.
    pub ttl_ms: u64,
    /// The client's own timestamp, or [`NO_CLIENT_TIME`].
    pub client_time_ms: i64,
    /// Hash of the message's key or group; 0 if it has none.
    pub key_hash: u64,
    /// The upload that carried the body, with [`flags::PARTS`]; else 0.
    pub upload: u64,
    /// The logs that store it: 1 to [`TARGETS_MAX`]; all in one shard.
    pub targets: &'a [LogId],
    /// Routing key or topic as the client gave it.
    pub routing_key: &'a [u8],
    /// Protocol properties in the shape of `form`.
    pub properties: &'a [u8],
}

impl NewRecord<'_> {
    /// A record with nothing special: one offset, no delay, no expiry.
    pub fn plain<'a>(
        form: Form,
        targets: &'a [LogId],
        routing_key: &'a [u8],
        properties: &'a [u8],
    ) -> NewRecord<'a> {
        NewRecord {
            form,
            flags: 0,
            priority: 0,
            count: 1,
            delay_ms: 0,
            ttl_ms: NO_TTL,
            client_time_ms: NO_CLIENT_TIME,
            key_hash: 0,
            upload: 0,
            targets,
            routing_key,
            properties,
        }
    }

    /// Length of the encoded record with a body of `body_len` bytes.
    pub fn encoded_len(&self, body_len: usize) -> usize {
        HEADER_BYTES + 8 * self.targets.len() + self.routing_key.len() + self.properties.len() + body_len
    }

    /// Appends the encoded record to `out`; the body is given in slices and copied once.
    ///
    /// Errors: a routing key over 65,535 bytes, no or too many targets, a zero count, a record over 4 GiB.
    pub fn encode(&self, body: &[Bytes], out: &mut BytesMut) -> Result<(), DecodeError> {
        let body_len: usize = body.iter().map(Bytes::len).sum();
        let len =
            u32::try_from(self.encoded_len(body_len)).map_err(|_| DecodeError::Invalid("record length"))?;
        let key_len =
            u16::try_from(self.routing_key.len()).map_err(|_| DecodeError::Invalid("routing key length"))?;
        if self.targets.is_empty() || self.targets.len() > TARGETS_MAX {
            return Err(DecodeError::Invalid("number of targets"));
        }
        if self.count == 0 {
            return Err(DecodeError::Invalid("record count"));
        }
        out.reserve(len as usize);
        let start = out.len();
        out.put_u32_le(0);
        out.put_u32_le(len);
        out.put_u8(VERSION);
        out.put_u8(self.form as u8);
        out.put_u16_le(self.flags);
        out.put_u8(self.priority);
        out.put_u8(0);
        out.put_u16_le(self.targets.len() as u16);
        out.put_u32_le(self.count);
        out.put_u32_le(0);
        out.put_u64_le(self.delay_ms);
        out.put_u64_le(self.ttl_ms);
        out.put_i64_le(self.client_time_ms);
        out.put_u64_le(self.key_hash);
        out.put_u64_le(self.upload);
        out.put_u16_le(key_len);
        out.put_u16_le(0);
        out.put_u32_le(self.properties.len() as u32);
        for target in self.targets {
            out.put_u64_le(target.0);
        }
        out.put_slice(self.routing_key);
        out.put_slice(self.properties);
        for slice in body {
            out.put_slice(slice);
        }
        let crc = crc32c::crc32c(&out[start + 4..]);
        out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
        Ok(())
    }
}

/// An encoded record, its header checked for shape. Cloning shares the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    bytes: Bytes,
}

impl Record {
    /// Takes `bytes` as one record. Checks lengths and ranges, not the checksum (see [`Record::verify`]).
    pub fn parse(bytes: Bytes) -> Result<Record, DecodeError> {
        if bytes.len() < HEADER_BYTES {
            return Err(DecodeError::Truncated("record"));
        }
        if bytes[8] != VERSION {
            return Err(DecodeError::Version { what: "record", found: bytes[8], known: VERSION });
        }
        let record = Record { bytes };
        if record.u32_at(4) as usize != record.bytes.len() {
            return Err(DecodeError::Invalid("record length"));
        }
        if Form::from_u8(record.bytes[9]).is_none() {
            return Err(DecodeError::Invalid("record form"));
        }
        let targets = record.target_count();
        if targets == 0 || targets > TARGETS_MAX || record.count() == 0 {
            return Err(DecodeError::Invalid("record counts"));
        }
        let fixed = HEADER_BYTES as u64 + 8 * targets as u64;
        if fixed + u64::from(record.u16_at(64)) + u64::from(record.u32_at(68)) > record.bytes.len() as u64 {
            return Err(DecodeError::Invalid("record lengths"));
        }
        Ok(record)
    }

    /// Compares the checksum with the bytes.
    pub fn verify(&self) -> Result<(), DecodeError> {
        if crc32c::crc32c(&self.bytes[4..]) == self.crc() {
            Ok(())
        } else {
            Err(DecodeError::Checksum("record"))
        }
    }

    fn u16_at(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    fn u32_at(&self, at: usize) -> u32 {
        u32::from_le_bytes([self.bytes[at], self.bytes[at + 1], self.bytes[at + 2], self.bytes[at + 3]])
    }

    fn u64_at(&self, at: usize) -> u64 {
        u64::from(self.u32_at(at)) | u64::from(self.u32_at(at + 4)) << 32
    }

    /// The whole encoded record.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The stored checksum.
    pub fn crc(&self) -> u32 {
        self.u32_at(0)
    }

    /// Shape of properties and body.
    pub fn form(&self) -> Form {
        Form::from_u8(self.bytes[9]).unwrap_or(Form::Amqp)
    }

    /// See [`flags`].
    pub fn flags(&self) -> u16 {
        self.u16_at(10)
    }

    /// 0 (lowest) to 255.
    pub fn priority(&self) -> u8 {
        self.bytes[12]
    }

    /// How many logs store it.
    pub fn target_count(&self) -> usize {
        usize::from(self.u16_at(14))
    }

    /// The logs that store it.
    pub fn targets(&self) -> impl Iterator<Item = LogId> + '_ {
        (0..self.target_count()).map(|i| LogId(self.u64_at(HEADER_BYTES + 8 * i)))
    }

    /// Offsets that it takes in each log.
    pub fn count(&self) -> u32 {
        self.u32_at(16)
    }

    /// Milliseconds after log time before it is visible.
    pub fn delay_ms(&self) -> u64 {
        self.u64_at(24)
    }

    /// Milliseconds after log time at which it expires, or [`NO_TTL`].
    pub fn ttl_ms(&self) -> u64 {
        self.u64_at(32)
    }

    /// The client's timestamp, or [`NO_CLIENT_TIME`].
    pub fn client_time_ms(&self) -> i64 {
        self.u64_at(40) as i64
    }

    /// Hash of the key or group; 0 if none.
    pub fn key_hash(&self) -> u64 {
        self.u64_at(48)
    }

    /// The upload that carried the body, 0 if the body is here.
    pub fn upload(&self) -> u64 {
        self.u64_at(56)
    }

    fn key_start(&self) -> usize {
        HEADER_BYTES + 8 * self.target_count()
    }

    fn body_start(&self) -> usize {
        self.key_start() + usize::from(self.u16_at(64)) + self.u32_at(68) as usize
    }

    /// Routing key or topic.
    pub fn routing_key(&self) -> Bytes {
        let start = self.key_start();
        self.bytes.slice(start..start + usize::from(self.u16_at(64)))
    }

    /// Protocol properties in the shape of the form.
    pub fn properties(&self) -> Bytes {
        let start = self.key_start() + usize::from(self.u16_at(64));
        self.bytes.slice(start..start + self.u32_at(68) as usize)
    }

    /// The body, or what of it is in the record itself.
    pub fn body(&self) -> Bytes {
        self.bytes.slice(self.body_start()..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded() -> BytesMut {
        let mut out = BytesMut::new();
        let targets = [LogId(7), LogId(9)];
        let mut new = NewRecord::plain(Form::Amqp, &targets, b"key", b"props");
        new.ttl_ms = 1_000;
        new.encode(&[Bytes::from_static(b"bo"), Bytes::from_static(b"dy")], &mut out).unwrap();
        out
    }

    #[test]
    fn what_was_encoded_is_read_back() {
        let record = Record::parse(encoded().freeze()).unwrap();
        record.verify().unwrap();
        assert_eq!(record.targets().collect::<Vec<_>>(), [LogId(7), LogId(9)]);
        assert_eq!((&record.routing_key()[..], &record.properties()[..]), (&b"key"[..], &b"props"[..]));
        assert_eq!((&record.body()[..], record.ttl_ms(), record.count()), (&b"body"[..], 1_000, 1));
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        let good = encoded();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let refused = Record::parse(bad.freeze()).and_then(|record| record.verify()).is_err();
            assert!(refused, "bit {bit} was not noticed");
        }
    }

    #[test]
    fn every_truncation_is_refused() {
        let good = encoded().freeze();
        for len in 0..good.len() {
            assert!(Record::parse(good.slice(..len)).is_err());
        }
    }
}
