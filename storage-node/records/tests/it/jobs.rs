//! Jobs: they come to an end, fail without harm on a full disk, and shared bodies stay shared.

use crate::common::*;
use longshore_io::sim::SimDisk;
use longshore_records::*;
use longshore_wire::*;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

struct Filled {
    disk: SimDisk,
    log: Arc<FakeLog>,
    records: Records,
    next: BTreeMap<LogId, u64>,
}

/// `entries` entries of one message for logs 1 and 2, in one retired segment.
fn filled(config: Config, entries: u64, body: &[u8]) -> Filled {
    let (disk, log) = (SimDisk::new(1), Arc::new(FakeLog::default()));
    let (records, _) = Records::open(Arc::new(disk.clone()), log.clone(), config, &[]).unwrap();
    let mut filled = Filled { disk, log, records, next: BTreeMap::new() };
    filled.fill(SegmentId(1), 1..=entries, body);
    filled
}

impl Filled {
    fn fill(&mut self, segment: SegmentId, indices: RangeInclusive<u64>, body: &[u8]) {
        let last = *indices.end();
        for index in indices {
            let shared =
                Message { targets: vec![LogId(1), LogId(2)], body: body.to_vec(), parts: Vec::new() };
            let (data, rows) = batch(index, &[shared], &mut self.next);
            let entry = EntryKey { group: GROUP, index: Index(index), term: Term(2) };
            let place = self.log.append(segment, entry, &data);
            self.records.applied(GROUP, Index(index), Some(place), rows, &data).unwrap();
        }
        self.records.segment_sealed(&SegmentInfo {
            id: segment,
            bytes: self.log.size(segment),
            sealed: true,
            retired: true,
            last: vec![(GROUP, Index(last))],
        });
    }
}

fn range(first: u64, last: u64) -> OffsetRange {
    OffsetRange { first: Offset(first), last: Offset(last) }
}

fn stores(disk: &SimDisk) -> Vec<String> {
    names(disk).into_iter().filter(|name| name.ends_with(".store")).collect()
}

#[test]
fn what_was_rewritten_is_not_rewritten_for_ever_however_tiny_the_records() {
    let mut world = filled(Config { rewrite_live_percent_max: 100, ..small() }, 50, b"");
    world.records.settled(LogId(1), &[range(0, 48)]);
    world.records.settled(LogId(2), &[range(0, 48)]);
    let mut jobs = Vec::new();
    while let Some(job) = world.records.next_job() {
        jobs.push(job.what());
        world.records.job_done(job.run());
        assert!(jobs.len() < 10, "{jobs:?}");
    }
    assert_eq!(jobs, [What::Index, What::Rewrite, What::Remove]);
    assert_eq!(world.records.removable(), [SegmentId(1)]);
    assert_eq!(world.next[&LogId(1)], 50);
}

#[test]
fn a_rewrite_copies_a_shared_body_once_and_both_logs_read_it() {
    let mut world = filled(small(), 40, &[5; 2_000]);
    for log in [LogId(1), LogId(2)] {
        world.records.settled(log, &[range(0, 34)]);
    }
    settle_down(&mut world.records);
    let store = stores(&world.disk);
    let size = world.disk.content(&store[0]).unwrap().len();
    assert!((5 * 2_000..5 * 2_000 + 2_000).contains(&size), "{size} bytes");
    for (log, at) in [(LogId(1), 35), (LogId(2), 39)] {
        assert!(read(&mut world.records, log, at).unwrap().is_some());
    }
    // One pointer left of each body: still there. None: the file goes.
    world.records.settled(LogId(1), &[range(0, 39)]);
    settle_down(&mut world.records);
    assert!(read(&mut world.records, LogId(2), 37).unwrap().is_some());
    world.records.dropped(LogId(2));
    settle_down(&mut world.records);
    assert!(stores(&world.disk).is_empty());
}

#[test]
fn a_full_disk_refuses_work_and_harms_nothing() {
    let mut world = filled(small(), 40, &[5; 500]);
    world.disk.set_capacity(Some(world.disk.used_bytes()));
    let job = world.records.flush().unwrap();
    assert!(world.records.flush().is_none(), "one at a time");
    let outcome = world.records.job_done(job.run());
    assert!(matches!(outcome, JobOutcome::Failed(What::Index, RecordsError::Io { .. })), "{outcome:?}");
    assert_eq!(world.records.rows_durable(GROUP), Index(0));
    assert!(read(&mut world.records, LogId(1), 3).unwrap().is_some());
    world.disk.set_capacity(None);
    flush(&mut world.records);
    assert_eq!(world.records.rows_durable(GROUP), Index(40));

    world.records.settled(LogId(1), &[range(0, 38)]);
    world.records.dropped(LogId(2));
    world.disk.set_capacity(Some(world.disk.used_bytes()));
    let job = world.records.next_job().unwrap();
    let outcome = world.records.job_done(job.run());
    assert!(matches!(outcome, JobOutcome::Failed(What::Rewrite, RecordsError::Io { .. })), "{outcome:?}");
    assert!(world.records.holds(SegmentId(1)));
    assert!(stores(&world.disk).is_empty(), "a failed rewrite leaves nothing on a full disk");
    assert!(read(&mut world.records, LogId(1), 39).unwrap().is_some());
    world.disk.set_capacity(None);
    settle_down(&mut world.records);
    assert!(!world.records.holds(SegmentId(1)));
    assert!(read(&mut world.records, LogId(1), 39).unwrap().is_some());
}

#[test]
fn a_file_that_cannot_be_read_holds_up_neither_dead_segments_nor_itself() {
    let mut world = filled(small(), 40, &[5; 500]);
    world.fill(SegmentId(2), 41..=80, &[6; 500]);
    flush(&mut world.records);
    for log in [LogId(1), LogId(2)] {
        world.records.settled(log, &[range(0, 38), range(40, 79)]);
    }
    world.log.remove(SegmentId(1));
    let mut rewrites = Vec::new();
    while let Some(job) = world.records.next_job() {
        match world.records.job_done(job.run()) {
            JobOutcome::Rewritten => rewrites.push(world.records.removable()),
            JobOutcome::Failed(What::Rewrite, error) => {
                assert!(matches!(error, RecordsError::Corrupt(ReadError::Io { .. })), "{error}");
                rewrites.push(Vec::new());
            }
            other => assert!(matches!(other, JobOutcome::Indexed | JobOutcome::Removed), "{other:?}"),
        }
        assert!(rewrites.len() < 5, "{rewrites:?}");
    }
    assert_eq!(rewrites, [vec![SegmentId(2)], vec![]]);
    assert!(world.records.holds(SegmentId(1)));
}
