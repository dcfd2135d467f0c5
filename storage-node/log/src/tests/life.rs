//! Named cases: group commit, crashes at every boundary, full disks, failed syncs, recycling, retirement.

use super::world::*;
use crate::*;
use bytes::Bytes;
use longshore_io::sim::{Effect, Fault, Operation, SimDisk};
use longshore_wire::{Index, NodeId, ShardId, Term};

const G: ShardId = ShardId(1);

fn append(log: &mut NodeLog, model: &mut Model, group: ShardId, bytes: usize) {
    let next = model.groups.get(&group).map_or(1, |p| p.last() + 1);
    let op = Op::Append(next, 1, Bytes::from(vec![next as u8; bytes]));
    apply(log, group, &op);
    model.apply(group, &op);
}

#[test]
fn all_that_waits_takes_one_write_and_one_sync() {
    let disk = SimDisk::new(1);
    let (mut log, mut writer, _) = open(&disk).unwrap();
    let mut model = Model::default();
    fill(&mut log, &mut writer, &mut model, G, 1, 10);
    disk.keep_records(true);
    let mut requests = Vec::new();
    for ticket in 0..5 {
        append(&mut log, &mut model, ShardId(ticket as u32), 300);
        log.ticket(ticket);
        requests.extend(log.take_request());
    }
    let completion = writer.write(requests).unwrap();
    assert_eq!((completion.syncs, completion.tickets.as_slice()), (1, &[0, 1, 2, 3, 4][..]));
    let operations: Vec<_> = disk.take_records().into_iter().map(|r| r.operation).collect();
    assert_eq!(operations, [Operation::Write, Operation::Sync]);
    assert_eq!(log.last_durable(ShardId(3)).unwrap(), Durable(Index(0)), "appended is not durable");
    let progress = log.completed(completion);
    assert_eq!(progress.durable.len(), 5);
    assert_eq!(log.last_durable(ShardId(3)).unwrap(), Durable(Index(1)));
    assert_eq!(log.pending_bytes(), 0);
}

#[test]
fn a_ticket_without_records_waits_for_the_writes_before_it_and_costs_no_sync() {
    let disk = SimDisk::new(1);
    let (mut log, mut writer, _) = open(&disk).unwrap();
    log.ticket(1);
    let alone = log.take_request().unwrap();
    assert!(alone.is_only_tickets());
    let completion = writer.write(vec![alone]).unwrap();
    assert_eq!((completion.syncs, completion.tickets.as_slice()), (0, &[1][..]));
    let mut model = Model::default();
    append(&mut log, &mut model, G, 100);
    let write = log.take_request().unwrap();
    log.ticket(2);
    let after = log.take_request().unwrap();
    disk.inject(Fault {
        operation: Operation::Sync,
        path_prefix: "log/0".into(),
        after: 1,
        effect: Effect::Eio,
    });
    assert!(
        matches!(writer.write(vec![write, after]), Err(LogError::Failed { .. })),
        "the ticket is not given out"
    );
    assert!(writer.write(Vec::new()).is_err(), "nor later");
}

#[test]
fn a_body_is_not_copied_on_its_way_through_the_memory() {
    let disk = SimDisk::new(1);
    let (mut log, ..) = open(&disk).unwrap();
    let body = Bytes::from(vec![1; 1000]);
    apply(&mut log, G, &Op::Append(1, 1, body.clone()));
    let Fetched::Ready(entries) = log.entries(G, Index(1), Index(2), usize::MAX).unwrap() else { panic!() };
    assert_eq!(entries[0].data.as_ptr(), body.as_ptr());
}

#[test]
fn overlapping_entries_discard_what_was_above() {
    let disk = SimDisk::new(1);
    let (mut log, mut writer, _) = open(&disk).unwrap();
    let mut model = Model::default();
    fill(&mut log, &mut writer, &mut model, G, 6, 50);
    let op = Op::Append(4, 2, Bytes::from_static(b"new"));
    apply(&mut log, G, &op);
    model.apply(G, &op);
    assert_eq!(log.last_durable(G).unwrap(), Durable(Index(3)));
    flush(&mut log, &mut writer);
    assert_eq!(log.last_durable(G).unwrap(), Durable(Index(4)));
    let gap = Entry { index: Index(7), term: Term(2), kind: 0, context: Bytes::new(), data: Bytes::new() };
    assert!(matches!(log.append(G, gap), Err(LogError::Gap { last: Index(4), .. })));
    disk.crash(1);
    let (log, ..) = open(&disk).unwrap();
    assert_eq!(observe(&log).unwrap(), model);
}

