//! A set of places within one chunk of 65,536 offsets: runs while there are few, a bitmap when there are many.
//!
//! Danger: settlement is counted here; a bit set by mistake is a message lost. Used by [`crate::offset_set`] only.
//! In memory the form depends on history; the encoded form does not (equal sets encode equally).

use bytes::{BufMut, BytesMut};
use longshore_wire::{DecodeError, Reader};

/// Offsets of one chunk.
pub(crate) const CHUNK_OFFSETS: u64 = 1 << 16;
/// Runs beyond which a bitmap (8 KiB) takes over; 2 KiB of runs.
const RUNS_MAX: usize = 512;
const WORDS: usize = CHUNK_OFFSETS as usize / 64;
/// In place of a number of runs: a bitmap follows.
const BITMAP: u16 = u16::MAX;

/// A set of `u16`.
#[derive(Clone, Debug)]
pub(crate) struct ChunkSet {
    form: Form,
    count: u32,
}

#[derive(Clone, Debug)]
enum Form {
    /// Sorted, disjoint and not adjacent; both ends included.
    Runs(Vec<(u16, u16)>),
    Bits(Box<[u64; WORDS]>),
}

impl ChunkSet {
    pub(crate) fn new() -> ChunkSet {
        ChunkSet { form: Form::Runs(Vec::new()), count: 0 }
    }

    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    pub(crate) fn contains(&self, at: u16) -> bool {
        match &self.form {
            Form::Runs(runs) => run_at_or_after(runs, at).is_some_and(|i| runs[i].0 <= at),
            Form::Bits(words) => words[usize::from(at >> 6)] >> (at & 63) & 1 == 1,
        }
    }

    /// The first member at or after `from`.
    pub(crate) fn next_present(&self, from: u16) -> Option<u16> {
        match &self.form {
            Form::Runs(runs) => run_at_or_after(runs, from).map(|i| runs[i].0.max(from)),
            Form::Bits(words) => scan(words, from, false),
        }
    }

    /// The first place at or after `from` that is not a member.
    pub(crate) fn next_absent(&self, from: u16) -> Option<u16> {
        match &self.form {
            Form::Runs(runs) => match run_at_or_after(runs, from) {
                Some(i) if runs[i].0 <= from => runs[i].1.checked_add(1),
                _ => Some(from),
            },
            Form::Bits(words) => scan(words, from, true),
        }
    }

    /// Adds `first..=last`; `new` hears each run that was not there before.
    pub(crate) fn insert(&mut self, first: u16, last: u16, new: &mut impl FnMut(u16, u16)) {
        let mut added = 0;
        let mut at = Some(first);
        // Single acks are the common case: no search for the end of the gap.
        if first == last && !self.contains(first) {
            new(first, last);
            (added, at) = (1, None);
        }
        while let Some(start) = at.and_then(|at| self.next_absent(at)).filter(|start| *start <= last) {
            let end = self.next_present(start).map_or(last, |next| last.min(next.saturating_sub(1)));
            new(start, end);
            added += u32::from(end - start) + 1;
            at = end.checked_add(1);
        }
        if added == 0 {
            return;
        }
        self.count += added;
        match &mut self.form {
            Form::Runs(runs) => {
                merge_run(runs, first, last);
                if runs.len() > RUNS_MAX {
                    self.form = Form::Bits(self.to_words());
                }
            }
            Form::Bits(_) if u64::from(self.count) == CHUNK_OFFSETS => {
                self.form = Form::Runs(vec![(0, u16::MAX)]);
            }
            Form::Bits(words) => {
                fill(words, first, last, true);
            }
        }
    }

    /// Adds `first..=last` without a word about what was there; costs no more for a checkered set.
    pub(crate) fn cover(&mut self, first: u16, last: u16) {
        match &mut self.form {
            Form::Runs(runs) => {
                merge_run(runs, first, last);
                self.count = runs.iter().map(|(first, last)| u32::from(last - first) + 1).sum();
                if runs.len() > RUNS_MAX {
                    self.form = Form::Bits(self.to_words());
                }
            }
            Form::Bits(words) => {
                self.count += fill(words, first, last, true);
                if u64::from(self.count) == CHUNK_OFFSETS {
                    self.form = Form::Runs(vec![(0, u16::MAX)]);
                }
            }
        }
    }

    /// Removes `first..=last`; touches nothing outside of it.
    pub(crate) fn remove(&mut self, first: u16, last: u16) {
        match &mut self.form {
            Form::Runs(runs) => {
                self.count -= cut_runs(runs, first, last);
                if runs.len() > RUNS_MAX {
                    self.form = Form::Bits(self.to_words());
                }
            }
            Form::Bits(words) => self.count -= fill(words, first, last, false),
        }
    }

    /// Removes all members of `other`.
    pub(crate) fn subtract(&mut self, other: &ChunkSet) {
        let mut words = self.to_words();
        for (word, gone) in words.iter_mut().zip(other.to_words().iter()) {
            *word &= !gone;
        }
        *self = ChunkSet::from_words(words);
    }

    /// How many members are below `end`.
    pub(crate) fn count_below(&self, end: u16) -> u32 {
        self.runs()
            .take_while(|(first, _)| *first < end)
            .map(|(first, last)| u32::from(last.min(end - 1) - first) + 1)
            .sum()
    }

