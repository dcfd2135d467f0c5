//! A run: queues, producers and consumers on one thread, a measured stretch in the middle, and a check at the end
//! that every confirmed message arrived.

use super::connection::Connection;
use super::consumer::{AckRule, Consumer, Shared};
use super::message::{Stamp, Template};
use super::producer::{Limits, Produced, Producer};
use super::uri::Uri;
use crate::clock::{Clock, ns_of, seconds_of};
use crate::histogram::Histogram;
use crate::proc::{Cost, Watch};
use anyhow::{Context, Result};
use longshore_amqp_codec::{ShortStr, Table};
use serde::{Deserialize, Serialize};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{Instant, sleep, sleep_until};

/// After the last confirm, deliveries are waited for as long as they keep coming, with gaps of at most this.
const DELIVERY_GAP: Duration = Duration::from_secs(5);
/// The same once as many have come as the broker said were waiting, which need not be exact.
const LAST_GAP: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_millis(10);

/// What to run.
#[derive(Clone, Debug)]
pub struct Load {
    /// Brokers; queue n is declared, published to and consumed from through number n modulo their count.
    pub uris: Vec<Uri>,
    /// Durable queues, one producer each.
    pub queues: Vec<String>,
    /// Arguments of their declaration.
    pub arguments: Table,
    /// Whether there is a producer for each queue.
    pub produce: bool,
    /// Whether there is a consumer for each queue, and what it acknowledges.
    pub consume: Option<AckRule>,
    /// Unacknowledged deliveries per consumer; 0: no limit.
    pub prefetch: u16,
    /// Publishes without a confirm per producer.
    pub window: usize,
    /// Bytes of a body.
    pub body: usize,
    /// Messages per producer; `None`: as many as the time allows.
    pub messages: Option<u64>,
    /// Seconds before measuring; 0 with `messages`.
    pub warmup_secs: f64,
    /// Seconds of measuring; with `messages` only a bound.
    pub secs: f64,
    /// Delete the queues at the end.
    pub delete: bool,
    /// Processes whose cost is measured.
    pub pids: Vec<u32>,
}

/// What came of it. Rates are over the measured stretch, totals over the whole run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Length of the measured stretch, in seconds.
    pub seconds: f64,
    /// Messages published, in all.
    pub published: u64,
    /// Confirmed, in all.
    pub confirmed: u64,
    /// Refused by basic.nack, in all.
    pub refused: u64,
    /// Without any answer.
    pub unconfirmed: u64,
    /// Delivered, in all.
    pub delivered: u64,
    /// Of those, marked as redelivered.
    pub redelivered: u64,
    /// Confirmed in this run but never delivered, although there were consumers that took everything.
    pub lost: u64,
    /// Delivered again without the mark.
    pub doubled: u64,
    /// Publishes per second.
    pub published_per_s: f64,
    /// Confirms per second: the throughput.
    pub confirmed_per_s: f64,
    /// Deliveries per second.
    pub delivered_per_s: f64,
    /// Publish to confirm, in milliseconds.
    pub p50_ms: f64,
    /// 99th percentile of it.
    pub p99_ms: f64,
    /// The longest.
    pub max_ms: f64,
    /// Publish to delivery, in milliseconds.
    pub end_to_end_p50_ms: f64,
    /// 99th percentile of it.
    pub end_to_end_p99_ms: f64,
    /// Confirmed messages (delivered ones, without producers) in the measured stretch.
    pub measured: u64,
    /// Cost of the watched processes in the measured stretch.
    pub cost: Cost,
    /// Broker CPU seconds per 100,000 measured messages.
    pub cpu_s_per_100k: f64,
    /// What went wrong, at most a few lines.
    pub errors: Vec<String>,
}

/// Errors kept in a report.
const ERRORS_MAX: usize = 5;

/// The parts of a run that is under way.
struct Running {
    shared: Rc<Shared>,
    producers: Vec<JoinHandle<Produced>>,
    consumers: Vec<JoinHandle<Result<()>>>,
    stop: watch::Sender<bool>,
    /// Messages that were in the queues before.
    waiting: u64,
}

