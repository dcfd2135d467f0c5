//! Frames, content and tables: what a reader of the crate needs to see, and the corners that clients reach.

use amq_protocol::frame::{AMQPFrame, gen_frame, parse_frame};
use bytes::{Bytes, BytesMut};
use longshore_amqp_codec::content::{PropertiesBuilder, Property};
use longshore_amqp_codec::frame::{Greeting, split, take_greeting};
use longshore_amqp_codec::method::BasicDeliver;
use longshore_amqp_codec::{
    CodecError, ContentHeader, FrameKind, OutBuffer, Properties, ShortStr, Table, TableBuilder, Value,
};

fn all_properties() -> Properties {
    let text = ShortStr::from_static("some text");
    let mut builder = PropertiesBuilder::new()
        .delivery_mode(2)
        .priority(9)
        .timestamp(1_234_567_890)
        .headers(&TableBuilder::new().put("k", Value::Text(b"v")).build());
    for property in Property::ALL {
        use Property::{DeliveryMode, Headers, Priority, Timestamp};
        if ![DeliveryMode, Headers, Priority, Timestamp].contains(&property) {
            builder = builder.short(property, &text);
        }
    }
    builder.build()
}

#[test]
fn all_fourteen_properties_agree_with_the_oracle() {
    let header = ContentHeader { class_id: 60, body_bytes: 77, properties: all_properties() };
    let mut out = OutBuffer::new();
    let method = BasicDeliver::default().into();
    out.put_content(5, &method, header.properties.bytes(), &[Bytes::from(vec![1; 77])], 131_072);
    let bytes = out.take_all();
    let (rest, _) = parse_frame(&bytes[..]).unwrap();
    let (_, frame) = parse_frame(rest).unwrap();
    let AMQPFrame::Header(5, oracle) = &frame else { panic!("{frame:?}") };
    assert_eq!(
        (oracle.body_size, *oracle.properties.priority(), *oracle.properties.timestamp()),
        (77, Some(9), Some(1_234_567_890))
    );
    assert_eq!(oracle.properties.app_id().as_ref().map(|s| s.as_str()), Some("some text"));
    let theirs = gen_frame(&frame)(Vec::new().into()).unwrap().into_inner().0;
    let read = split(&mut BytesMut::from(&theirs[..]), 131_072).unwrap().unwrap();
    let read = ContentHeader::decode(read.payload).unwrap();
    assert_eq!(read, header);
    assert_eq!((read.properties.delivery_mode(), read.properties.priority()), (Some(2), Some(9)));
    assert_eq!(read.properties.headers().and_then(|h| h.get("k")), Some(Value::Text(b"v")));
}

#[test]
fn headers_are_replaced_without_touching_the_rest() {
    let all = all_properties();
    let without = all.with_headers(None);
    assert!(!without.has(Property::Headers));
    assert_eq!(Properties::parse(without.bytes().clone()).unwrap(), without);
    assert_eq!(
        without.with_headers(all.headers().map(|h| TableBuilder::from_table(h).build()).as_ref()),
        all
    );
    let fresh =
        Properties::default().with_headers(Some(&TableBuilder::new().put("n", Value::I64(1)).build()));
    assert_eq!(
        Properties::parse(fresh.bytes().clone()).unwrap().headers().and_then(|h| h.get("n")),
        Some(Value::I64(1))
    );
}

#[test]
fn unknown_flags_and_wrong_lengths_of_properties_are_refused() {
    for bad in [
        &b"\x00\x01"[..],
        b"\x00\x02",
        b"\x10",
        b"",
        b"\x10\x00",
        b"\x00\x00\x01",
        b"\x20\x00\x00\x00\x00\x09\x01",
    ] {
        assert!(Properties::parse(Bytes::copy_from_slice(bad)).is_err(), "{bad:02x?}");
    }
}

#[test]
fn tables_keep_order_and_duplicates() {
    let table =
        TableBuilder::new().put("zz", Value::I32(1)).put("aa", Value::I32(2)).put("zz", Value::Void).build();
    let again = Table::parse(table.bytes().clone()).unwrap();
    let names: Vec<&[u8]> = again.iter().map(|(name, _)| name).collect();
    assert_eq!(names, [b"zz", b"aa", b"zz"]);
    assert_eq!(again.get("zz"), Some(Value::I32(1)));
}

