//! Vectors of the RFCs, and logins by an injected clock.

use crate::bucket::Bucket;
use crate::password::{self, PASSWORD_BYTES_MAX};
use crate::scram::{ScramHash, ScramVerifier};
use crate::verifier::*;
use crate::{PasswordError, Secret, hash_password};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::net::IpAddr;
use std::time::{Duration, Instant};

fn rng() -> StdRng {
    StdRng::seed_from_u64(7)
}

fn base64(text: &str) -> Vec<u8> {
    STANDARD.decode(text).unwrap()
}

#[test]
fn scram_sha_256_is_that_of_rfc_7677() {
    // Section 3: user "user", password "pencil".
    let salt = base64("W22ZaJ0SNY7soEsUEjb6gQ==");
    let verifier = ScramVerifier::with_iterations(ScramHash::Sha256, b"pencil", &salt, 4096);
    let nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
    let message =
        format!("n=user,r=rOprNGfwEbeRWgbNEkqO,r={nonce},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r={nonce}");
    let proof = base64("dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=");
    let signature = verifier.check(ScramHash::Sha256, message.as_bytes(), &proof);
    assert_eq!(signature, Some(base64("6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")));
    let mut wrong = proof.clone();
    wrong[31] ^= 1;
    assert_eq!(verifier.check(ScramHash::Sha256, message.as_bytes(), &wrong), None);
    assert_eq!(verifier.check(ScramHash::Sha256, message.as_bytes(), &proof[..31]), None);
    assert_eq!(verifier.check(ScramHash::Sha256, b"another conversation", &proof), None);
}

/// A client's proof, by the formulas of RFC 5802 section 3.
fn proof(hash: ScramHash, password: &[u8], verifier: &ScramVerifier, message: &[u8]) -> Vec<u8> {
    let salted = hash.salted(password, &verifier.salt, verifier.iterations);
    let client_key = hash.hmac(&salted, b"Client Key");
    let signature = hash.hmac(&hash.hash(&client_key), message);
    client_key.iter().zip(signature).map(|(a, b)| a ^ b).collect()
}

#[test]
fn a_password_set_checks_in_all_its_forms() {
    let set = hash_password(b"s3cret", &mut rng()).unwrap();
    assert!(set.hash.starts_with("$argon2id$v=19$m=12288,t=3,p=1$"), "{}", set.hash);
    assert!(password::matches(&Secret::new(*b"s3cret"), &set.hash));
    assert!(!password::matches(&Secret::new(*b"s3cret "), &set.hash));
    for (hash, verifier) in [(ScramHash::Sha256, &set.scram_sha_256), (ScramHash::Sha512, &set.scram_sha_512)]
    {
        let right = proof(hash, b"s3cret", verifier, b"auth message");
        assert!(verifier.check(hash, b"auth message", &right).is_some());
        let wrong = proof(hash, b"secret", verifier, b"auth message");
        assert!(verifier.check(hash, b"auth message", &wrong).is_none());
    }
    assert_ne!(set.scram_sha_256.salt, set.scram_sha_512.salt);
    assert_ne!(hash_password(b"s3cret", &mut StdRng::seed_from_u64(8)).unwrap().hash, set.hash);
}

#[test]
fn passwords_have_bounds() {
    assert_eq!(hash_password(b"", &mut rng()), Err(PasswordError::Empty));
    assert_eq!(hash_password(&vec![b'a'; PASSWORD_BYTES_MAX + 1], &mut rng()), Err(PasswordError::TooLong));
}

#[test]
fn a_stored_hash_cannot_ask_for_too_much() {
    let with = |params: &str| {
        format!("$argon2id$v=19${params}$c2FsdHNhbHRzYWx0$aGFzaGhhc2hoYXNoaGFzaGhhc2hoYXNoaGFzaGg")
    };
    assert!(password::is_affordable(&with("m=12288,t=3,p=1")));
    for params in ["m=4194304,t=3,p=1", "m=12288,t=4000000,p=1", "m=12288,t=3,p=64"] {
        assert!(!password::is_affordable(&with(params)), "{params}");
        assert!(!password::matches(&Secret::new(*b"x"), &with(params)));
    }
    assert!(!password::is_affordable("plain text"));
    assert!(password::is_affordable(&password::impossible_hash(&mut rng())), "it is really computed");
}

