//! Commands to meta, gathered: what waits while one is under way goes together, and one barrier serves many.
//!
//! Commands about transient things have a bounded share of meta's syncs beside: a client that binds and drops reply
//! queues by the thousand costs a bounded number of entries, whatever its rate. What nobody waits for (the claims and
//! bindings of a queue that is gone) is kept here until meta has taken it.

use crate::api::{BrokerError, ConnectionId};
use crate::meta_client::{MetaClient, Submitted};
use crate::metadata::Metadata;
use longshore_proto::v1::{self, MetaCommand, MetaError, meta_command::Command};
use longshore_wire::{NamespaceId, SessionId};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// Commands in one entry.
const COMMANDS_MAX: usize = 500;
/// Paced entries per second of all gateways together, on average: meta syncs each once.
const PACED_PER_SECOND: f64 = 45.0;
/// The shortest wait for the next: about what a timer can tell apart.
const WAIT_MIN: Duration = Duration::from_millis(1);
/// How long what nobody waits for may wait for something that takes it along: it then costs no entry of its own.
const ALONE_MAX: Duration = Duration::from_millis(100);
/// Paced entries of one gateway that may go at once after a quiet time: 1 s with as many is below 50 still.
const PACED_BURST: f64 = 5.0;

type Answer = oneshot::Sender<Result<Submitted, BrokerError>>;

/// Commands and barriers that may wait, twice (in the channel, and taken from it); beyond it their senders do.
const WAITING_MAX: usize = 65_536;

#[derive(Debug)]
struct Job {
    command: MetaCommand,
    paced: bool,
    /// `None`: nobody waits, and it is tried until meta has taken it.
    answer: Option<Answer>,
}

impl Job {
    fn answer(self, with: Result<Submitted, BrokerError>) {
        if let Some(answer) = self.answer {
            let _ = answer.send(with);
        }
    }
}

/// See the module. Clone it freely; the tasks end with the last clone.
#[derive(Clone, Debug)]
pub(crate) struct MetaBatch {
    jobs: mpsc::Sender<Job>,
    barriers: mpsc::Sender<(u64, oneshot::Sender<Result<(), BrokerError>>)>,
}

fn command(command: Command) -> MetaCommand {
    MetaCommand { command: Some(command), ..MetaCommand::default() }
}

impl MetaBatch {
    /// Starts the tasks. `view` tells how many gateways share what meta may sync.
    pub fn start(client: Arc<MetaClient>, view: Arc<Metadata>, patience: Duration) -> MetaBatch {
        let (jobs, job_receiver) = mpsc::channel(WAITING_MAX);
        let (barriers, barrier_receiver) = mpsc::channel(WAITING_MAX);
        let run = Run {
            client: client.clone(),
            view,
            pace: Pace::new(Instant::now()),
            alone_since: None,
            patience,
        };
        tokio::spawn(run.jobs(job_receiver));
        tokio::spawn(run_barriers(client, barrier_receiver, patience));
        MetaBatch { jobs, barriers }
    }

    /// Submits a command; `paced`: about transient things.
    pub async fn submit(&self, what: Command, paced: bool) -> Result<Submitted, BrokerError> {
        let (answer, receiver) = oneshot::channel();
        let job = Job { command: command(what), paced, answer: Some(answer) };
        self.jobs.send(job).await.map_err(|_| BrokerError::Closed)?;
        receiver.await.map_err(|_| BrokerError::Closed)?
    }

    /// Two commands in one entry, in this order.
    pub async fn submit_both(
        &self,
        first: Command,
        second: Command,
        paced: bool,
    ) -> Result<(Submitted, Submitted), BrokerError> {
        let (first, second) = tokio::join!(self.submit(first, paced), self.submit(second, paced));
        Ok((first?, second?))
    }

    /// A client connection ended: what it owns in meta goes. Not waited for.
    pub fn forget_owner(&self, session: SessionId, connection: ConnectionId) {
        self.later(Command::DropOwner(v1::DropOwner { session: session.0, owner: connection.0 }));
    }

    /// A transient queue is gone: its claim and its bindings go. Not waited for; what is submitted after it finds
    /// the name free.
    pub fn forget_queue(&self, namespace: NamespaceId, name: &str) {
        let delete = v1::DeleteQueue { namespace: namespace.0, name: name.to_owned(), log: 0 };
        self.later(Command::DeleteQueue(delete));
    }

    fn later(&self, what: Command) {
        let job = Job { command: command(what), paced: true, answer: None };
        if let Err(mpsc::error::TrySendError::Full(job)) = self.jobs.try_send(job) {
            // One such task per connection or queue that ended while the channel was full.
            let jobs = self.jobs.clone();
            tokio::spawn(async move { jobs.send(job).await.ok() });
        }
    }

    /// Waits until every live gateway has applied `revision`.
    pub async fn barrier(&self, revision: u64) -> Result<(), BrokerError> {
        let (answer, receiver) = oneshot::channel();
        self.barriers.send((revision, answer)).await.map_err(|_| BrokerError::Closed)?;
        receiver.await.map_err(|_| BrokerError::Closed)?
    }
}

/// Tokens for paced entries.
struct Pace {
    tokens: f64,
    at: Instant,
}

impl Pace {
    fn new(now: Instant) -> Pace {
        Pace { tokens: PACED_BURST, at: now }
    }

