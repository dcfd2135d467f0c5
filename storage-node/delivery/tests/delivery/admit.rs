//! Gateways' batches before they are proposed: what is dropped, and that everything else stays as it was.

use crate::support::{Publish, World, attach};
use longshore_delivery::{Action, Attach, Config, ConsumerKey, Held, QueueId};
use longshore_wire::batch::{Batch, BatchBuilder, DeadReason, Item, Returned, Settle};
use longshore_wire::spec::LogSpec;
use longshore_wire::{BatchNo, CursorId, LeaseId, LogId, Offset, OffsetRange, SessionId, Term};

const LOG: LogId = LogId(1);
const QUEUE: QueueId = QueueId { log: LOG, cursor: CursorId(0) };
const MINE: SessionId = SessionId(1);
const OTHER: SessionId = SessionId(2);

/// Ten messages; 0 to 4 are out to `MINE`, 5 and 7 to `OTHER`, the rest is ready.
fn world() -> World {
    let mut world = World::new(Config::default());
    world.command(Item::CreateLog { log: LOG, spec: LogSpec::QUEUE });
    for n in 0..10 {
        world.publish(LOG, &format!("m{n}"), Publish::default());
    }
    for (session, credit) in [(MINE, 5), (OTHER, 3)] {
        let key = ConsumerKey { session, consumer: 1 };
        world.delivery.attach(world.now, attach(key, LOG, credit), &world.shard);
        let delivered = world.pump().into_iter().filter(|action| matches!(action, Action::Deliver { .. }));
        assert_eq!(delivered.count() as u64, credit);
    }
    let back = Settle { returned: returned(&[6]), ..settle() };
    world.delivery.admit_settle(&back, OTHER);
    world.command(Item::Settle(back));
    world.delivery.detach(world.now, ConsumerKey { session: OTHER, consumer: 1 }, true);
    world
}

fn settle() -> Settle {
    Settle { log: LOG, cursor: CursorId(0), term: Term(1), acked: vec![], returned: vec![], dead: vec![] }
}

fn returned(offsets: &[u64]) -> Vec<Returned> {
    offsets.iter().map(|at| Returned { offset: Offset(*at), lease: LeaseId(at + 1), counted: true }).collect()
}

fn range(first: u64, last: u64) -> OffsetRange {
    OffsetRange { first: Offset(first), last: Offset(last) }
}

#[test]
fn an_ack_spares_what_is_out_to_others() {
    let mut world = world();
    let wanted = Settle { acked: vec![range(0, 9)], ..settle() };
    let admitted = world.delivery.admit_settle(&wanted, MINE).unwrap();
    assert_eq!(admitted.acked, [range(0, 4), range(6, 6), range(8, 9)]);
    let mine = Settle { acked: vec![range(0, 4)], ..settle() };
    assert_eq!(world.delivery.admit_settle(&mine, MINE), None);
}

#[test]
fn a_refusal_spares_what_is_out_to_others() {
    let mut world = world();
    let dead = vec![(Offset(4), DeadReason::Rejected), (Offset(5), DeadReason::Rejected)];
    let admitted = world.delivery.admit_settle(&Settle { dead, ..settle() }, MINE).unwrap();
    assert_eq!(admitted.dead, [(Offset(4), DeadReason::Rejected)]);
}

#[test]
fn only_what_is_out_to_the_session_can_be_returned() {
    let mut world = world();
    let wanted = Settle { returned: returned(&[1, 5, 9]), ..settle() };
    let admitted = world.delivery.admit_settle(&wanted, MINE).unwrap();
    assert_eq!(admitted.returned, returned(&[1]));
    // The same batch sent again, after a lost stream: its return still passes.
    let again = Settle { returned: returned(&[1]), ..settle() };
    assert_eq!(world.delivery.admit_settle(&again, MINE), None);
}

