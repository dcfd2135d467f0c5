//! Tests of what leaves for gateways.

use super::*;
use longshore_proto::MESSAGE_BYTES_MAX;
use longshore_wire::row::{NEVER, Row, Source};
use longshore_wire::{CursorId, Index, LeaseId, LogTime};

const SESSION: SessionId = SessionId(3);
const LINK: LinkId = LinkId(5);
const LOG: LogId = LogId(7);

pub(super) fn row(offset: u64) -> Row {
    Row {
        log: LOG,
        offset: Offset(offset),
        count: 1,
        time: LogTime(1),
        client_time_ms: 0,
        due: LogTime(0),
        expiry: NEVER,
        priority: 0,
        key_hash: 0,
        record: Source { index: Index(1), start: 0, len: 1 },
        parts: Vec::new(),
    }
}

fn handed(offset: u64) -> Handed {
    Handed {
        log: LOG,
        cursor: CursorId(0),
        offset: Offset(offset),
        count: 1,
        lease: LeaseId(offset),
        redelivered: false,
        returns: 0,
        message: Message::Stored(row(offset)),
    }
}

#[test]
fn no_item_is_over_the_size_of_a_message_however_large_the_bodies_of_a_turn_are() {
    let mut links = Links::default();
    links.open(LINK, SESSION);
    let to = ConsumerKey { session: SESSION, consumer: 1 };
    // One large body in pieces, then many small ones, all ready in one turn.
    for offset in 0..100 {
        links.deliver(ShardId(1), Term(1), to, handed(offset));
    }
    assert_eq!(links.wanted().len(), 1);
    for offset in 0..100 {
        let parts = if offset == 0 { vec![Bytes::from(vec![1; 1 << 20]); 20] } else { Vec::new() };
        let record = Bytes::from(vec![2; 100 << 10]);
        links.body(LINK, LOG, &StoredRecord { row: row(offset), record, parts });
    }
    links.flush(|_| true);
    let mut items = Vec::new();
    links.take(&mut items);
    let (mut offsets, mut pieces) = (Vec::new(), 0);
    for LinkItem { item, .. } in items {
        let v1::node_item::Item::Deliver(deliver) = item else { panic!("{item:?}") };
        assert_eq!((deliver.shard, deliver.term), (1, 1));
        let bytes: usize = deliver.deliveries.iter().map(|d| d.record.len() + d.piece.len()).sum();
        // A frame may have so much before it.
        assert!(bytes + FRAME_BYTES_TARGET < MESSAGE_BYTES_MAX, "{bytes} bytes in an item");
        for delivery in deliver.deliveries {
            if delivery.piece.is_empty() {
                offsets.push(delivery.offset);
            } else {
                assert_eq!(offsets, [0], "the pieces come right after their message");
                pieces += 1;
            }
        }
    }
    assert_eq!((offsets, pieces), ((0..100).collect(), 20));
}
