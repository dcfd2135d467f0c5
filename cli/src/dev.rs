//! `longshore dev`: everything in one process, on loopback, talking real gRPC between its parts.

use crate::args::flags;
use crate::config::Config;
use crate::part::{self, STOP_TIME, stop_signal};
use anyhow::{Context, Result, bail};
use clap::Args;
use longshore_gateway::Gateway;
use longshore_storage_node::StorageNode;
use longshore_storage_node::config::{Secret, StorageConfig};
use std::path::{Path, PathBuf};

/// Default ports; `--port-offset` is added to each.
const AMQP_PORT: u16 = 5672;
const AMQPS_PORT: u16 = 5671;
const MANAGEMENT_PORT: u16 = 15672;
const STORAGE_PORT: u16 = 7400;

/// Flags of `dev`.
#[derive(Debug, Args)]
pub struct DevArgs {
    /// Where everything is kept.
    #[arg(long, default_value = "longshore-data")]
    data_dir: PathBuf,
    /// Added to every port.
    #[arg(long, default_value_t = 0)]
    port_offset: u16,
    /// Storage nodes: 1 or 3.
    #[arg(long, default_value_t = 3)]
    nodes: u16,
    /// A TOML file of settings.
    #[arg(long)]
    config: Option<PathBuf>,
    /// A setting, for example `--set log.level=debug`; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Show the settings (without secrets) and end.
    #[arg(long)]
    print_config: bool,
}

impl Default for DevArgs {
    fn default() -> Self {
        DevArgs {
            data_dir: "longshore-data".into(),
            port_offset: 0,
            nodes: 3,
            config: None,
            set: Vec::new(),
            print_config: false,
        }
    }
}

/// Runs until SIGTERM, SIGINT or a failed storage node.
pub fn run(args: DevArgs) -> Result<()> {
    if args.nodes != 1 && args.nodes != 3 {
        bail!("--nodes is 1 or 3");
    }
    let mut config = Config::load(args.config.as_deref(), flags(&args.set)?)?;
    listen_on_loopback(&mut config, &args)?;
    if args.print_config {
        print!("{}", config.print()?);
        return Ok(());
    }
    make_certificates(&args.data_dir.join("certs"))?;
    part::run(config, async move |config| serve(config, &args).await)
}

async fn serve(config: Config, args: &DevArgs) -> Result<()> {
    let mut starting = Vec::new();
    for storage in storage_configs(&config.storage, args)? {
        starting.push(StorageNode::start(storage, None).await.context("cannot start a storage node")?);
    }
    let nodes = starting;
    for node in &nodes {
        node.ready().await.context("a storage node ended before it was ready")?;
    }
    let gateway = Gateway::start(config.gateway.clone(), config.tls.clone())
        .await
        .context("cannot start the gateway")?;
    for node in &nodes {
        println!("{:14} {}", "storage node", node.address());
    }
    for (what, address) in gateway.listeners() {
        println!("{what:14} {address}");
    }
    println!("data           {}", args.data_dir.display());
    println!(
        "try            python3 -c \"import pika; c = pika.BlockingConnection(pika.URLParameters('amqp://guest:guest@{}/')); \
              print(c.channel().queue_declare('hello', durable=True))\"",
        config.gateway.amqp.listen
    );
    println!("ready");
    let outcome = tokio::select! {
        failure = first_failure(&nodes) => Err(failure.into()),
        stop = stop_signal() => stop,
    };
    gateway.shutdown(STOP_TIME / 2).await;
    for node in nodes {
        node.shutdown(STOP_TIME / 2).await;
    }
    outcome
}

/// Resolves with the first storage node that fails.
async fn first_failure(nodes: &[StorageNode]) -> longshore_storage_node::StartError {
    let (failed, mut first) = tokio::sync::mpsc::channel(1);
    let waits = nodes.iter().map(|node| {
        let failed = failed.clone();
        async move {
            let _ = failed.send(node.failed().await).await;
        }
    });
    tokio::select! {
        _ = futures_util::future::join_all(waits) => longshore_storage_node::StartError::Stopped,
        error = first.recv() => error.unwrap_or(longshore_storage_node::StartError::Stopped),
    }
}

fn port(base: u16, args: &DevArgs) -> Result<u16> {
    base.checked_add(args.port_offset)
        .with_context(|| format!("--port-offset {} is too large", args.port_offset))
}

fn loopback(base: u16, args: &DevArgs) -> Result<String> {
    Ok(format!("127.0.0.1:{}", port(base, args)?))
}

/// Every listener on loopback, its port shifted; TLS with the certificates of the first start.
fn listen_on_loopback(config: &mut Config, args: &DevArgs) -> Result<()> {
    let certs = args.data_dir.join("certs");
    config.tls.ca = Some(certs.join("ca.crt"));
    config.tls.cert = Some(certs.join("server.crt"));
    config.tls.key = Some(certs.join("server.key"));
    config.gateway.amqp.listen = loopback(AMQP_PORT, args)?;
    config.gateway.amqp.tls_listen = loopback(AMQPS_PORT, args)?;
    config.gateway.http.listen = loopback(MANAGEMENT_PORT, args)?;
    config.gateway.storage_nodes = addresses(args)?;
    config.gateway.plain_storage = true;
    config.storage.data_dir = args.data_dir.clone();
    config.storage.listen = loopback(STORAGE_PORT, args)?;
    Ok(())
}

fn addresses(args: &DevArgs) -> Result<Vec<String>> {
    (0..args.nodes).map(|n| loopback(STORAGE_PORT + n, args)).collect()
}

fn storage_configs(base: &StorageConfig, args: &DevArgs) -> Result<Vec<StorageConfig>> {
    let initial_nodes = addresses(args)?;
    let configs = initial_nodes.iter().enumerate().map(|(n, address)| StorageConfig {
        data_dir: args.data_dir.join(format!("node{}", n + 1)),
        listen: address.clone(),
        advertise: String::new(),
        initial_nodes: initial_nodes.clone(),
        administrator: "guest".into(),
        administrator_password: Secret::new("guest"),
        administrator_loopback_only: true,
        ..base.clone()
    });
    Ok(configs.collect())
}

/// Makes the certificates at the first start; later starts find them.
fn make_certificates(dir: &Path) -> Result<()> {
    if longshore_certs::FILES.iter().all(|name| dir.join(name).is_file()) {
        return Ok(());
    }
    let hosts = ["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    longshore_certs::write_all(dir, &hosts).context("cannot make development certificates")
}