#[test]
fn a_filtered_batch_keeps_its_number_and_its_items_places() {
    let mut world = world();
    let mut builder = BatchBuilder::new(MINE);
    builder.append(None, &crate::support::record(&[LOG], Publish::default()), &["body".into()]).unwrap();
    builder.push(&Item::Settle(Settle { acked: vec![range(0, 0)], ..settle() }));
    builder.push(&Item::Settle(Settle { acked: vec![range(5, 5)], ..settle() }));
    builder.push(&Item::CommitPosition { log: LOG, name: "reader".into(), offset: Offset(3) });
    let batch = Batch::parse(builder.finish(BatchNo(7))).unwrap();

    let admitted = Batch::parse(world.delivery.admit_batch(&batch).unwrap().unwrap()).unwrap();
    admitted.verify().unwrap();
    assert_eq!((admitted.session, admitted.number), (MINE, BatchNo(7)));
    let (before, after): (Vec<_>, Vec<_>) = (
        batch.items().map(|l| l.unwrap().item).collect(),
        admitted.items().map(|l| l.unwrap().item).collect(),
    );
    assert_eq!(before.len(), after.len());
    assert_eq!((&after[0], &after[1], &after[3]), (&before[0], &before[1], &before[3]));
    assert_eq!(after[2], Item::Settle(settle()));
}

#[test]
fn a_batch_without_conflict_goes_as_it_came() {
    let mut world = world();
    let mut builder = BatchBuilder::new(OTHER);
    builder.push(&Item::Settle(Settle { acked: vec![range(5, 7)], returned: vec![], ..settle() }));
    let batch = Batch::parse(builder.finish(BatchNo(1))).unwrap();
    assert_eq!(world.delivery.admit_batch(&batch).unwrap(), None);
}

/// On one stream: a batch that was sent to the leader of before, then the attach and the report for the new one. The return
/// stands, although nothing was out yet (simulation: a message that stayed out with a consumer that had returned it).
#[test]
fn what_is_returned_before_its_sessions_report_is_not_claimed_by_the_report() {
    let mut world = world();
    world.lead(2);
    let mut builder = BatchBuilder::new(MINE);
    builder.push(&Item::Settle(Settle { returned: returned(&[3]), ..settle() }));
    let batch = Batch::parse(builder.finish(BatchNo(1))).unwrap();
    world.delivery.admit_batch(&batch).unwrap();
    let held = |offset| Held { offset: Offset(offset), lease: LeaseId(offset + 1), term: Term(1) };
    world.delivery.hold(world.now, MINE, QUEUE, &[held(2), held(3)], &world.shard);
    world.delivery.session_reported(world.now, MINE);
    assert_eq!(world.delivery.stat(QUEUE, &world.shard).unwrap().unacked, 1);
}

/// Its acks were dropped under the leader before, because the messages were out to others then, and it did not hear of that
/// (simulation, seeds 1128 and 1573).
#[test]
fn what_was_settled_in_vain_under_an_earlier_leader_is_not_held_for_ever() {
    let held = |offset| Held { offset: Offset(offset), lease: LeaseId(offset + 1), term: Term(1) };
    let dead = vec![(Offset(3), DeadReason::Rejected)];
    let in_vain = Settle { acked: vec![range(1, 2)], dead, ..settle() };
    let unacked = |world: &World| world.delivery.stat(QUEUE, &world.shard).unwrap().unacked;

    // The report came first: what it claims ends, and nothing else.
    let mut reported = world();
    reported.lead(2);
    reported.delivery.hold(reported.now, MINE, QUEUE, &[held(1), held(2), held(3), held(4)], &reported.shard);
    reported.delivery.session_reported(reported.now, MINE);
    assert_eq!(unacked(&reported), 4);
    reported.delivery.already_applied(OTHER, &in_vain, &reported.shard);
    assert_eq!(unacked(&reported), 4);
    reported.delivery.already_applied(MINE, &in_vain, &reported.shard);
    assert_eq!(unacked(&reported), 1);

    // The answer came first: the report cannot claim it any more.
    let mut answered = world();
    answered.lead(2);
    answered.delivery.hold(answered.now, MINE, QUEUE, &[held(4)], &answered.shard);
    answered.delivery.already_applied(MINE, &in_vain, &answered.shard);
    answered.delivery.hold(answered.now, MINE, QUEUE, &[held(1), held(2), held(3)], &answered.shard);
    answered.delivery.session_reported(answered.now, MINE);
    assert_eq!(unacked(&answered), 1);
}