#[test]
fn a_write_that_completes_after_its_entry_was_overwritten_makes_nothing_durable() {
    let disk = SimDisk::new(1);
    let (mut log, mut writer, _) = open(&disk).unwrap();
    apply(&mut log, G, &Op::Append(1, 1, Bytes::from_static(b"a")));
    apply(&mut log, G, &Op::Append(2, 1, Bytes::from_static(b"b")));
    let first = log.take_request().unwrap();
    apply(&mut log, G, &Op::Append(2, 2, Bytes::from_static(b"c")));
    let second = log.take_request().unwrap();
    let completion = writer.write(vec![first]).unwrap();
    assert_eq!(log.completed(completion).durable, [(G, Durable(Index(1)))]);
    let completion = writer.write(vec![second]).unwrap();
    assert_eq!(log.completed(completion).durable, [(G, Durable(Index(2)))]);
}

/// Fills segments, compacts, retires, frees and recycles. Stops where the disk dies; returns the number of changes that were
/// reported durable, and the model after each change.
fn script(disk: &SimDisk) -> (usize, Vec<Model>) {
    let mut states = vec![Model::default()];
    let mut reported = 0;
    let Ok((mut log, mut writer, _)) = open(disk) else { return (reported, states) };
    for round in 1..=40u64 {
        let mut ops = vec![
            (G, Op::HardState(1, round)),
            (G, Op::Append(round, 1, Bytes::from(vec![round as u8; 1500]))),
        ];
        if round == 1 {
            ops.push((ShardId(2), Op::Conf(Bytes::from_static(b"idle"))));
        }
        if round % 10 == 0 {
            ops.push((G, Op::Compact(round - 1)));
        }
        if round == 25 {
            ops.push((G, Op::Snapshot(30, 2)));
            ops.push((G, Op::Append(31, 2, Bytes::from_static(b"after"))));
        }
        if round > 25 && round != 31 {
            continue;
        }
        for (group, op) in ops {
            apply(&mut log, group, &op);
            let mut next = states.last().unwrap().clone();
            next.apply(group, &op);
            states.push(next);
        }
        let job = log.maintain();
        let Ok(completion) = writer.write(log.take_request().into_iter().collect()) else {
            return (reported, states);
        };
        log.completed(completion);
        reported = states.len() - 1;
        for segment in log.segments().iter().filter(|s| s.state == SegmentState::Retired) {
            log.release(segment.id);
        }
        if let Some(job) = job
            && log.maintained(job.run()).is_err()
        {
            return (reported, states);
        }
    }
    (reported, states)
}

#[test]
fn a_crash_at_or_inside_any_change_loses_nothing_that_was_reported() {
    let whole = SimDisk::new(0);
    script(&whole);
    let changes = whole.changes();
    assert!(changes > 60);
    for at in 0..changes {
        for (inside, seed) in [(false, 1), (true, 2), (true, 3), (false, 4), (true, 5)] {
            let disk = SimDisk::new(seed);
            disk.crash_at_change(at, inside);
            let (reported, states) = script(&disk);
            assert!(disk.is_down(), "change {at} was reached");
            disk.crash(seed * 1000 + at);
            let (log, _, recovery) = open(&disk).unwrap();
            assert!(recovery.damage.is_empty(), "crash at {at}: {recovery:?}");
            let seen = observe(&log).unwrap();
            let found = states.iter().rposition(|state| *state == seen);
            assert!(found.is_some_and(|found| found >= reported), "crash at {at} inside {inside}: {seen:?}");
            disk.crash(at);
            let (log, ..) = open(&disk).unwrap();
            assert_eq!(observe(&log).unwrap(), seen, "what one start found, the next one finds");
        }
    }
}

