//! Hostile input: 300,000 mutated frames with everything that is allocated counted. One test only: what another
//! one allocated beside it would be counted too.

use bytes::{Bytes, BytesMut};
use longshore_amqp_codec::content::{PropertiesBuilder, Property};
use longshore_amqp_codec::method::{BasicPublish, ConnectionStartOk, QueueDeclare};
use longshore_amqp_codec::{
    CodecError, ContentHeader, FrameKind, Method, OutBuffer, Properties, ShortStr, Table, TableBuilder,
    Value, frame,
};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const FRAME_BYTES_MAX: usize = 8_192;
/// What decoding may allocate beside twice its input: the shared header of the buffer.
const ALLOCATED_BYTES_CONST: usize = 1_024;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

fn headers() -> Table {
    let nested = TableBuilder::new().put("x", Value::I32(1)).put_texts("y", &["a", "b"]).build();
    TableBuilder::new()
        .put("text", Value::Text(b"value"))
        .put("number", Value::I64(-5))
        .put_table("nested", &nested)
        .put("price", Value::Decimal { scale: 2, value: 999 })
        .build()
}

/// Valid streams of a few frames each.
fn seeds() -> Vec<Bytes> {
    let name = ShortStr::from_static("orders");
    let properties = PropertiesBuilder::new()
        .headers(&headers())
        .delivery_mode(2)
        .priority(3)
        .timestamp(1_700_000_000)
        .short(Property::ReplyTo, &name)
        .short(Property::Expiration, &ShortStr::from_static("1000"))
        .build();
    let mut publish = OutBuffer::new();
    let method =
        BasicPublish { exchange: name.clone(), routing_key: name.clone(), ..Default::default() }.into();
    publish.put_content(1, &method, properties.bytes(), &[Bytes::from(vec![7; 300])], 200);
    let mut declare = OutBuffer::new();
    declare.put_method(
        2,
        &QueueDeclare { queue: name.clone(), arguments: headers(), ..Default::default() }.into(),
    );
    declare.put_heartbeat();
    let mut start = OutBuffer::new();
    let ok = ConnectionStartOk {
        client_properties: headers(),
        mechanism: ShortStr::from_static("PLAIN"),
        response: Bytes::from_static(b"\0guest\0guest"),
        locale: ShortStr::from_static("en_US"),
    };
    start.put_method(0, &ok.into());
    vec![publish.take_all(), declare.take_all(), start.take_all()]
}

fn mutate(seed: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        match random.below(6) {
            0 => bytes[at] = random.next() as u8,
            1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes.truncate(at.max(1)),
            3 => bytes.insert(at, random.next() as u8),
            4 => {
                // A length field of all ones, wherever it falls.
                let end = (at + 4).min(bytes.len());
                bytes[at..end].fill(0xFF);
            }
            _ => {
                let end = (at + random.below(40)).min(bytes.len());
                let copy = bytes[at..end].to_vec();
                bytes.extend_from_slice(&copy);
            }
        }
    }
    bytes
}

/// Reads everything that a server would, and asks every question of it. Answers how many frames were good.
fn read_all(input: &mut BytesMut) -> Result<usize, CodecError> {
    let mut good = 0;
    while let Some(frame) = frame::split(input, FRAME_BYTES_MAX)? {
        match frame.kind {
            FrameKind::Method => {
                let method = Method::decode(frame.payload)?;
                if let Method::QueueDeclare(declare) = &method {
                    let _ = declare.arguments.iter().filter_map(|(_, value)| value.as_int()).count();
                }
            }
            FrameKind::Header => look_up(&ContentHeader::decode(frame.payload)?.properties),
            FrameKind::Body | FrameKind::Heartbeat => {}
        }
        good += 1;
    }
    Ok(good)
}

fn look_up(properties: &Properties) {
    for property in Property::ALL {
        let _ = properties.raw(property);
    }
    let _ = properties.headers().map(|headers| headers.iter().count());
}

#[test]
fn mutated_input_never_panics_and_allocates_little() {
    let seeds = seeds();
    let mut random = Random(0x5EED_5EED_5EED_5EED);
    let (mut accepted, mut refused) = (0u32, 0u32);
    for round in 0..300_000 {
        let bytes = mutate(&seeds[round % seeds.len()], &mut random);
        let len = bytes.len();
        let mut input = BytesMut::from(&bytes[..]);
        let region = Region::new(ALLOCATOR);
        let result = read_all(&mut input);
        let allocated = region.change().bytes_allocated;
        assert!(
            allocated <= 2 * len + ALLOCATED_BYTES_CONST,
            "{allocated} bytes for {len} bytes {bytes:02x?}"
        );
        match result {
            Ok(_) => accepted += 1,
            Err(_) => refused += 1,
        }
        // Bytes that skip every check must be safe to look at too.
        look_up(&Properties::stored(Bytes::from(bytes)));
    }
    assert!(accepted > 10_000 && refused > 10_000, "accepted {accepted}, refused {refused}");
}