#[test]
fn nothing_secret_is_shown() {
    let set = hash_password(b"s3cret", &mut rng()).unwrap();
    let login = login("ann", Some(&set.hash), b"s3cret");
    let mut verifier = verifier();
    let Begun::Check(check) = verifier.begin(&login, Instant::now()) else { panic!("a check") };
    let shown = format!(
        "{set:?} {:?} {login:?} {check:?} {verifier:?} {:?}",
        set.scram_sha_256,
        Secret::new(*b"s3cret")
    );
    assert_eq!(
        shown,
        "PasswordSet(..) ScramVerifier { iterations: 16384, .. } Login { user: \"ann\", address: 10.0.0.1, .. } \
         Check(..) Verifier { cost: 50ms, .. } Secret(..)"
    );
}

#[test]
fn a_bucket_pays_off_with_time() {
    let start = Instant::now();
    let (second, burst) = (Duration::from_secs(1), Duration::from_secs(3));
    let mut bucket = Bucket::new(start);
    for _ in 0..3 {
        assert_eq!(bucket.wait(second, burst, start), Duration::ZERO);
        bucket.take(second, start);
    }
    assert_eq!(bucket.wait(second, burst, start), second);
    assert_eq!(bucket.wait(second, burst, start + second), Duration::ZERO);
    bucket.give(second, start);
    assert_eq!(bucket.wait(second, burst, start), Duration::ZERO);
    assert!(!bucket.is_full(start + second) && bucket.is_full(start + 2 * second));
    assert_eq!(bucket.wait(10 * second, burst, start + 2 * second), Duration::ZERO, "whatever it costs");
}

// -- logins. Checks are not run but decided, except where the hash itself matters.

fn verifier() -> Verifier {
    Verifier::new(&mut rng(), Instant::now())
}

fn login<'a>(user: &'a str, hash: Option<&'a str>, password: &'a [u8]) -> Login<'a> {
    Login { user, hash, password, address: IpAddr::from([10, 0, 0, 1]) }
}

/// A hash that is accepted as one; which password it has does not matter where checks are decided.
const HASH: &str = "$argon2id$v=19$m=12288,t=3,p=1$c2FsdHNhbHRzYWx0$aGFzaGhhc2hoYXNoaGFzaGhhc2hoYXNoaGFzaGg";
const COST: Duration = Duration::from_millis(50);

fn decide(verifier: &mut Verifier, login: &Login<'_>, is_right: bool, now: Instant) -> Option<Outcome> {
    match verifier.begin(login, now) {
        Begun::Check(check) => Some(verifier.finish(check.decided(is_right), COST, now)),
        _ => None,
    }
}

#[test]
fn a_login_is_hashed_once_and_then_remembered() {
    let set = hash_password(b"s3cret", &mut rng()).unwrap();
    let (mut verifier, now) = (verifier(), Instant::now());
    let right = login("ann", Some(&set.hash), b"s3cret");
    let Begun::Check(check) = verifier.begin(&right, now) else { panic!("a check") };
    assert!(matches!(verifier.begin(&right, now), Begun::Wait(SAME_CHECK_WAIT)), "an equal one is under way");
    assert_eq!(verifier.finish(check.run(), COST, now), Outcome::Accepted);
    assert!(matches!(verifier.begin(&right, now), Begun::Accepted));
    // Nothing else is accepted by it: another password, another user, another hash.
    for other in [
        login("ann", Some(&set.hash), b"S3cret"),
        login("bob", Some(&set.hash), b"s3cret"),
        login("ann", Some(HASH), b"s3cret"),
        login("ann", None, b"s3cret"),
    ] {
        let Begun::Check(check) = verifier.begin(&other, now) else { panic!("a check") };
        let is_bob = other.user == "bob";
        let expected = if is_bob { Outcome::Accepted } else { Outcome::Refused };
        assert_eq!(verifier.finish(check.run(), COST, now), expected, "{other:?}");
    }
}

#[test]
fn a_refusal_is_not_remembered() {
    let (mut verifier, now) = (verifier(), Instant::now());
    let wrong = login("ann", Some(HASH), b"x");
    assert_eq!(decide(&mut verifier, &wrong, false, now), Some(Outcome::Refused));
    assert_eq!(decide(&mut verifier, &wrong, true, now), Some(Outcome::Accepted));
}

#[test]
fn a_password_beyond_any_that_was_set_is_wrong() {
    let longest = vec![b'a'; PASSWORD_BYTES_MAX];
    let set = hash_password(&longest, &mut rng()).unwrap();
    let (mut verifier, now) = (verifier(), Instant::now());
    let longer = vec![b'a'; 100_000];
    let Begun::Check(check) = verifier.begin(&login("ann", Some(&set.hash), &longer), now) else { panic!() };
    assert_eq!(verifier.finish(check.run(), COST, now), Outcome::Refused);
}

