//! The storage node's threads, gRPC services and metrics, around the sans-IO node.
//!
//! ```text
//! tokio: services, peers ──inputs──▶ mailbox ──▶ store thread: Node::turn ──┬─▶ log thread: write, sync ─▶ held frames
//!        streams ◀── registry ◀── items, replies, watch ────────────────────┤
//!        peers ◀── frames ──────────────────────────────────────────────────┤
//!        outbound calls ◀── snapshots, fetches, commands for meta ──────────┴─▶ workers: reads, jobs ─▶ mailbox
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`config`] | the node's settings |
//! | `life` | the main task: from the first connection to the last |
//! | `lobby` | what answers before the node knows its cluster |
//! | `bootstrap` | forming, joining or finding again a cluster |
//! | `join_meta` | how a node without a replica of meta comes by one |
//! | `threads`, `store_thread`, `log_thread`, `workers` | the threads |
//! | `ends` | the end of one thread, by a panic too, ends the node |
//! | `mailbox`, `registry` | the way in and the way out |
//! | `services`, `peers`, `outbound` | gRPC |
//! | `http` | health and metrics |
#![forbid(unsafe_code)]

mod bootstrap;
pub mod config;
mod ends;
mod http;
mod join_meta;
mod life;
mod lobby;
mod log_thread;
mod mailbox;
mod outbound;
mod peers;
mod registry;
mod services;
mod store_thread;
mod threads;
mod workers;

use config::StorageConfig;
use http::StandingBoard;
use life::Main;
use longshore_io::Disk;
use longshore_io::real::RealDisk;
use longshore_log::{Identity, IdentityError};
use longshore_node::{Input, OpenError, Standing};
use longshore_proto::transport::{self, TlsIdentity, TransportError};
use mailbox::Mailbox;
use peers::Peers;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Why a storage node could not start, or why it ended.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory cannot be used.
    #[error("cannot use the data directory {path}: {why}")]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The identity file.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A listener.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// TLS or an address.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// What the directory holds cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    /// The administrator's password cannot be hashed.
    #[error("the administrator's password: {0}")]
    Password(String),
    /// The node failed; what it acknowledged is safe.
    #[error("the storage node failed: {0}")]
    Failed(String),
    /// The node has stopped.
    #[error("the storage node has stopped")]
    Stopped,
}

/// A running storage node.
pub struct StorageNode {
    address: SocketAddr,
    standing: watch::Receiver<Standing>,
    failure: watch::Receiver<Option<String>>,
    mailbox: Mailbox,
    peers: watch::Receiver<Option<Peers>>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl StorageNode {
    /// Listens, finds out which cluster it belongs to, opens its data and takes part. Returns once it listens; see
    /// [`StorageNode::ready`].
    pub async fn start(config: StorageConfig, tls: Option<TlsIdentity>) -> Result<StorageNode, StartError> {
        transport::check_plain(&config.listen, tls.as_ref())?;
        let disk = open_dir(&config)?;
        let own = own_identity(disk.as_ref())?;
        let listener = TcpListener::bind(&config.listen)
            .await
            .map_err(|source| StartError::Listen { address: config.listen.clone(), source })?;
        let address = listener
            .local_addr()
            .map_err(|source| StartError::Listen { address: config.listen.clone(), source })?;
        let board = StandingBoard::new();
        let (stop, stopped) = watch::channel(false);
        let (failed, failure) = watch::channel(None);
        let (peers_told, peers) = watch::channel(None);
        let mut tasks = JoinSet::new();
        listen_http(&config, &board, &stopped, &mut tasks).await?;
        let standing = board.watch();
        let mailbox = Mailbox::new();
        let main = Main {
            config,
            tls,
            disk,
            own,
            board,
            mailbox: mailbox.clone(),
            stopped,
            failed: failed.clone(),
            peers_told,
        };
        tasks.spawn(async move {
            match main.run(listener).await {
                Ok(()) => {}
                Err(StartError::Stopped) => tracing::debug!("the storage node has stopped"),
                Err(error) => {
                    tracing::error!(%error, "the storage node failed");
                    let _ = failed.send(Some(error.to_string()));
                }
            }
        });
        Ok(StorageNode { address, standing, failure, mailbox, peers, stop, tasks })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits until every group of the node has a leader.
    pub async fn ready(&self) -> Result<(), StartError> {
        let mut standing = self.standing.clone();
        tokio::select! {
            ready = standing.wait_for(|standing| standing.ready) => ready.map(|_| ()).map_err(|_| StartError::Stopped),
            error = self.failed() => Err(error),
        }
    }

    /// Resolves when the node has failed.
    pub async fn failed(&self) -> StartError {
        let mut failure = self.failure.clone();
        let result = failure.wait_for(Option::is_some).await.map(|why| why.clone().unwrap_or_default());
        match result {
            Ok(why) => StartError::Failed(why),
            Err(_) => StartError::Stopped,
        }
    }

    /// Hands leaderships over, then ends within about `patience`.
    pub async fn shutdown(mut self, patience: Duration) {
        self.mailbox.report(Input::Stopping);
        let mut failure = self.failure.clone();
        let ended = async {
            let _ = failure.wait_for(Option::is_some).await;
        };
        let _ = tokio::time::timeout(patience, ended).await;
        let _ = self.stop.send(true);
        if let Some(peers) = self.peers.borrow().as_ref() {
            peers.stop();
        }
        self.tasks.abort_all();
    }
}

fn open_dir(config: &StorageConfig) -> Result<Arc<dyn Disk>, StartError> {
    let disk = RealDisk::open(&config.data_dir)
        .map_err(|error| StartError::DataDir { path: config.data_dir.clone(), why: error.to_string() })?;
    Ok(Arc::new(disk))
}

fn own_identity(disk: &dyn Disk) -> Result<Identity, StartError> {
    match Identity::load(disk)? {
        Some(identity) => Ok(identity),
        None => Ok(Identity::create(disk, rand::random())?),
    }
}

async fn listen_http(
    config: &StorageConfig,
    board: &StandingBoard,
    stopped: &watch::Receiver<bool>,
    tasks: &mut JoinSet<()>,
) -> Result<(), StartError> {
    if config.http_listen.is_empty() {
        return Ok(());
    }
    let failed = |source| StartError::Listen { address: config.http_listen.clone(), source };
    let listener = TcpListener::bind(&config.http_listen).await.map_err(failed)?;
    let router = http::router(board.watch());
    let mut stopped = stopped.clone();
    tasks.spawn(async move {
        let until = async move {
            let _ = stopped.wait_for(|stop| *stop).await;
        };
        let _ = axum::serve(listener, router).with_graceful_shutdown(until).await;
    });
    Ok(())
}
