//! Bit rot: a flipped bit at any place, in segments and in the manifest.

use super::world::*;
use crate::format::{BatchHeader, FIRST_POSITION};
use crate::manifest::{Loaded, Manifest};
use crate::segment::path_of;
use crate::*;
use bytes::Bytes;
use longshore_io::sim::SimDisk;
use longshore_wire::{Index, ShardId};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Where a batch lies: segment file, from, to, and the one group that it is about.
#[derive(Clone, Debug)]
struct Span {
    path: String,
    from: u64,
    to: u64,
    group: ShardId,
}

/// Three groups, a batch each in turn, over several segments. Returns the model before and after the last batch.
fn build() -> (SimDisk, Model, Model) {
    let disk = SimDisk::new(1);
    let (mut log, mut writer, _) = open(&disk).unwrap();
    let mut model = Model::default();
    let mut before_last = Model::default();
    for round in 0..30u32 {
        let group = ShardId(round % 3 + 1);
        before_last = model.clone();
        let next = model.groups.get(&group).map_or(1, |p| p.last() + 1);
        let body = Bytes::from(vec![round as u8; 1200]);
        for op in [Op::HardState(1, next), Op::Append(next, 1, body)] {
            apply(&mut log, group, &op);
            model.apply(group, &op);
        }
        flush(&mut log, &mut writer);
    }
    disk.restart();
    (disk, before_last, model)
}

fn manifest(disk: &SimDisk) -> Manifest {
    match Manifest::load(disk).unwrap() {
        Loaded::Whole(manifest) => manifest,
        other => panic!("{other:?}"),
    }
}

/// All batches, in order.
fn spans(disk: &SimDisk) -> Vec<Span> {
    let manifest = manifest(disk);
    let mut spans = Vec::new();
    for named in &manifest.segments {
        let path = path_of(named.slot);
        let bytes = disk.content(&path).unwrap();
        let seed = crate::format::seed(&manifest.salt, named.id);
        let mut from = FIRST_POSITION;
        while let Some(header) = BatchHeader::decode(&bytes, seed, from) {
            let to = from + header.total_bytes();
            spans.push(Span { path: path.clone(), from, to, group: header.groups.unwrap()[0] });
            from = to;
        }
    }
    spans
}

/// Every group but those set aside says what it should.
fn others_are_whole(seen: &Model, whole: &Model) {
    for (group, plain) in &whole.groups {
        assert!(seen.aside.contains(group) || seen.groups.get(group) == Some(plain), "{group}");
    }
    assert!(seen.groups.keys().all(|group| whole.groups.contains_key(group)), "invented a group");
}

#[test]
fn a_flipped_bit_in_any_batch_sets_its_group_aside_and_no_other() {
    let (disk, ..) = build();
    let spans = spans(&disk);
    assert_eq!(spans.len(), 30);
    assert!(spans.first().unwrap().path != spans.last().unwrap().path, "more than one segment");
    for (place, span) in spans.iter().enumerate() {
        let is_last = place + 1 == spans.len();
        // Every byte of the headers, a sample of the data.
        let bytes = (span.from..span.to).filter(|at| at - span.from < 120 || at % 97 == 0);
        for at in bytes {
            let (disk, before_last, whole) = build();
            assert!(disk.flip(&span.path, at, (at % 8) as u8));
            let (log, _, recovery) = open(&disk).unwrap();
            let seen = observe(&log).unwrap();
            let padding = seen == whole && recovery.damage.is_empty();
            if is_last {
                // The one exception: it cannot be told from a tear.
                assert!(recovery.damage.is_empty());
                assert!(padding || seen == before_last, "at {at}: {seen:?}");
            } else if !padding {
                assert_eq!(
                    seen.aside,
                    BTreeSet::from([span.group]),
                    "batch {place}, byte {at}: {:?}",
                    recovery.damage
                );
                assert!(!recovery.every_other_set_aside);
                others_are_whole(&seen, &whole);
            } else {
                assert!(at >= span.to - 7, "byte {at} of {span:?} is not padding, and its flip went unseen");
            }
        }
    }
}

#[test]
fn what_damage_cost_is_remembered_until_the_group_is_made_anew() {
    let (disk, _, whole) = build();
    let span = spans(&disk)[4].clone();
    disk.flip(&span.path, span.from + 70, 3);
    for round in 0..3 {
        let (mut log, mut writer, recovery) = open(&disk).unwrap();
        assert_eq!(recovery.set_aside, BTreeSet::from([span.group]), "start {round}");
        assert!(matches!(log.append(span.group, entry(1)), Err(LogError::SetAside(_))));
        flush(&mut log, &mut writer);
        others_are_whole(&observe(&log).unwrap(), &whole);
        disk.crash(round);
    }
    let (mut log, mut writer, _) = open(&disk).unwrap();
    log.reset(span.group);
    log.append(span.group, entry(1)).unwrap();
    flush(&mut log, &mut writer);
    let seen = observe(&log).unwrap();
    assert!(seen.aside.is_empty());
    disk.crash(9);
    let (log, _, recovery) = open(&disk).unwrap();
    assert!(recovery.set_aside.is_empty());
    assert_eq!(observe(&log).unwrap(), seen);
}

fn entry(index: u64) -> Entry {
    Entry {
        index: Index(index),
        term: longshore_wire::Term(9),
        kind: 3,
        context: Bytes::from_static(b"context"),
        data: Bytes::from_static(b"anew"),
    }
}

