//! Checking logins: a cache of successes, limits on failures, a budget of processor time.
//!
//! The caller's way: [`Verifier::begin`]; on [`Begun::Check`] run the check on a blocking thread, measure it, and hand it
//! to [`Verifier::finish`]; on [`Begun::Wait`] sleep that long and begin again. Time is always a parameter.
//! Danger: limits are asked before the cache, or guesses against the cache would be free. A check takes its share
//! of every limit when it begins and gets it back when the password was right: so many guesses at once are
//! limited too, and right passwords are not. One exception, so that a neighbour with a wrong password does not lock
//! others out: beyond the limits a login passes that succeeded before from the same network; looking whether it did
//! has a limit of its own ([`LOOK_EVERY`]).
//! Called by the broker; cheap enough for its runtime's threads, except [`Check::run`].

use crate::Secret;
use crate::bucket::Bucket;
use crate::password::{self, PASSWORD_BYTES_MAX};
use hmac::{Hmac, Mac};
use rand::CryptoRng;
use sha2::Sha256;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::Hash;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Successful checks that are remembered; the longest unused go first, about.
pub const CACHE_ENTRIES_MAX: usize = 65_536;
/// Users and addresses whose failures are remembered.
pub const BUCKETS_MAX: usize = 65_536;
/// Failed logins of one user from one address: one per this time ...
pub const USER_FAILURE_EVERY: Duration = Duration::from_secs(3);
/// ... and this many at once.
pub const USER_FAILURES_BURST: u32 = 20;
/// Failed logins from one address (IPv6: a /64), for whatever user: one per this time ...
pub const ADDRESS_FAILURE_EVERY: Duration = Duration::from_millis(500);
/// ... and this many at once.
pub const ADDRESS_FAILURES_BURST: u32 = 100;
/// Beyond these limits: logins from one address that are looked for among those that succeeded from there, and were
/// not among them: one per this time ...
pub const LOOK_EVERY: Duration = Duration::from_millis(100);
/// ... and this many at once.
pub const LOOKS_BURST: u32 = 200;
/// Of a core's time, one part in this many goes into failed checks.
pub const BUDGET_SHARE: u32 = 10;
/// Processor time that checks may take ahead of that share; also bounds how many run at once.
pub const BUDGET_BURST: Duration = Duration::from_millis(500);
/// A check that was not finished by then never will be: its task was dropped.
pub const CHECK_ABANDONED_AFTER: Duration = Duration::from_secs(30);
/// How long a login waits for an equal one that is being checked.
pub const SAME_CHECK_WAIT: Duration = Duration::from_millis(10);

/// Longest user name, in bytes.
const USER_BYTES_MAX: usize = 255;
const COST_AT_FIRST: Duration = Duration::from_millis(50);
const COST_MIN: Duration = Duration::from_millis(1);
const COST_MAX: Duration = Duration::from_secs(2);

/// A login to be checked.
#[derive(Clone, Copy)]
pub struct Login<'a> {
    /// The user's name as the client gave it.
    pub user: &'a str,
    /// The stored hash; `None` if there is no such user, or one without a password.
    pub hash: Option<&'a str>,
    /// The password as the client gave it.
    pub password: &'a [u8],
    /// The client's address.
    pub address: IpAddr,
}

impl fmt::Debug for Login<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login")
            .field("user", &self.user)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// How a login began.
#[derive(Debug)]
pub enum Begun {
    /// Right, and known to be from an earlier check.
    Accepted,
    /// Run it, then [`Verifier::finish`].
    Check(Check),
    /// Begin again after this time; until then there is no budget, or an equal login is being checked.
    Wait(Duration),
    /// Too many failures: refuse the client, right or wrong. It may come back after this time.
    Throttled(Duration),
}

/// What a finished check says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The password is right.
    Accepted,
    /// Wrong password or unknown user; never tell which.
    Refused,
}

type Digest = [u8; 32];
/// An address as it is limited: IPv6 by its network.
type Network = IpAddr;

#[derive(Debug, Clone)]
struct Taken {
    digest: Digest,
    /// With the network that it came from.
    here: Digest,
    user: (String, Network),
    cost: Duration,
}

