//! The real disk, in a directory that vanishes.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail by panicking")]

use longshore_io::real::RealDisk;
use longshore_io::{Disk, OpenMode, PAGE_BYTES, PageBuf};
use std::io::{ErrorKind, IoSlice};

#[test]
fn files_and_names_work_as_the_traits_say() {
    let directory = tempfile::tempdir().unwrap();
    let disk = RealDisk::open(&directory.path().join("data")).unwrap();
    disk.create_dir("log").unwrap();
    disk.create_dir("log").unwrap();
    let file = disk.open("log/a", OpenMode::Create).unwrap();
    assert_eq!(disk.open("log/a", OpenMode::Create).err().unwrap().kind(), ErrorKind::AlreadyExists);
    file.allocate(1 << 20).unwrap();
    assert!(file.is_empty().unwrap(), "room is reserved, the length stays");
    // More slices than one call takes, empty ones between.
    let pieces: Vec<Vec<u8>> = (0..5000u32).map(|n| vec![n as u8; (n % 4) as usize]).collect();
    let slices: Vec<IoSlice<'_>> = pieces.iter().map(|p| IoSlice::new(p)).collect();
    file.write_at(&slices, 10).unwrap();
    file.sync_data().unwrap();
    let whole = pieces.concat();
    assert_eq!(file.len().unwrap(), 10 + whole.len() as u64);
    let mut read = vec![1; whole.len() + 100];
    assert_eq!(file.read_at(&mut read, 10).unwrap(), whole.len());
    assert_eq!(read[..whole.len()], whole);
    file.set_len(5).unwrap();
    disk.rename("log/a", "log/b").unwrap();
    disk.sync_dir("log").unwrap();
    assert_eq!(disk.list("log").unwrap(), ["b"]);
    assert_eq!(disk.list("").unwrap(), ["lock"]);
    disk.remove("log/b").unwrap();
    assert_eq!(disk.open("log/b", OpenMode::Read).err().unwrap().kind(), ErrorKind::NotFound);
    assert!(disk.free_bytes().unwrap() > 0);
    for path in ["../x", "a/b/c", "", "a//b", "/etc/passwd"] {
        assert_eq!(
            disk.open(path, OpenMode::Create).err().unwrap().kind(),
            ErrorKind::InvalidInput,
            "{path}"
        );
    }
}

#[test]
fn pages_and_other_writes_see_each_other() {
    let directory = tempfile::tempdir().unwrap();
    let disk = RealDisk::open(directory.path()).unwrap();
    let file = disk.open("a", OpenMode::Create).unwrap();
    file.write_at(&[IoSlice::new(&[1; 3 * PAGE_BYTES])], 0).unwrap();
    let mut read = vec![0; 3 * PAGE_BYTES];
    file.read_at(&mut read, 0).unwrap();
    let mut pages = PageBuf::new(1);
    pages.put(&[2; 100]);
    pages.pad();
    // What a read left in the cache is not read again after a write past it, and not written over it either.
    file.write_pages(&pages, PAGE_BYTES as u64).unwrap();
    file.write_at(&[IoSlice::new(&[3; 10])], 50).unwrap();
    file.sync_data().unwrap();
    let reader = disk.open("a", OpenMode::Read).unwrap();
    reader.read_at(&mut read, 0).unwrap();
    let mut expected = vec![1; 3 * PAGE_BYTES];
    expected[50..60].fill(3);
    expected[PAGE_BYTES..2 * PAGE_BYTES].fill(0);
    expected[PAGE_BYTES..PAGE_BYTES + 100].fill(2);
    assert!(read == expected);
}

#[test]
fn a_directory_is_used_by_one_process_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let disk = RealDisk::open(directory.path()).unwrap();
    assert_eq!(RealDisk::open(directory.path()).err().unwrap().kind(), ErrorKind::ResourceBusy);
    drop(disk);
    RealDisk::open(directory.path()).unwrap();
}
