//! The fate of one publish that goes several ways: known once the last of them is known.

use crate::api::{BrokerError, ConnectionId, PublishResult, Published};
use longshore_wire::{LeaseId, LogId, Offset, Term};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

const STORED: u8 = 1;
const REFUSED: u8 = 2;

/// Shared by the parts of one publish.
#[derive(Debug)]
pub(crate) struct Fan {
    left: AtomicU32,
    seen: AtomicU8,
}

impl Fan {
    /// For a publish in `parts` parts.
    pub fn new(parts: u32) -> Arc<Fan> {
        Arc::new(Fan { left: AtomicU32::new(parts), seen: AtomicU8::new(0) })
    }
}

/// Who waits for an outcome.
#[derive(Debug)]
pub(crate) enum Ticket {
    /// A publish, or its part for one shard.
    Publish(PublishTicket),
    /// A flush's settlements of one log.
    Settle {
        /// Whose.
        connection: ConnectionId,
        /// Which log.
        log: LogId,
        /// Of the leases.
        term: Term,
        /// What.
        leases: Box<[(Offset, LeaseId)]>,
        /// None of them is to be delivered again, here or elsewhere.
        acked: bool,
    },
}

/// A publish, or its part for one shard.
#[derive(Debug)]
pub(crate) struct PublishTicket {
    /// Whose.
    pub connection: ConnectionId,
    /// As in `Publish`.
    pub channel: u16,
    /// As in `Publish`.
    pub token: u64,
    /// As in `Publish`.
    pub report: bool,
    /// What it counts for in the connection's pending bytes.
    pub bytes: u32,
    /// Its time to durable is being taken: the connection's only one that is.
    pub timed: bool,
    /// The other parts, if there are any.
    pub fan: Option<Arc<Fan>>,
}

impl PublishTicket {
    /// Another part of the same publish, which was counted when its fan was made.
    pub fn part(&self) -> PublishTicket {
        PublishTicket { fan: self.fan.clone(), ..*self }
    }

    /// Divides a part whose fate is not known yet into `parts` (at least 1), each to be resolved.
    pub fn split(mut self, parts: u32) -> Vec<PublishTicket> {
        if parts <= 1 {
            return vec![self];
        }
        let fan = self.fan.take().unwrap_or_else(|| Fan::new(1));
        fan.left.fetch_add(parts - 1, Ordering::AcqRel);
        let mut all = Vec::with_capacity(parts as usize);
        for part in 0..parts {
            all.push(PublishTicket {
                connection: self.connection,
                channel: self.channel,
                token: self.token,
                report: self.report,
                bytes: if part == 0 { self.bytes } else { 0 },
                timed: part == 0 && self.timed,
                fan: Some(fan.clone()),
            });
        }
        all
    }

    /// This part's fate is known. The line to report, if it is the last part and a report was asked for.
    pub fn resolve(&self, result: PublishResult) -> Option<Published> {
        let result = match &self.fan {
            None => result,
            Some(fan) => {
                let bit = match result {
                    PublishResult::Stored => STORED,
                    PublishResult::Unroutable => 0,
                    PublishResult::Refused(_) => REFUSED,
                };
                fan.seen.fetch_or(bit, Ordering::AcqRel);
                if fan.left.fetch_sub(1, Ordering::AcqRel) != 1 {
                    return None;
                }
                let seen = fan.seen.load(Ordering::Acquire);
                if seen & REFUSED != 0 {
                    match result {
                        refused @ PublishResult::Refused(_) => refused,
                        _ => PublishResult::Refused(BrokerError::Unavailable(
                            "a target did not take the message",
                        )),
                    }
                } else if seen & STORED != 0 {
                    PublishResult::Stored
                } else {
                    PublishResult::Unroutable
                }
            }
        };
        self.report.then_some(Published { channel: self.channel, token: self.token, result })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_refusal_is_a_refusal_and_one_copy_is_stored() {
        let ticket = |fan: &Arc<Fan>| PublishTicket {
            connection: ConnectionId(1),
            channel: 1,
            token: 7,
            report: true,
            bytes: 0,
            timed: false,
            fan: Some(fan.clone()),
        };
        let refused = || PublishResult::Refused(BrokerError::NoSpace);
        for (parts, expected) in [
            ([PublishResult::Unroutable, PublishResult::Stored], PublishResult::Stored),
            ([PublishResult::Unroutable, PublishResult::Unroutable], PublishResult::Unroutable),
            ([PublishResult::Stored, refused()], refused()),
        ] {
            let fan = Fan::new(2);
            let [first, second] = parts;
            assert_eq!(ticket(&fan).resolve(first), None);
            assert_eq!(ticket(&fan).resolve(second).unwrap().result, expected);
        }
    }
}
