//! A producer: keeps a window of publishes without a confirm, measures each from encoding to confirm.
//!
//! One task per connection that both writes and reads; the danger is a tag that is confirmed twice or never: both are
//! counted and end up in the report.

use super::connection::{Connection, refusal};
use super::hot::{Hot, next};
use super::message::{Stamp, Template};
use crate::clock::Clock;
use crate::histogram::Histogram;
use anyhow::{Result, bail};
use bytes::{Buf, Bytes};
use longshore_amqp_codec::Method;
use std::io;
use std::time::Duration;
use tokio::io::Interest;
use tokio::time::Instant;

/// After the last publish, confirms are waited for this long.
pub const CONFIRM_TIME: Duration = Duration::from_secs(60);
/// The out-buffer is written from this size on.
const OUT_BYTES_MAX: usize = 128 << 10;
/// Larger messages are not copied into the out-buffer, and carry no stamp.
const COPY_BYTES_MAX: usize = 64 << 10;
/// Bytes of a large message that are written before the other connections have their turn.
const TURN_BYTES_MAX: usize = 256 << 10;
pub(super) const READ_BYTES: usize = 64 << 10;

/// When a producer measures, and when it stops.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Confirms from here on are measured.
    pub measure_from_ns: u64,
    /// No publish and no measuring from here on.
    pub end_ns: u64,
    /// No more publishes than this.
    pub messages_max: u64,
}

/// What a producer did.
#[derive(Clone, Debug, Default)]
pub struct Produced {
    /// Publishes.
    pub published: u64,
    /// Those made while measuring.
    pub published_measured: u64,
    /// Confirmed ones.
    pub confirmed: u64,
    /// Refused ones.
    pub refused: u64,
    /// Neither confirmed nor refused in time.
    pub unconfirmed: u64,
    /// Confirms of what was not published, or was confirmed already.
    pub strange_confirms: u64,
    /// Latency of the confirms within the measured time, in nanoseconds.
    pub latency: Histogram,
    /// Why it ended early.
    pub error: Option<String>,
}

/// How far a flush came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flushed {
    /// Nothing is left.
    All,
    /// The others' turn.
    Turn,
    /// The socket takes no more.
    Blocked,
}

/// Publishes in flight: tag to send time, in a ring.
#[derive(Debug)]
struct Flight {
    slots: Vec<u64>,
    /// The oldest tag without an answer.
    low: u64,
    /// The next tag.
    next: u64,
    open: usize,
    window: usize,
}

impl Flight {
    fn new(window: usize) -> Flight {
        // Room for answers out of order; beyond it the producer waits for the oldest.
        let slots = (window * 4).next_power_of_two().max(64);
        Flight { slots: vec![0; slots], low: 1, next: 1, open: 0, window }
    }

    fn has_room(&self) -> bool {
        self.open < self.window && self.next - self.low < self.slots.len() as u64
    }

    fn send(&mut self, now_ns: u64) {
        let tag = self.next;
        if let Some(slot) = self.slot(tag) {
            *slot = now_ns;
        }
        self.next += 1;
        self.open += 1;
    }

    fn slot(&mut self, tag: u64) -> Option<&mut u64> {
        let mask = self.slots.len() as u64 - 1;
        self.slots.get_mut((tag & mask) as usize)
    }

    fn take(&mut self, tag: u64, sent: &mut impl FnMut(u64)) -> bool {
        let at = self.slot(tag).map_or(0, std::mem::take);
        if at != 0 {
            self.open -= 1;
            sent(at);
        }
        at != 0
    }

    /// An answer; calls `sent` with the send time of each publish that it means. Answers whether it meant one.
    fn answer(&mut self, tag: u64, multiple: bool, mut sent: impl FnMut(u64)) -> bool {
        if tag >= self.next || (tag == 0 && !multiple) {
            return false;
        }
        let newest = if tag == 0 { self.next - 1 } else { tag };
        let oldest = if multiple { self.low } else { newest };
        if newest < self.low {
            return false;
        }
        let mut any = false;
        for tag in oldest..=newest {
            any |= self.take(tag, &mut sent);
        }
        while self.low < self.next && self.slot(self.low).is_none_or(|at| *at == 0) {
            self.low += 1;
        }
        any
    }
}

/// One producer on one connection.
#[derive(Debug)]
pub struct Producer {
    connection: Connection,
    template: Template,
    flight: Flight,
    limits: Limits,
    clock: Clock,
    stamp: Stamp,
    out: Vec<u8>,
    written: usize,
    /// The rest of a message that is too large to be copied.
    large: Bytes,
    produced: Produced,
}

impl Producer {
    /// Takes over `connection`, whose channel must confirm. `stamp` says run and producer.
    pub fn new(
        connection: Connection,
        template: Template,
        window: usize,
        limits: Limits,
        clock: Clock,
        stamp: Stamp,
    ) -> Producer {
        Producer {
            connection,
            template,
            flight: Flight::new(window.max(1)),
            limits,
            clock,
            stamp,
            out: Vec::with_capacity(OUT_BYTES_MAX * 2),
            written: 0,
            large: Bytes::new(),
            produced: Produced::default(),
        }
    }

    /// Publishes until the limits are reached, then waits for the confirms.
    pub async fn run(mut self) -> Produced {
        let ended = self.drive().await;
        self.produced.unconfirmed = self.flight.open as u64;
        if let Err(error) = ended {
            self.produced.error = Some(format!("{error:#}"));
        }
        self.produced
    }

