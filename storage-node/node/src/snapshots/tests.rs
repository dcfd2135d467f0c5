//! What a snapshot must bring beside live records.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may end by them")]

use super::*;
use crate::io::TaskDone;
use crate::segments::SegmentBook;
use crate::testing;
use longshore_checkpoint::PageStore;
use longshore_consensus::{Machine, Membership};
use longshore_io::sim::SimDisk;
use longshore_io::{Disk, Mono};
use longshore_proto::v1::FetchedRecord;
use longshore_records::{Config, ImportFor, JobOutcome, Lookup, Parts};
use longshore_shard::Effects;
use longshore_wire::batch::{BatchBuilder, Item};
use longshore_wire::context::EntryContext;
use longshore_wire::{BatchNo, NodeId, SessionId, Term};
use std::sync::Arc;

const GROUP: ShardId = ShardId(3);
const PIECES: [&[u8]; 2] = [b"the first piece", b"and the second"];

fn apply(shard: &mut Shard, index: u64, session: SessionId, number: u64, items: &[Item]) {
    let mut batch = BatchBuilder::new(session);
    items.iter().for_each(|item| batch.push(item));
    let data = batch.finish(BatchNo(number));
    shard.apply(Index(index), Term(1), &EntryContext::default(), &data, &mut Effects::default());
}

/// A shard in which an upload has begun.
fn uploading() -> Shard {
    let mut shard = Shard::new(GROUP);
    apply(&mut shard, 1, SessionId(0), 0, &[Item::OpenSession(SessionId(7))]);
    let parts = PIECES.map(|piece| Item::Part {
        upload: 5,
        crc: crc32c::crc32c(piece),
        bytes: Bytes::from_static(piece),
    });
    apply(&mut shard, 2, SessionId(7), 1, &parts);
    shard
}

fn records() -> Records {
    let disk = Arc::new(SimDisk::new(1));
    Records::open(disk, Arc::new(SegmentBook::default()), Config::default(), &[]).unwrap().0
}

/// A node's host with one shard, in which an upload has begun.
fn host() -> Host {
    testing::host(uploading())
}

fn snapshot_at(index: u64) -> SnapshotMeta {
    SnapshotMeta { index: Index(index), term: Term(1), membership: Membership::default() }
}

fn take(records: &mut Records, batch: Vec<longshore_records::Import>) {
    let job = records.import(ImportFor(1), batch).unwrap();
    assert!(matches!(records.job_done(job.run()), JobOutcome::Imported(_)));
}

/// As a peer sends it.
fn fetched(records: &mut Records, log: LogId, range: OffsetRange) -> Vec<FetchedRecord> {
    let Lookup::Task(task) = records.export(log, range.first, range.last.plus(1), Parts::All) else {
        panic!("the sender holds it")
    };
    let answer = records.read_done(task.run());
    assert!(answer.failed.is_empty(), "{:?}", answer.failed);
    let as_sent = |stored: longshore_records::StoredRecord| {
        let mut row = Vec::new();
        stored.row.encode(&mut row);
        let (log, offset) = (stored.row.log.0, stored.row.offset.0);
        FetchedRecord { log, offset, row: row.into(), record: stored.record, parts: stored.parts }
    };
    answer.records.into_iter().map(as_sent).collect()
}

#[test]
fn the_pieces_of_an_open_upload_come_with_the_snapshot() {
    let shard = Shard::restore(GROUP, uploading().all_pages()).unwrap();
    let sources: Vec<_> = shard.upload_sources().collect();
    assert_eq!(sources.len(), 2);
    let mut sender = records();
    let held = sources.iter().zip(PIECES).map(|(source, piece)| {
        let row = piece_row(*source);
        let mut encoded = Vec::new();
        row.encode(&mut encoded);
        let (log, offset) = (row.log.0, row.offset.0);
        let record = Bytes::from_static(piece);
        import(GROUP, FetchedRecord { log, offset, row: encoded.into(), record, parts: Vec::new() }).unwrap()
    });
    let held = held.collect();
    take(&mut sender, held);

    let mut receiver = records();
    let missing = missing_of(&receiver, GROUP, &shard);
    assert_eq!(missing.len(), 2, "both pieces: {missing:?}");
    for (log, range) in missing {
        let batch = fetched(&mut sender, log, range);
        assert_eq!(batch.len(), 1);
        take(&mut receiver, batch.into_iter().map(|one| import(GROUP, one).unwrap()).collect());
    }
    assert!(missing_of(&receiver, GROUP, &shard).is_empty());

    // The snapshot is installed: they stay, for the record that is still to come.
    receiver.recover(GROUP, &View(&shard));
    for (piece, source) in PIECES.iter().zip(&sources) {
        let again = fetched(&mut receiver, part_log(GROUP), OffsetRange::one(part_offset(source)));
        assert_eq!(again[0].record, *piece);
    }
}