#[test]
fn what_a_start_found_after_a_failed_sync_is_durable() {
    let disk = SimDisk::new(1);
    let (mut log, mut writer, _) = open(&disk).unwrap();
    let mut model = Model::default();
    fill(&mut log, &mut writer, &mut model, G, 3, 700);
    append(&mut log, &mut model, G, 900);
    disk.inject(Fault {
        operation: Operation::Sync,
        path_prefix: "log/".into(),
        after: 0,
        effect: Effect::LostSync,
    });
    assert!(matches!(writer.write(log.take_request().into_iter().collect()), Err(LogError::Failed { .. })));
    assert!(writer.write(Vec::new()).is_err(), "no second try");
    // The process ends; the page cache still shows the batch that the disk never got.
    disk.restart();
    let (log, ..) = open(&disk).unwrap();
    assert_eq!(observe(&log).unwrap(), model);
    disk.crash(1);
    let (log, ..) = open(&disk).unwrap();
    assert_eq!(observe(&log).unwrap(), model, "it was reported by a start, so it must stay");
}

#[test]
fn a_short_write_ends_the_process_and_is_cut() {
    for done in [0, 1, 23, 24, 63, 64, 65, 500, 711] {
        let disk = SimDisk::new(1);
        let (mut log, mut writer, _) = open(&disk).unwrap();
        let mut model = Model::default();
        fill(&mut log, &mut writer, &mut model, G, 3, 700);
        apply(&mut log, G, &Op::Append(4, 1, Bytes::from(vec![4; 700])));
        let effect = Effect::Short(done);
        disk.inject(Fault { operation: Operation::Write, path_prefix: "log/".into(), after: 0, effect });
        assert!(writer.write(log.take_request().into_iter().collect()).is_err());
        disk.restart();
        let (mut log, mut writer, recovery) = open(&disk).unwrap();
        assert!(recovery.damage.is_empty());
        assert_eq!(observe(&log).unwrap(), model, "{done} bytes of the batch were written");
        fill(&mut log, &mut writer, &mut model, G, 1, 20);
        disk.crash(2);
        let (log, ..) = open(&disk).unwrap();
        assert_eq!(observe(&log).unwrap(), model, "nothing of the torn batch shows through the shorter one");
    }
}

#[test]
fn a_full_disk_holds_requests_back_in_order_and_ends_nothing() {
    let disk = SimDisk::new(1);
    let (mut log, mut writer, _) = open(&disk).unwrap();
    let mut model = Model::default();
    fill(&mut log, &mut writer, &mut model, G, 2, 1000);
    disk.set_capacity(Some(disk.used_bytes()));
    let mut tickets = Vec::new();
    for ticket in 0..20 {
        append(&mut log, &mut model, G, 1000);
        log.ticket(ticket);
        let completion = writer.write(log.take_request().into_iter().collect()).unwrap();
        tickets.extend(log.completed(completion).tickets);
    }
    assert!(log.is_full() && writer.is_waiting());
    assert!(tickets.len() < 20);
    assert_eq!(log.last_appended(G).unwrap(), Appended(Index(22)));
    assert!(log.last_durable(G).unwrap() < Durable(Index(22)));
    if let Some(job) = log.maintain() {
        log.maintained(job.run()).unwrap();
    }
    disk.set_capacity(None);
    tickets.extend(flush(&mut log, &mut writer).tickets);
    assert_eq!(tickets, (0..20).collect::<Vec<_>>());
    assert!(!log.is_full() && !writer.is_waiting());
    disk.crash(1);
    let (log, ..) = open(&disk).unwrap();
    assert_eq!(observe(&log).unwrap(), model);
}

/// Compacts everything but the last entry and lets go of what is retired.
fn compact_and_free(log: &mut NodeLog, writer: &mut LogWriter, model: &mut Model) {
    let to = model.groups[&G].last() - 1;
    let op = Op::Compact(to);
    apply(log, G, &op);
    model.apply(G, &op);
    maintain(log, writer);
    for segment in log.segments().iter().filter(|s| s.state == SegmentState::Retired) {
        log.release(segment.id);
    }
    maintain(log, writer);
}