    /// The runs of members, ascending, never adjacent.
    pub(crate) fn runs(&self) -> impl Iterator<Item = (u16, u16)> + '_ {
        let mut at = Some(0);
        std::iter::from_fn(move || {
            let first = self.next_present(at?)?;
            let next = self.next_absent(first);
            at = next;
            Some((first, next.map_or(u16::MAX, |next| next.saturating_sub(1))))
        })
    }

    /// The same set always gives the same bytes.
    pub(crate) fn encode(&self, out: &mut BytesMut) {
        let runs: Vec<_> = self.runs().take(RUNS_MAX + 1).collect();
        if runs.len() > RUNS_MAX {
            out.put_u16_le(BITMAP);
            self.to_words().iter().for_each(|word| out.put_u64_le(*word));
            return;
        }
        out.put_u16_le(runs.len() as u16);
        for (first, last) in runs {
            out.put_u16_le(first);
            out.put_u16_le(last);
        }
    }

    /// Reads what [`ChunkSet::encode`] wrote.
    pub(crate) fn decode(r: &mut Reader) -> Result<ChunkSet, DecodeError> {
        let n = r.u16()?;
        if n == BITMAP {
            let mut words = Box::new([0; WORDS]);
            for word in words.iter_mut() {
                *word = r.u64()?;
            }
            return Ok(ChunkSet::from_words(words));
        }
        let mut set = ChunkSet::new();
        for _ in 0..n {
            let (first, last) = (r.u16()?, r.u16()?);
            if first > last {
                return Err(DecodeError::Invalid("run of offsets"));
            }
            set.insert(first, last, &mut |_, _| {});
        }
        Ok(set)
    }

    fn to_words(&self) -> Box<[u64; WORDS]> {
        match &self.form {
            Form::Bits(words) => words.clone(),
            Form::Runs(runs) => {
                let mut words = Box::new([0; WORDS]);
                for (first, last) in runs {
                    fill(&mut words, *first, *last, true);
                }
                words
            }
        }
    }

    fn from_words(words: Box<[u64; WORDS]>) -> ChunkSet {
        let count = words.iter().map(|word| word.count_ones()).sum();
        let set = ChunkSet { form: Form::Bits(words), count };
        let runs: Vec<_> = set.runs().take(RUNS_MAX + 1).collect();
        if runs.len() > RUNS_MAX { set } else { ChunkSet { form: Form::Runs(runs), count } }
    }
}

/// The first run that ends at or after `at`.
fn run_at_or_after(runs: &[(u16, u16)], at: u16) -> Option<usize> {
    let i = runs.partition_point(|(_, last)| *last < at);
    (i < runs.len()).then_some(i)
}

/// Makes `first..=last` part of the runs, joined with those that it meets or touches.
fn merge_run(runs: &mut Vec<(u16, u16)>, first: u16, last: u16) {
    let from = runs.partition_point(|(_, end)| u32::from(*end) + 1 < u32::from(first));
    let to = runs.partition_point(|(start, _)| u32::from(*start) <= u32::from(last) + 1);
    let joined = match runs.get(from..to) {
        Some([]) | None => (first, last),
        Some([one]) => (first.min(one.0), last.max(one.1)),
        Some([low, .., high]) => (first.min(low.0), last.max(high.1)),
    };
    if to == from + 1 {
        runs[from] = joined;
    } else {
        runs.splice(from..to.max(from), [joined]);
    }
}

/// Removes `first..=last` from the runs; how many members that were.
fn cut_runs(runs: &mut Vec<(u16, u16)>, first: u16, last: u16) -> u32 {
    let from = runs.partition_point(|(_, end)| *end < first);
    let to = runs.partition_point(|(start, _)| *start <= last);
    let Some(cut) = runs.get(from..to).filter(|cut| !cut.is_empty()) else { return 0 };
    let members = cut.iter().map(|(low, high)| u32::from((*high).min(last) - (*low).max(first)) + 1).sum();
    let left = cut.first().filter(|run| run.0 < first).map(|run| (run.0, first - 1));
    let right = cut.last().filter(|run| run.1 > last).map(|run| (last + 1, run.1));
    runs.splice(from..to, left.into_iter().chain(right));
    members
}

/// The first bit at or after `from` that is set, or clear if `inverted`.
fn scan(words: &[u64; WORDS], from: u16, inverted: bool) -> Option<u16> {
    let flip = if inverted { u64::MAX } else { 0 };
    let start = usize::from(from >> 6);
    let mut mask = u64::MAX << (from & 63);
    for (i, word) in words.iter().enumerate().skip(start) {
        let hits = (word ^ flip) & mask;
        if hits != 0 {
            return Some((i as u32 * 64 + hits.trailing_zeros()) as u16);
        }
        mask = u64::MAX;
    }
    None
}

/// Sets or clears `first..=last`; how many bits that changed. Touches no other word.
fn fill(words: &mut [u64; WORDS], first: u16, last: u16, value: bool) -> u32 {
    let (low, high) = (usize::from(first >> 6), usize::from(last >> 6));
    let mut changed = 0;
    for (i, word) in words[low..=high].iter_mut().enumerate() {
        let mut mask = u64::MAX;
        if i == 0 {
            mask &= u64::MAX << (first & 63);
        }
        if i == high - low {
            mask &= u64::MAX >> (63 - (last & 63));
        }
        let before = *word;
        if value {
            *word |= mask
        } else {
            *word &= !mask
        }
        changed += (before ^ *word).count_ones();
    }
    changed
}

#[cfg(test)]
mod tests;