#[test]
fn two_unreadable_batch_headers_in_a_row_set_every_group_aside() {
    let (disk, ..) = build();
    let all = spans(&disk);
    for span in &all[3..5] {
        disk.flip(&span.path, span.from + 9, 0);
    }
    for _ in 0..2 {
        let (log, _, recovery) = open(&disk).unwrap();
        assert!(recovery.every_other_set_aside);
        assert!(recovery.groups.is_empty());
        assert!((0..10).all(|g| log.is_set_aside(ShardId(g))));
        disk.restart();
    }
    let (mut log, mut writer, _) = open(&disk).unwrap();
    log.reset(ShardId(2));
    log.append(ShardId(2), entry(1)).unwrap();
    flush(&mut log, &mut writer);
    disk.crash(1);
    let (log, _, recovery) = open(&disk).unwrap();
    assert_eq!(recovery.groups.keys().copied().collect::<Vec<_>>(), [ShardId(2)]);
    assert!(log.is_set_aside(ShardId(1)) && !log.is_set_aside(ShardId(2)));
}

#[test]
fn damage_before_a_torn_tail_stays_known_after_the_tail_is_cut() {
    let (disk, _, whole) = build();
    let all = spans(&disk);
    let (damaged, torn) = (&all[28], &all[29]);
    disk.flip(&damaged.path, damaged.from + 100, 1);
    disk.flip(&torn.path, torn.from + 100, 1);
    for round in 0..3 {
        let (mut log, mut writer, recovery) = open(&disk).unwrap();
        assert_eq!(recovery.set_aside, BTreeSet::from([damaged.group]), "start {round}");
        let seen = observe(&log).unwrap();
        assert_eq!(seen.groups[&ShardId(1)], whole.groups[&ShardId(1)]);
        flush(&mut log, &mut writer);
        disk.crash(round);
    }
}

#[test]
fn a_flipped_bit_in_the_manifest_sets_every_group_aside_and_keeps_the_bodies() {
    let (disk, ..) = build();
    let bytes = disk.content("log/manifest").unwrap().len() as u64;
    for at in 0..bytes {
        let (disk, ..) = build();
        let segments = manifest(&disk).segments;
        disk.flip("log/manifest", at, (at % 8) as u8);
        let (mut log, mut writer, recovery) = open(&disk).unwrap();
        assert!(recovery.every_other_set_aside && recovery.groups.is_empty(), "byte {at}");
        assert_eq!(
            log.segments().iter().map(|s| s.id).collect::<Vec<_>>(),
            segments.iter().map(|n| n.id).collect::<Vec<_>>()
        );
        let found: usize = segments.iter().map(|n| log.scan(n.id).unwrap().run().unwrap().len()).sum();
        assert_eq!(found, 30, "the bodies are still readable");
        log.reset(ShardId(1));
        log.append(ShardId(1), entry(1)).unwrap();
        flush(&mut log, &mut writer);
        disk.crash(at);
        let (log, _, recovery) = open(&disk).unwrap();
        assert!(recovery.every_other_set_aside);
        assert_eq!(read_all(&log, ShardId(1)).unwrap(), [entry(1)]);
        assert!(log.segments().last().unwrap().id > segments.last().unwrap().id, "generations only grow");
    }
}

#[test]
fn a_log_that_vanished_is_damage_and_not_a_new_one() {
    use longshore_io::Disk;
    let (disk, ..) = build();
    for name in disk.list("log").unwrap() {
        disk.remove(&format!("log/{name}")).unwrap();
    }
    let lost = LogConfig { must_exist: true, ..config() };
    for _ in 0..2 {
        let (log, _, recovery) = NodeLog::open(Arc::new(disk.clone()), lost.clone()).unwrap();
        assert!(recovery.every_other_set_aside && recovery.groups.is_empty());
        assert!(log.is_set_aside(ShardId(0)));
        disk.restart();
    }
}

#[test]
fn a_lost_segment_file_is_damage() {
    let (disk, ..) = build();
    let first = path_of(manifest(&disk).segments[0].slot);
    use longshore_io::Disk;
    disk.remove(&first).unwrap();
    let (_, _, recovery) = open(&disk).unwrap();
    assert!(recovery.every_other_set_aside, "eleven batches are gone, and one list tells of one");
}

#[test]
fn a_flipped_bit_under_a_read_is_corruption_and_never_given_out() {
    let (disk, ..) = build();
    let (log, ..) = open(&disk).unwrap();
    let place = log.place(ShardId(1), Index(2)).unwrap();
    let slot = manifest(&disk).segments.iter().find(|n| n.id == place.segment).unwrap().slot;
    disk.flip(&path_of(slot), place.data_position() + 5, 2);
    let Fetched::Read(task) = log.entries(ShardId(1), Index(1), Index(4), usize::MAX).unwrap() else {
        panic!()
    };
    assert!(
        matches!(task.run().entries, Err(ReadError::Corrupt { segment, .. }) if segment == place.segment)
    );
}

#[test]
fn a_newer_format_is_refused_and_both_versions_are_named() {
    use longshore_io::{Disk, OpenMode};
    let (disk, ..) = build();
    let mut bytes = disk.content("log/manifest").unwrap();
    bytes[8] = 2;
    let crc = crc32c::crc32c(&bytes[8..]);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    let file = disk.open("log/manifest", OpenMode::Write).unwrap();
    file.write_at(&[std::io::IoSlice::new(&bytes)], 0).unwrap();
    let error = open(&disk).err().unwrap();
    assert!(matches!(error, OpenError::Version { found: 2, known: 1, .. }), "{error}");
}