#[test]
fn both_longs_are_signed_and_big_u_is_refused() {
    let l = Table::parse(Bytes::from_static(b"\x01kL\xff\xff\xff\xff\xff\xff\xff\xfe")).unwrap();
    assert_eq!(l.get("k"), Some(Value::I64(-2)));
    assert!(Table::parse(Bytes::from_static(b"\x01kU\x00\x01")).is_err());
}

#[test]
fn bodies_are_split_at_the_frame_limit() {
    for (len, limit, frames) in
        [(0, 4096, 0), (4088, 4096, 1), (4089, 4096, 2), (100_000, 4096, 25), (9, 9, 9)]
    {
        let body: Vec<u8> = (0..len).map(|i| i as u8).collect();
        let whole = Bytes::from(body.clone());
        let slices = [whole.slice(..len / 3), Bytes::new(), whole.slice(len / 3..)];
        let mut out = OutBuffer::new();
        out.put_content(1, &BasicDeliver::default().into(), Properties::default().bytes(), &slices, limit);
        let announced = out.len();
        let bytes = out.take_all();
        assert_eq!((bytes.len(), out.len()), (announced, 0));
        let mut input = BytesMut::from(&bytes[..]);
        let (mut seen, mut count) = (Vec::new(), 0);
        while let Some(frame) = split(&mut input, limit.max(64)).unwrap() {
            if frame.kind == FrameKind::Body {
                assert!(frame.payload.len() + 8 <= limit);
                seen.extend_from_slice(&frame.payload);
                count += 1;
            }
        }
        assert_eq!((seen == body, count), (true, frames), "{len} bytes at {limit}");
    }
}

#[test]
fn a_partly_written_buffer_goes_on_where_it_stopped() {
    let mut out = OutBuffer::new();
    let body = Bytes::from((0..50_000u32).map(|i| i as u8).collect::<Vec<_>>());
    out.put_content(
        1,
        &BasicDeliver::default().into(),
        Properties::default().bytes(),
        std::slice::from_ref(&body),
        8_000,
    );
    out.put_heartbeat();
    let mut again = OutBuffer::new();
    again.put_content(1, &BasicDeliver::default().into(), Properties::default().bytes(), &[body], 8_000);
    again.put_heartbeat();
    let expected = again.take_all();
    let mut written = Vec::new();
    while !out.is_empty() {
        let mut slices = [std::io::IoSlice::new(&[]); 3];
        let filled = out.io_slices(&mut slices);
        let step: Vec<u8> = slices[..filled].iter().flat_map(|s| s.iter().copied()).take(777).collect();
        out.advance(step.len());
        written.extend_from_slice(&step);
    }
    assert_eq!(written, expected);
}

#[test]
fn frames_are_refused_by_length_before_anything_else() {
    let mut huge = BytesMut::from(&b"\x01\x00\x00\xff\xff\xff\xff"[..]);
    let error = split(&mut huge, 4_096).unwrap_err();
    assert_eq!(error, CodecError::FrameTooLarge { found: 0xFFFF_FFFF + 8, max: 4_096 });
    assert_eq!(error.reply_code().code(), 501);
    let mut http = BytesMut::from(&b"GET / HTTP/1.1\r\n"[..]);
    assert_eq!(split(&mut http, 4_096).unwrap_err(), CodecError::FrameType(b'G'));
    let mut end = BytesMut::from(&b"\x08\x00\x00\x00\x00\x00\x00\xcf"[..]);
    assert_eq!(split(&mut end, 4_096).unwrap_err(), CodecError::FrameEnd(0xCF));
    let mut part = BytesMut::from(&b"\x08\x00\x00\x00\x00\x00\x00"[..]);
    assert_eq!(split(&mut part, 4_096), Ok(None));
}

#[test]
fn greetings_of_other_protocols_are_told_apart() {
    let greeting = |bytes: &[u8]| take_greeting(&mut BytesMut::from(bytes));
    assert_eq!(greeting(b"AMQP\x00\x00\x09\x01rest"), Greeting::Amqp091);
    assert_eq!(greeting(b"AMQP\x00\x00"), Greeting::Incomplete);
    assert_eq!(greeting(b""), Greeting::Incomplete);
    for other in [
        &b"AMQP\x00\x01\x00\x00"[..],
        b"AMQP\x01\x01\x00\x09",
        b"AMQP\x03",
        b"GET / HTTP/1.1",
        b"\x16\x03\x01",
    ] {
        assert_eq!(greeting(other), Greeting::Other, "{other:02x?}");
    }
}
