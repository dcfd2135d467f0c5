//! Whole-system tests: real processes of the `longshore` binary, real sockets, real files.
//!
//! | module | what |
//! |---|---|
//! | [`process`] | one process: started, watched for `ready`, killed, stopped by a signal, ended when dropped |
//! | [`cluster`] | three storage nodes and gateways, each a process of its own, and `longshore dev` |
//! | [`inspect`] | what a storage node says of its shards; leader transfer |
//! | [`admin`] | the `longshore` admin commands with `--json` |
//! | [`grpc`] | batches of a gateway, by hand |
//! | [`http`] | metrics, and answers of the management API without the command |
//! | [`client`] | an AMQP client: connecting, bodies that prove themselves, filling and draining a queue |
//! | [`load`] | a publisher with confirms and a consumer that go on through faults, and their ledger |
//! | [`raw`] | AMQP by hand, for what no client library would send |
//!
//! Danger: a test that ends in an error keeps its folder (data and the processes' logs) and names it; one that
//! succeeds removes it.

pub mod admin;
pub mod client;
pub mod cluster;
pub mod grpc;
pub mod http;
pub mod inspect;
pub mod load;
pub mod process;
pub mod raw;

use anyhow::{Context, Result, anyhow};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Runs one test in a folder of its own, for at most `limit`. The processes must be ended by then: whoever
/// started them holds them in values whose drop ends them.
pub fn run<F>(name: &str, limit: Duration, test: F) -> Result<()>
where
    F: AsyncFnOnce(&Path) -> Result<()>,
{
    let dir = tempfile::Builder::new().prefix(&format!("longshore-{name}-")).tempdir()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let outcome = runtime.block_on(async {
        match tokio::time::timeout(limit, test(dir.path())).await {
            Ok(outcome) => outcome,
            Err(_) => Err(anyhow!("not done after {limit:?}")),
        }
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    if outcome.is_ok() {
        return Ok(());
    }
    let kept = dir.keep();
    outcome.with_context(|| format!("{name}: data and logs are kept in {}", kept.display()))
}

/// Asks every 50 ms until the answer is `Some`; after `limit` an error that says what was waited for.
pub async fn until<T, F>(what: &str, limit: Duration, mut ask: F) -> Result<T>
where
    F: AsyncFnMut() -> Result<Option<T>>,
{
    let start = Instant::now();
    loop {
        let last = match ask().await {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => "not yet".to_owned(),
            Err(error) => format!("{error:#}"),
        };
        if start.elapsed() > limit {
            return Err(anyhow!("waited {limit:?} for {what}; the last answer: {last}"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Whether the tests run at full size (`LONGSHORE_CHAOS=full`, by `cargo xtask chaos`).
pub fn full_size() -> bool {
    std::env::var("LONGSHORE_CHAOS").is_ok_and(|size| size == "full")
}

/// How soon writes must go on after a fault while a majority lives: 3 s; beside other work, as in CI, the tests grant
/// more.
pub fn goes_on() -> Duration {
    Duration::from_secs(if full_size() { 3 } else { 10 })
}

/// The binary under test: `LONGSHORE_BIN`, else `release/longshore` in the target folder of this test.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("LONGSHORE_BIN") {
        return Ok(path.into());
    }
    let own = std::env::current_exe().context("where is this test?")?;
    let target = own.ancestors().nth(3).context("the test is not in target/PROFILE/deps")?;
    let path = target.join("release/longshore");
    if !path.is_file() {
        return Err(anyhow!("{} is missing: cargo build --release -p longshore", path.display()));
    }
    Ok(path)
}
