//! What happens at each bound of `longshore_shard::bounds`, and what ten million messages take.
#![cfg(test)]

mod common;

use bytes::Bytes;
use common::{Append, Put, apply, batch};
use longshore_shard::bounds::{
    DELAYED_MAX, POSITIONS_MAX, PRODUCERS_MAX, RETURNS_MAX, SESSIONS_MAX, TAKEN_MAX, TOKENS_MAX,
    UPLOAD_PARTS_MAX, UPLOADS_OPEN_MAX,
};
use longshore_shard::{BatchResult, Cursor, Effects, OWN_CURSOR, Shard};
use longshore_wire::batch::{Item, Origin, Returned, Settle};
use longshore_wire::outcome::{self, Outcome, Refusal};
use longshore_wire::record::flags;
use longshore_wire::spec::LogSpec;
use longshore_wire::{LeaseId, LogId, LogTime, Offset, OffsetRange, SessionId, ShardId, Term};

const LOG: LogId = LogId(1);

fn shard() -> Shard {
    let mut shard = Shard::new(ShardId(1));
    let setup = [Item::CreateLog { log: LOG, spec: LogSpec::QUEUE }, Item::OpenSession(SessionId(7))];
    apply(&mut shard, 1, &batch(0, 0, &setup.map(Put::Item)));
    shard
}

fn run(shard: &mut Shard, puts: &[Put]) -> Vec<Outcome> {
    let number = shard.session(SessionId(7)).unwrap().last().0 + 1;
    outcomes(&apply(shard, 1, &batch(7, number, puts)))
}

fn outcomes(effects: &Effects) -> Vec<Outcome> {
    let [(_, _, BatchResult::Outcomes(bytes))] = &effects.outcomes[..] else {
        panic!("{:?}", effects.outcomes)
    };
    outcome::decode(bytes.clone()).unwrap()
}

fn cursor(shard: &Shard) -> &Cursor {
    shard.log(LOG).unwrap().cursor(OWN_CURSOR).unwrap()
}

fn part(upload: u64) -> Put {
    Put::Item(Item::Part { upload, crc: 0, bytes: Bytes::from_static(b"x") })
}

fn ending(upload: u64) -> Put {
    Put::Append(Append { flags: flags::PARTS, upload, ..Append::to(1) })
}

fn stays_the_same_over_pages(shard: &Shard) {
    let restored = Shard::restore(shard.id(), shard.all_pages()).unwrap();
    assert_eq!(restored.state_hash(), shard.state_hash());
}

#[test]
fn an_upload_with_too_many_parts_is_refused_as_a_whole() {
    let mut shard = shard();
    let full = run(&mut shard, &vec![part(1); UPLOAD_PARTS_MAX + 2]);
    assert_eq!(full[UPLOAD_PARTS_MAX - 1], Outcome::Done(1));
    assert_eq!(
        full[UPLOAD_PARTS_MAX..],
        [Outcome::Refused(Refusal::LimitReached), Outcome::Refused(Refusal::LimitReached)]
    );
    assert_eq!(shard.oldest_pinned_index(), None, "a broken upload pins nothing");
    stays_the_same_over_pages(&shard);
    assert_eq!(run(&mut shard, &[ending(1)]), [Outcome::Refused(Refusal::UnknownUpload)]);
    assert_eq!(run(&mut shard, &[part(1), ending(1)])[0], Outcome::Done(1));
}

#[test]
fn a_refused_upload_can_never_be_taken_for_a_whole_one() {
    let mut shard = shard();
    let many: Vec<_> = (0..UPLOADS_OPEN_MAX as u64).map(part).collect();
    assert!(run(&mut shard, &many).iter().all(|outcome| *outcome == Outcome::Done(1)));
    let late = u64::MAX;
    assert_eq!(run(&mut shard, &[part(late)]), [Outcome::Refused(Refusal::LimitReached)]);
    // Room again; but the first piece of this upload is missing, and the session remembers.
    run(&mut shard, &[ending(3)]);
    stays_the_same_over_pages(&shard);
    assert_eq!(
        run(&mut shard, &[part(late), ending(late)]),
        [Outcome::Refused(Refusal::LimitReached), Outcome::Refused(Refusal::UnknownUpload)]
    );
    assert_eq!(run(&mut shard, &[part(4)]), [Outcome::Done(1)], "what is open goes on");
}

#[test]
fn the_oldest_token_is_forgotten() {
    let mut shard = shard();
    let token = |id| {
        Put::Append(Append { origin: Some(Origin::Token { scope: 1, id, attempt: 0 }), ..Append::to(1) })
    };
    let all: Vec<_> = (0..TOKENS_MAX as u64).map(token).collect();
    run(&mut shard, &all);
    let appended = |offset| Outcome::Appended(vec![(LOG, Ok(Offset(offset)))]);
    assert_eq!(run(&mut shard, &[token(0)]), [appended(0)]);
    let next = TOKENS_MAX as u64;
    assert_eq!(run(&mut shard, &[token(next)]), [appended(next)]);
    stays_the_same_over_pages(&shard);
    assert_eq!(run(&mut shard, &[token(1), token(0)]), [appended(1), appended(next + 1)]);
}

