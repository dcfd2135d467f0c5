//! Commands to meta, gathered: what waits while one is under way goes together, and one barrier serves many.
//!
//! Commands about transient things are paced beside: a client that declares and drops reply queues by the thousand
//! costs a bounded number of syncs in meta, whatever its rate.

use crate::api::{BrokerError, ConnectionId};
use crate::meta_client::{MetaClient, Submitted};
use longshore_proto::v1::{self, MetaCommand, MetaError, meta_command::Command};
use longshore_wire::SessionId;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// Commands in one entry.
const COMMANDS_MAX: usize = 500;
/// Paced entries per second, on average.
const PACED_PER_SECOND: f64 = 20.0;
/// Paced entries that may go at once after a quiet time.
const PACED_BURST: f64 = 20.0;

type Answer = oneshot::Sender<Result<Submitted, BrokerError>>;

/// Commands and barriers that may wait; beyond it their senders do.
const WAITING_MAX: usize = 65_536;

#[derive(Debug)]
struct Job {
    command: MetaCommand,
    paced: bool,
    answer: Answer,
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
    /// Starts the tasks.
    pub fn start(client: Arc<MetaClient>, patience: Duration) -> MetaBatch {
        let (jobs, job_receiver) = mpsc::channel(WAITING_MAX);
        let (barriers, barrier_receiver) = mpsc::channel(WAITING_MAX);
        tokio::spawn(run_jobs(client.clone(), job_receiver, patience));
        tokio::spawn(run_barriers(client, barrier_receiver, patience));
        MetaBatch { jobs, barriers }
    }

    /// Submits a command; `paced`: about transient things.
    pub async fn submit(&self, what: Command, paced: bool) -> Result<Submitted, BrokerError> {
        let (answer, receiver) = oneshot::channel();
        let job = Job { command: command(what), paced, answer };
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
        let drop_owner = v1::DropOwner { session: session.0, owner: connection.0 };
        let (answer, _) = oneshot::channel();
        let job = Job { command: command(Command::DropOwner(drop_owner)), paced: true, answer };
        if let Err(mpsc::error::TrySendError::Full(job)) = self.jobs.try_send(job) {
            // One such task per connection that ended while the queue was full.
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
    /// How long to wait for a token; zero: it is taken.
    fn take(&mut self) -> Duration {
        let now = Instant::now();
        let grown = (now - self.at).as_secs_f64() * PACED_PER_SECOND;
        self.tokens = (self.tokens + grown).min(PACED_BURST);
        self.at = now;
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Duration::ZERO;
        }
        Duration::from_secs_f64((1.0 - self.tokens) / PACED_PER_SECOND)
    }
}

async fn run_jobs(client: Arc<MetaClient>, mut jobs: mpsc::Receiver<Job>, patience: Duration) {
    let mut pace = Pace { tokens: PACED_BURST, at: Instant::now() };
    let mut waiting: Vec<Job> = Vec::new();
    while let Some(job) = jobs.recv().await {
        waiting.push(job);
        while !waiting.is_empty() {
            take_more(&mut jobs, &mut waiting);
            if waiting.iter().all(|job| job.paced) {
                let wait = pace.take();
                if !wait.is_zero() {
                    // Something urgent ends the wait, and takes the others along.
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        Some(job) = jobs.recv() => waiting.push(job),
                    }
                    continue;
                }
            }
            let rest = waiting.split_off(waiting.len().min(COMMANDS_MAX));
            submit_all(&client, std::mem::replace(&mut waiting, rest), patience).await;
        }
    }
}

fn take_more(jobs: &mut mpsc::Receiver<Job>, waiting: &mut Vec<Job>) {
    while let Ok(job) = jobs.try_recv() {
        waiting.push(job);
    }
}

async fn submit_all(client: &MetaClient, mut jobs: Vec<Job>, patience: Duration) {
    metrics::histogram!("longshore_gateway_meta_batch_commands").record(jobs.len() as f64);
    if jobs.len() == 1
        && let Some(job) = jobs.pop()
    {
        let _ = job.answer.send(client.submit(job.command, patience).await);
        return;
    }
    let commands = jobs.iter().map(|job| job.command.clone()).collect();
    let many = command(Command::Many(v1::Many { commands }));
    match client.submit(many, patience).await {
        Ok(Submitted { reply, repeated }) if reply.many.len() == jobs.len() => {
            for (job, reply) in jobs.into_iter().zip(reply.many) {
                let _ = job.answer.send(Ok(Submitted { reply, repeated }));
            }
        }
        Ok(Submitted { reply, repeated }) => {
            for job in jobs {
                let _ = job.answer.send(Ok(Submitted { reply: reply.clone(), repeated }));
            }
        }
        Err(error) => {
            for job in jobs {
                let _ = job.answer.send(Err(error.clone()));
            }
        }
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
