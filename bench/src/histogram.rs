//! A histogram of latencies: log-linear buckets of constant relative width, so that p99 of microseconds and of
//! minutes come from one table of 30 KiB. A quantile is at most 1.6 % above the true value, never below it.

/// Buckets per power of two, as a power of two.
const SUB_BITS: u32 = 6;
const SUBS: u64 = 1 << SUB_BITS;
const BUCKETS: usize = ((64 - SUB_BITS as usize) + 1) * SUBS as usize;

/// Counts of values (nanoseconds here).
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram { counts: vec![0; BUCKETS], total: 0, max: 0 }
    }
}

impl Histogram {
    /// Counts one value.
    pub fn record(&mut self, value: u64) {
        if let Some(count) = self.counts.get_mut(bucket(value)) {
            *count += 1;
        }
        self.total += 1;
        self.max = self.max.max(value);
    }

    /// Adds the counts of another one.
    pub fn merge(&mut self, other: &Histogram) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.total += other.total;
        self.max = self.max.max(other.max);
    }

    /// Values counted.
    pub fn len(&self) -> u64 {
        self.total
    }

    /// The largest value, exactly; 0 if there is none.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// The value that a share `q` (0 to 1) of all values does not exceed; 0 if there is none.
    pub fn quantile(&self, q: f64) -> u64 {
        let rank = ((self.total as f64 * q).ceil() as u64).clamp(1, self.total.max(1));
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return upper_bound(index).min(self.max);
            }
        }
        self.max
    }
}

/// Values below `SUBS` have a bucket each; above, the leading `SUB_BITS` + 1 bits choose.
fn bucket(value: u64) -> usize {
    if value < SUBS {
        return value as usize;
    }
    let exponent = 63 - value.leading_zeros();
    let sub = (value >> (exponent - SUB_BITS)) & (SUBS - 1);
    (u64::from(exponent - SUB_BITS + 1) * SUBS + sub) as usize
}

/// The largest value of a bucket.
fn upper_bound(index: usize) -> u64 {
    let index = index as u64;
    if index < SUBS {
        return index;
    }
    let shift = index / SUBS - 1;
    let lower = u128::from(SUBS + index % SUBS) << shift;
    u64::try_from(lower + (1u128 << shift) - 1).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_its_bucket_and_the_next_one_begins_right_after() {
        for value in (0..5_000).chain([u64::MAX, u64::MAX - 1, 1 << 63, (1 << 40) + 12_345]) {
            let index = bucket(value);
            assert!(index < BUCKETS);
            assert!(value <= upper_bound(index), "{value}");
            assert!(index == 0 || value > upper_bound(index - 1), "{value}");
        }
    }

    #[test]
    fn quantiles_are_never_below_the_truth_and_at_most_two_percent_above() {
        let mut histogram = Histogram::default();
        let values: Vec<u64> = (1..=100_000u64).map(|n| n * 977).collect();
        for &value in &values {
            histogram.record(value);
        }
        for q in [0.01, 0.5, 0.9, 0.99, 0.999, 1.0] {
            let exact = values[((values.len() as f64 * q).ceil() as usize) - 1];
            let found = histogram.quantile(q);
            assert!(found >= exact && found as f64 <= exact as f64 * 1.02, "q={q}: {found} for {exact}");
        }
        assert_eq!((histogram.len(), histogram.max()), (100_000, 97_700_000));
    }

    #[test]
    fn merged_counts_are_those_of_both() {
        let (mut a, mut b) = (Histogram::default(), Histogram::default());
        a.record(10);
        b.record(1_000_000);
        a.merge(&b);
        assert_eq!((a.len(), a.max(), a.quantile(0.5)), (2, 1_000_000, 10));
    }

    #[test]
    fn nothing_counted_is_zero() {
        assert_eq!(Histogram::default().quantile(0.99), 0);
    }
}
