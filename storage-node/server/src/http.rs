//! Health and metrics of a storage node over HTTP, and the board that shows how it stands.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use longshore_metrics::Recorded;
use longshore_node::Standing;
use std::sync::Arc;
use tokio::sync::watch;

/// How the node stands, for whoever waits for it.
#[derive(Clone)]
pub(crate) struct StandingBoard {
    sender: Arc<watch::Sender<Standing>>,
}

impl StandingBoard {
    pub fn new() -> StandingBoard {
        StandingBoard { sender: Arc::new(watch::channel(Standing::default()).0) }
    }

    pub fn set(&self, standing: Standing) {
        self.sender.send_if_modified(|old| {
            let changed = *old != standing;
            *old = standing;
            changed
        });
    }

    pub fn watch(&self) -> watch::Receiver<Standing> {
        self.sender.subscribe()
    }
}

#[derive(Clone)]
struct Shown {
    metrics: Option<Recorded>,
    standing: watch::Receiver<Standing>,
}

/// Counters that are shown from the start on, so that alerts see the first event too.
const COUNTERS: [&str; 5] = [
    "longshore_leader_changes_total",
    "longshore_snapshots_installed_total",
    "longshore_read_errors_total",
    "longshore_record_jobs_failed_total",
    "longshore_peer_frames_dropped_total",
];

/// The routes of a node with an HTTP listener of its own.
pub(crate) fn router(standing: watch::Receiver<Standing>) -> Router {
    let metrics = longshore_metrics::recorder()
        .inspect_err(|error| tracing::warn!(%error, "this node shows no metrics"))
        .ok();
    for name in COUNTERS {
        metrics::counter!(name).increment(0);
    }
    Router::new()
        .route("/health/live", get(|| async { "ok\n" }))
        .route("/health/ready", get(ready))
        .route("/metrics", get(metrics_text))
        .with_state(Shown { metrics, standing })
}

async fn metrics_text(State(shown): State<Shown>) -> Response {
    match shown.metrics {
        Some(recorded) => recorded.text().into_response(),
        None => {
            (StatusCode::SERVICE_UNAVAILABLE, "metrics are not recorded in this process\n").into_response()
        }
    }
}

async fn ready(State(shown): State<Shown>) -> Response {
    if shown.standing.borrow().ready {
        "ok\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready: some of its groups have no leader\n").into_response()
    }
}
