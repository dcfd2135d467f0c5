//! Crashes at every step, flips at every byte, full disks; a model tells what must be read back.

mod disk;
mod faults;
mod model;
mod simulated;

use crate::{Config, Damaged, Loaded, Mark, PageStore};
use bytes::Bytes;
use disk::MemDisk;
use longshore_wire::{Index, LogTime, ShardId, Term};
use std::collections::BTreeMap;
use std::sync::Arc;

const GROUP: ShardId = ShardId(7);

fn config() -> Config {
    Config { dir: "checkpoint".into(), frame_bytes: 64, rewrite_bytes_min: 600 }
}

fn mark(index: u64) -> Mark {
    let conf = Bytes::from(format!("conf {index}"));
    Mark { index: Index(index), term: Term(index / 3 + 1), log_time: LogTime(1000 + index), conf }
}

fn key(n: u64) -> Bytes {
    Bytes::from(format!("page/{n}"))
}

fn value(n: u64, index: u64) -> Bytes {
    Bytes::from(format!("value of {n} at {index} {}", "x".repeat(n as usize % 5 * 10)))
}

type Pages = BTreeMap<Bytes, Bytes>;
type Dirty = Vec<(Bytes, Option<Bytes>)>;

/// The changes of checkpoint `index`: a few pages written, one removed.
fn dirty(index: u64) -> Dirty {
    let mut pages: Dirty =
        (0..4).map(|n| (n + index * 3) % 11).map(|n| (key(n), Some(value(n, index)))).collect();
    pages.push((key((index * 5) % 11), None));
    pages
}

fn applied(pages: &mut Pages, dirty: &Dirty) {
    for (key, value) in dirty {
        match value {
            Some(value) => pages.insert(key.clone(), value.clone()),
            None => pages.remove(key),
        };
    }
}

/// States after checkpoints 1..=count; entry 0 is "none yet".
fn history(count: u64) -> Vec<(Mark, Pages)> {
    let mut pages = Pages::new();
    let mut out = vec![(Mark::default(), pages.clone())];
    for index in 1..=count {
        applied(&mut pages, &dirty(index));
        out.push((mark(index), pages.clone()));
    }
    out
}

fn open(disk: &Arc<MemDisk>) -> (PageStore, Vec<Loaded>, Vec<Damaged>) {
    let opened = PageStore::open(Arc::clone(disk) as _, config()).unwrap();
    (opened.store, opened.loaded, opened.damaged)
}

/// A store that appends deltas only.
fn open_for_deltas(disk: &Arc<MemDisk>) -> PageStore {
    let config = Config { rewrite_bytes_min: u64::MAX, ..config() };
    PageStore::open(Arc::clone(disk) as _, config).unwrap().store
}

fn save(store: &mut PageStore, index: u64) -> Result<crate::Saved, crate::JobError> {
    let job = store.begin(GROUP, mark(index), dirty(index)).unwrap();
    store.job_done(job.run())
}

#[test]
fn what_was_saved_is_read_back_over_deltas_and_rewrites() {
    let disk = Arc::new(MemDisk::default());
    let (mut store, loaded, damaged) = open(&disk);
    assert!(loaded.is_empty() && damaged.is_empty());
    let history = history(30);
    let mut rewrites = 0;
    for index in 1..=30u64 {
        rewrites += u32::from(save(&mut store, index).unwrap().rewritten);
        let (_, loaded, damaged) = open(&Arc::new(disk.copy()));
        assert!(damaged.is_empty());
        let (mark, pages) = &history[index as usize];
        assert_eq!((&loaded[0].mark, &loaded[0].pages, loaded[0].cut_bytes), (mark, pages, 0));
    }
    assert!((3..20).contains(&rewrites), "{rewrites}");
    assert!(disk.total_bytes() < 4000, "garbage stays");
}

#[test]
fn groups_are_apart_and_go_alone() {
    let disk = Arc::new(MemDisk::default());
    let (mut store, ..) = open(&disk);
    for group in [1, 2, 3] {
        let pages = vec![(key(group), Some(value(group, 1)))];
        let job = store.begin(ShardId(group as u32), mark(group), pages).unwrap();
        store.job_done(job.run()).unwrap();
    }
    assert_eq!(store.groups().collect::<Vec<_>>(), [ShardId(1), ShardId(2), ShardId(3)]);
    let job = store.remove(ShardId(2)).unwrap();
    assert!(store.begin(ShardId(2), mark(9), vec![]).is_err(), "busy");
    store.job_done(job.run()).unwrap();
    disk.crash(disk::Keep::Nothing);
    let (store, loaded, _) = open(&disk);
    assert_eq!(loaded.iter().map(|l| l.group.0).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(store.mark(ShardId(3)), Some(&mark(3)));
    assert_eq!(store.mark(ShardId(2)), None);
}

#[test]
fn replace_forgets_what_was_before() {
    let disk = Arc::new(MemDisk::default());
    let (mut store, ..) = open(&disk);
    save(&mut store, 1).unwrap();
    let pages = Pages::from([(key(99), value(99, 2))]);
    let job = store.replace(GROUP, mark(2), pages.clone()).unwrap();
    assert!(store.job_done(job.run()).unwrap().rewritten);
    let (_, loaded, _) = open(&disk);
    assert_eq!((&loaded[0].mark, &loaded[0].pages), (&mark(2), &pages));
}

#[test]
fn one_job_at_a_time_and_the_pages_come_back() {
    let disk = Arc::new(MemDisk::default());
    let (mut store, ..) = open(&disk);
    let job = store.begin(GROUP, mark(1), dirty(1)).unwrap();
    assert!(store.is_busy(GROUP));
    let busy = store.begin(GROUP, mark(2), dirty(2)).unwrap_err();
    assert_eq!(busy.pages, dirty(2));
    store.job_done(job.run()).unwrap();
    let job = store.begin(GROUP, mark(2), busy.pages).unwrap();
    store.job_done(job.run()).unwrap();
    assert_eq!(open(&disk).1[0].pages, history(2)[2].1);
}

#[test]
fn a_value_beyond_its_limit_is_refused_before_anything_is_written() {
    let disk = Arc::new(MemDisk::default());
    let (mut store, ..) = open(&disk);
    save(&mut store, 1).unwrap();
    let before = disk.total_bytes();
    let huge = Bytes::from(vec![0; crate::VALUE_BYTES_MAX + 1]);
    let job = store.begin(GROUP, mark(2), vec![(key(1), Some(huge))]).unwrap();
    assert!(matches!(store.job_done(job.run()), Err(crate::JobError::TooLarge { what: "a page value", .. })));
    assert_eq!(disk.total_bytes(), before);
}

#[test]
fn files_of_others_and_of_newer_builds_are_refused() {
    let disk = Arc::new(MemDisk::default());
    let (mut store, ..) = open(&disk);
    save(&mut store, 1).unwrap();
    let name = disk.names().remove(0);
    let newer = disk.copy();
    newer.edit(&name, |bytes| {
        bytes[4] = 9;
        let crc = crc32c::crc32c(&bytes[..20]).to_le_bytes();
        bytes[20..24].copy_from_slice(&crc);
    });
    let error = PageStore::open(Arc::new(newer), config()).unwrap_err();
    assert!(error.to_string().contains("version 9, this build knows up to 1"), "{error}");
    disk.put("checkpoint/notes.txt", b"hello");
    assert!(matches!(PageStore::open(disk, config()), Err(crate::OpenError::Foreign { .. })));
}