#[test]
fn the_producer_that_was_silent_longest_is_forgotten() {
    let mut shard = shard();
    let producer = |id, sequence| {
        Put::Append(Append { origin: Some(Origin::Producer { id, epoch: 0, sequence }), ..Append::to(1) })
    };
    let all: Vec<_> = (0..=PRODUCERS_MAX as u64).map(|id| producer(id, 0)).collect();
    run(&mut shard, &all);
    stays_the_same_over_pages(&shard);
    let next = PRODUCERS_MAX as u64 + 1;
    let appended = |offset| Outcome::Appended(vec![(LOG, Ok(Offset(offset)))]);
    assert_eq!(run(&mut shard, &[producer(1, 0), producer(0, 7)]), [appended(1), appended(next)]);
}

#[test]
fn the_youngest_return_is_forgotten() {
    let mut shard = shard();
    run(&mut shard, &[Put::Append(Append { count: RETURNS_MAX as u32 + 1, ..Append::to(1) })]);
    let returned = (0..=RETURNS_MAX as u64)
        .map(|at| Returned { offset: Offset(at), lease: LeaseId(0), counted: true })
        .collect();
    let (acked, dead) = (Vec::new(), Vec::new());
    let settle = Settle { log: LOG, cursor: OWN_CURSOR, term: Term(1), acked, returned, dead };
    run(&mut shard, &[Put::Item(Item::Settle(settle))]);
    assert_eq!((cursor(&shard).returned().count(), cursor(&shard).returns(Offset(0))), (RETURNS_MAX, 1));
    stays_the_same_over_pages(&shard);
}

#[test]
fn takes_positions_delays_and_sessions_are_refused_beyond_their_bounds() {
    let mut shard = shard();
    let refused = Outcome::Refused(Refusal::LimitReached);
    run(&mut shard, &[Put::Append(Append { count: TAKEN_MAX as u32 + 1, ..Append::to(1) })]);
    let take = |at| {
        let (lease, until) = (LeaseId(at), LogTime(99));
        Put::Item(Item::Take { log: LOG, cursor: OWN_CURSOR, offset: Offset(at), lease, until })
    };
    let takes: Vec<_> = (0..=TAKEN_MAX as u64).map(take).collect();
    assert_eq!(run(&mut shard, &takes).last(), Some(&refused));
    let position = |n| {
        Put::Item(Item::CommitPosition { log: LOG, name: Bytes::from(format!("{n}")), offset: Offset(0) })
    };
    let positions: Vec<_> = (0..=POSITIONS_MAX).map(position).collect();
    assert_eq!(run(&mut shard, &positions).last(), Some(&refused));
    assert_eq!(run(&mut shard, &[position(0)]), [Outcome::Done(1)], "a known name goes on");
    let delayed = Put::Append(Append { count: DELAYED_MAX as u32 + 1, delay_ms: 1, ..Append::to(1) });
    assert_eq!(run(&mut shard, &[delayed]), [Outcome::Appended(vec![(LOG, Err(Refusal::LimitReached))])]);
    let open: Vec<_> =
        (0..SESSIONS_MAX as u64).map(|id| Put::Item(Item::OpenSession(SessionId(1_000 + id)))).collect();
    assert_eq!(outcomes(&apply(&mut shard, 1, &batch(0, 0, &open))).last(), Some(&refused));
    stays_the_same_over_pages(&shard);
}

#[test]
fn ten_million_messages_with_every_second_acked_take_little() {
    let mut shard = shard();
    for _ in 0..10 {
        run(&mut shard, &[Put::Append(Append { count: 1_000_000, ..Append::to(1) })]);
    }
    for block in 0..100_u64 {
        let acked = (0..50_000).map(|n| OffsetRange::one(Offset(block * 100_000 + 2 * n + 1))).collect();
        let (returned, dead) = (Vec::new(), Vec::new());
        let settle = Settle { log: LOG, cursor: OWN_CURSOR, term: Term(1), acked, returned, dead };
        run(&mut shard, &[Put::Item(Item::Settle(settle))]);
    }
    assert_eq!(cursor(&shard).unsettled_count(), 5_000_000);
    // A chunk in memory is what it is on its page.
    let bytes: usize = shard.all_pages().iter().map(|(_, page)| page.len()).sum();
    assert!(bytes < 2 << 20, "{bytes}");
    let purge = Item::Purge { log: LOG, cursor: OWN_CURSOR, end: Offset(u64::MAX), leased: Vec::new() };
    let effects = apply(&mut shard, 1, &batch(0, 0, &[Put::Item(purge)]));
    assert_eq!(outcomes(&effects), [Outcome::Done(5_000_000)]);
    assert_eq!(effects.released[0].1.len(), 1, "one range, not five million");
    assert_eq!(cursor(&shard).unsettled_count(), 0);
}
