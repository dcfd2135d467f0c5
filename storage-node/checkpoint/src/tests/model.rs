//! Random checkpoints, failures, crashes and restarts against a map.

use super::disk::Keep;
use super::*;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Save(Vec<(u8, Option<u16>)>),
    Replace(Vec<(u8, u16)>),
    Full(u16),
    Crash(u8, u8),
}

fn step() -> impl Strategy<Value = Step> {
    let page = (0u8..20, proptest::option::weighted(0.8, 0u16..300));
    prop_oneof![
        8 => proptest::collection::vec(page, 0..12).prop_map(Step::Save),
        1 => proptest::collection::vec((0u8..20, 0u16..300), 0..12).prop_map(Step::Replace),
        2 => (0u16..2000).prop_map(Step::Full),
        2 => (1u8..30, 0u8..5).prop_map(|(at, keep)| Step::Crash(at, keep)),
    ]
}

fn fill(n: u8, len: u16) -> Bytes {
    Bytes::from(vec![n; usize::from(len)])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_disk_holds_the_last_saved_state(steps in proptest::collection::vec(step(), 1..40)) {
        let disk = Arc::new(MemDisk::default());
        let (mut store, ..) = open(&disk);
        // `state` is the machine in memory; `durable` what was reported saved.
        let (mut state, mut durable) = (Pages::new(), (Mark::default(), Pages::new()));
        for (index, step) in (1u64..).zip(steps) {
            let job = match step {
                Step::Save(changes) => {
                    let dirty: Dirty = changes
                        .iter().map(|(k, v)| (key(u64::from(*k)), v.map(|len| fill(*k, len)))).collect();
                    applied(&mut state, &dirty);
                    store.begin(GROUP, mark(index), dirty).unwrap()
                }
                Step::Replace(pages) => {
                    state = pages.iter().map(|(k, len)| (key(u64::from(*k)), fill(*k, *len))).collect();
                    store.replace(GROUP, mark(index), state.clone()).unwrap()
                }
                Step::Full(space) => {
                    disk.space_left(Some(u64::from(space)));
                    continue;
                }
                Step::Crash(at, keep) => {
                    disk.crash_at(u64::from(at));
                    let all: Dirty = vec![(key(1), Some(fill(1, 77)))];
                    let mut next = state.clone();
                    applied(&mut next, &all);
                    let job = store.begin(GROUP, mark(index), all).unwrap();
                    if store.job_done(job.run()).is_ok() {
                        durable = (mark(index), next.clone());
                    }
                    let keeps = [Keep::Nothing, Keep::All, Keep::Names, Keep::NotTheFirst, Keep::Halves];
                    disk.crash(keeps[usize::from(keep)]);
                    disk.space_left(None);
                    let (again, loaded, damaged) = open(&disk);
                    prop_assert!(damaged.is_empty());
                    let found = loaded.first().map(|l| (l.mark.clone(), l.pages.clone())).unwrap_or_default();
                    prop_assert!(found == durable || found == (mark(index), next));
                    store = again;
                    state = found.1.clone();
                    durable = found;
                    continue;
                }
            };
            match store.job_done(job.run()) {
                Ok(saved) => {
                    prop_assert_eq!(saved.mark, Some(mark(index)));
                    durable = (mark(index), state.clone());
                }
                Err(error) => prop_assert!(matches!(error, crate::JobError::NoSpace(_)), "{}", error),
            }
            let (_, loaded, damaged) = open(&Arc::new(disk.copy()));
            prop_assert!(damaged.is_empty());
            let found = loaded.first().map(|l| (l.mark.clone(), l.pages.clone())).unwrap_or_default();
            prop_assert_eq!(&found, &durable);
        }
    }
}
