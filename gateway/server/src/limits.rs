//! How many connections there may be, in all and from one address. Counted from accept to the end of the connection.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// Counts connections against their bounds. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Limits {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    all_max: u32,
    address_max: u32,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    all: u32,
    addresses: HashMap<IpAddr, u32>,
}

/// A counted connection; dropping it gives its place back.
#[derive(Debug)]
pub struct Place {
    inner: Arc<Inner>,
    address: IpAddr,
}

impl Limits {
    /// At most `all_max` connections, and `address_max` from one address (0: no such limit).
    pub fn new(all_max: u32, address_max: u32) -> Limits {
        Limits { inner: Arc::new(Inner { all_max, address_max, counts: Mutex::default() }) }
    }

    /// Counts a connection from `address`; `None` if a bound is reached.
    pub fn enter(&self, address: IpAddr) -> Option<Place> {
        let mut counts = self.inner.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.all >= self.inner.all_max {
            return None;
        }
        let of_address = counts.addresses.entry(address).or_default();
        if self.inner.address_max != 0 && *of_address >= self.inner.address_max {
            return None;
        }
        *of_address += 1;
        counts.all += 1;
        Some(Place { inner: Arc::clone(&self.inner), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.inner.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.all = counts.all.saturating_sub(1);
        if let Some(of_address) = counts.addresses.get_mut(&self.address) {
            *of_address -= 1;
            if *of_address == 0 {
                counts.addresses.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_and_given_back() {
        let limits = Limits::new(3, 2);
        let (a, b) = ("127.0.0.1".parse().unwrap(), "127.0.0.2".parse().unwrap());
        let first = limits.enter(a).unwrap();
        let _second = limits.enter(a).unwrap();
        assert!(limits.enter(a).is_none());
        let _third = limits.enter(b).unwrap();
        assert!(limits.enter(b).is_none());
        drop(first);
        assert!(limits.enter(b).is_some());
    }
}
