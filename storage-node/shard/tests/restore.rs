//! Pages that are not what they should be: refused with a reason, never a panic, whatever the bytes.
#![cfg(test)]

mod common;

use bytes::Bytes;
use common::{Append, Put, apply, batch};
use longshore_shard::{OWN_CURSOR, RestoreError, Shard};
use longshore_wire::batch::{Item, Origin, Returned, Settle};
use longshore_wire::spec::LogSpec;
use longshore_wire::{DecodeError, LeaseId, LogId, LogTime, Offset, OffsetRange, SessionId, ShardId, Term};

/// A state with every kind of page.
fn rich() -> Shard {
    let mut shard = Shard::new(ShardId(4));
    let (log, cursor) = (LogId(1), OWN_CURSOR);
    let settle = Settle {
        log,
        cursor,
        term: Term(1),
        acked: vec![OffsetRange { first: Offset(2), last: Offset(70_000) }],
        returned: vec![Returned { offset: Offset(1), lease: LeaseId(0), counted: true }],
        dead: Vec::new(),
    };
    let leader = [
        Item::CreateLog { log, spec: LogSpec { rewind_ms: 9_000, ..LogSpec::QUEUE } },
        Item::DropLog { log: LogId(9), revision: longshore_wire::Revision(1) },
        Item::OpenSession(SessionId(7)),
        Item::CloseSession(SessionId(6)),
    ];
    apply(&mut shard, 100, &batch(0, 0, &leader.map(Put::Item)));
    let token = Some(Origin::Token { scope: 1, id: 2, attempt: 3 });
    let producer = Some(Origin::Producer { id: 1, epoch: 2, sequence: 3 });
    let puts = [
        Put::Append(Append { count: 80_000, ..Append::to(1) }),
        Put::Append(Append { origin: token, delay_ms: 50, ..Append::to(1) }),
        Put::Append(Append { origin: producer, ..Append::to(1) }),
        Put::Item(Item::Part { upload: 5, crc: 0, bytes: Bytes::from_static(b"piece") }),
        Put::Item(Item::Settle(settle)),
        Put::Item(Item::Take { log, cursor, offset: Offset(0), lease: LeaseId(8), until: LogTime(900) }),
        Put::Item(Item::CommitPosition { log, name: Bytes::from_static(b"me"), offset: Offset(4) }),
    ];
    apply(&mut shard, 200, &batch(7, 1, &puts));
    shard
}

#[test]
fn every_kind_of_page_is_there_and_read_back() {
    let shard = rich();
    let pages = shard.all_pages();
    let mut kinds: Vec<u8> = pages.iter().map(|(key, _)| key[0]).collect();
    kinds.dedup();
    assert_eq!(kinds, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    let again = Shard::restore(ShardId(4), pages.clone()).unwrap();
    assert_eq!((again.state_hash(), again.all_pages()), (shard.state_hash(), pages));
    assert_eq!(
        (again.applied(), again.applied_term(), again.log_time()),
        (shard.applied(), Term(1), LogTime(200))
    );
}

#[test]
fn only_what_changed_is_given_out_again() {
    let mut shard = rich();
    shard.take_dirty_pages();
    apply(&mut shard, 220, &batch(7, 2, &[Put::Append(Append::to(1))]));
    let kinds: Vec<u8> = shard.take_dirty_pages().iter().map(|(key, _)| key[0]).collect();
    assert_eq!(kinds, [1, 4, 8], "header, session, log");
}

#[test]
fn a_newer_version_of_any_page_is_refused_and_both_are_named() {
    let pages = rich().all_pages();
    for i in 0..pages.len() {
        let mut pages = pages.clone();
        let mut page = pages[i].1.to_vec();
        page[0] = 2;
        pages[i].1 = page.into();
        let error = Shard::restore(ShardId(4), pages).unwrap_err();
        let RestoreError::Page { source: DecodeError::Version { found: 2, known: 1, .. }, .. } = error else {
            panic!("{error}");
        };
    }
}

#[test]
fn pages_that_are_no_whole_state_are_refused() {
    let (id, pages) = (ShardId(4), rich().all_pages());
    let headless = Shard::restore(id, pages[1..].to_vec()).unwrap_err();
    assert_eq!(headless, RestoreError::NoHeader { shard: id });
    let other = Shard::restore(ShardId(5), pages.clone()).unwrap_err();
    assert_eq!(other, RestoreError::OtherShard { shard: ShardId(5), found: id });
    let mut unknown = pages.clone();
    unknown.push((Bytes::from_static(&[77, 1]), Bytes::from_static(&[1])));
    assert_eq!(Shard::restore(id, unknown).unwrap_err(), RestoreError::UnknownKind { shard: id, kind: 77 });
    let logless: Vec<_> = pages.into_iter().filter(|(key, _)| key[0] != 8).collect();
    assert!(matches!(Shard::restore(id, logless), Err(RestoreError::Page { .. })));
    assert_eq!(Shard::restore(id, []).unwrap().state_hash(), Shard::new(id).state_hash());
}

#[test]
fn damaged_pages_never_panic_and_neither_does_what_follows() {
    let pages = rich().all_pages();
    let mut seed = 0x5EED_u64;
    let mut restored = 0;
    for _ in 0..20_000 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mut pages = pages.clone();
        let victim = (seed >> 40) as usize % pages.len();
        let (key, page) = &mut pages[victim];
        let damaged = if seed & 3 == 0 { key } else { page };
        let mut bytes = damaged.to_vec();
        let at = (seed >> 20) as usize % bytes.len().min(64);
        bytes[at] = (seed >> 8) as u8;
        if seed & 0x70 == 0 {
            bytes.truncate(at);
        }
        *damaged = bytes.into();
        let Ok(mut shard) = Shard::restore(ShardId(4), pages) else { continue };
        restored += 1;
        let all = OffsetRange { first: Offset(0), last: Offset(90_000) };
        let (log, cursor) = (LogId(1), OWN_CURSOR);
        let after = [
            Put::Append(Append { count: 3, delay_ms: 5, ..Append::to(1) }),
            Put::Item(Item::Rewind { log, cursor, to: Offset(10) }),
            Put::Item(Item::Purge {
                log,
                cursor,
                end: Offset(60_000),
                leased: vec![OffsetRange::one(Offset(9))],
            }),
            Put::Item(Item::Expire { log, cursor, ranges: vec![all] }),
        ];
        apply(&mut shard, 1 << 40, &batch(0, 0, &after));
        shard.take_dirty_pages();
        shard.live_ranges(log).for_each(drop);
    }
    assert!(restored > 1_000, "{restored}");
}