#[test]
fn a_snapshot_without_any_page_is_not_taken_for_an_empty_shard() {
    let mut host = host();
    let (mut events, mut out) = (Vec::new(), Output::default());
    host.fetch_bodies(GROUP, ReplicaId::new(NodeId(2), 1), snapshot_at(9), &[], &mut events, &mut out);
    assert!(matches!(events[..], [Event::BodiesFailed { group: GROUP, index: Index(9) }]), "{events:?}");
    assert!(out.tasks.is_empty() && host.installing.is_empty());
}

#[test]
fn a_replica_that_was_only_bootstrapped_may_take_a_snapshot() {
    let (host, mut store) = (testing::host(Shard::new(GROUP)), testing::store());
    let voters = [1, 2, 3].map(|node| ReplicaId::new(NodeId(node), 1));
    store.bootstrap(GROUP, voters[0], &voters, Mono(0)).unwrap();
    assert!(store.log().first_index(GROUP) > Some(Index(1)), "its log begins behind the bootstrap");
    assert!(!host.stands_on_staged(&store, GROUP));
}

#[test]
fn a_damaged_staged_file_does_not_keep_the_next_snapshot_away() {
    let (mut host, mut store, disk) = (host(), testing::store(), SimDisk::new(3));
    let open = || PageStore::open(Arc::new(disk.clone()), host.config.checkpoint.clone()).unwrap();
    let mut before = open().store;
    let mark = Mark { index: Index(5), term: Term(1), log_time: LogTime(0), conf: Bytes::new() };
    let staged = BTreeMap::from([(Bytes::from_static(b"key"), Bytes::from(vec![7; 9_000]))]);
    let job = before.replace(ShardId(GROUP.0 | STAGED), mark, staged).unwrap();
    before.job_done(job.run()).unwrap();
    let dir = &host.config.checkpoint.dir;
    for name in disk.list(dir).unwrap() {
        assert!(disk.flip(&format!("{dir}/{name}"), 5_000, 3));
    }
    let damaged = open();
    assert_eq!(damaged.damaged.len(), 1);
    host.pages = damaged.store;

    let pages = pages::pack(uploading().all_pages());
    let (mut events, mut out) = (Vec::new(), Output::default());
    host.fetch_bodies(GROUP, ReplicaId::new(NodeId(2), 1), snapshot_at(9), &pages, &mut events, &mut out);
    assert!(matches!(events[..], [Event::BodiesFailed { .. }]), "{events:?}");
    for task in std::mem::take(&mut out.tasks) {
        let TaskDone::Checkpoint(done) = task.run() else { panic!("another task") };
        host.checkpoint_done(&mut store, done, &mut events, &mut out).unwrap();
    }
    host.fetch_bodies(GROUP, ReplicaId::new(NodeId(2), 1), snapshot_at(9), &pages, &mut events, &mut out);
    assert!(host.installing.contains_key(&GROUP));
}

#[test]
fn a_snapshot_that_is_gone_is_never_taken_for_installed() {
    let mut host = host();
    let old = host.shards[&GROUP].shard.state_hash();
    let (mut events, mut out) = (Vec::new(), Output::default());
    let pages = pages::pack(uploading().all_pages());
    host.fetch_bodies(GROUP, ReplicaId::new(NodeId(2), 1), snapshot_at(9), &pages, &mut events, &mut out);
    assert!(host.installing.contains_key(&GROUP));

    // Consensus made another one the group's history, and what comes after it.
    host.restore(GROUP, &snapshot_at(12));
    assert!(host.unrestored.contains(&GROUP) && host.installed.is_empty());
    let mut batch = BatchBuilder::new(SessionId(0));
    batch.push(&Item::OpenSession(SessionId(8)));
    let context = EntryContext::default().encode();
    host.apply(GROUP, Index(13), Term(1), &context, &batch.finish(BatchNo(0)));
    assert_eq!(host.shards[&GROUP].shard.state_hash(), old, "nothing is applied with a gap");
}

/// The row of a piece, as the record store makes it.
fn piece_row(source: longshore_wire::row::Source) -> longshore_wire::row::Row {
    longshore_wire::row::Row {
        log: part_log(GROUP),
        offset: part_offset(&source),
        count: 1,
        time: LogTime(0),
        client_time_ms: longshore_wire::record::NO_CLIENT_TIME,
        due: LogTime(0),
        expiry: longshore_wire::row::NEVER,
        priority: 0,
        key_hash: 0,
        record: source,
        parts: Vec::new(),
    }
}
