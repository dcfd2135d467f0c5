//! The AMQP driver: speaks to any 0-9-1 broker on a codec of our own, one thread for all connections.
//!
//! | module | what |
//! |---|---|
//! | `uri`, `connection` | where a broker is; handshake and calls |
//! | `hot` | frames of the hot path, read in place |
//! | `message` | bodies that tell what they are, and the ledger of what arrived |
//! | `producer`, `consumer` | the two loops |
//! | `load` | a run with a measured stretch and a check at the end |
//! | `beside` | what a small producer sees while something heavy goes on |
//! | `idle` | many queues without traffic |

mod beside;
mod connection;
mod consumer;
mod hot;
mod idle;
mod load;
mod message;
mod producer;
mod uri;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use consumer::AckRule;
use load::Load;
pub use load::Report;
use longshore_amqp_codec::{ShortStr, Table, TableBuilder, Value};
use serde::Serialize;
pub use uri::Uri;

/// A run that is bounded by messages, not by time, ends after this many seconds at the latest.
const COUNTED_SECS_MAX: f64 = 7_200.0;

/// Kinds of load.
#[derive(Debug, Subcommand)]
pub enum Mode {
    /// Producers with a confirm window, and optionally consumers with manual acks.
    Run(RunArgs),
    /// Fill one queue with a number of messages, and leave it.
    Fill(FillArgs),
    /// Consume a queue until nothing comes any more, acknowledging everything.
    Drain(DrainArgs),
    /// Consume a queue, acknowledge every second message; the others go back at the end.
    AckEverySecond(DrainArgs),
    /// Declare, bind and drop exclusive queues, beside a small producer.
    ExclusiveChurn(beside::ChurnArgs),
    /// Send large messages without pause, beside a small producer.
    Large(beside::LargeArgs),
    /// Declare many durable queues and leave them alone.
    IdleQueues(idle::IdleArgs),
    /// Delete queues.
    Delete(DeleteArgs),
}

/// Where to.
#[derive(Clone, Debug, Args)]
pub struct Target {
    /// Brokers, `amqp://user:password@host:port/vhost`; several are used in turn.
    #[arg(long = "uri", value_delimiter = ',', default_value = "amqp://guest:guest@127.0.0.1:5672")]
    uris: Vec<Uri>,
    /// An argument of queue declarations, for example `x-queue-type=quorum`; may be repeated.
    #[arg(long = "queue-arg", value_name = "KEY=VALUE")]
    arguments: Vec<String>,
    /// Processes of the broker, whose cost is measured.
    #[arg(long, value_delimiter = ',')]
    pids: Vec<u32>,
}

impl Target {
    /// The declaration's arguments; numbers and truth values are sent as such.
    fn table(&self) -> Result<Table> {
        let mut table = TableBuilder::new();
        for argument in &self.arguments {
            let (key, value) =
                argument.split_once('=').with_context(|| format!("{argument}: expected KEY=VALUE"))?;
            let value = match (value.parse(), value.parse()) {
                (Ok(number), _) => Value::I64(number),
                (_, Ok(truth)) => Value::Bool(truth),
                _ => Value::Text(value.as_bytes()),
            };
            table = table.put(key, value);
        }
        Ok(table.build())
    }

    fn first(&self) -> Result<&Uri> {
        self.uris.first().context("no broker: give --uri")
    }

    /// A load with nothing to do on these brokers.
    fn load(&self, queues: Vec<String>) -> Result<Load> {
        Ok(Load {
            uris: self.uris.clone(),
            queues,
            arguments: self.table()?,
            produce: false,
            consume: None,
            prefetch: 0,
            window: 1,
            body: 1_024,
            messages: None,
            warmup_secs: 0.0,
            secs: COUNTED_SECS_MAX,
            delete: false,
            pids: self.pids.clone(),
        })
    }
}

/// Flags of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    target: Target,
    /// Queues, with a producer each.
    #[arg(long, default_value_t = 1)]
    queues: usize,
    /// Their names begin so.
    #[arg(long, default_value = "bench")]
    name: String,
    /// Publishes without a confirm, per producer.
    #[arg(long, default_value_t = 100)]
    window: usize,
    /// Bytes of a body.
    #[arg(long, default_value_t = 1_024)]
    body: usize,
    /// A consumer for each queue, too.
    #[arg(long)]
    consume: bool,
    /// Unacknowledged deliveries per consumer; 0: no limit.
    #[arg(long, default_value_t = 200)]
    prefetch: u16,
    /// Deliveries per acknowledgement.
    #[arg(long, default_value_t = 1)]
    ack_every: u64,
    /// Seconds that are measured.
    #[arg(long, default_value_t = 10.0)]
    secs: f64,
    /// Seconds before that.
    #[arg(long, default_value_t = 2.0)]
    warmup_secs: f64,
    /// Leave the queues with what is in them.
    #[arg(long)]
    keep: bool,
}

