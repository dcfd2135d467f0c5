//! Health and metrics of a storage node over HTTP, and the board that shows how it stands.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use longshore_node::Standing;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
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
    metrics: PrometheusHandle,
    standing: watch::Receiver<Standing>,
}

/// The routes of a node with an HTTP listener of its own.
pub(crate) fn router(standing: watch::Receiver<Standing>) -> Router {
    let recorder = PrometheusBuilder::new().build_recorder();
    let metrics = recorder.handle();
    if metrics::set_global_recorder(recorder).is_err() {
        tracing::debug!("metrics are already being recorded in this process");
    }
    Router::new()
        .route("/health/live", get(|| async { "ok\n" }))
        .route("/health/ready", get(ready))
        .route("/metrics", get(|State(shown): State<Shown>| async move { shown.metrics.render() }))
        .with_state(Shown { metrics, standing })
}

async fn ready(State(shown): State<Shown>) -> Response {
    if shown.standing.borrow().ready {
        "ok\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready: some of its groups have no leader\n").into_response()
    }
}