#[test]
fn failures_of_a_user_are_limited_right_or_wrong_and_by_address() {
    let (mut verifier, mut now) = (verifier(), Instant::now());
    let wrong = login("ann", Some(HASH), b"x");
    let right = login("ann", Some(HASH), b"right");
    assert_eq!(decide(&mut verifier, &right, true, now), Some(Outcome::Accepted));
    let mut failed = 0;
    loop {
        match verifier.begin(&wrong, now) {
            Begun::Check(check) => {
                failed += 1;
                verifier.finish(check.decided(false), Duration::from_millis(1), now);
            }
            Begun::Wait(wait) => now += wait,
            Begun::Throttled(wait) => {
                assert!(wait <= USER_FAILURE_EVERY);
                break;
            }
            Begun::Accepted => panic!("accepted"),
        }
    }
    assert!((20..=22).contains(&failed), "{failed}");
    let elsewhere = Login { address: IpAddr::from([10, 0, 0, 2]), ..right };
    assert!(matches!(verifier.begin(&elsewhere, now), Begun::Accepted), "nobody locks ann out from afar");
    assert!(matches!(verifier.begin(&right, now + USER_FAILURE_EVERY), Begun::Accepted));
}

/// Fails until the user, or the address, is throttled.
fn throttle(verifier: &mut Verifier, wrong: &Login<'_>, mut now: Instant) -> Instant {
    loop {
        match verifier.begin(wrong, now) {
            Begun::Check(check) => {
                verifier.finish(check.decided(false), Duration::from_millis(1), now);
            }
            Begun::Wait(wait) => now += wait,
            _ => return now,
        }
    }
}

#[test]
fn a_neighbour_with_a_wrong_password_does_not_lock_out_who_was_right_before() {
    let (mut verifier, now) = (verifier(), Instant::now());
    let right = login("ann", Some(HASH), b"right");
    let by_cache = Login { address: IpAddr::from([10, 0, 0, 2]), ..right };
    let wrong = login("ann", Some(HASH), b"x");
    let wrong_there = Login { address: by_cache.address, ..wrong };
    assert_eq!(decide(&mut verifier, &right, true, now), Some(Outcome::Accepted));
    assert!(matches!(verifier.begin(&by_cache, now), Begun::Accepted));
    let now = throttle(&mut verifier, &wrong, now);
    let now = throttle(&mut verifier, &wrong_there, now);
    assert!(matches!(verifier.begin(&wrong, now), Begun::Throttled(_)));
    assert!(matches!(verifier.begin(&right, now), Begun::Accepted));
    assert!(matches!(verifier.begin(&by_cache, now), Begun::Accepted), "it need not have been hashed there");
    // One that retries each second does not change that.
    let mut later = now;
    for _ in 0..600 {
        later += Duration::from_secs(1);
        throttle(&mut verifier, &wrong, later);
        assert!(matches!(verifier.begin(&right, later), Begun::Accepted));
    }
}

#[test]
fn guesses_beyond_the_limits_are_limited_too_and_know_nothing_of_other_networks() {
    let (mut verifier, now) = (verifier(), Instant::now());
    let right = login("ann", Some(HASH), b"right");
    let wrong = login("ann", Some(HASH), b"x");
    let stranger = IpAddr::from([192, 0, 2, 1]);
    assert_eq!(decide(&mut verifier, &right, true, now), Some(Outcome::Accepted));
    let now = throttle(&mut verifier, &Login { address: stranger, ..wrong }, now);
    let lucky = Login { address: stranger, ..right };
    assert!(matches!(verifier.begin(&lucky, now), Begun::Throttled(_)), "never right from there");

    let now = throttle(&mut verifier, &wrong, now);
    for _ in 0..LOOKS_BURST {
        assert!(matches!(verifier.begin(&wrong, now), Begun::Throttled(_)));
    }
    assert!(matches!(verifier.begin(&right, now), Begun::Throttled(_)), "a guess that nobody looked at");
    assert!(matches!(verifier.begin(&right, now + LOOK_EVERY), Begun::Accepted));
}

