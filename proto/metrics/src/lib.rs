//! The one recorder of a process's metrics, shared by all parts that run in it (`longshore dev` runs several).
//!
//! Danger: a histogram keeps every sample until somebody takes them out. [`recorder`] therefore starts a thread that
//! does so every few seconds, whether or not anybody scrapes. Called by the parts that have an HTTP listener; in a
//! process without one the metrics cost nothing and go nowhere.
#![forbid(unsafe_code)]

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Samples wait no longer in memory.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);
/// For names that end in `_seconds`: 100 microseconds to 30 seconds, about three steps per factor of ten.
const SECONDS: [f64; 17] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0,
];
/// For names that end in `_bytes`: 256 bytes to 64 MiB by fours.
const BYTES: [f64; 10] = [
    256.0,
    1_024.0,
    4_096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];
/// For everything else that is counted: 1 to 4,096.
const COUNTS: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 64.0, 256.0, 1_024.0, 2_048.0, 4_096.0];

/// Why metrics cannot be recorded.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot record metrics: {0}")]
pub struct MetricsError(Arc<str>);

/// What the process has recorded. Cheap to clone.
#[derive(Clone)]
pub struct Recorded(PrometheusHandle);

impl Recorded {
    /// Everything, as Prometheus reads it (text format 0.0.4).
    pub fn text(&self) -> String {
        self.0.render()
    }
}

/// The process's recorder, installed by the first call. Errors: another recorder was installed by other means, or the
/// thread could not be started.
pub fn recorder() -> Result<Recorded, MetricsError> {
    static RECORDER: OnceLock<Result<Recorded, MetricsError>> = OnceLock::new();
    RECORDER.get_or_init(|| install().map_err(|why| MetricsError(why.into()))).clone()
}

fn install() -> Result<Recorded, String> {
    let builder = PrometheusBuilder::new()
        .set_buckets(&COUNTS)
        .and_then(|builder| builder.set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS))
        .and_then(|builder| builder.set_buckets_for_metric(Matcher::Suffix("_bytes".into()), &BYTES))
        .map_err(|error| error.to_string())?;
    let recorder = builder.build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|error| error.to_string())?;
    let kept = handle.clone();
    std::thread::Builder::new()
        .name("metrics".into())
        .spawn(move || {
            loop {
                std::thread::sleep(UPKEEP_EVERY);
                kept.run_upkeep();
            }
        })
        .map_err(|error| error.to_string())?;
    tracing::debug!("metrics are recorded");
    Ok(Recorded(handle))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_process_share_one_recorder_and_histograms_have_buckets_by_their_unit() {
        let (one, other) = (recorder().unwrap(), recorder().unwrap());
        metrics::histogram!("test_seconds").record(0.004);
        metrics::histogram!("test_bytes").record(2_000.0);
        metrics::histogram!("test_items").record(3.0);
        let text = one.text();
        for line in [
            "test_seconds_bucket{le=\"0.0025\"} 0",
            "test_seconds_bucket{le=\"0.005\"} 1",
            "test_bytes_bucket{le=\"4096\"} 1",
            "test_items_bucket{le=\"4\"} 1",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
        assert_eq!(text.lines().count(), other.text().lines().count());
    }
}
