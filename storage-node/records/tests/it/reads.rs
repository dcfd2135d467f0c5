//! Reading: from the tail, by coalesced tasks, ahead of a sequential reader; and what is corrupt is never delivered.

use crate::common::*;
use longshore_io::sim::SimDisk;
use longshore_records::*;
use longshore_wire::*;
use std::collections::BTreeMap;
use std::sync::Arc;

const LOG: LogId = LogId(1);

struct Node {
    disk: SimDisk,
    log: Arc<FakeLog>,
    records: Records,
    next: BTreeMap<LogId, u64>,
    index: u64,
    places: Vec<(Place, Vec<row::Row>)>,
}

impl Node {
    fn new(config: Config) -> Node {
        let (disk, log) = (SimDisk::new(1), Arc::new(FakeLog::default()));
        let (records, _) = Records::open(Arc::new(disk.clone()), log.clone(), config, &[]).unwrap();
        Node { disk, log, records, next: BTreeMap::new(), index: 0, places: Vec::new() }
    }

    fn apply(&mut self, data: &bytes::Bytes, rows: Vec<row::Row>) {
        let index = Index(self.index);
        let entry = EntryKey { group: GROUP, index, term: Term(2) };
        let place = self.log.append(SegmentId(1), entry, data);
        self.places.push((place, rows.clone()));
        self.records.applied(GROUP, index, Some(place), rows, data).unwrap();
    }

    fn fill(&mut self, entries: usize, each: usize, len: usize) {
        for _ in 0..entries {
            self.index += 1;
            let messages: Vec<Message> =
                (0..each).map(|i| message(LOG.0, &vec![(self.index as usize + i) as u8; len])).collect();
            let (data, rows) = batch(self.index, &messages, &mut self.next);
            self.apply(&data, rows);
        }
    }

    /// Reads [from, until) in batches; returns how many tasks it took.
    fn drain(&mut self, from: u64, until: u64, step: usize) -> usize {
        let mut tasks = 0;
        let wanted: Vec<(LogId, Offset)> = (from..until).map(|at| (LOG, Offset(at))).collect();
        for chunk in wanted.chunks(step) {
            let many = self.records.read_many(chunk, Parts::All);
            assert!(many.missing.is_empty());
            let mut got: Vec<StoredRecord> = many.ready;
            if let Some(task) = many.task {
                tasks += 1;
                let answer = self.records.read_done(task.run());
                assert!(answer.failed.is_empty(), "{:?}", answer.failed);
                got.extend(answer.records);
            }
            let mut offsets: Vec<Offset> = got.iter().map(|record| record.row.offset).collect();
            offsets.sort();
            assert_eq!(offsets, chunk.iter().map(|(_, offset)| *offset).collect::<Vec<_>>());
        }
        tasks
    }
}

#[test]
fn a_recent_record_is_the_very_bytes_that_were_applied() {
    let mut node = Node::new(Config::default());
    node.fill(1, 4, 100);
    let Lookup::Ready(stored) = node.records.read(LOG, Offset(2), Parts::All) else {
        panic!("not in the tail")
    };
    let Lookup::Ready(again) = node.records.read(LOG, Offset(2), Parts::All) else {
        panic!("not in the tail")
    };
    assert_eq!(stored.record.as_ptr(), again.record.as_ptr());
    assert_eq!(stored.row, node.places[0].1[2]);
    assert_eq!(node.log.reads.lock().unwrap().0, 0);
}

#[test]
fn the_tail_keeps_to_its_bytes_and_older_rows_come_from_the_index() {
    let mut node = Node::new(Config { tail_bytes_max: 50_000, ..small() });
    node.fill(300, 3, 200);
    assert!(node.records.garbage().tail_bytes <= 50_000);
    flush(&mut node.records);
    let rows = all_rows(&mut node.records, LOG, 0, 100);
    assert_eq!(rows.len(), 900);
    assert!(rows.iter().zip(0..).all(|(row, at)| row.offset.0 == at));
    let expected: Vec<_> = node.places.iter().flat_map(|(_, rows)| rows.clone()).collect();
    assert_eq!(rows, expected);
}

#[test]
fn a_sequential_reader_is_served_by_few_large_reads() {
    let config = Config {
        tail_bytes_max: 0,
        read_ahead_bytes: 512 << 10,
        read_cache_bytes_max: 2 << 20,
        ..Config::default()
    };
    let mut node = Node::new(config);
    node.fill(500, 16, 100);
    flush(&mut node.records);
    let tasks = node.drain(0, 8_000, 50);
    let (reads, bytes) = *node.log.reads.lock().unwrap();
    let size = node.log.size(SegmentId(1));
    assert!(tasks <= 8, "{tasks} tasks for 160 batches");
    assert!(reads <= 12, "{reads} reads");
    assert!(bytes < size + size / 4, "{bytes} bytes read of {size}");
}

