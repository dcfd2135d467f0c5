//! Every method, both ways, against `amq-protocol`: our bytes are read by it, its bytes by us, and the fields that
//! both name are compared by name, so that two errors cannot cancel out.

use super::*;
use crate::{OutBuffer, TableBuilder, Value, frame};
use amq_protocol::frame::{AMQPFrame, gen_frame, parse_frame};
use std::collections::BTreeMap;

/// A small deterministic generator (xorshift).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn text(&mut self, len_max: u64) -> String {
        let len = self.next() % (len_max + 1);
        (0..len).map(|_| char::from(b'a' + (self.next() % 26) as u8)).collect()
    }
}

/// Reserved fields, which the oracle drops.
const RESERVED: &[&str] = &[
    "ticket",
    "capabilities",
    "insist",
    "known_hosts",
    "out_of_band",
    "channel_id",
    "cluster_id",
    "prefetch_size",
];

pub(crate) trait Sample: Default {
    fn random(random: &mut Random) -> Self;

    fn sample(field: &str, random: &mut Random) -> Self {
        if RESERVED.contains(&field) { Self::default() } else { Self::random(random) }
    }
}

macro_rules! integer {
    ($($ty:ty)*) => {$(
        impl Sample for $ty {
            fn random(random: &mut Random) -> $ty { random.next() as $ty }
        }
    )*};
}
integer!(u8 u16 u32 u64);

impl Sample for bool {
    fn random(random: &mut Random) -> bool {
        random.next().is_multiple_of(2)
    }
}

impl Sample for ShortStr {
    fn random(random: &mut Random) -> ShortStr {
        ShortStr::cut(&random.text(255))
    }
}

impl Sample for Bytes {
    fn random(random: &mut Random) -> Bytes {
        Bytes::from(random.text(1000))
    }
}

impl Sample for Table {
    fn random(random: &mut Random) -> Table {
        table_of_every_type(random)
    }
}

/// One entry for each type; names in order, since the oracle sorts them.
fn table_of_every_type(random: &mut Random) -> Table {
    let n = random.next();
    let text = random.text(300);
    let nested = TableBuilder::new().put("n", Value::I64(n as i64)).put("v", Value::Void).build();
    TableBuilder::new()
        .put("a", Value::Bool(n.is_multiple_of(2)))
        .put("b", Value::I8(n as i8))
        .put("c", Value::U8(n as u8))
        .put("d", Value::I16(n as i16))
        .put("e", Value::U16(n as u16))
        .put("f", Value::I32(n as i32))
        .put("g", Value::U32(n as u32))
        .put("h", Value::I64(n as i64))
        .put("i", Value::F32(n as f32))
        .put("j", Value::F64(n as f64))
        .put("k", Value::Decimal { scale: 3, value: n as u32 })
        .put("l", Value::Text(text.as_bytes()))
        .put_texts("m", &["one", &text])
        .put("n", Value::Timestamp(n))
        .put_table("o", &nested)
        .put("p", Value::Void)
        .put("q", Value::Binary(text.as_bytes()))
        .build()
}

/// `name: value` pairs of numbers and truth values in a debug text.
fn named_values(debug: &str) -> BTreeMap<String, String> {
    let words: Vec<&str> =
        debug.split([' ', ',', '{', '}', '(', ')']).filter(|word| !word.is_empty()).collect();
    let pairs = words.windows(2).filter(|pair| pair[0].ends_with(':'));
    let plain =
        pairs.filter(|pair| pair[1] == "true" || pair[1] == "false" || pair[1].parse::<u64>().is_ok());
    plain.map(|pair| (pair[0].trim_end_matches(':').to_owned(), pair[1].to_owned())).collect()
}

fn agree(channel: u16, method: &Method, oracle: &AMQPFrame) -> usize {
    let AMQPFrame::Method(oracle_channel, oracle_method) = oracle else {
        panic!("{}: the oracle read {oracle:?}", method.name());
    };
    assert_eq!(*oracle_channel, channel);
    let theirs = format!("{oracle_method:?}");
    let ours = format!("{method:?}");
    // Tables print their entries differently: compare up to the first one.
    let ours = named_values(ours.split("arguments:").next().unwrap_or_default());
    let theirs = named_values(&theirs);
    let mut compared = 0;
    for (name, value) in ours {
        if let Some(other) = theirs.get(&name) {
            assert_eq!(&value, other, "{}.{name}", method.name());
            compared += 1;
        }
    }
    compared
}

#[test]
fn every_method_agrees_with_the_oracle_both_ways() {
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let mut compared = 0;
    assert_eq!(Method::ALL.len(), 66);
    for (class, id, name) in Method::ALL {
        for round in 0..40u16 {
            let method = Method::sample((*class, *id), &mut random).unwrap();
            let mut out = OutBuffer::new();
            out.put_method(round, &method);
            let bytes = out.take_all();
            let (rest, frame) = parse_frame(&bytes[..]).unwrap_or_else(|error| panic!("{name}: {error:?}"));
            assert!(rest.is_empty());
            compared += agree(round, &method, &frame);
            let theirs = gen_frame(&frame)(Vec::new().into()).unwrap().into_inner().0;
            let mut input = BytesMut::from(&theirs[..]);
            let read = frame::split(&mut input, 1 << 20).unwrap().unwrap();
            // The only ticket that the oracle writes in an answer is 1, that of RabbitMQ.
            let expected = match &method {
                Method::AccessRequestOk(_) => AccessRequestOk { ticket: 1 }.into(),
                other => other.clone(),
            };
            assert_eq!(Method::decode(read.payload).unwrap(), expected, "{name}");
            assert_eq!((method.name(), method.id()), (*name, (*class, *id)));
        }
    }
    assert!(compared > 40 * 60, "only {compared} fields could be compared by name");
}

#[test]
fn names_in_short_strings_need_not_be_text() {
    let key = ShortStr::new(Bytes::from_static(b"caf\xe9\x00\xff")).unwrap();
    let method = Method::from(BasicPublish { routing_key: key, mandatory: true, ..Default::default() });
    let mut out = BytesMut::new();
    method.encode(&mut out);
    assert_eq!(Method::decode(out.freeze()).unwrap(), method);
}

#[test]
fn every_cut_and_every_addition_is_refused() {
    let mut random = Random(7);
    for (class, id, name) in Method::ALL {
        let mut out = BytesMut::new();
        Method::sample((*class, *id), &mut random).unwrap().encode(&mut out);
        for len in 0..out.len() {
            assert!(Method::decode(out.clone().freeze().slice(..len)).is_err(), "{name} cut to {len}");
        }
        out.put_u8(0);
        assert!(Method::decode(out.freeze()).is_err(), "{name} with a byte more");
    }
}

#[test]
fn unknown_methods_are_not_implemented() {
    for (class, method) in [(60, 61), (10, 99), (0, 0), (30, 12), (65_535, 65_535)] {
        let mut out = BytesMut::new();
        out.put_u16(class);
        out.put_u16(method);
        let error = Method::decode(out.freeze()).unwrap_err();
        assert_eq!(error, CodecError::UnknownMethod { class, method });
        assert_eq!(error.reply_code().code(), 540);
    }
}
