//! Batches with flipped and missing bytes: apply takes them all, and what it refuses changes nothing.
#![cfg(test)]

mod common;

use bytes::Bytes;
use common::{Append, Put, apply, batch};
use longshore_shard::{BatchResult, OWN_CURSOR, Shard};
use longshore_wire::batch::{DeadReason, Item, Origin, Returned, Settle};
use longshore_wire::spec::LogSpec;
use longshore_wire::{LeaseId, LogId, LogTime, Offset, OffsetRange, Revision, SessionId, ShardId, Term};

fn every_item() -> Vec<Put> {
    let (log, cursor) = (LogId(1), OWN_CURSOR);
    let range = OffsetRange { first: Offset(1), last: Offset(4) };
    let settle = Settle {
        log,
        cursor,
        term: Term(1),
        acked: vec![range],
        returned: vec![Returned { offset: Offset(6), lease: LeaseId(1), counted: true }],
        dead: vec![(Offset(7), DeadReason::Expired)],
    };
    let items = [
        Item::Part { upload: 3, crc: 0, bytes: Bytes::from_static(b"piece") },
        Item::Settle(settle),
        Item::CreateLog { log: LogId(2), spec: LogSpec::QUEUE },
        Item::DropLog { log: LogId(2), revision: Revision(1) },
        Item::Purge { log, cursor, end: Offset(9), leased: vec![range] },
        Item::OpenSession(SessionId(8)),
        Item::CloseSession(SessionId(8)),
        Item::Expire { log, cursor, ranges: vec![range] },
        Item::Take { log, cursor, offset: Offset(12), lease: LeaseId(1), until: LogTime(9) },
        Item::CommitPosition { log, name: Bytes::from_static(b"me"), offset: Offset(1) },
        Item::Rewind { log, cursor, to: Offset(3) },
        Item::Trim { log, start: Offset(1) },
    ];
    let token = Some(Origin::Token { scope: 1, id: 1, attempt: 1 });
    let producer = Some(Origin::Producer { id: 1, epoch: 1, sequence: 1 });
    let mut puts: Vec<_> = items.map(Put::Item).into();
    puts.push(Put::Append(Append { count: 20, origin: token, delay_ms: 5, ..Append::to(1) }));
    puts.push(Put::Append(Append { origin: producer, ..Append::to(1) }));
    puts
}

#[test]
fn damaged_batches_are_refused_or_applied_and_never_panic() {
    let mut shard = Shard::new(ShardId(1));
    let spec = LogSpec { rewind_ms: 100, ..LogSpec::QUEUE };
    let setup = [Item::CreateLog { log: LogId(1), spec }, Item::OpenSession(SessionId(7))];
    apply(&mut shard, 1, &batch(0, 0, &setup.map(Put::Item)));
    let mut seed = 0xBAD_u64;
    let mut refused = 0;
    for n in 0..30_000 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let number = shard.session(SessionId(7)).map_or(0, |session| session.last().0) + 1;
        let mut bytes = batch(if seed & 1 == 0 { 0 } else { 7 }, number, &every_item()).to_vec();
        let at = (seed >> 33) as usize % bytes.len();
        bytes[at] = (seed >> 8) as u8;
        if seed & 0x30 == 0 {
            bytes.truncate(at);
        }
        // Counting pages is slow: now and then is enough.
        let before = (n % 50 == 0).then(|| shard.all_pages());
        let effects = apply(&mut shard, n, &bytes.into());
        let is_refused = effects.outcomes.iter().all(|(.., result)| *result == BatchResult::Malformed);
        refused += u32::from(is_refused);
        if let Some(before) = before.filter(|_| is_refused) {
            assert_eq!(before[1..], shard.all_pages()[1..], "only the header may differ: the applied index");
        }
        // A damaged count may take offsets by the billion; the next rounds shall stay quick.
        if shard.log(LogId(1)).is_none_or(|log| log.next().0 > 1 << 20) {
            return_to_start(&mut shard);
        }
    }
    assert!(refused > 3_000, "{refused}");
}

/// A new shard that goes on at the same index.
fn return_to_start(shard: &mut Shard) {
    let mut fresh = Shard::new(shard.id());
    let setup = [Item::CreateLog { log: LogId(1), spec: LogSpec::QUEUE }, Item::OpenSession(SessionId(7))];
    apply(&mut fresh, 1, &batch(0, 0, &setup.map(Put::Item)));
    *shard = fresh;
}
