//! Crashes, flips and full disks.

use super::disk::Keep;
use super::*;
use crate::JobError;

const KEEPS: [Keep; 5] = [Keep::Nothing, Keep::All, Keep::Names, Keep::NotTheFirst, Keep::Halves];

/// Runs checkpoints until the power goes at `step`; the number of the last one that was reported durable.
fn run_until_crash(disk: &Arc<MemDisk>, step: u64, count: u64) -> (u64, bool) {
    let (mut store, ..) = open(disk);
    disk.crash_at(step);
    for index in 1..=count {
        if save(&mut store, index).is_err() {
            return (index - 1, true);
        }
    }
    (count, false)
}

#[test]
fn a_crash_at_any_step_leaves_the_last_durable_checkpoint_or_the_one_under_way() {
    const COUNT: u64 = 12;
    let history = history(COUNT);
    let mut cut = 0;
    for step in 1.. {
        let mut crashed = false;
        for keep in KEEPS {
            let disk = Arc::new(MemDisk::default());
            let (durable, stopped) = run_until_crash(&disk, step, COUNT);
            crashed = stopped;
            disk.crash(keep);
            let (mut store, loaded, damaged) = open(&disk);
            assert!(damaged.is_empty(), "step {step} {keep:?}: {damaged:?}");
            let found = loaded.first().map_or(0, |l| l.mark.index.0);
            assert!(found == durable || found == durable + 1, "step {step} {keep:?}: {found} of {durable}");
            let pages = loaded.first().map(|l| l.pages.clone()).unwrap_or_default();
            assert_eq!(pages, history[found as usize].1, "step {step} {keep:?}");
            cut += u32::from(loaded.first().is_some_and(|l| l.cut_bytes > 0));
            // It goes on from there, and no leftover disturbs it.
            if found < COUNT {
                save(&mut store, found + 1).unwrap();
                let (_, loaded, _) = open(&disk);
                assert_eq!(loaded[0].pages, history[found as usize + 1].1);
                assert_eq!((loaded[0].cut_bytes, disk.names().len()), (0, 1));
            }
        }
        if !crashed {
            break;
        }
    }
    assert!(cut > 10, "torn deltas were seen: {cut}");
}

#[test]
fn a_flip_of_any_byte_is_damage_or_in_the_last_delta_a_cut() {
    let disk = Arc::new(MemDisk::default());
    let mut store = open_for_deltas(&disk);
    let mut last_begin = 0;
    for index in 1..=4 {
        last_begin = disk.total_bytes();
        assert_eq!(save(&mut store, index).unwrap().rewritten, index == 1);
    }
    let history = history(4);
    let name = disk.names().remove(0);
    for at in 0..disk.total_bytes() {
        let flipped = Arc::new(disk.copy());
        flipped.edit(&name, |bytes| bytes[at] ^= 1 << (at % 8));
        let (_, loaded, damaged) = open(&flipped);
        if at < last_begin {
            assert_eq!((loaded.len(), damaged.len()), (0, 1), "byte {at}");
            assert_eq!(damaged[0].group, GROUP);
        } else {
            assert!(damaged.is_empty(), "byte {at}");
            assert_eq!(loaded[0].pages, history[3].1, "byte {at}");
            assert!(loaded[0].cut_bytes > 0);
        }
    }
}

#[test]
fn a_file_cut_inside_its_base_is_damage_and_a_removal_heals_it() {
    let disk = Arc::new(MemDisk::default());
    let (mut store, ..) = open(&disk);
    save(&mut store, 1).unwrap();
    let name = disk.names().remove(0);
    disk.edit(&name, |bytes| bytes.truncate(bytes.len() - 1));
    let (mut store, loaded, damaged) = open(&disk);
    assert_eq!((loaded.len(), damaged.len()), (0, 1));
    assert!(store.begin(GROUP, mark(2), dirty(2)).is_err());
    assert!(store.replace(GROUP, mark(2), Pages::new()).is_err());
    let job = store.remove(GROUP).unwrap();
    store.job_done(job.run()).unwrap();
    let job = store.replace(GROUP, mark(2), history(2)[2].1.clone()).unwrap();
    store.job_done(job.run()).unwrap();
    assert_eq!(open(&disk).1[0].pages, history(2)[2].1);
}

#[test]
fn a_full_disk_keeps_the_old_checkpoint_and_the_pages_ride_with_the_next() {
    for space in 0..900 {
        let disk = Arc::new(MemDisk::default());
        let (mut store, ..) = open(&disk);
        let mut saved = 0;
        disk.space_left(Some(space));
        let mut refused = 0;
        for index in 1..=6 {
            match save(&mut store, index) {
                Ok(_) => saved = index,
                Err(JobError::NoSpace(GROUP)) => refused += 1,
                Err(other) => panic!("{space}: {other}"),
            }
            let (_, loaded, damaged) = open(&Arc::new(disk.copy()));
            assert!(damaged.is_empty());
            assert_eq!(loaded.first().map_or(0, |l| l.mark.index.0), saved);
        }
        disk.space_left(None);
        save(&mut store, 7).unwrap();
        let (_, loaded, _) = open(&disk);
        assert_eq!((&loaded[0].mark, &loaded[0].pages), (&mark(7), &history(7)[7].1), "{space}");
        assert!(refused > 0 || space > 700);
    }
}

#[test]
fn a_full_disk_during_a_replacement_keeps_the_old_state_until_it_succeeds() {
    let disk = Arc::new(MemDisk::default());
    let (mut store, ..) = open(&disk);
    save(&mut store, 1).unwrap();
    disk.space_left(Some(40));
    let job = store.replace(GROUP, mark(5), history(5)[5].1.clone()).unwrap();
    assert!(matches!(store.job_done(job.run()), Err(JobError::NoSpace(_))));
    assert_eq!(open(&Arc::new(disk.copy())).1[0].mark, mark(1));
    assert_eq!(store.mark(GROUP), Some(&mark(1)));
    disk.space_left(None);
    save(&mut store, 6).unwrap();
    assert_eq!(open(&disk).1[0].pages, history(6)[6].1, "nothing of checkpoint 1 is left");
}

#[test]
fn damage_that_a_rewrite_meets_is_reported_and_healed_by_a_replacement() {
    let disk = Arc::new(MemDisk::default());
    let (mut store, ..) = open(&disk);
    save(&mut store, 1).unwrap();
    let name = disk.names().remove(0);
    disk.edit(&name, |bytes| bytes[60] ^= 1);
    let mut index = 1;
    let error = loop {
        index += 1;
        if let Err(error) = save(&mut store, index) {
            break error;
        }
    };
    assert!(matches!(error, JobError::Damaged { group: GROUP, .. }), "{error}");
    let all = history(index)[index as usize].1.clone();
    let job = store.replace(GROUP, mark(index), all.clone()).unwrap();
    store.job_done(job.run()).unwrap();
    assert_eq!(open(&disk).1[0].pages, all);
}

#[test]
fn a_failed_sync_is_final() {
    let disk = Arc::new(MemDisk::default());
    let mut store = open_for_deltas(&disk);
    save(&mut store, 1).unwrap();
    let before = disk.steps();
    save(&mut store, 2).unwrap();
    let steps = disk.steps() - before;
    disk.crash_at(steps);
    let error = save(&mut store, 3).unwrap_err();
    assert!(matches!(error, JobError::Failed { doing: "syncing a delta", .. }), "{error}");
}