#[test]
fn stale_bytes_in_a_recycled_segment_are_never_taken_for_new_ones() {
    let disk = SimDisk::new(1);
    let (mut log, mut writer, _) = open(&disk).unwrap();
    let mut model = Model::default();
    // Batches of one size, so that old ones begin exactly where the new ones end.
    for round in 0..12 {
        fill(&mut log, &mut writer, &mut model, G, 7, 1500);
        if round % 2 == 1 {
            compact_and_free(&mut log, &mut writer, &mut model);
        }
        disk.crash(round);
        let recovery;
        (log, writer, recovery) = open(&disk).unwrap();
        assert!(recovery.damage.is_empty());
        assert_eq!(observe(&log).unwrap(), model, "round {round}");
    }
    use longshore_io::Disk;
    let files = disk.list("log").unwrap().iter().filter(|name| name.ends_with(".seg")).count();
    let generation = log.segments().last().unwrap().id.0;
    assert!(generation > 2 * files as u64, "files were recycled: {files} files, generation {generation}");
}

#[test]
fn an_idle_groups_state_is_written_again_before_its_segment_goes() {
    let disk = SimDisk::new(1);
    let (mut log, mut writer, _) = open(&disk).unwrap();
    let mut model = Model::default();
    let (idle, gone, given_up) = (ShardId(5), ShardId(6), ShardId(7));
    for (group, op) in [
        (idle, Op::HardState(3, 0)),
        (idle, Op::Conf(Bytes::from_static(b"1,2,3"))),
        (gone, Op::HardState(1, 0)),
        (gone, Op::Remove),
        (given_up, Op::HardState(2, 0)),
        (given_up, Op::Aside),
    ] {
        apply(&mut log, group, &op);
        model.apply(group, &op);
    }
    fill(&mut log, &mut writer, &mut model, G, 40, 1500);
    let oldest = log.segments()[0].id;
    compact_and_free(&mut log, &mut writer, &mut model);
    assert!(log.segments()[0].id > oldest, "the first segment is gone");
    disk.crash(1);
    let (log, ..) = open(&disk).unwrap();
    assert_eq!(observe(&log).unwrap(), model);
    assert!(log.is_set_aside(given_up) && log.hard_state(gone).is_none());
}

#[test]
fn a_segment_stays_while_it_is_pinned_held_or_needed() {
    let disk = SimDisk::new(1);
    let (mut log, mut writer, _) = open(&disk).unwrap();
    let mut model = Model::default();
    fill(&mut log, &mut writer, &mut model, G, 20, 1500);
    let first = log.segments()[0].id;
    let place = log.place(G, Index(1)).unwrap();
    assert_eq!(place.segment, first);
    log.release(first);
    maintain(&mut log, &mut writer);
    assert_eq!(log.segments()[0].state, SegmentState::Sealed, "not compacted: Raft needs it");
    assert_eq!(log.compactable(G), None, "no checkpoint");
    log.checkpointed(G, Index(15));
    assert_eq!(log.compactable(G), None, "no replica is known to hold it");
    log.replicated(G, Index(12));
    assert_eq!(log.compactable(G), Some(Index(12)));
    assert_eq!(log.compact(G, Index(18)), Index(16), "never above the checkpoint");
    assert!(log.hold(first));
    maintain(&mut log, &mut writer);
    assert_eq!(log.segments()[0].state, SegmentState::Retired);
    assert!(log.place(G, Index(1)).is_none());

    let entries = log.scan(first).unwrap().run().unwrap();
    assert_eq!((entries[0].group, entries[0].index, entries[0].place), (G, Index(1), place));
    let pin = log.pin(first).unwrap();
    assert_eq!(pin.read(place.data_position(), 1500).unwrap(), vec![1u8; 1500]);
    log.release(first);
    maintain(&mut log, &mut writer);
    assert_eq!(log.segments()[0].id, first, "pinned");
    let other = pin.clone();
    drop(pin);
    maintain(&mut log, &mut writer);
    assert_eq!(other.read(place.data_position(), 4).unwrap(), vec![1u8; 4]);
    drop(other);
    maintain(&mut log, &mut writer);
    assert!(log.segments()[0].id > first);
    assert!(log.pin(first).is_none() && log.scan(first).is_none() && !log.hold(first));
}