impl Load {
    fn uri(&self, n: usize) -> Result<&Uri> {
        self.uris.get(n % self.uris.len().max(1)).context("no broker: give --uri")
    }

    /// Runs it; call inside a `LocalSet`.
    ///
    /// Errors: the broker cannot be reached, or refuses what comes before the load. What fails later is in the report.
    pub async fn run(&self) -> Result<Report> {
        let mut producing = Vec::new();
        let mut waiting = 0;
        for (n, queue) in self.queues.iter().enumerate() {
            let mut connection = Connection::open(self.uri(n)?).await?;
            waiting += u64::from(connection.declare(queue, &self.arguments).await?);
            connection.confirm_select().await?;
            producing.push(connection);
        }
        let running = self.start(producing, waiting).await?;
        let report = self.measure(running).await?;
        if self.delete {
            for (n, queue) in self.queues.iter().enumerate() {
                Connection::open(self.uri(n)?).await?.delete(&ShortStr::cut(queue)).await?;
            }
        }
        Ok(report)
    }

    async fn start(&self, producing: Vec<Connection>, waiting: u64) -> Result<Running> {
        let (stop, stopped) = watch::channel(false);
        let mut consuming = Vec::new();
        for _ in 0..self.consume.map_or(0, |_| self.queues.len()) {
            consuming.push(Connection::open(self.uri(consuming.len())?).await?);
        }
        let clock = Clock::start();
        let shared = Shared::new(clock, std::process::id());
        let mut consumers = Vec::new();
        for (mut connection, queue) in consuming.into_iter().zip(&self.queues) {
            connection.consume(queue, self.prefetch).await?;
            let rule = self.consume.unwrap_or(AckRule::Each { every: 1 });
            let consumer = Consumer::new(connection, rule, shared.clone(), stopped.clone());
            consumers.push(spawn_local(consumer.run()));
        }
        let from = clock.now_ns() + ns_of(self.warmup());
        let to = from + ns_of(self.secs);
        shared.measured.set((from, to));
        let messages_max = if self.produce { self.messages.unwrap_or(u64::MAX) } else { 0 };
        let limits = Limits { measure_from_ns: from, end_ns: to, messages_max };
        let producers =
            producing.into_iter().zip(&self.queues).enumerate().map(|(n, (connection, queue))| {
                let template = Template::new(queue, self.body, connection.frame_bytes_max);
                let stamp = Stamp { run: shared.run, producer: n as u32, number: 0, at_ns: 0 };
                spawn_local(Producer::new(connection, template, self.window, limits, clock, stamp).run())
            });
        let producers = producers.collect();
        Ok(Running { shared, producers, consumers, stop, waiting })
    }

    fn warmup(&self) -> f64 {
        if self.messages.is_some() || !self.produce { 0.0 } else { self.warmup_secs }
    }

    async fn measure(&self, running: Running) -> Result<Report> {
        let Running { shared, producers, consumers, stop, waiting } = running;
        let (from, to) = shared.measured.get();
        sleep_until(Instant::from_std(shared.clock.at(from))).await;
        let watch = Watch::start(&self.pids)?;
        let (began, delivered_before) = (shared.clock.now_ns(), shared.delivered.get());
        let counted = self.messages.is_some() || !self.produce;
        let mut produced = Totals::default();
        let mut cost = None;
        let mut delivered = 0;
        if !counted {
            sleep_until(Instant::from_std(shared.clock.at(to))).await;
            cost = Some(watch.finish());
            delivered = shared.delivered.get() - delivered_before;
        }
        let mut ended = shared.clock.now_ns();
        for producer in producers {
            produced.add(producer.await?);
        }
        if counted && self.produce {
            ended = shared.clock.now_ns();
        }
        let last_delivery = self.catch_up(&shared, produced.confirmed, waiting, &consumers).await;
        if counted {
            cost = Some(watch.finish());
            delivered = shared.delivered.get() - delivered_before;
            ended = if self.produce { ended } else { last_delivery };
        }
        // Nobody listens only if every consumer has ended already.
        let _ = stop.send(true);
        for consumer in consumers {
            if let Err(error) = consumer.await? {
                produced.fail(format!("consumer: {error:#}"));
            }
        }
        let cost = cost.transpose()?.unwrap_or_default();
        Ok(self.report(&shared, produced, cost, seconds_of(ended.saturating_sub(began)), delivered))
    }

