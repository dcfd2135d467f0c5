//! Headers exchanges: bindings that ask for header values.
//!
//! `x-match` is `all` (the default), `any`, `all-with-x` or `any-with-x`; without `-with-x`, arguments whose name
//! begins with `x-` are not compared. A value of [`HeaderValue::Void`] asks for presence only.

use super::destinations::{Dest, DestinationSet};
use crate::api::{HeaderValue, Headers};
use bytes::Bytes;
use std::collections::BTreeMap;

#[derive(Debug)]
struct Pattern {
    any: bool,
    wanted: Vec<(Bytes, HeaderValue)>,
}

impl Pattern {
    fn new(arguments: &[(Bytes, HeaderValue)]) -> Pattern {
        let mode = arguments.iter().find(|(name, _)| &name[..] == b"x-match").map(|(_, value)| value);
        let (any, with_x) = match mode {
            Some(HeaderValue::Bytes(mode)) => match &mode[..] {
                b"any" => (true, false),
                b"all-with-x" => (false, true),
                b"any-with-x" => (true, true),
                _ => (false, false),
            },
            _ => (false, false),
        };
        let wanted = arguments
            .iter()
            .filter(|(name, _)| &name[..] != b"x-match" && (with_x || !name.starts_with(b"x-")))
            .map(|(name, value)| (Bytes::copy_from_slice(name), copied(value)))
            .collect();
        Pattern { any, wanted }
    }

    fn matches(&self, headers: &dyn Headers) -> bool {
        let one = |(name, wanted): &(Bytes, HeaderValue)| match headers.get(name) {
            None => false,
            Some(_) if *wanted == HeaderValue::Void => true,
            Some(value) => value == *wanted,
        };
        if self.any { self.wanted.iter().any(one) } else { self.wanted.iter().all(one) }
    }
}

/// A value that pins no request buffer.
fn copied(value: &HeaderValue) -> HeaderValue {
    match value {
        HeaderValue::Bytes(bytes) => HeaderValue::Bytes(Bytes::copy_from_slice(bytes)),
        HeaderValue::Other(bytes) => HeaderValue::Other(Bytes::copy_from_slice(bytes)),
        other => other.clone(),
    }
}

/// The bindings of one headers exchange, grouped by equal arguments.
#[derive(Debug, Default)]
pub struct HeaderTable {
    patterns: BTreeMap<Bytes, (Pattern, DestinationSet)>,
}

impl HeaderTable {
    /// Adds a binding; `raw` is its identity, `arguments` what it says.
    pub fn add(&mut self, raw: &Bytes, arguments: &[(Bytes, HeaderValue)], dest: Dest) {
        self.patterns
            .entry(raw.clone())
            .or_insert_with(|| (Pattern::new(arguments), DestinationSet::default()))
            .1
            .add(dest);
    }

    /// Removes a binding.
    pub fn remove(&mut self, raw: &Bytes, dest: &Dest) {
        if let Some((_, set)) = self.patterns.get_mut(raw) {
            set.remove(dest);
            if set.is_empty() {
                self.patterns.remove(raw);
            }
        }
    }

    /// Adds the destinations that want a message with these headers to `out`.
    pub fn matches(&self, headers: &dyn Headers, out: &mut Vec<Dest>) {
        for (pattern, set) in self.patterns.values() {
            if pattern.matches(headers) {
                out.extend(set.iter().cloned());
            }
        }
    }
}