#[test]
fn retired_segments_are_not_read_at_start_and_are_held_again() {
    let disk = SimDisk::new(1);
    let (mut log, mut writer, _) = open(&disk).unwrap();
    let mut model = Model::default();
    fill(&mut log, &mut writer, &mut model, G, 20, 1500);
    let op = Op::Compact(15);
    apply(&mut log, G, &op);
    model.apply(G, &op);
    maintain(&mut log, &mut writer);
    let first = log.segments()[0];
    assert_eq!(first.state, SegmentState::Retired);
    disk.crash(1);
    disk.keep_records(true);
    let (log, _, _) = open(&disk).unwrap();
    let read: u64 =
        disk.take_records().iter().filter(|r| r.operation == Operation::Read).map(|r| r.bytes).sum();
    let raft = log.segments().iter().filter(|s| s.state != SegmentState::Retired).count() as u64;
    assert!(read <= 4 * (raft + 1) * SEGMENT_BYTES, "{read} bytes read for {raft} segments");
    assert_eq!(log.segments()[0], SegmentInfo { held: true, ..first });
    assert_eq!(log.scan(first.id).unwrap().run().unwrap().len(), 7);
}

#[test]
fn the_tail_keeps_its_budget_but_never_lets_unapplied_entries_go() {
    let disk = SimDisk::new(1);
    let (mut log, mut writer, _) = open(&disk).unwrap();
    let mut model = Model::default();
    fill(&mut log, &mut writer, &mut model, G, 20, 1000);
    assert_eq!(log.tail_bytes(), 20 * 1007, "nothing is applied");
    log.applied(G, Index(18));
    fill(&mut log, &mut writer, &mut model, G, 1, 1000);
    assert!(log.tail_bytes() <= config().tail_bytes_max);
    assert!(matches!(log.entries(G, Index(3), Index(9), 2500), Ok(Fetched::Read(_))));
    let Ok(Fetched::Ready(tail)) = log.entries(G, Index(19), Index(90), usize::MAX) else { panic!() };
    assert_eq!(tail.len(), 3);
    assert_eq!(observe(&log).unwrap(), model);
    assert!(matches!(log.entries(G, Index(22), Index(23), 1), Err(ReadError::Unavailable)));
    assert!(matches!(log.term(ShardId(9), Index(1)), Err(ReadError::UnknownGroup(_))));
}

#[test]
fn a_lagging_replica_no_longer_holds_the_log_back_beyond_its_limit() {
    let disk = SimDisk::new(1);
    let (mut log, mut writer, _) = open(&disk).unwrap();
    let mut model = Model::default();
    fill(&mut log, &mut writer, &mut model, G, 80, 1500);
    assert_eq!(log.wants_checkpoint(), [G]);
    log.checkpointed(G, Index(70));
    log.replicated(G, Index(2));
    assert_eq!(log.compactable(G), Some(Index(70)), "log_bytes_max is exceeded");
}

#[test]
fn an_entry_larger_than_a_batch_is_refused() {
    let disk = SimDisk::new(1);
    let (mut log, ..) = open(&disk).unwrap();
    let entry = Entry {
        index: Index(1),
        term: Term(1),
        kind: 0,
        context: Bytes::new(),
        data: Bytes::from(vec![0; 5000]),
    };
    assert!(matches!(log.append(G, entry), Err(LogError::TooLarge { bytes_max: 4096, .. })));
    assert!(log.take_request().is_none());
}

#[test]
fn an_identity_is_made_once_and_updated_in_one_step() {
    let disk = SimDisk::new(1);
    assert_eq!(Identity::load(&disk).unwrap(), None);
    let mut identity = Identity::create(&disk, [3; 16]).unwrap();
    assert!(Identity::create(&disk, [4; 16]).is_err());
    identity.cluster = Some([5; 16]);
    identity.node = Some(NodeId(2));
    for at in 0..8 {
        disk.crash_at_change(at, at % 2 == 0);
        let stored = identity.store(&disk);
        let died = disk.is_down();
        disk.crash(at);
        let found = Identity::load(&disk).unwrap().unwrap();
        assert_eq!(found.random, [3; 16]);
        assert!(found == identity || (died && stored.is_err() && found.node.is_none()));
    }
    assert!(!Identity::load(&disk).unwrap().unwrap().settled);
    identity.settled = true;
    identity.store(&disk).unwrap();
    assert_eq!(Identity::load(&disk).unwrap(), Some(identity));
    disk.flip("identity", 20, 1);
    assert!(matches!(Identity::load(&disk), Err(IdentityError::Damaged)));
}