    /// Waits until consumers have what was confirmed, or nothing comes any more; when the last delivery was.
    async fn catch_up(
        &self,
        shared: &Shared,
        confirmed: u64,
        waiting: u64,
        consumers: &[JoinHandle<Result<()>>],
    ) -> u64 {
        let mut last = (shared.delivered.get(), shared.clock.now_ns());
        if self.consume.is_none() {
            return last.1;
        }
        loop {
            let have_all = self.produce && shared.ledger.borrow().distinct() >= confirmed;
            let all_ended = consumers.iter().all(JoinHandle::is_finished);
            let gap_max = if !self.produce && last.0 >= waiting { LAST_GAP } else { DELIVERY_GAP };
            let gap = seconds_of(shared.clock.now_ns() - last.1);
            if have_all || all_ended || gap > gap_max.as_secs_f64() {
                return last.1;
            }
            sleep(POLL).await;
            let delivered = shared.delivered.get();
            if delivered != last.0 {
                last = (delivered, shared.clock.now_ns());
            }
        }
    }

    fn report(&self, shared: &Shared, produced: Totals, cost: Cost, seconds: f64, delivered: u64) -> Report {
        let per_s = |n: u64| n as f64 / seconds.max(1e-9);
        let ms = |ns: u64| ns as f64 / 1e6;
        let latency = &produced.latency;
        let end_to_end = shared.latency.borrow();
        let measured = if self.produce { latency.len() } else { delivered };
        let takes_all = self.produce && matches!(self.consume, Some(AckRule::Each { .. }));
        let stamped = self.body >= super::message::STAMP_BYTES;
        let distinct = shared.ledger.borrow().distinct();
        Report {
            seconds,
            published: produced.published,
            confirmed: produced.confirmed,
            refused: produced.refused,
            unconfirmed: produced.unconfirmed,
            delivered: shared.delivered.get(),
            redelivered: shared.redelivered.get(),
            lost: if takes_all && stamped { produced.confirmed.saturating_sub(distinct) } else { 0 },
            doubled: shared.doubled.get(),
            published_per_s: per_s(produced.published_measured),
            confirmed_per_s: per_s(latency.len()),
            delivered_per_s: per_s(delivered),
            p50_ms: ms(latency.quantile(0.5)),
            p99_ms: ms(latency.quantile(0.99)),
            max_ms: ms(latency.max()),
            end_to_end_p50_ms: ms(end_to_end.quantile(0.5)),
            end_to_end_p99_ms: ms(end_to_end.quantile(0.99)),
            measured,
            cpu_s_per_100k: cost.cpu_s * 1e5 / measured.max(1) as f64,
            cost,
            errors: produced.errors,
        }
    }
}

/// All producers together.
#[derive(Default)]
struct Totals {
    published: u64,
    published_measured: u64,
    confirmed: u64,
    refused: u64,
    unconfirmed: u64,
    latency: Histogram,
    errors: Vec<String>,
}

impl Totals {
    fn add(&mut self, one: Produced) {
        self.published += one.published;
        self.published_measured += one.published_measured;
        self.confirmed += one.confirmed;
        self.refused += one.refused;
        self.unconfirmed += one.unconfirmed;
        self.latency.merge(&one.latency);
        if one.strange_confirms > 0 {
            self.fail(format!("{} confirms of what was not in flight", one.strange_confirms));
        }
        if let Some(error) = one.error {
            self.fail(format!("producer: {error}"));
        }
    }

    fn fail(&mut self, error: String) {
        if self.errors.len() < ERRORS_MAX {
            self.errors.push(error);
        }
    }
}
