//! The rows of a comparison: 1 KiB persistent messages with confirms, by queues, window, and whether they are
//! consumed with manual acknowledgements.

/// Bytes of a body.
pub const BODY_BYTES: usize = 1_024;
/// Unacknowledged deliveries per consumer.
pub const PREFETCH: u16 = 200;

/// Who drives the brokers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DriverKind {
    /// `longshore-bench amqp` (natsbench on the side of NATS, which speaks another protocol).
    Ours,
    /// RabbitMQ PerfTest.
    PerfTest,
}

/// A row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Case {
    /// Who drives.
    pub driver: DriverKind,
    /// Queues, with a producer each.
    pub queues: usize,
    /// Publishes without a confirm, per producer.
    pub window: usize,
    /// With a consumer for each queue.
    pub consume: bool,
}

impl Case {
    /// Its name in tables and for `--only`.
    pub fn label(&self) -> String {
        let driver = match self.driver {
            DriverKind::Ours => "ours",
            DriverKind::PerfTest => "perftest",
        };
        let what = if self.consume { "pub+con" } else { "pub" };
        format!("{driver} q{} w{} {what}", self.queues, self.window)
    }
}

/// Every row, in the order of running.
pub fn all(with_perftest: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    for driver in [DriverKind::Ours, DriverKind::PerfTest] {
        if driver == DriverKind::PerfTest && !with_perftest {
            continue;
        }
        cases.push(Case { driver, queues: 1, window: 1, consume: false });
        for consume in [false, true] {
            for queues in [1, 10] {
                for window in [100, 1_000] {
                    cases.push(Case { driver, queues, window, consume });
                }
            }
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_unique() {
        let labels: std::collections::BTreeSet<String> = all(true).iter().map(Case::label).collect();
        assert_eq!((labels.len(), all(true).len(), all(false).len()), (18, 18, 9));
    }
}
