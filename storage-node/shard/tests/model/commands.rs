//! Random commands, most of them near the places where a chunk of 65,536 offsets ends.

use crate::common::{Append, Put};
use bytes::Bytes;
use longshore_shard::OWN_CURSOR;
use longshore_wire::batch::{DeadReason, Item, Origin, Returned, Settle};
use longshore_wire::record::flags;
use longshore_wire::spec::{LogKind, LogSpec};
use longshore_wire::{LeaseId, LogId, LogTime, Offset, OffsetRange, Revision, SessionId, Term};
use proptest::prelude::*;

pub const REWIND_MS: u64 = 640;
pub const REWIND_SLOT_MS: u64 = 20;

#[derive(Clone, Debug)]
pub enum Number {
    Next,
    Again(u64),
    Ahead,
}

#[derive(Clone, Debug)]
pub enum Step {
    Batch { session: u64, number: Number, after_ms: u64, puts: Vec<Put> },
    Garbage { bytes: Vec<u8> },
    Checkpoint,
    Snapshot,
}

fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0..40_u64, 4 => 65_520..65_560_u64, 1 => 0..140_000_u64, 1 => 131_060..131_080_u64]
}

fn range() -> impl Strategy<Value = OffsetRange> {
    let length = prop_oneof![6 => 0..3_u64, 3 => 0..40_u64, 1 => 0..70_000_u64];
    (offset(), length)
        .prop_map(|(first, length)| OffsetRange { first: Offset(first), last: Offset(first + length) })
}

pub fn spec(log: u64) -> LogSpec {
    match log {
        2 => LogSpec { rewind_ms: REWIND_MS, ..LogSpec::QUEUE },
        3 => LogSpec { kind: LogKind::Stream, ..LogSpec::QUEUE },
        _ => LogSpec { ttl_ms: Some(500), ..LogSpec::QUEUE },
    }
}

fn append() -> impl Strategy<Value = Put> {
    let origin = prop_oneof![
        6 => Just(None),
        1 => (0..20_u64).prop_map(|id| Some(Origin::Token { scope: 1, id, attempt: 0 })),
        1 => (0..2_u16, 0..12_u32).prop_map(|(epoch, sequence)| Some(Origin::Producer { id: 5, epoch, sequence })),
    ];
    let count = prop_oneof![9 => 1..4_u32, 2 => 60_000..66_000_u32];
    let targets = prop::collection::vec((1..5_u64).prop_map(LogId), 1..4);
    (targets, origin, count, prop_oneof![3 => Just(0), 1 => 1..200_u64], any::<bool>()).prop_map(
        |(targets, origin, count, delay_ms, parts)| {
            // A delayed record of many offsets is not what this test is about.
            let count = if delay_ms > 0 { count.min(3) } else { count };
            let flags = if parts && delay_ms % 3 == 1 { flags::PARTS } else { 0 };
            Put::Append(Append { targets, origin, count, delay_ms, flags, upload: 1, ..Append::to(1) })
        },
    )
}

fn settle() -> impl Strategy<Value = Item> {
    let acked = prop::collection::vec(range(), 0..6);
    let returned = prop::collection::vec((offset(), any::<bool>()), 0..4);
    let dead = prop::collection::vec(offset(), 0..2);
    (1..4_u64, acked, returned, dead).prop_map(|(log, acked, returned, dead)| {
        Item::Settle(Settle {
            log: LogId(log),
            cursor: OWN_CURSOR,
            term: Term(1),
            acked,
            returned: returned
                .into_iter()
                .map(|(offset, counted)| Returned { offset: Offset(offset), lease: LeaseId(0), counted })
                .collect(),
            dead: dead.into_iter().map(|offset| (Offset(offset), DeadReason::Rejected)).collect(),
        })
    })
}

fn item() -> impl Strategy<Value = Item> {
    let cursor = OWN_CURSOR;
    let log = || (1..5_u64).prop_map(LogId);
    prop_oneof![
        12 => settle(),
        2 => (log(), offset(), prop::collection::vec(range(), 0..3))
            .prop_map(move |(log, end, leased)| Item::Purge { log, cursor, end: Offset(end), leased }),
        2 => (log(), prop::collection::vec(range(), 0..3))
            .prop_map(move |(log, ranges)| Item::Expire { log, cursor, ranges }),
        3 => (log(), offset(), 0..4_u64, 0..3_000_u64).prop_map(move |(log, offset, lease, until)| {
            Item::Take { log, cursor, offset: Offset(offset), lease: LeaseId(lease), until: LogTime(until) }
        }),
        3 => (1..4_u64, offset())
            .prop_map(move |(log, to)| Item::Rewind { log: LogId(log), cursor, to: Offset(to) }),
        2 => offset().prop_map(|start| Item::Trim { log: LogId(3), start: Offset(start) }),
        1 => log().prop_map(|log| Item::CreateLog { log, spec: spec(log.0) }),
        1 => Just(Item::DropLog { log: LogId(4), revision: Revision(1) }),
        1 => (log(), offset()).prop_map(|(log, offset)| {
            Item::CommitPosition { log, name: Bytes::from(format!("r{}", offset % 3)), offset: Offset(offset) }
        }),
        1 => Just(Item::Part { upload: 1, crc: crc_of_piece(), bytes: Bytes::from_static(b"piece") }),
        1 => (7..10_u64).prop_map(|id| Item::OpenSession(SessionId(id))),
        1 => Just(Item::CloseSession(SessionId(9))),
    ]
}

fn crc_of_piece() -> u32 {
    // Apply leaves checksums to the replica's write and to reads.
    0
}

pub fn step() -> impl Strategy<Value = Step> {
    let again = (0..40_u64).prop_map(Number::Again);
    let number = prop_oneof![8 => Just(Number::Next), 2 => again, 1 => Just(Number::Ahead)];
    let put = prop_oneof![4 => append(), 6 => item().prop_map(Put::Item)];
    let session = prop_oneof![3 => Just(0_u64), 5 => Just(7), 2 => Just(8), 1 => Just(9)];
    prop_oneof![
        20 => (session, number, 0..60_u64, prop::collection::vec(put, 0..5)).prop_map(
            |(session, number, after_ms, puts)| Step::Batch { session, number, after_ms, puts }
        ),
        1 => prop::collection::vec(any::<u8>(), 0..80).prop_map(|bytes| Step::Garbage { bytes }),
        2 => Just(Step::Checkpoint),
        1 => Just(Step::Snapshot),
    ]
}