/// A check to be run on a blocking thread. Dropping it forfeits its share of the limits, and holds up equal logins for
/// [`CHECK_ABANDONED_AFTER`]: finish it, also when the client is gone.
#[must_use = "an unfinished check keeps its share of the limits"]
pub struct Check {
    taken: Taken,
    password: Secret,
    hash: String,
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Check(..)")
    }
}

/// A check that has run.
#[must_use = "an unfinished check keeps its share of the limits"]
#[derive(Debug)]
pub struct Checked {
    taken: Taken,
    is_right: bool,
}

impl Check {
    /// Computes the hash: tens of milliseconds of processor time.
    pub fn run(self) -> Checked {
        let is_right = password::matches(&self.password, &self.hash);
        Checked { taken: self.taken, is_right }
    }

    /// As if it had run.
    #[cfg(test)]
    pub(crate) fn decided(self, is_right: bool) -> Checked {
        Checked { taken: self.taken, is_right }
    }
}

/// The logins of one gateway.
pub struct Verifier {
    /// Keyed; each digest begins with a clone.
    mac: Hmac<Sha256>,
    impossible: String,
    cache: Cache,
    /// Those that succeeded, each with the network that it came from.
    known: Cache,
    looks: Buckets<Network>,
    /// Checks under way, and since when.
    checking: HashMap<Digest, Instant>,
    users: Buckets<(String, Network)>,
    addresses: Buckets<Network>,
    budget: Bucket,
    /// What a check costs, from those that ran.
    cost: Duration,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("cost", &self.cost).finish_non_exhaustive()
    }
}

impl Verifier {
    /// With a key of its own from `rng`: cached checks are of no use to anyone who reads another process's memory.
    pub fn new<R: CryptoRng>(rng: &mut R, now: Instant) -> Verifier {
        Verifier {
            mac: Hmac::new(&password::random::<64, R>(rng).into()),
            impossible: password::impossible_hash(rng),
            cache: Cache::default(),
            known: Cache::default(),
            looks: Buckets::new(LOOK_EVERY, LOOKS_BURST),
            checking: HashMap::new(),
            users: Buckets::new(USER_FAILURE_EVERY, USER_FAILURES_BURST),
            addresses: Buckets::new(ADDRESS_FAILURE_EVERY, ADDRESS_FAILURES_BURST),
            budget: Bucket::new(now),
            cost: COST_AT_FIRST,
        }
    }

    /// Begins a login.
    pub fn begin(&mut self, login: &Login<'_>, now: Instant) -> Begun {
        let network = network(login.address);
        // Names that nobody can have share a bucket.
        let user = ((if login.user.len() > USER_BYTES_MAX { "" } else { login.user }).to_owned(), network);
        // An unknown user, and a hash that is not ours to compute, cost what a wrong password costs.
        let hash = login.hash.filter(|hash| password::is_affordable(hash)).unwrap_or(&self.impossible);
        let (digest, here) = digests(self.mac.clone(), login, hash, network);
        let throttled = self.users.wait(&user, now).max(self.addresses.wait(&network, now));
        if !throttled.is_zero() {
            return self.begin_throttled(&here, network, throttled, now);
        }
        if self.cache.contains(&digest) {
            self.known.insert(here);
            return Begun::Accepted;
        }
        self.checking.retain(|_, since| now.saturating_duration_since(*since) < CHECK_ABANDONED_AFTER);
        if self.checking.contains_key(&digest) {
            return Begun::Wait(SAME_CHECK_WAIT);
        }
        let wait = self.budget.wait(self.cost * BUDGET_SHARE, BUDGET_BURST * BUDGET_SHARE, now);
        if !wait.is_zero() {
            return Begun::Wait(wait);
        }
        if !self.users.take(&user, now) {
            return Begun::Throttled(USER_FAILURE_EVERY);
        }
        if !self.addresses.take(&network, now) {
            self.users.give(&user, now);
            return Begun::Throttled(ADDRESS_FAILURE_EVERY);
        }
        self.budget.take(self.cost * BUDGET_SHARE, now);
        self.checking.insert(digest, now);
        // A password beyond any that was ever set is not worth a copy: it is wrong.
        let password = Secret::new(login.password.get(..PASSWORD_BYTES_MAX + 1).unwrap_or(login.password));
        Begun::Check(Check {
            taken: Taken { digest, here, user, cost: self.cost },
            password,
            hash: hash.to_owned(),
        })
    }

