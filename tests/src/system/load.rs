//! A publisher with confirms and a consumer that go on through faults, and the ledger of what they saw.
//!
//! Every message has a number of its own and is sent once: one without a confirm is unknown and never counts.

use super::client::{self, body, connect_once, consume, declare, number_of};
use super::until;
use anyhow::{Result, bail, ensure};
use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, ConfirmSelectOptions};
use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// Publishes without a confirm at a time.
const WINDOW: usize = 64;
/// Bytes of a body.
const BODY_BYTES: usize = 512;
/// Without a confirm or a connection step for so long, the client gives its connection up.
const PATIENCE: Duration = Duration::from_secs(4);
/// Messages a second at most, so that the faults are what is tested and not the machine.
const PAUSE: Duration = Duration::from_millis(1);

/// What the clients saw.
#[derive(Debug, Default)]
struct Ledger {
    confirmed: BTreeSet<u64>,
    seen: BTreeSet<u64>,
    corrupt: u64,
    delivered: u64,
    /// When the youngest message with a confirm was sent.
    youngest_confirmed: Option<Instant>,
    connections: u64,
}

/// The clients, running until they are stopped.
#[derive(Debug)]
pub struct Load {
    ledger: Arc<Mutex<Ledger>>,
    stop: tokio::sync::watch::Sender<bool>,
    publisher: JoinHandle<()>,
    consumer: JoinHandle<()>,
}

fn lock(ledger: &Mutex<Ledger>) -> MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Load {
    /// Starts both on a durable queue, and returns once the first confirm and the first delivery came.
    pub async fn start(addresses: Vec<String>, queue: &str) -> Result<Load> {
        let ledger = Arc::new(Mutex::new(Ledger::default()));
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let publisher =
            tokio::spawn(publish(addresses.clone(), queue.to_owned(), Arc::clone(&ledger), stopped));
        let consumer = tokio::spawn(consume_all(addresses, queue.to_owned(), Arc::clone(&ledger)));
        let load = Load { ledger, stop, publisher, consumer };
        until("the first confirm and delivery", Duration::from_secs(30), async || {
            let ledger = lock(&load.ledger);
            Ok((!ledger.confirmed.is_empty() && !ledger.seen.is_empty()).then_some(()))
        })
        .await?;
        Ok(load)
    }

    /// Messages confirmed so far.
    pub fn confirmed(&self) -> usize {
        lock(&self.ledger).confirmed.len()
    }

    /// Whether any message that was sent after `instant` is confirmed.
    pub fn confirmed_since(&self, instant: Instant) -> bool {
        lock(&self.ledger).youngest_confirmed.is_some_and(|youngest| youngest > instant)
    }

    /// Waits until a message that was sent after this call is confirmed; how long that took.
    pub async fn goes_on(&self, limit: Duration) -> Result<Duration> {
        let start = Instant::now();
        until("writes to go on", limit, async || Ok(self.confirmed_since(start).then_some(()))).await?;
        Ok(start.elapsed())
    }

    /// Waits until `more` further messages are confirmed.
    pub async fn confirms(&self, more: usize, limit: Duration) -> Result<()> {
        let target = self.confirmed() + more;
        until("confirms", limit, async || Ok((self.confirmed() >= target).then_some(()))).await
    }

    /// Stops publishing, waits until everything that was confirmed has been consumed, and checks it.
    pub async fn finish(self) -> Result<()> {
        let _ = self.stop.send(true);
        let _ = self.publisher.await;
        let complete = until("every confirmed message to be consumed", Duration::from_secs(60), async || {
            let ledger = lock(&self.ledger);
            let missing: Vec<u64> = ledger.confirmed.difference(&ledger.seen).copied().collect();
            match missing.first() {
                None => Ok(Some(())),
                Some(first) => {
                    bail!("{} of {} missing, the first is {first}", missing.len(), ledger.confirmed.len())
                }
            }
        })
        .await;
        self.consumer.abort();
        let ledger = lock(&self.ledger);
        println!(
            "{} confirmed, {} delivered, {} distinct, {} connections",
            ledger.confirmed.len(),
            ledger.delivered,
            ledger.seen.len(),
            ledger.connections
        );
        complete?;
        ensure!(ledger.corrupt == 0, "{} bodies with a wrong hash", ledger.corrupt);
        Ok(())
    }
}

async fn publish(
    addresses: Vec<String>,
    queue: String,
    ledger: Arc<Mutex<Ledger>>,
    mut stopped: tokio::sync::watch::Receiver<bool>,
) {
    let mut number = 0;
    for turn in 0.. {
        if *stopped.borrow() {
            return;
        }
        let address = &addresses[turn % addresses.len()];
        let one = publish_on(address, &queue, &ledger, &mut stopped, &mut number);
        if one.await.is_err() {
            // A gateway that is down refuses at once: without a pause this would spin.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Publishes over one connection until it fails or the load is stopped.
async fn publish_on(
    address: &str,
    queue: &str,
    ledger: &Mutex<Ledger>,
    stopped: &mut tokio::sync::watch::Receiver<bool>,
    number: &mut u64,
) -> Result<()> {
    let connection = connect_once(address).await?;
    let channel = tokio::time::timeout(PATIENCE, connection.create_channel()).await??;
    tokio::time::timeout(PATIENCE, declare(&channel, queue)).await??;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    lock(ledger).connections += 1;
    let mut waiting = VecDeque::new();
    loop {
        let stop = *stopped.borrow_and_update();
        while waiting.len() >= WINDOW || (stop && !waiting.is_empty()) {
            let Some((sent_number, sent_at, confirm)) = waiting.pop_front() else { break };
            let confirm: lapin::PublisherConfirm = confirm;
            if tokio::time::timeout(PATIENCE, confirm).await??.is_ack() {
                let mut ledger = lock(ledger);
                ledger.confirmed.insert(sent_number);
                ledger.youngest_confirmed = ledger.youngest_confirmed.max(Some(sent_at));
            }
        }
        if stop {
            connection.close(200, "done".into()).await?;
            return Ok(());
        }
        let (sent_at, this) = (Instant::now(), *number);
        *number += 1;
        let body = body(this, BODY_BYTES);
        let sent = client::publish(&channel, queue, &body);
        waiting.push_back((this, sent_at, tokio::time::timeout(PATIENCE, sent).await??));
        // The load's rate: the faults are to meet a steady stream, not a system at its limit.
        tokio::time::sleep(PAUSE).await;
    }
}

async fn consume_all(addresses: Vec<String>, queue: String, ledger: Arc<Mutex<Ledger>>) {
    for turn in 1.. {
        let _ = consume_on(&addresses[turn % addresses.len()], &queue, &ledger).await;
        // As above: a gateway that is down refuses at once.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn consume_on(address: &str, queue: &str, ledger: &Mutex<Ledger>) -> Result<()> {
    let connection = connect_once(address).await?;
    let (channel, mut consumer) = tokio::time::timeout(PATIENCE, consume(&connection, queue, 100)).await??;
    // Nothing for a while may be a lost queue as well as a quiet one: a new connection tells.
    while let Some(delivery) = tokio::time::timeout(PATIENCE, consumer.next()).await? {
        let delivery = delivery?;
        {
            let mut ledger = lock(ledger);
            ledger.delivered += 1;
            match number_of(&delivery.data) {
                Ok(number) => {
                    ledger.seen.insert(number);
                }
                Err(_) => ledger.corrupt += 1,
            }
        }
        channel.basic_ack(delivery.delivery_tag, BasicAckOptions::default()).await?;
    }
    Ok(())
}