    /// Takes a token, or answers how long to wait for it. `gateways`: how many share the rate.
    fn take(&mut self, now: Instant, gateways: usize) -> Option<Duration> {
        let per_second = PACED_PER_SECOND / gateways.max(1) as f64;
        let grown = now.saturating_duration_since(self.at).as_secs_f64() * per_second;
        self.tokens = (self.tokens + grown).min(PACED_BURST);
        self.at = now;
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return None;
        }
        Some(Duration::from_secs_f64((1.0 - self.tokens) / per_second).max(WAIT_MIN))
    }
}

/// Carries the commands.
struct Run {
    client: Arc<MetaClient>,
    view: Arc<Metadata>,
    pace: Pace,
    /// Since when only what nobody waits for is waiting.
    alone_since: Option<Instant>,
    patience: Duration,
}

impl Run {
    async fn jobs(mut self, mut jobs: mpsc::Receiver<Job>) {
        let mut waiting: Vec<Job> = Vec::new();
        while let Some(job) = jobs.recv().await {
            waiting.push(job);
            while !waiting.is_empty() {
                take_more(&mut jobs, &mut waiting);
                if let Some(wait) = self.wait(&waiting, Instant::now()) {
                    // Something urgent ends the wait, and takes the others along.
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        Some(job) = jobs.recv(), if waiting.len() < WAITING_MAX => waiting.push(job),
                    }
                    continue;
                }
                self.alone_since = None;
                let rest = waiting.split_off(waiting.len().min(COMMANDS_MAX));
                let mut failed = self.submit_all(std::mem::replace(&mut waiting, rest)).await;
                if !jobs.is_closed() {
                    // Before the others: they may count on it.
                    failed.append(&mut waiting);
                    waiting = failed;
                }
            }
        }
    }

    /// How long what waits must wait on; `None`: it goes now.
    fn wait(&mut self, waiting: &[Job], now: Instant) -> Option<Duration> {
        if waiting.iter().any(|job| !job.paced) {
            return None;
        }
        if waiting.iter().all(|job| job.answer.is_none()) {
            let until = *self.alone_since.get_or_insert(now) + ALONE_MAX;
            if now < until {
                return Some(until - now);
            }
        }
        self.pace.take(now, self.view.gateways().len())
    }

    /// Returns what must be tried again.
    async fn submit_all(&self, mut jobs: Vec<Job>) -> Vec<Job> {
        metrics::histogram!("longshore_gateway_meta_batch_commands").record(jobs.len() as f64);
        let submitted = match jobs.as_mut_slice() {
            [job] => self.client.submit(job.command.clone(), self.patience).await,
            jobs => {
                let commands = jobs.iter().map(|job| job.command.clone()).collect();
                self.client.submit(command(Command::Many(v1::Many { commands })), self.patience).await
            }
        };
        match submitted {
            Ok(Submitted { reply, repeated }) if reply.many.len() == jobs.len() => {
                for (job, reply) in jobs.into_iter().zip(reply.many) {
                    job.answer(Ok(Submitted { reply, repeated }));
                }
                Vec::new()
            }
            Ok(Submitted { reply, repeated }) => {
                for job in jobs {
                    job.answer(Ok(Submitted { reply: reply.clone(), repeated }));
                }
                Vec::new()
            }
            Err(error) => {
                let (again, refused): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|j| j.answer.is_none());
                refused.into_iter().for_each(|job| job.answer(Err(error.clone())));
                again
            }
        }
    }
}

fn take_more(jobs: &mut mpsc::Receiver<Job>, waiting: &mut Vec<Job>) {
    while waiting.len() < WAITING_MAX
        && let Ok(job) = jobs.try_recv()
    {
        waiting.push(job);
    }
}

async fn run_barriers(
    client: Arc<MetaClient>,
    mut barriers: mpsc::Receiver<(u64, oneshot::Sender<Result<(), BrokerError>>)>,
    patience: Duration,
) {
    while let Some(first) = barriers.recv().await {
        let mut waiting = vec![first];
        while let Ok(more) = barriers.try_recv() {
            waiting.push(more);
        }
        let revision = waiting.iter().map(|(revision, _)| *revision).max().unwrap_or(0);
        let barrier = command(Command::Barrier(v1::Barrier { revision }));
        let result =
            client.submit(barrier, patience).await.and_then(|submitted| match submitted.reply.error() {
                MetaError::MetaOk => Ok(()),
                _ => Err(BrokerError::Unavailable("the gateways did not all hear of the change in time")),
            });
        for (_, answer) in waiting {
            let _ = answer.send(result.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Entries that go within 30 s when there is always something to send.
    fn entries(gateways: usize) -> usize {
        let began = Instant::now();
        let (mut pace, mut now, mut entries) = (Pace::new(began), began, 0);
        while now < began + Duration::from_secs(30) {
            match pace.take(now, gateways) {
                None => entries += 1,
                Some(wait) => now += wait,
            }
        }
        entries
    }

    #[tokio::test]
    async fn paced_entries_stay_below_fifty_a_second_over_all_gateways() {
        assert!((1_300..=1_500).contains(&entries(1)), "{}", entries(1));
        assert!(3 * entries(3) <= 1_500, "{}", entries(3));
    }

    #[tokio::test]
    async fn after_a_quiet_time_an_entry_goes_at_once() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        while pace.take(now, 1).is_none() {}
        assert!(pace.take(now + Duration::from_millis(50), 1).is_none());
    }
}