    /// A login beyond the limits passes if it succeeded before from its network.
    fn begin_throttled(&mut self, here: &Digest, network: Network, wait: Duration, now: Instant) -> Begun {
        if !self.looks.wait(&network, now).is_zero() {
            return Begun::Throttled(wait);
        }
        if self.known.contains(here) {
            return Begun::Accepted;
        }
        self.looks.take(&network, now);
        Begun::Throttled(wait)
    }

    /// Ends a login; `took` is the processor time of [`Check::run`], or its duration.
    pub fn finish(&mut self, checked: Checked, took: Duration, now: Instant) -> Outcome {
        let Checked { taken, is_right } = checked;
        self.checking.remove(&taken.digest);
        // Follows the machine's load slowly, so that one slow check does not stop the others.
        self.cost = ((self.cost * 7 + took) / 8).clamp(COST_MIN, COST_MAX);
        self.budget.give(taken.cost * BUDGET_SHARE, now);
        if is_right {
            self.users.give(&taken.user, now);
            self.addresses.give(&taken.user.1, now);
            self.cache.insert(taken.digest);
            self.known.insert(taken.here);
            return Outcome::Accepted;
        }
        self.budget.take(took * BUDGET_SHARE, now);
        Outcome::Refused
    }

    /// Successful checks in the larger cache.
    #[cfg(test)]
    pub(crate) fn remembered(&self) -> usize {
        (self.cache.young.len() + self.cache.old.len()).max(self.known.young.len() + self.known.old.len())
    }
}

/// What the caches know of a login: from anywhere, and from its network. The key is secret, so that looking one up may
/// take whatever time it takes.
fn digests(mut mac: Hmac<Sha256>, login: &Login<'_>, hash: &str, network: Network) -> (Digest, Digest) {
    for part in [login.user.as_bytes(), hash.as_bytes(), login.password] {
        mac.update(&(part.len() as u64).to_le_bytes());
        mac.update(part);
    }
    let mut here = mac.clone();
    match network {
        IpAddr::V4(v4) => here.update(&v4.octets()),
        IpAddr::V6(v6) => here.update(&v6.octets()),
    }
    (mac.finalize().into_bytes().into(), here.finalize().into_bytes().into())
}

fn network(address: IpAddr) -> Network {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        v4 => v4,
    }
}

/// Two generations: what is used moves into the young one; when that is full it becomes the old one.
#[derive(Default)]
struct Cache {
    young: HashSet<Digest>,
    old: HashSet<Digest>,
}

impl Cache {
    fn contains(&mut self, digest: &Digest) -> bool {
        if self.young.contains(digest) {
            return true;
        }
        let was_old = self.old.remove(digest);
        if was_old {
            self.insert(*digest);
        }
        was_old
    }

    fn insert(&mut self, digest: Digest) {
        if self.young.contains(&digest) {
            return;
        }
        if self.young.len() >= CACHE_ENTRIES_MAX / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(digest);
    }
}

/// One bucket per key; a key without one owes nothing.
struct Buckets<K> {
    every: Duration,
    burst: Duration,
    buckets: HashMap<K, Bucket>,
}

impl<K: Eq + Hash + Clone> Buckets<K> {
    fn new(every: Duration, burst: u32) -> Buckets<K> {
        Buckets { every, burst: every * burst, buckets: HashMap::new() }
    }

    fn wait(&self, key: &K, now: Instant) -> Duration {
        self.buckets.get(key).map_or(Duration::ZERO, |bucket| bucket.wait(self.every, self.burst, now))
    }

    /// `false` if there is no room to remember it.
    fn take(&mut self, key: &K, now: Instant) -> bool {
        if self.buckets.len() >= BUCKETS_MAX && !self.buckets.contains_key(key) {
            self.buckets.retain(|_, bucket| !bucket.is_full(now));
            if self.buckets.len() >= BUCKETS_MAX {
                return false;
            }
        }
        self.buckets.entry(key.clone()).or_insert_with(|| Bucket::new(now)).take(self.every, now);
        true
    }

    fn give(&mut self, key: &K, now: Instant) {
        if let Some(bucket) = self.buckets.get_mut(key) {
            bucket.give(self.every, now);
            if bucket.is_full(now) {
                self.buckets.remove(key);
            }
        }
    }
}
