//! Follows meta's changes and renews the gateway's lease, on one stream to meta's leader.

use crate::broker::Core;
use crate::engine::Engine;
use crate::lease::RENEW_EVERY;
use futures_util::stream;
use longshore_proto::v1;
use longshore_proto::v1::meta_client::MetaClient;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tonic::Streaming;
use tonic::transport::Channel;

/// Without an answer to a renewal for so long, another node is tried.
const SILENT_MAX: Duration = Duration::from_millis(1500);
/// Before the next attempt.
const AGAIN_AFTER: Duration = Duration::from_millis(50);
/// Messages that wait for the stream.
const UP_MAX: usize = 64;

/// Runs until the session's lease is lost.
pub(crate) async fn run(core: Arc<Core>, engine: Arc<Engine>) {
    let mut renewals = Renewals { last: 0, sent: BTreeMap::new() };
    while !engine.lease.is_lost() {
        if let Err(error) = follow(&core, &engine, &mut renewals).await {
            tracing::debug!(error, "the stream of changes from meta ended");
        }
        core.view.abandon_reset();
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

/// Renewals by number, with when they were sent; at most a few.
struct Renewals {
    last: u64,
    sent: BTreeMap<u64, Instant>,
}

impl Renewals {
    fn next(&mut self) -> u64 {
        self.last += 1;
        self.sent.insert(self.last, Instant::now());
        self.last
    }

    /// Up to `renewed` all hold: when the newest of them was sent.
    fn answered(&mut self, renewed: u64) -> Option<Instant> {
        let sent = self.sent.get(&renewed).copied();
        self.sent.retain(|number, _| *number > renewed);
        sent
    }

    fn silent_for(&self) -> Duration {
        self.sent.values().next().map_or(Duration::ZERO, Instant::elapsed)
    }
}

/// One stream to one node; `Ok` when the lease is lost, `Err` when another node is to be tried.
async fn follow(core: &Core, engine: &Arc<Engine>, renewals: &mut Renewals) -> Result<(), String> {
    let (address, rpc) = core.client.connect()?;
    let (up, receiver) = mpsc::channel(UP_MAX);
    renewals.sent.clear();
    let message = |renewal: u64| v1::WatchUp {
        applied: core.view.revision(),
        session: engine.session.0,
        renewal,
        node: 0,
    };
    up.try_send(message(renewals.next())).map_err(|e| e.to_string())?;
    let mut inbound = open(core, &address, rpc, receiver).await?;
    let mut renew = tokio::time::interval(RENEW_EVERY);
    renew.tick().await;
    let mut look = tokio::time::interval(SILENT_MAX / 5);
    loop {
        tokio::select! {
            _ = renew.tick() => {
                up.try_send(message(renewals.next())).map_err(|e| e.to_string())?;
            }
            _ = look.tick() => {
                if engine.lease.is_lost() {
                    return Ok(());
                }
                if renewals.silent_for() > SILENT_MAX {
                    core.client.not_leader(&address, None);
                    return Err("meta does not answer renewals".into());
                }
            }
            down = inbound.message() => {
                let down = from_leader(core, &address, down)?;
                if down.lease_lost {
                    engine.lease.lose();
                    return Ok(());
                }
                if let Some(sent) = renewals.answered(down.renewed) {
                    engine.lease.renewed(sent);
                }
                let before = core.view.revision();
                core.apply(engine, down);
                if core.view.revision() != before {
                    // At once, and no renewal: declares elsewhere wait for it.
                    up.try_send(message(0)).map_err(|e| e.to_string())?;
                }
            }
        }
    }
}

/// Opens the stream; a node that refuses it or is silent is not taken for the leader any more.
async fn open(
    core: &Core,
    address: &str,
    mut rpc: MetaClient<Channel>,
    mut outgoing: mpsc::Receiver<v1::WatchUp>,
) -> Result<Streaming<v1::WatchDown>, String> {
    let outgoing = stream::poll_fn(move |context| outgoing.poll_recv(context));
    let why = match tokio::time::timeout(SILENT_MAX, rpc.watch(outgoing)).await {
        Ok(Ok(response)) => return Ok(response.into_inner()),
        Ok(Err(status)) => status.to_string(),
        Err(_) => "no answer in time".into(),
    };
    core.client.not_leader(address, None);
    Err(why)
}

/// What the stream brought, if it comes from the leader; else the next attempt goes to another node.
fn from_leader(
    core: &Core,
    address: &str,
    down: Result<Option<v1::WatchDown>, tonic::Status>,
) -> Result<v1::WatchDown, String> {
    let (told, why) = match down {
        Ok(Some(v1::WatchDown { not_leader: Some(told), .. })) => (Some(told), "not the leader".into()),
        Ok(Some(down)) => {
            core.client.is_leader(address);
            return Ok(down);
        }
        Ok(None) => (None, "the stream was closed".into()),
        Err(status) => (None, status.to_string()),
    };
    core.client.not_leader(address, told.as_ref());
    Err(why)
}