#[test]
fn half_settled_is_still_read_in_few_reads() {
    let config = Config { tail_bytes_max: 0, read_cache_bytes_max: 4 << 20, ..Config::default() };
    let mut node = Node::new(config);
    node.fill(500, 16, 100);
    flush(&mut node.records);
    let dead: Vec<OffsetRange> = (0..8_000).step_by(2).map(|at| OffsetRange::one(Offset(at))).collect();
    node.records.settled(LOG, &dead);
    assert_eq!(node.records.garbage().live_pointers, 4_000);
    let rows = all_rows(&mut node.records, LOG, 0, 500);
    assert_eq!(rows.len(), 4_000);
    for chunk in rows.chunks(64) {
        let wanted: Vec<_> = chunk.iter().map(|row| (LOG, row.offset)).collect();
        let many = node.records.read_many(&wanted, Parts::None);
        let from_task = many.task.map(|task| node.records.read_done(task.run()).records.len()).unwrap_or(0);
        assert_eq!(many.ready.len() + from_task, chunk.len());
    }
    let (reads, _) = *node.log.reads.lock().unwrap();
    assert!(reads <= 12, "{reads} reads");
}

#[test]
fn a_flipped_bit_anywhere_in_an_entry_is_never_delivered() {
    let mut node = Node::new(small());
    node.fill(3, 2, 20);
    flush(&mut node.records);
    let (place, rows) = node.places[1].clone();
    let start = (place.position - u64::from(place.head)) as usize;
    for at in start..start + (place.head + place.len) as usize {
        node.log.flip(SegmentId(1), at);
        let mut delivered = 0;
        for row in &rows {
            match read(&mut node.records, LOG, row.offset.0) {
                Ok(Some(stored)) => {
                    delivered += 1;
                    let record = record::Record::parse(stored.record).unwrap();
                    assert_eq!(&record.body()[..], vec![(2 + row.offset.0 % 2) as u8; 20]);
                }
                Ok(None) => panic!("missing is not corrupt"),
                Err(ReadError::Corrupt { log: LOG, .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        let in_head = at < start + place.head as usize;
        assert!(delivered <= if in_head { 0 } else { 2 });
        node.log.flip(SegmentId(1), at);
    }
    assert!(read(&mut node.records, LOG, 2).unwrap().is_some());
}

#[test]
fn a_corrupt_record_is_repaired_and_the_segment_then_rewritten() {
    let mut node = Node::new(small());
    node.fill(40, 2, 50);
    let good = read(&mut node.records, LOG, 20).unwrap().unwrap();
    flush(&mut node.records);
    retire(&mut node);
    let settled = |first, last| OffsetRange { first: Offset(first), last: Offset(last) };
    node.records.settled(LOG, &[settled(0, 19), settled(30, 79)]);
    let (place, rows) = node.places[10].clone();
    node.log.flip(SegmentId(1), place.position as usize + rows[0].record.start as usize + 90);

    let job = node.records.next_job().unwrap();
    assert_eq!(job.what(), What::Rewrite);
    let outcome = node.records.job_done(job.run());
    assert!(matches!(outcome, JobOutcome::Failed(What::Rewrite, RecordsError::Corrupt(_))), "{outcome:?}");
    // Not tried again and again, and the source stays.
    assert!(node.records.next_job().is_none());
    assert!(node.records.holds(SegmentId(1)));
    assert!(matches!(read(&mut node.records, LOG, 20), Err(ReadError::Corrupt { offset: Offset(20), .. })));

    let job = node.records.repair(GROUP, good.clone()).unwrap();
    assert!(matches!(node.records.job_done(job.run()), JobOutcome::Imported(_)));
    assert_eq!(read(&mut node.records, LOG, 20).unwrap().unwrap(), good);
    settle_down(&mut node.records);
    assert_eq!(node.records.removable(), [SegmentId(1)]);
    assert_eq!(all_rows(&mut node.records, LOG, 0, 10).len(), 10);
}

#[test]
fn bytes_that_are_not_the_row_are_not_imported() {
    let mut node = Node::new(Config::default());
    node.fill(1, 2, 20);
    let mut stored = read(&mut node.records, LOG, 0).unwrap().unwrap();
    let other = read(&mut node.records, LOG, 1).unwrap().unwrap();
    let mut torn = stored.record.to_vec();
    torn[80] ^= 1;
    stored.record = torn.into();
    assert!(matches!(node.records.repair(GROUP, stored.clone()), Err(RecordsError::Mismatch { .. })));
    stored.record = other.record;
    stored.row.record.len += 1;
    assert!(matches!(node.records.repair(GROUP, stored), Err(RecordsError::Mismatch { .. })));
}

#[test]
fn a_damaged_index_block_makes_its_offsets_missing_and_an_import_brings_them_back() {
    let mut node = Node::new(small());
    node.fill(100, 8, 30);
    let held: Vec<StoredRecord> =
        (0..800).map(|at| read(&mut node.records, LOG, at).unwrap().unwrap()).collect();
    flush(&mut node.records);
    let name = names(&node.disk).into_iter().find(|name| name.ends_with(".index")).unwrap();
    assert!(node.disk.flip(&name, 60, 2));
    let Lookup::Task(task) = node.records.rows(LOG, Offset(0), 10) else { panic!("not by a task") };
    let answer = node.records.read_done(task.run());
    assert!(matches!(answer.failed[..], [ReadError::CorruptIndex { log: LOG, .. }]), "{:?}", answer.failed);
    let all = [OffsetRange { first: Offset(0), last: Offset(799) }];
    let missing = node.records.missing(LOG, &all);
    assert_eq!(missing, [OffsetRange { first: Offset(0), last: Offset(255) }]);
    let batch = held[..256].iter().map(|stored| Import::Record { group: GROUP, stored: stored.clone() });
    let job = node.records.import(ImportFor(1), batch.collect()).unwrap();
    assert!(matches!(node.records.job_done(job.run()), JobOutcome::Imported(_)));
    assert!(node.records.missing(LOG, &all).is_empty());
    for (at, stored) in held.iter().enumerate() {
        assert_eq!(read(&mut node.records, LOG, at as u64).unwrap().as_ref(), Some(stored));
    }
}

/// The node log has no use of its own for the first segment any more.
fn retire(node: &mut Node) {
    let bytes = node.log.size(SegmentId(1));
    let info = SegmentInfo { id: SegmentId(1), bytes, sealed: true, retired: true, last: Vec::new() };
    node.records.segment_sealed(&info);
}

#[test]
fn large_bodies_are_read_whole_or_piece_by_piece() {
    let mut node = Node::new(small());
    let mut parts = Vec::new();
    for n in 0..3u8 {
        node.index += 1;
        let (data, source) = piece(node.index, &vec![n; 5_000]);
        node.apply(&data, Vec::new());
        parts.push(source);
    }
    node.index += 1;
    let targets = vec![LOG, LogId(2)];
    let large = Message { targets, body: vec![9; 10], parts: parts.clone() };
    let (data, rows) = batch(node.index, &[large], &mut node.next);
    node.apply(&data, rows);
    flush(&mut node.records);
    let whole = read(&mut node.records, LOG, 0).unwrap().unwrap();
    assert_eq!(whole.bytes(), 15_000 + whole.record.len());
    let Lookup::Task(task) = node.records.read(LOG, Offset(0), Parts::None) else { panic!("not by a task") };
    let answer = node.records.read_done(task.run());
    assert!(answer.records[0].parts.is_empty());
    let Lookup::Task(task) = node.records.read_parts(GROUP, &parts[1..2]) else { panic!("not by a task") };
    let answer = node.records.read_done(task.run());
    assert_eq!(answer.parts, [(parts[1], bytes::Bytes::from(vec![1; 5_000]))]);

    // The pieces live as long as one of the two pointers.
    node.records.uploads_from(GROUP, Index(node.index + 1));
    node.records.settled(LOG, &[OffsetRange::one(Offset(0))]);
    assert_eq!(node.records.garbage().live_pointers, 4);
    assert_eq!(read(&mut node.records, LogId(2), 0).unwrap().unwrap().parts.len(), 3);
    node.records.dropped(LogId(2));
    assert_eq!(node.records.garbage().live_pointers, 0);
    retire(&mut node);
    settle_down(&mut node.records);
    assert!(!node.records.holds(SegmentId(1)));
}

#[test]
fn pieces_of_an_upload_without_end_live_until_the_state_forgets_it() {
    let mut node = Node::new(small());
    node.index += 1;
    let (data, _) = piece(1, &[7; 100]);
    node.apply(&data, Vec::new());
    node.records.uploads_from(GROUP, Index(1));
    retire(&mut node);
    settle_down(&mut node.records);
    assert!(node.records.holds(SegmentId(1)));
    node.records.uploads_from(GROUP, Index(2));
    settle_down(&mut node.records);
    assert!(!node.records.holds(SegmentId(1)));
}
