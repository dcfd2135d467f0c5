//! Bounds: bytes of index per record, and what memory a backlog takes beyond the tail.

use crate::common::*;
use longshore_io::sim::SimDisk;
use longshore_records::*;
use longshore_wire::*;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A log that forgets its bytes: only the index is looked at here.
struct NoBytes;

impl Segments for NoBytes {
    fn read(&self, _: SegmentId, _: u64, _: usize) -> std::io::Result<bytes::Bytes> {
        Err(std::io::ErrorKind::NotFound.into())
    }
    fn check(&self, _: SegmentId, _: &[u8], _: &EntryKey) -> bool {
        false
    }
}

/// Applies batches of `each` messages of about 100 bytes to `logs` logs; the next one is chosen by a simple generator.
fn fill(records: &mut Records, entries: u64, each: u64, logs: u64) -> u64 {
    let mut next: BTreeMap<LogId, u64> = BTreeMap::new();
    let (mut segment, mut position, mut seed) = (1, 4096, 7_u64);
    for index in 1..=entries {
        let mut rows = Vec::new();
        let mut start = 24;
        for _ in 0..each {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let log = LogId(1 + (seed >> 33) % logs);
            let len = 190 + (seed >> 20) as u32 % 20;
            let offset = next.entry(log).or_default();
            rows.push(row::Row {
                log,
                offset: Offset(*offset),
                count: 1,
                time: LogTime(1_700_000_000_000 + index * each / 90 + seed % 3),
                client_time_ms: record::NO_CLIENT_TIME,
                due: LogTime(0),
                expiry: LogTime(1_700_000_000_000 + index * each / 90 + seed % 3 + 60_000),
                priority: 0,
                key_hash: 0,
                record: row::Source { index: Index(index), start: start + 6, len },
                parts: Vec::new(),
            });
            *offset += 1;
            start += 6 + len;
        }
        let data = bytes::Bytes::from(vec![0; start as usize]);
        if position > 64 << 20 {
            let info = SegmentInfo {
                id: SegmentId(segment),
                bytes: 64 << 20,
                sealed: true,
                retired: false,
                last: vec![(GROUP, Index(index - 1))],
            };
            records.segment_sealed(&info);
            settle_down(records);
            (segment, position) = (segment + 1, 4096);
        }
        let place = Place {
            segment: SegmentId(segment),
            position: position + 49,
            head: 49,
            len: start,
            term: Term(3),
        };
        position += 49 + u64::from(start);
        records.applied(GROUP, Index(index), Some(place), rows, &data).unwrap();
    }
    flush(records);
    entries * each
}

fn open(disk: &SimDisk, tail_bytes_max: usize) -> Records {
    let config = Config { tail_bytes_max, ..Config::default() };
    Records::open(Arc::new(disk.clone()), Arc::new(NoBytes), config, &[]).unwrap().0
}

fn index_bytes(disk: &SimDisk) -> u64 {
    names(disk)
        .iter()
        .filter(|name| name.ends_with(".index"))
        .map(|name| disk.content(name).unwrap().len() as u64)
        .sum()
}

#[test]
fn the_index_of_small_messages_takes_at_most_8_bytes_a_record() {
    for (entries, each, logs) in [(3_000, 32, 1), (40_000, 1, 1), (3_000, 32, 10), (2_000, 100, 1_000)] {
        let disk = SimDisk::new(1);
        let mut records = open(&disk, 0);
        let n = fill(&mut records, entries, each, logs);
        let per_record = index_bytes(&disk) as f64 / n as f64;
        println!("{each} a batch, {logs} logs: {per_record:.2} bytes of index a record");
        assert!(per_record <= 8.0, "{each} a batch, {logs} logs: {per_record:.2} bytes");
    }
}

/// Bytes of anonymous memory of this process.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or_default() << 10
}

/// Run it alone: `cargo test -p longshore-records --test it ten_million -- --ignored --nocapture`.
#[test]
#[ignore = "half a minute, and it must run alone"]
fn ten_million_waiting_take_a_few_mib_also_half_settled_and_reopened() {
    let disk = SimDisk::new(1);
    let mut records = open(&disk, 0);
    let before = resident();
    let n = fill(&mut records, 100_000, 100, 1);
    // The disk is in memory here too: what was written, and what was synced.
    let on_disk = 2 * index_bytes(&disk);
    println!("waiting: {} MiB beyond {} of index", (resident() - before - on_disk) >> 20, on_disk >> 20);
    assert!(resident() < before + on_disk + (32 << 20));
    for at in (0..n).step_by(2) {
        records.settled(LogId(1), &[OffsetRange::one(Offset(at))]);
    }
    assert_eq!(records.garbage().live_pointers, n / 2);
    println!("half settled: {} MiB", (resident() - before - on_disk) >> 20);
    assert!(resident() < before + on_disk + (40 << 20));
    drop(records);
    let started = std::time::Instant::now();
    let existing: Vec<SegmentInfo> = (1..=40)
        .map(|id| SegmentInfo {
            id: SegmentId(id),
            bytes: 64 << 20,
            sealed: true,
            retired: false,
            last: Vec::new(),
        })
        .collect();
    let config = Config { tail_bytes_max: 0, ..Config::default() };
    let (mut records, _) =
        Records::open(Arc::new(disk.clone()), Arc::new(NoBytes), config, &existing).unwrap();
    struct Half(u64);
    impl LiveView for Half {
        fn applied(&self) -> Index {
            Index(100_000)
        }
        fn first(&self, _: LogId) -> Option<Offset> {
            Some(Offset(1))
        }
        fn dead(&self, _: LogId, dead: &mut dyn FnMut(OffsetRange)) {
            (0..self.0).step_by(2).for_each(|at| dead(OffsetRange::one(Offset(at))));
        }
        fn uploads_from(&self) -> Index {
            Index(100_001)
        }
    }
    records.recover(GROUP, &Half(n));
    println!("reopened in {:?}: {} MiB", started.elapsed(), (resident() - before - on_disk) >> 20);
    assert_eq!(records.garbage().live_pointers, n / 2);
    let rows = all_rows(&mut records, LogId(1), 0, 1_000);
    assert_eq!(rows.len() as u64, n / 2);
    println!("rows read again in {:?}", started.elapsed());
}