#[test]
fn an_address_that_tries_many_users_is_limited() {
    let (mut verifier, mut now) = (verifier(), Instant::now());
    let mut failed = 0u32;
    let limited = (0..1000).any(|n| {
        let user = format!("user{n}");
        // Addresses of one IPv6 network are one client.
        let address: IpAddr = format!("2001:db8:1:2::{n:x}").parse().unwrap();
        loop {
            match verifier.begin(&Login { address, ..login(&user, None, b"x") }, now) {
                Begun::Check(check) => {
                    failed += 1;
                    verifier.finish(check.decided(false), Duration::from_micros(10), now);
                    return false;
                }
                Begun::Wait(wait) => now += wait,
                Begun::Throttled(_) => return true,
                Begun::Accepted => panic!("accepted"),
            }
        }
    });
    assert!(limited && failed <= ADDRESS_FAILURES_BURST + 20, "{failed}");
    let neighbour: IpAddr = "2001:db8:1:3::1".parse().unwrap();
    let other = Login { address: neighbour, ..login("ann", Some(HASH), b"x") };
    now += Duration::from_secs(60);
    assert!(matches!(verifier.begin(&other, now), Begun::Check(_)));
}

#[test]
fn failures_take_at_most_a_tenth_of_a_core_however_many_clients_fail() {
    let (mut verifier, start) = (verifier(), Instant::now());
    let (mut now, mut spent) = (start, Duration::ZERO);
    let took = Duration::from_millis(40);
    for n in 0u32.. {
        if now.duration_since(start) > Duration::from_secs(60) {
            break;
        }
        let user = format!("user{n}");
        let address = IpAddr::from((0x0A00_0000 + n).to_be_bytes());
        match verifier.begin(&Login { address, ..login(&user, None, b"x") }, now) {
            Begun::Check(check) => {
                spent += took;
                verifier.finish(check.decided(false), took, now);
            }
            Begun::Wait(wait) => now += wait,
            other => panic!("{other:?}"),
        }
    }
    assert!(spent >= Duration::from_secs(5), "{spent:?}");
    assert!(spent <= Duration::from_secs(6) + BUDGET_BURST + 2 * took, "{spent:?}");
}

#[test]
fn guesses_at_once_are_limited_before_the_first_has_failed() {
    let (mut verifier, now) = (verifier(), Instant::now());
    let users: Vec<_> = (0..1000).map(|n| format!("user{n}")).collect();
    let mut checks: Vec<_> = Vec::new();
    for user in &users {
        match verifier.begin(&login(user, Some(HASH), b"x"), now) {
            Begun::Check(check) => checks.push(check),
            Begun::Wait(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(checks.len(), 10, "what the burst pays for");
    // Right passwords give their share back, so that the others soon get their turn.
    for check in checks {
        assert_eq!(verifier.finish(check.decided(true), COST, now), Outcome::Accepted);
    }
    assert!(matches!(verifier.begin(&login("user999", Some(HASH), b"x"), now), Begun::Check(_)));
}

#[test]
fn a_check_that_was_dropped_does_not_hold_its_user_up_for_ever() {
    let (mut verifier, now) = (verifier(), Instant::now());
    let ann = login("ann", Some(HASH), b"x");
    drop(verifier.begin(&ann, now));
    assert!(matches!(verifier.begin(&ann, now), Begun::Wait(_)));
    assert!(matches!(verifier.begin(&ann, now + CHECK_ABANDONED_AFTER), Begun::Check(_)));
}

#[test]
fn the_cache_is_bounded_and_keeps_what_is_used() {
    let (mut verifier, now) = (verifier(), Instant::now());
    let ann = login("ann", Some(HASH), b"x");
    decide(&mut verifier, &ann, true, now);
    for n in 0..2 * CACHE_ENTRIES_MAX {
        let user = format!("user{n}");
        decide(&mut verifier, &login(&user, Some(HASH), b"x"), true, now);
        if n % 1000 == 0 {
            assert!(matches!(verifier.begin(&ann, now), Begun::Accepted), "{n}");
        }
    }
    assert!(verifier.remembered() <= CACHE_ENTRIES_MAX);
    assert!(matches!(verifier.begin(&login("user0", Some(HASH), b"x"), now), Begun::Check(_)));
}

#[test]
fn names_that_nobody_can_have_share_a_bucket() {
    let (mut verifier, now) = (verifier(), Instant::now());
    for n in 0..100 {
        let user = format!("{n:0>1000}");
        let begun = verifier.begin(&login(&user, None, b"x"), now + n * Duration::from_secs(2));
        if let Begun::Throttled(_) = begun {
            return;
        }
        if let Begun::Check(check) = begun {
            verifier.finish(check.decided(false), Duration::from_millis(1), now);
        }
    }
    panic!("never limited");
}
