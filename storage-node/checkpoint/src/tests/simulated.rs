//! On the simulated disk of the whole system: seeded crashes at and inside every change, and injected faults.

use super::*;
use crate::JobError;
use longshore_io::sim::{Effect, Fault, Operation, SimDisk};

fn open_simulated(disk: &SimDisk) -> crate::Opened {
    PageStore::open(Arc::new(disk.clone()), config()).unwrap()
}

/// Saves checkpoints until one fails; the number of the last that was saved.
fn save_until_failure(store: &mut PageStore, count: u64) -> u64 {
    (1..=count).find(|index| save(store, *index).is_err()).map_or(count, |failed| failed - 1)
}

#[test]
fn a_crash_at_or_inside_any_change_keeps_what_was_reported_durable() {
    const COUNT: u64 = 10;
    let history = history(COUNT);
    let changes = {
        let disk = SimDisk::new(0);
        let mut store = open_simulated(&disk).store;
        let before = disk.changes();
        assert_eq!(save_until_failure(&mut store, COUNT), COUNT);
        disk.changes() - before
    };
    for (nth, inside, seed) in (0..changes).flat_map(|nth| {
        [false, true].into_iter().flat_map(move |inside| (0..6).map(move |seed| (nth, inside, seed)))
    }) {
        let disk = SimDisk::new(seed);
        let mut store = open_simulated(&disk).store;
        disk.crash_at_change(nth, inside);
        let durable = save_until_failure(&mut store, COUNT);
        disk.crash(seed * 1000 + nth);
        let mut opened = open_simulated(&disk);
        let case = format!("change {nth}, inside {inside}, seed {seed}");
        assert!(opened.damaged.is_empty(), "{case}: {:?}", opened.damaged);
        let found = opened.loaded.first().map_or(0, |loaded| loaded.mark.index.0);
        assert!(found == durable || found == durable + 1, "{case}: {found} of {durable}");
        let pages = opened.loaded.first().map(|loaded| loaded.pages.clone()).unwrap_or_default();
        assert_eq!(pages, history[found as usize].1, "{case}");
        // What was found stays, whatever comes next.
        disk.crash(seed);
        opened = open_simulated(&disk);
        assert_eq!(opened.loaded.first().map_or(0, |loaded| loaded.mark.index.0), found, "{case}");
        if found < COUNT {
            save(&mut opened.store, found + 1).unwrap();
            disk.crash(seed);
            assert_eq!(open_simulated(&disk).loaded[0].pages, history[found as usize + 1].1, "{case}");
        }
    }
}

#[test]
fn every_refused_operation_is_an_error_and_never_a_false_success() {
    let operations = [
        (Operation::Write, Effect::Eio),
        (Operation::Write, Effect::NoSpace),
        (Operation::Write, Effect::Short(20)),
        (Operation::Sync, Effect::LostSync),
        (Operation::Sync, Effect::Eio),
        (Operation::Create, Effect::NoSpace),
        (Operation::Rename, Effect::Eio),
        (Operation::Remove, Effect::Eio),
        (Operation::SyncDir, Effect::Eio),
        (Operation::SyncDir, Effect::NoSpace),
    ];
    let mut refusals = 0;
    for (operation, effect) in operations {
        for after in 0..12 {
            let disk = SimDisk::new(after);
            let mut store = open_simulated(&disk).store;
            disk.inject(Fault { operation, path_prefix: "checkpoint".into(), after, effect });
            let mut durable = 0;
            for index in 1..=12 {
                match save(&mut store, index) {
                    Ok(_) => durable = index,
                    Err(JobError::NoSpace(_)) => refusals += 1,
                    // The process ends.
                    Err(JobError::Failed { .. }) => break,
                    Err(other) => panic!("{operation:?} {effect:?} {after}: {other}"),
                }
            }
            disk.crash(after);
            let opened = open_simulated(&disk);
            assert!(opened.damaged.is_empty(), "{operation:?} {effect:?} {after}");
            let found = opened.loaded.first().map_or(0, |loaded| loaded.mark.index.0);
            assert!(
                found == durable || found == durable + 1,
                "{operation:?} {effect:?} {after}: {found} of {durable}"
            );
            let pages = opened.loaded.first().map(|loaded| loaded.pages.clone()).unwrap_or_default();
            assert_eq!(pages, history(12)[found as usize].1);
        }
    }
    assert!(refusals > 3, "most find room for a delta: {refusals}");
}

#[test]
fn a_read_that_lies_during_a_rewrite_is_noticed() {
    let disk = SimDisk::new(1);
    let mut store = open_simulated(&disk).store;
    save(&mut store, 1).unwrap();
    let read = Operation::Read;
    disk.inject(Fault {
        operation: read,
        path_prefix: "checkpoint".into(),
        after: 3,
        effect: Effect::FlipRead,
    });
    let failed = (2..30).find_map(|index| save(&mut store, index).err().map(|error| (index, error)));
    let (index, error) = failed.unwrap();
    assert!(matches!(error, JobError::Damaged { .. }), "{error}");
    // The pages of the failed one ride along; what lies on the disk was right after all.
    save(&mut store, index + 1).unwrap();
    assert_eq!(open_simulated(&disk).loaded[0].pages, history(index + 1)[index as usize + 1].1);
}
