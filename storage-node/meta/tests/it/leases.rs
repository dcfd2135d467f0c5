//! Leases and barriers, by an injected clock.

use longshore_io::Mono;
use longshore_meta::leases::*;
use longshore_wire::{Revision, SessionId};

const ONE: SessionId = SessionId(1);
const TWO: SessionId = SessionId(2);

fn at(ms: u64) -> Mono {
    Mono(7_000_000).plus_ms(ms)
}

fn tickets(leases: &mut Leases) -> Vec<u64> {
    leases.passed().into_iter().filter(|passed| !passed.given_up).map(|passed| passed.ticket).collect()
}

#[test]
fn a_lease_lasts_four_seconds_after_it_was_renewed() {
    let mut leases = Leases::default();
    leases.opened(ONE, Revision(5), at(0));
    assert_eq!(leases.next_wake(), Some(at(4000)));
    assert_eq!(leases.renew(ONE, Revision(5), at(3999)), Heard::Renewed);
    assert!(leases.ended(at(7998)).is_empty());
    assert!(leases.is_live(ONE, at(7998)) && !leases.is_live(ONE, at(7999)));
    assert_eq!(leases.ended(at(7999)), [ONE]);
    assert_eq!(leases.renew(ONE, Revision(5), at(8000)), Heard::Lost);
}

#[test]
fn one_that_is_over_by_the_clock_is_not_renewed_even_before_it_was_reported() {
    let mut leases = Leases::default();
    leases.opened(ONE, Revision(5), at(0));
    assert_eq!(leases.renew(ONE, Revision(5), at(4000)), Heard::Lost);
    assert_eq!(leases.ended(at(4000)), [ONE]);
    assert_eq!(leases.renew(TWO, Revision(5), at(4000)), Heard::Lost, "unknown");
}

#[test]
fn an_end_is_reported_until_the_session_is_closed() {
    let mut leases = Leases::default();
    leases.opened(ONE, Revision(5), at(0));
    assert_eq!(leases.ended(at(4000)), [ONE]);
    assert!(leases.ended(at(4999)).is_empty());
    assert_eq!(leases.next_wake(), Some(at(5000)));
    assert_eq!(leases.ended(at(5000)), [ONE]);
    leases.closed(ONE, at(5001));
    assert!(leases.ended(at(9000)).is_empty());
    assert_eq!(leases.next_wake(), None);
}

#[test]
fn a_new_leader_grants_one_full_lease() {
    let mut leases = Leases::new(at(100), [ONE, TWO]);
    assert!(leases.ended(at(4099)).is_empty());
    assert_eq!(leases.renew(TWO, Revision(1), at(4099)), Heard::Renewed);
    assert_eq!(leases.ended(at(4100)), [ONE]);
}

#[test]
fn a_gateway_always_stops_before_its_lease_ends() {
    // It trusts a renewal from when it sent it, at whatever moment the leader heard it.
    for delay in [0, 1, 500, 2999] {
        let mut leases = Leases::default();
        leases.opened(ONE, Revision(0), at(0));
        let sent = 1000;
        assert_eq!(leases.renew(ONE, Revision(0), at(sent + delay)), Heard::Renewed);
        assert!(leases.ended(at(sent + LEASE_TRUST_MS)).is_empty());
    }
    const { assert!(LEASE_RENEW_MS < LEASE_TRUST_MS && LEASE_TRUST_MS < LEASE_MS) };
}

#[test]
fn a_barrier_waits_for_every_live_gateway() {
    let mut leases = Leases::new(at(0), [ONE, TWO]);
    let first = leases.barrier(Revision(10), at(0));
    let second = leases.barrier(Revision(11), at(0));
    leases.applied(ONE, Revision(11), at(1));
    assert!(tickets(&mut leases).is_empty());
    leases.applied(TWO, Revision(10), at(2));
    assert_eq!(tickets(&mut leases), [first]);
    leases.renew(TWO, Revision(12), at(3));
    assert_eq!(tickets(&mut leases), [second]);
    let third = leases.barrier(Revision(11), at(4));
    assert_eq!(tickets(&mut leases), [third], "at once");
}

#[test]
fn a_barrier_without_gateways_passes_at_once() {
    let mut leases = Leases::default();
    let ticket = leases.barrier(Revision(10), at(0));
    assert_eq!(tickets(&mut leases), [ticket]);
}

#[test]
fn a_silent_gateway_holds_a_barrier_back_no_longer_than_its_lease() {
    let mut leases = Leases::new(at(0), [ONE, TWO]);
    leases.renew(ONE, Revision(10), at(3000));
    let ticket = leases.barrier(Revision(10), at(3500));
    assert!(tickets(&mut leases).is_empty());
    assert_eq!(leases.ended(at(4000)), [TWO]);
    assert_eq!(tickets(&mut leases), [ticket]);
}

#[test]
fn one_that_says_goodbye_holds_nothing_back() {
    let mut leases = Leases::new(at(0), [ONE]);
    let ticket = leases.barrier(Revision(10), at(0));
    leases.closed(ONE, at(1));
    assert_eq!(tickets(&mut leases), [ticket]);
}

#[test]
fn one_that_renews_but_does_not_apply_loses_its_lease() {
    let mut leases = Leases::new(at(0), [ONE]);
    let ticket = leases.barrier(Revision(10), at(0));
    assert_eq!(leases.renew(ONE, Revision(9), at(900)), Heard::Renewed, "it may be a little behind");
    for ms in [1900, 2900, 3900] {
        assert_eq!(leases.renew(ONE, Revision(9), at(ms)), Heard::Lagging);
    }
    assert!(tickets(&mut leases).is_empty());
    assert_eq!(leases.ended(at(4900)), [ONE], "at most lag and lease after the barrier began");
    assert_eq!(tickets(&mut leases), [ticket]);
}

#[test]
fn one_that_catches_up_is_renewed_again() {
    let mut leases = Leases::new(at(0), [ONE]);
    leases.barrier(Revision(10), at(0));
    assert_eq!(leases.renew(ONE, Revision(9), at(1000)), Heard::Lagging);
    leases.barrier(Revision(20), at(1900));
    assert_eq!(leases.renew(ONE, Revision(15), at(2000)), Heard::Renewed);
    assert!(leases.ended(at(5999)).is_empty());
}

#[test]
fn barriers_are_bounded() {
    let mut leases = Leases::new(at(0), [ONE]);
    let first = leases.barrier(Revision(1), at(0));
    for _ in 0..BARRIERS_MAX {
        leases.barrier(Revision(2), at(0));
    }
    assert_eq!(leases.passed(), [Passed { ticket: first, given_up: true }]);
}
