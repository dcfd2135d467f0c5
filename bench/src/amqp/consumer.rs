//! A consumer: acknowledges by hand, enters each message into the run's ledger, measures from publish to delivery.

use super::connection::{CHANNEL, Connection};
use super::hot::{Hot, next, put_ack};
use super::message::{Ledger, STAMP_BYTES, Stamp};
use super::producer::{READ_BYTES, end_of};
use crate::clock::Clock;
use crate::histogram::Histogram;
use anyhow::{Result, bail};
use bytes::Buf;
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use tokio::io::Interest;
use tokio::sync::watch;

/// What a consumer acknowledges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AckRule {
    /// Every delivery; with `every` above 1 one `multiple` acknowledgement for that many.
    Each {
        /// Deliveries per acknowledgement.
        every: u64,
    },
    /// Every second delivery; the others stay out until the connection closes.
    EverySecond,
}

/// What the consumers of a run share; one thread carries them all.
#[derive(Debug)]
pub struct Shared {
    /// The run's clock.
    pub clock: Clock,
    /// The run's number, in every stamp.
    pub run: u32,
    /// Which messages have arrived.
    pub ledger: RefCell<Ledger>,
    /// Deliveries so far.
    pub delivered: Cell<u64>,
    /// Deliveries marked as redelivered.
    pub redelivered: Cell<u64>,
    /// Messages that arrived again without being marked.
    pub doubled: Cell<u64>,
    /// Publish to delivery, in nanoseconds, within the measured time.
    pub latency: RefCell<Histogram>,
    /// Deliveries in this time are measured, in nanoseconds.
    pub measured: Cell<(u64, u64)>,
}

impl Shared {
    /// Nothing delivered yet, nothing measured.
    pub fn new(clock: Clock, run: u32) -> Rc<Shared> {
        Rc::new(Shared {
            clock,
            run,
            ledger: RefCell::default(),
            delivered: Cell::default(),
            redelivered: Cell::default(),
            doubled: Cell::default(),
            latency: RefCell::default(),
            measured: Cell::new((u64::MAX, u64::MAX)),
        })
    }

    fn arrived(&self, stamp: &Stamp, redelivered: bool, now: u64) {
        if stamp.run != self.run {
            return;
        }
        let first = self.ledger.borrow_mut().enter(stamp);
        if first == Some(false) && !redelivered {
            self.doubled.set(self.doubled.get() + 1);
        }
        let (from, to) = self.measured.get();
        if (from..to).contains(&now) {
            self.latency.borrow_mut().record(now.saturating_sub(stamp.at_ns));
        }
    }
}

/// A delivery whose body is coming.
#[derive(Debug, Default)]
struct Arriving {
    tag: u64,
    redelivered: bool,
    missing: u64,
    front: Vec<u8>,
}

/// One consumer on one connection.
#[derive(Debug)]
pub struct Consumer {
    connection: Connection,
    rule: AckRule,
    shared: Rc<Shared>,
    stop: watch::Receiver<bool>,
    arriving: Arriving,
    deliveries: u64,
    out: Vec<u8>,
    written: usize,
}

impl Consumer {
    /// Takes over `connection`, which consumes already. Ends when `stop` turns true.
    pub fn new(
        connection: Connection,
        rule: AckRule,
        shared: Rc<Shared>,
        stop: watch::Receiver<bool>,
    ) -> Consumer {
        Consumer {
            connection,
            rule,
            shared,
            stop,
            arriving: Arriving::default(),
            deliveries: 0,
            out: Vec::new(),
            written: 0,
        }
    }

    /// Consumes until told to stop.
    ///
    /// Errors: the broker closes the connection or the channel.
    pub async fn run(mut self) -> Result<()> {
        loop {
            let read = self.read()?;
            self.flush()?;
            if read {
                tokio::task::yield_now().await;
                continue;
            }
            let blocked = self.written < self.out.len();
            let interest = if blocked { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
            tokio::select! {
                ready = self.connection.stream.ready(interest) => drop(ready?),
                stopped = self.stop.wait_for(|stop| *stop) => {
                    drop(stopped);
                    return Ok(());
                }
            }
        }
    }

    fn flush(&mut self) -> Result<()> {
        while self.written < self.out.len() {
            match self.connection.stream.try_write(self.out.get(self.written..).unwrap_or_default()) {
                Ok(n) => self.written += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        self.out.clear();
        self.written = 0;
        Ok(())
    }

    /// Reads once; answers whether there was something.
    fn read(&mut self) -> Result<bool> {
        self.connection.input.reserve(READ_BYTES);
        match self.connection.stream.try_read_buf(&mut self.connection.input) {
            Ok(0) => bail!("the broker closed the connection"),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        let now = self.shared.clock.now_ns();
        let input = std::mem::take(&mut self.connection.input);
        let mut used = 0;
        while let Some((hot, length)) = next(input.get(used..).unwrap_or_default())? {
            used += length;
            self.take(&hot, now)?;
        }
        self.connection.input = input;
        self.connection.input.advance(used);
        Ok(true)
    }

    fn take(&mut self, hot: &Hot<'_>, now: u64) -> Result<()> {
        match *hot {
            Hot::Deliver { tag, redelivered } => {
                self.arriving.tag = tag;
                self.arriving.redelivered = redelivered;
                self.arriving.front.clear();
            }
            Hot::Header { body_bytes } => {
                self.arriving.missing = body_bytes;
                if body_bytes == 0 {
                    self.complete(now);
                }
            }
            Hot::Body(body) => {
                let wanted = STAMP_BYTES.saturating_sub(self.arriving.front.len()).min(body.len());
                self.arriving.front.extend_from_slice(body.get(..wanted).unwrap_or_default());
                self.arriving.missing = self.arriving.missing.saturating_sub(body.len() as u64);
                if self.arriving.missing == 0 {
                    self.complete(now);
                }
            }
            Hot::Method(payload) => end_of(payload)?,
            Hot::Confirm { .. } | Hot::Heartbeat => {}
        }
        Ok(())
    }

    fn complete(&mut self, now: u64) {
        self.deliveries += 1;
        let shared = &self.shared;
        shared.delivered.set(shared.delivered.get() + 1);
        if self.arriving.redelivered {
            shared.redelivered.set(shared.redelivered.get() + 1);
        }
        if let Some(stamp) = Stamp::read(&self.arriving.front) {
            shared.arrived(&stamp, self.arriving.redelivered, now);
        }
        match self.rule {
            AckRule::Each { every } if every <= 1 => {
                put_ack(&mut self.out, CHANNEL, self.arriving.tag, false)
            }
            AckRule::Each { every } => {
                if self.deliveries.is_multiple_of(every) {
                    put_ack(&mut self.out, CHANNEL, self.arriving.tag, true);
                }
            }
            AckRule::EverySecond => {
                if self.deliveries.is_multiple_of(2) {
                    put_ack(&mut self.out, CHANNEL, self.arriving.tag, false);
                }
            }
        }
    }
}