/// The same for a return that was applied under the leader before; its answer came ahead of the attach that still names it, and
/// that attach came twice. Another lease of the same message stands (simulation, seed 3735).
#[test]
fn what_was_returned_under_an_earlier_leader_is_not_claimed_by_a_later_report() {
    let held = |offset| Held { offset: Offset(offset), lease: LeaseId(offset + 1), term: Term(1) };
    let again = Held { lease: LeaseId(40), ..held(3) };
    let unacked = |world: &World| world.delivery.stat(QUEUE, &world.shard).unwrap().unacked;
    for (named, out) in [(held(3), 0), (again, 1)] {
        let mut world = world();
        world.lead(2);
        let before = Settle { acked: vec![], returned: returned(&[3]), dead: vec![], ..settle() };
        world.delivery.already_applied(MINE, &before, &world.shard);
        for _ in 0..2 {
            world.delivery.hold(world.now, MINE, QUEUE, &[named], &world.shard);
        }
        world.delivery.session_reported(world.now, MINE);
        assert_eq!(unacked(&world), out);
    }
}

/// Nobody has attached yet, and a queue without consumers and leases is forgotten meanwhile.
#[test]
fn what_was_settled_before_is_not_claimed_although_the_queue_was_forgotten() {
    let held = |offset| Held { offset: Offset(offset), lease: LeaseId(offset + 1), term: Term(1) };
    let before = Settle { acked: vec![range(1, 1)], returned: returned(&[3]), dead: vec![], ..settle() };
    let mut world = world();
    world.lead(2);
    world.pump();
    world.delivery.already_applied(MINE, &before, &world.shard);
    world.delivery.hold(world.now, MINE, QUEUE, &[held(1), held(2), held(3)], &world.shard);
    world.delivery.session_reported(world.now, MINE);
    assert_eq!(world.delivery.stat(QUEUE, &world.shard).unwrap().unacked, 1);
}

/// Acks do not name the lease: one of a later delivery to the same session must stand.
#[test]
fn a_batch_that_comes_again_takes_no_lease_of_its_own_term() {
    let mut world = world();
    let in_vain = Settle { acked: vec![range(0, 9)], returned: vec![], dead: vec![], ..settle() };
    let unacked = |world: &World| world.delivery.stat(QUEUE, &world.shard).unwrap().unacked;
    let out = unacked(&world);
    assert!(out > 0);
    world.delivery.already_applied(MINE, &in_vain, &world.shard);
    assert_eq!(unacked(&world), out);
}

#[test]
fn a_return_of_an_earlier_term_does_not_end_a_newer_lease_of_the_same_session() {
    let mut world = world();
    let late = Settle { returned: returned(&[3]), term: Term(0), ..settle() };
    let admitted = world.delivery.admit_settle(&late, MINE).unwrap();
    assert_eq!(admitted.returned, []);
}

/// A consumer's end overtakes its return, and the leader hands the message to another consumer of the session (simulation,
/// seeds 218 and 456).
#[test]
fn a_late_return_does_not_end_the_lease_of_another_consumer_of_its_session() {
    let mut world = world();
    let returns = [Returned { offset: Offset(3), lease: LeaseId(4), counted: true }];
    let late = Settle { returned: returns.to_vec(), ..settle() };
    world.delivery.detach(world.now, ConsumerKey { session: MINE, consumer: 1 }, false);
    world.pump();
    world.delivery.attach(
        world.now,
        attach(ConsumerKey { session: MINE, consumer: 2 }, LOG, 10),
        &world.shard,
    );
    world.pump();
    let unacked = |world: &World| world.delivery.stat(QUEUE, &world.shard).unwrap().unacked;
    let before = unacked(&world);
    assert_eq!(world.delivery.admit_settle(&late, MINE).unwrap().returned, []);
    // Not even if it was proposed before the end of the lease was known here.
    world.command(Item::Settle(late));
    assert_eq!(unacked(&world), before);
}

/// The message came back, went out again and was lost with the stream, while the end of the earlier lease had no outcome yet
/// (simulation, seeds 240 and 382).
#[test]
fn a_lease_that_was_lost_on_its_way_is_taken_back_although_an_earlier_one_is_named() {
    let mut world = world();
    let key = ConsumerKey { session: MINE, consumer: 1 };
    let held = |offset, lease| Held { offset: Offset(offset), lease: LeaseId(lease), term: Term(1) };
    world.delivery.link_lost(MINE);
    let again = Attach { held: vec![held(2, 3), held(3, 99)], ..attach(key, LOG, 0) };
    world.delivery.attach(world.now, again, &world.shard);
    // 2, and what the other session has.
    assert_eq!(world.delivery.stat(QUEUE, &world.shard).unwrap().unacked, 1 + 2);
}