    async fn drive(&mut self) -> Result<()> {
        let last_moment =
            Instant::from_std(self.clock.at(self.limits.end_ns.min(u64::MAX >> 2))) + CONFIRM_TIME;
        let deadline = tokio::time::sleep_until(last_moment);
        tokio::pin!(deadline);
        loop {
            let now = self.clock.now_ns();
            let publishing = now < self.limits.end_ns && self.produced.published < self.limits.messages_max;
            if publishing {
                self.fill(now);
            } else if self.flight.open == 0 {
                return Ok(());
            }
            let flushed = self.flush()?;
            self.read()?;
            let more = match flushed {
                Flushed::All => publishing && self.flight.has_room(),
                Flushed::Turn => true,
                Flushed::Blocked => false,
            };
            if more {
                // Others run too: one thread carries all connections.
                tokio::task::yield_now().await;
                continue;
            }
            let interest =
                if self.has_output() { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
            tokio::select! {
                ready = self.connection.stream.ready(interest) => drop(ready?),
                () = &mut deadline => bail!("confirms are missing {} s after the last publish", CONFIRM_TIME.as_secs()),
            }
        }
    }

    fn has_output(&self) -> bool {
        self.written < self.out.len() || !self.large.is_empty()
    }

    fn fill(&mut self, now: u64) {
        while self.out.len() < OUT_BYTES_MAX
            && self.large.is_empty()
            && self.flight.has_room()
            && self.produced.published < self.limits.messages_max
        {
            self.stamp.number = self.produced.published;
            self.stamp.at_ns = now;
            if self.template.frames().len() > COPY_BYTES_MAX {
                self.large = self.template.frames().clone();
            } else {
                self.template.put(&mut self.out, &self.stamp);
            }
            self.flight.send(now);
            self.produced.published += 1;
            self.produced.published_measured += u64::from(now >= self.limits.measure_from_ns);
        }
    }

    /// Writes what can be written, of a large message only a turn's share: a socket whose other end reads as fast as this one
    /// writes would keep the thread for the whole message, and the small producer's latency would be the driver's own.
    fn flush(&mut self) -> Result<Flushed> {
        let mut turn = TURN_BYTES_MAX;
        while self.has_output() {
            let small = self.out.get(self.written..).unwrap_or_default();
            let of_large = &self.large[..self.large.len().min(turn)];
            let bytes = if small.is_empty() { of_large } else { small };
            match self.connection.stream.try_write(bytes) {
                Ok(n) if small.is_empty() => {
                    self.large.advance(n);
                    turn -= n;
                }
                Ok(n) => self.written += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Flushed::Blocked),
                Err(error) => return Err(error.into()),
            }
            if self.written == self.out.len() {
                self.out.clear();
                self.written = 0;
            }
            if turn == 0 {
                return Ok(Flushed::Turn);
            }
        }
        Ok(Flushed::All)
    }

    /// Reads what is there, once, and enters the confirms in it.
    fn read(&mut self) -> Result<()> {
        self.connection.input.reserve(READ_BYTES);
        match self.connection.stream.try_read_buf(&mut self.connection.input) {
            Ok(0) => bail!("the broker closed the connection"),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let now = self.clock.now_ns();
        let measuring = (self.limits.measure_from_ns..self.limits.end_ns).contains(&now);
        let mut used = 0;
        while let Some((hot, length)) = next(self.connection.input.get(used..).unwrap_or_default())? {
            used += length;
            match hot {
                Hot::Confirm { positive, tag, multiple } => {
                    let produced = &mut self.produced;
                    let meant = self.flight.answer(tag, multiple, |at| {
                        if !positive {
                            produced.refused += 1;
                            return;
                        }
                        produced.confirmed += 1;
                        if measuring {
                            produced.latency.record(now.saturating_sub(at));
                        }
                    });
                    self.produced.strange_confirms += u64::from(!meant);
                }
                Hot::Method(payload) => end_of(payload)?,
                _ => {}
            }
        }
        self.connection.input.advance(used);
        Ok(())
    }
}

/// A method that neither loop expects: an error if the broker closes by it.
pub(super) fn end_of(payload: &[u8]) -> Result<()> {
    match refusal(&Method::decode(Bytes::copy_from_slice(payload))?) {
        Some(refusal) => bail!(refusal),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_answers_out_of_order_and_multiple_ones_mean_each_publish_once() {
        let mut flight = Flight::new(10);
        for at in 1..=10 {
            assert!(flight.has_room());
            flight.send(at * 100);
        }
        assert!(!flight.has_room());
        let mut times = Vec::new();
        assert!(flight.answer(3, false, |at| times.push(at)));
        assert!(!flight.answer(3, false, |at| times.push(at)), "twice");
        assert!(flight.answer(5, true, |at| times.push(at)));
        assert!(!flight.answer(11, false, |at| times.push(at)), "never published");
        assert!(!flight.answer(2, true, |at| times.push(at)), "older than all that wait");
        assert!(flight.answer(0, true, |at| times.push(at)), "0 means all");
        times.sort_unstable();
        assert_eq!(times, (1..=10).map(|n| n * 100).collect::<Vec<u64>>());
        assert!((flight.open, flight.low) == (0, 11) && flight.has_room());
    }

    #[test]
    fn a_publish_that_is_never_answered_stops_the_producer_before_its_slot_is_reused() {
        let mut flight = Flight::new(16);
        flight.send(1);
        let mut sent = 1u64;
        while flight.has_room() {
            flight.send(2);
            sent += 1;
            flight.answer(sent, false, |_| ());
        }
        assert_eq!((flight.open, sent), (1, 64));
        assert!(flight.answer(1, false, |at| assert_eq!(at, 1)));
        assert!(flight.has_room());
    }
}
