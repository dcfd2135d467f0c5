//! Publisher confirms of one channel: which sequence numbers are still open, and how outcomes are said in few
//! frames. `multiple` is used as RabbitMQ does: up to the lowest number that is open or refused.

use longshore_amqp_codec::Method;
use longshore_amqp_codec::method::{BasicAck, BasicNack};
use std::collections::VecDeque;

/// The confirms of a channel since `confirm.select`.
#[derive(Debug, Default)]
pub(crate) struct Confirms {
    /// Number of the first publish in `open`; all below are answered.
    base: u64,
    /// Whether each publish from `base` on is still open.
    open: VecDeque<bool>,
    acked: Vec<u64>,
    refused: Vec<u64>,
}

impl Confirms {
    pub(crate) fn new() -> Confirms {
        Confirms { base: 1, ..Confirms::default() }
    }

    /// The next publish; answers its sequence number, from 1.
    pub(crate) fn published(&mut self) -> u64 {
        self.open.push_back(true);
        self.base + self.open.len() as u64 - 1
    }

    /// The fate of a publish; a number that is not open is ignored.
    pub(crate) fn resolved(&mut self, sequence: u64, stored: bool) {
        let Some(slot) = sequence.checked_sub(self.base).and_then(|at| self.open.get_mut(at as usize)) else {
            return;
        };
        if !std::mem::take(slot) {
            return;
        }
        if stored {
            self.acked.push(sequence)
        } else {
            self.refused.push(sequence)
        }
        while self.open.front() == Some(&false) {
            self.open.pop_front();
            self.base += 1;
        }
    }

    /// Says what was resolved since the last call, in as few frames as possible: refused ones first.
    pub(crate) fn report(&mut self, mut say: impl FnMut(Method)) {
        if self.acked.is_empty() && self.refused.is_empty() {
            return;
        }
        self.refused.sort_unstable();
        for &delivery_tag in &self.refused {
            say(BasicNack { delivery_tag, multiple: false, requeue: false }.into());
        }
        self.acked.sort_unstable();
        let cutoff = self.refused.first().map_or(self.base, |&lowest| lowest.min(self.base));
        let together = self.acked.partition_point(|&sequence| sequence < cutoff);
        let (together, alone) = self.acked.split_at(together);
        if let Some(&delivery_tag) = together.last() {
            say(BasicAck { delivery_tag, multiple: together.len() > 1 }.into());
        }
        for &delivery_tag in alone {
            say(BasicAck { delivery_tag, multiple: false }.into());
        }
        self.acked.clear();
        self.refused.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(confirms: &mut Confirms) -> Vec<String> {
        let mut all = Vec::new();
        confirms.report(|method| {
            all.push(match method {
                Method::BasicAck(m) => format!("ack {}{}", m.delivery_tag, if m.multiple { "+" } else { "" }),
                Method::BasicNack(m) => format!("nack {}", m.delivery_tag),
                other => panic!("{other:?}"),
            });
        });
        all
    }

    #[test]
    fn outcomes_in_order_are_said_once_for_all() {
        let mut confirms = Confirms::new();
        for n in 1..=5 {
            assert_eq!(confirms.published(), n);
        }
        for n in [2, 1, 3] {
            confirms.resolved(n, true);
        }
        assert_eq!(said(&mut confirms), ["ack 3+"]);
        confirms.resolved(5, true);
        assert_eq!(said(&mut confirms), ["ack 5"]);
        confirms.resolved(4, true);
        assert_eq!(said(&mut confirms), ["ack 4"]);
        assert!(said(&mut confirms).is_empty());
    }

    #[test]
    fn an_open_or_refused_one_bounds_the_multiple() {
        let mut confirms = Confirms::new();
        assert_eq!((0..6).map(|_| confirms.published()).last(), Some(6));
        for n in [1, 2, 4, 6] {
            confirms.resolved(n, true);
        }
        confirms.resolved(3, false);
        assert_eq!(said(&mut confirms), ["nack 3", "ack 2+", "ack 4", "ack 6"]);
        confirms.resolved(6, true);
        confirms.resolved(99, true);
        assert!(said(&mut confirms).is_empty());
        confirms.resolved(5, true);
        assert_eq!(said(&mut confirms), ["ack 5"]);
        assert_eq!(confirms.published(), 7);
    }
}
