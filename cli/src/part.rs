//! `longshore storage-node` and `longshore gateway`: one part in a process of its own.

use crate::args::PartArgs;
use crate::config::Config;
use crate::logging;
use anyhow::{Context, Result, bail};
use longshore_gateway::Gateway;
use longshore_gateway::config::TlsConfig;
use longshore_proto::transport::TlsIdentity;
use longshore_storage_node::StorageNode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// An orderly stop takes no longer.
pub const STOP_TIME: Duration = Duration::from_secs(8);

/// Runs a storage node until it is told to stop, or fails.
pub fn storage_node(args: &PartArgs) -> Result<()> {
    let config = args.load()?;
    if args.print_config {
        print!("{}", config.print()?);
        return Ok(());
    }
    run(config, async |config: Config| {
        let tls = identity(&config.tls)?;
        let node =
            StorageNode::start(config.storage.clone(), tls).await.context("cannot start the storage node")?;
        println!("storage node   {}", node.address());
        node.ready().await.context("the storage node ended before it was ready")?;
        println!("ready");
        let outcome = tokio::select! {
            outcome = node.failed() => Err(outcome.into()),
            stop = stop_signal() => stop,
        };
        node.shutdown(STOP_TIME).await;
        outcome
    })
}

/// Runs a gateway until it is told to stop.
pub fn gateway(args: &PartArgs) -> Result<()> {
    let config = args.load()?;
    if args.print_config {
        print!("{}", config.print()?);
        return Ok(());
    }
    run(config, async |config: Config| {
        let gateway = Gateway::start(config.gateway.clone(), config.tls.clone())
            .await
            .context("cannot start the gateway")?;
        for (what, address) in gateway.listeners() {
            println!("{what:14} {address}");
        }
        println!("ready");
        let outcome = stop_signal().await;
        gateway.shutdown(STOP_TIME).await;
        outcome
    })
}

/// Runs `main` on a runtime with logging.
pub fn run<F>(config: Config, main: F) -> Result<()>
where
    F: AsyncFnOnce(Config) -> Result<()>,
{
    logging::init(&config.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.thread_count())
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let outcome = runtime.block_on(main(config));
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

/// The certificates of the links between the parts, if they are configured.
pub fn identity(tls: &TlsConfig) -> Result<Option<TlsIdentity>> {
    match (&tls.ca, &tls.cert, &tls.key) {
        (Some(ca), Some(cert), Some(key)) => Ok(Some(TlsIdentity::read(ca, cert, key)?)),
        (None, None, None) => Ok(None),
        _ => bail!("tls.ca, tls.cert and tls.key belong together"),
    }
}

/// Returns on SIGTERM or SIGINT.
pub async fn stop_signal() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
