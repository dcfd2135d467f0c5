//! Every item there and back, and bytes that are no batch.

use super::*;
use crate::record::Form;

fn every_item() -> Vec<Item> {
    let range = OffsetRange { first: Offset(3), last: Offset(9) };
    let (log, cursor) = (LogId(5), CursorId(0));
    let mut record = BytesMut::new();
    NewRecord::plain(Form::Amqp, &[log], b"k", b"p")
        .encode(&[Bytes::from_static(b"b")], &mut record)
        .unwrap();
    vec![
        Item::Append {
            origin: Some(Origin::Token { scope: 1, id: 2, attempt: 3 }),
            record: Record::parse(record.freeze()).unwrap(),
        },
        Item::Part { upload: 4, crc: crc32c::crc32c(b"xyz"), bytes: Bytes::from_static(b"xyz") },
        Item::Settle(Settle {
            log,
            cursor,
            term: Term(2),
            acked: vec![range],
            returned: vec![Returned { offset: Offset(11), lease: LeaseId(4), counted: true }],
            dead: vec![(Offset(12), DeadReason::Rejected)],
        }),
        Item::CreateLog { log, spec: LogSpec { ttl_ms: Some(0), ..LogSpec::QUEUE } },
        Item::DropLog { log, revision: Revision(8) },
        Item::Purge { log, cursor, end: Offset(20), leased: vec![range] },
        Item::OpenSession(SessionId(7)),
        Item::CloseSession(SessionId(7)),
        Item::Expire { log, cursor, ranges: vec![range, OffsetRange::one(Offset(30))] },
        Item::Take { log, cursor, offset: Offset(1), lease: LeaseId(2), until: LogTime(3) },
        Item::CommitPosition { log, name: Bytes::from_static(b"reader"), offset: Offset(6) },
        Item::Rewind { log, cursor, to: Offset(0) },
        Item::Trim { log, start: Offset(2) },
    ]
}

#[test]
fn every_item_is_read_back_with_its_place() {
    let mut builder = BatchBuilder::new(SessionId(42));
    for item in every_item() {
        builder.push(&item);
    }
    let bytes = builder.finish(BatchNo(17));
    let batch = Batch::parse(bytes.clone()).unwrap();
    assert_eq!((batch.session, batch.number), (SessionId(42), BatchNo(17)));
    batch.verify().unwrap();
    let located: Vec<_> = batch.items().map(Result::unwrap).collect();
    let parts = located.iter().filter(|located| matches!(located.item, Item::Part { .. }));
    let parts: Vec<_> = parts.map(|part| (part.start, part.len)).collect();
    assert_eq!(part_places(&bytes).collect::<Vec<_>>(), parts);
    for located in &located {
        let stored = &bytes[located.start as usize..(located.start + located.len) as usize];
        match &located.item {
            Item::Append { record, .. } => assert_eq!(stored, &record.bytes()[..]),
            Item::Part { bytes, .. } => assert_eq!(stored, &bytes[..]),
            _ => {}
        }
    }
    assert_eq!(located.into_iter().map(|l| l.item).collect::<Vec<_>>(), every_item());
}

#[test]
fn mutated_batches_never_panic() {
    let mut builder = BatchBuilder::new(SessionId(42));
    for item in every_item() {
        builder.push(&item);
    }
    let good = builder.finish(BatchNo(1));
    let mut seed = 0x9E37_79B9_7F4A_7C15_u64;
    for _ in 0..100_000 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mut bad = good.to_vec();
        let at = (seed >> 33) as usize % bad.len();
        bad[at] = (seed >> 8) as u8;
        if seed & 7 == 0 {
            bad.truncate(at);
        }
        if let Ok(batch) = Batch::parse(bad.into()) {
            let _ = (part_places(batch.bytes()).count(), batch.verify());
        }
    }
}
