//! Ids that are gone for ever (dropped logs, closed sessions), as runs. Bounded: see
//! [`crate::bounds::GONE_RANGES_MAX`].

use crate::bounds::GONE_RANGES_MAX;
use bytes::{BufMut, BytesMut};
use longshore_wire::{DecodeError, Reader};
use std::collections::BTreeMap;

/// A set of ids.
#[derive(Clone, Debug, Default)]
pub(crate) struct IdRanges {
    /// First to last, both included; disjoint and not adjacent.
    runs: BTreeMap<u64, u64>,
}

impl IdRanges {
    pub(crate) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    pub(crate) fn contains(&self, id: u64) -> bool {
        self.runs.range(..=id).next_back().is_some_and(|(_, last)| id <= *last)
    }

    /// Adds an id; false if it was there.
    pub(crate) fn insert(&mut self, id: u64) -> bool {
        if self.contains(id) {
            return false;
        }
        let mut first = id;
        let mut last = id;
        if let Some((start, end)) = self.runs.range(..id).next_back().map(|(a, b)| (*a, *b))
            && end.checked_add(1) == Some(id)
        {
            first = start;
        }
        if let Some(next) = id.checked_add(1)
            && let Some(end) = self.runs.remove(&next)
        {
            last = end;
        }
        self.runs.insert(first, last);
        if self.runs.len() > GONE_RANGES_MAX {
            self.join_oldest();
        }
        true
    }

    fn join_oldest(&mut self) {
        if let Some((first, _)) = self.runs.pop_first()
            && let Some((_, last)) = self.runs.pop_first()
        {
            self.runs.insert(first, last);
        }
    }

    pub(crate) fn encode(&self, out: &mut BytesMut) {
        out.put_u32_le(self.runs.len() as u32);
        for (first, last) in &self.runs {
            out.put_u64_le(*first);
            out.put_u64_le(*last);
        }
    }

    pub(crate) fn decode(r: &mut Reader) -> Result<IdRanges, DecodeError> {
        let n = r.count(16)?;
        let mut runs = BTreeMap::new();
        let mut after = None;
        for _ in 0..n {
            let (first, last) = (r.u64()?, r.u64()?);
            if first > last || after.is_some_and(|after| first <= after) {
                return Err(DecodeError::Invalid("run of ids"));
            }
            after = Some(last);
            runs.insert(first, last);
        }
        Ok(IdRanges { runs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_become_one_run() {
        let mut ids = IdRanges::default();
        assert!([5, 7, 6, 1].into_iter().all(|id| ids.insert(id)));
        assert!(!ids.insert(6));
        assert_eq!(ids.runs, BTreeMap::from([(1, 1), (5, 7)]));
        assert!(ids.contains(7) && !ids.contains(4) && !ids.contains(8));
    }

    #[test]
    fn beyond_the_bound_the_oldest_runs_become_one() {
        let mut ids = IdRanges::default();
        for n in 0..=GONE_RANGES_MAX as u64 {
            ids.insert(10 * n);
        }
        assert_eq!(ids.runs.len(), GONE_RANGES_MAX);
        assert!(ids.contains(0) && ids.contains(5) && ids.contains(10) && !ids.contains(15));
    }
}