impl RunArgs {
    fn load(&self) -> Result<Load> {
        let queues = (1..=self.queues).map(|n| format!("{}-{n}", self.name)).collect();
        Ok(Load {
            produce: true,
            consume: self.consume.then_some(AckRule::Each { every: self.ack_every }),
            prefetch: self.prefetch,
            window: self.window,
            body: self.body,
            warmup_secs: self.warmup_secs,
            secs: self.secs,
            delete: !self.keep,
            ..self.target.load(queues)?
        })
    }
}

/// Flags of `fill`.
#[derive(Debug, Args)]
pub struct FillArgs {
    #[command(flatten)]
    target: Target,
    /// The queue.
    #[arg(long, default_value = "backlog")]
    queue: String,
    /// Messages.
    #[arg(long, default_value_t = 10_000_000)]
    messages: u64,
    /// Bytes of a body.
    #[arg(long, default_value_t = 100)]
    body: usize,
    /// Publishes without a confirm.
    #[arg(long, default_value_t = 5_000)]
    window: usize,
}

impl FillArgs {
    fn load(&self) -> Result<Load> {
        let load = self.target.load(vec![self.queue.clone()])?;
        let messages = Some(self.messages);
        Ok(Load { produce: true, messages, body: self.body, window: self.window, ..load })
    }
}

/// Flags of `drain` and `ack-every-second`.
#[derive(Debug, Args)]
pub struct DrainArgs {
    #[command(flatten)]
    target: Target,
    /// The queue.
    #[arg(long, default_value = "backlog")]
    queue: String,
    /// Unacknowledged deliveries; 0: no limit. `ack-every-second` stops once all of them are held back.
    #[arg(long, default_value_t = 0)]
    prefetch: u16,
    /// Deliveries per acknowledgement (`drain`).
    #[arg(long, default_value_t = 1)]
    ack_every: u64,
    /// Delete the queue at the end.
    #[arg(long)]
    delete: bool,
}

impl DrainArgs {
    fn load(&self, rule: AckRule) -> Result<Load> {
        let load = self.target.load(vec![self.queue.clone()])?;
        Ok(Load { consume: Some(rule), prefetch: self.prefetch, delete: self.delete, ..load })
    }
}

/// Flags of `delete`.
#[derive(Debug, Args)]
pub struct DeleteArgs {
    #[command(flatten)]
    target: Target,
    /// The queues.
    #[arg(required = true)]
    queues: Vec<String>,
}

/// Runs one kind of load and prints its report.
pub fn run(mode: Mode) -> Result<()> {
    on_one_thread(async {
        match mode {
            Mode::Run(args) => print(&args.load()?.run().await?),
            Mode::Fill(args) => print(&args.load()?.run().await?),
            Mode::Drain(args) => print(&args.load(AckRule::Each { every: args.ack_every })?.run().await?),
            Mode::AckEverySecond(args) => print(&args.load(AckRule::EverySecond)?.run().await?),
            Mode::ExclusiveChurn(args) => print(&beside::churn(&args).await?),
            Mode::Large(args) => print(&beside::large(&args).await?),
            Mode::IdleQueues(args) => print(&idle::run(&args).await?),
            Mode::Delete(args) => delete(args.target.first()?, &args.queues).await,
        }
    })
}

/// Runs a future with its local tasks on this thread.
pub fn on_one_thread<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, work)
}

/// Product and version of a broker, as it says them.
pub async fn server_name(uri: &Uri) -> Result<String> {
    Ok(connection::Connection::open(uri).await?.server)
}

/// Deletes queues with what is in them.
pub async fn delete(uri: &Uri, queues: &[String]) -> Result<()> {
    let mut connection = connection::Connection::open(uri).await?;
    for queue in queues {
        connection.delete(&ShortStr::cut(queue)).await?;
    }
    Ok(())
}

fn print(report: &impl Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(report)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_keep_their_types() {
        let arguments = ["x-queue-type=quorum", "x-max-length=5", "x-flag=true"].map(String::from).to_vec();
        let target = Target { uris: Vec::new(), arguments, pids: Vec::new() };
        let table = target.table().unwrap();
        assert_eq!(table.get("x-queue-type"), Some(Value::Text(b"quorum")));
        assert_eq!(table.get("x-max-length"), Some(Value::I64(5)));
        assert_eq!(table.get("x-flag"), Some(Value::Bool(true)));
        let target = Target { uris: Vec::new(), arguments: vec!["x".into()], pids: Vec::new() };
        assert!(target.table().is_err() && target.first().is_err());
    }
}
