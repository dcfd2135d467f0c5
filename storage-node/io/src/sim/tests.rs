//! The simulated disk does what it says.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test's helpers fail by panicking"
)]

use super::*;
use std::collections::BTreeSet;

fn write(file: &Arc<dyn DiskFile>, bytes: &[u8], at: u64) -> io::Result<()> {
    file.write_at(&[IoSlice::new(bytes)], at)
}

fn durable_file(disk: &SimDisk, path: &str, bytes: &[u8]) -> Arc<dyn DiskFile> {
    let file = disk.open(path, OpenMode::Create).unwrap();
    write(&file, bytes, 0).unwrap();
    file.sync_data().unwrap();
    disk.sync_dir("").unwrap();
    file
}

#[test]
fn what_was_synced_survives_and_of_the_rest_any_part() {
    let mut seen = BTreeSet::new();
    for seed in 0..200 {
        let disk = SimDisk::new(seed);
        let file = durable_file(&disk, "f", &[1; 100]);
        write(&file, &[2; 1500], 100).unwrap();
        disk.crash(seed);
        let content = disk.content("f").unwrap();
        assert_eq!(content[..100], [1; 100]);
        assert!(content[100..].iter().all(|b| *b == 0 || *b == 2));
        // The sector that also holds synced bytes is torn at 512, not at 100.
        let sectors: Vec<bool> =
            [300, 600, 1100, 1590].iter().map(|at| content.get(*at) == Some(&2)).collect();
        seen.insert(sectors);
        assert!(file.read_at(&mut [0], 0).is_err(), "opened before the crash");
        assert!(disk.open("f", OpenMode::Read).unwrap().read_at(&mut [0], 0).is_ok());
    }
    assert!(seen.contains(&vec![false; 4]) && seen.contains(&vec![true; 4]));
    assert!(seen.contains(&vec![false, true, true, false]), "any set of sectors: {seen:?}");
}

#[test]
fn names_are_durable_only_after_the_directory_was_synced() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..200 {
        let disk = SimDisk::new(seed);
        durable_file(&disk, "old", b"old");
        let file = disk.open("new", OpenMode::Create).unwrap();
        write(&file, b"new", 0).unwrap();
        file.sync_data().unwrap();
        disk.rename("new", "old").unwrap();
        if seed % 2 == 0 {
            disk.sync_dir("").unwrap();
        }
        disk.crash(seed);
        let content = disk.content("old").unwrap();
        assert!(content == b"old" || content == b"new");
        if seed % 2 == 0 {
            assert_eq!(content, b"new");
            assert_eq!(disk.list("").unwrap(), ["old"]);
        }
        outcomes.insert(content);
    }
    assert_eq!(outcomes.len(), 2);
}

#[test]
fn faults_strike_once_where_they_were_put() {
    let disk = SimDisk::new(1);
    let file = durable_file(&disk, "f", &[0; 10]);
    let fault = |operation, effect| Fault { operation, path_prefix: "f".into(), after: 1, effect };
    disk.inject(fault(Operation::Write, Effect::Short(3)));
    assert!(write(&file, &[1; 10], 0).is_ok());
    assert!(write(&file, &[2; 10], 0).is_err());
    assert_eq!(disk.content("f").unwrap(), [2, 2, 2, 1, 1, 1, 1, 1, 1, 1]);
    assert!(write(&file, &[3; 10], 0).is_ok());
    disk.inject(fault(Operation::Sync, Effect::LostSync));
    assert!(file.sync_data().is_ok());
    write(&file, &[4; 10], 0).unwrap();
    assert!(file.sync_data().is_err());
    assert!(file.sync_data().is_ok(), "the kernel thinks it is clean");
    assert_eq!(disk.content("f").unwrap(), [4; 10]);
    disk.crash(1);
    assert_eq!(disk.content("f").unwrap(), [3; 10]);
    assert_eq!(disk.faults_struck(), 2);
}

#[test]
fn a_full_disk_and_a_dead_one() {
    let disk = SimDisk::new(1);
    let file = durable_file(&disk, "f", &[0; 100]);
    disk.set_capacity(Some(150));
    assert_eq!(disk.free_bytes().unwrap(), 50);
    assert_eq!(write(&file, &[1; 60], 100).unwrap_err().kind(), io::ErrorKind::StorageFull);
    file.allocate(140).unwrap();
    assert!(file.set_len(151).is_err());
    assert_eq!(file.len().unwrap(), 100);
    disk.crash_at_change(1, true);
    assert!(file.sync_data().is_ok());
    assert!(write(&file, &[2; 40], 100).is_err());
    assert!(disk.is_down() && disk.list("").is_err());
    disk.crash(1);
    assert_eq!(disk.list("").unwrap(), ["f"]);
}
