//! One timed run of a case against a running system, in a process of its own, so that the driver's CPU is not the
//! broker's and a driver that fails takes nothing with it.

use super::cases::{BODY_BYTES, Case, DriverKind, PREFETCH};
use super::rounds::Plan;
use super::systems::{Running, System};
use crate::amqp::{self, Report};
use crate::proc::Watch;
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::Command;

/// What a run gave, whoever drove.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// Confirms per second.
    pub confirmed_per_s: f64,
    /// Deliveries per second.
    pub delivered_per_s: f64,
    /// Publish to confirm, in milliseconds.
    pub p50_ms: f64,
    /// 99th percentile of it.
    pub p99_ms: f64,
    /// Messages that CPU and bytes are divided by.
    pub messages: f64,
    /// Broker CPU seconds per 100,000 messages.
    pub cpu_s_per_100k: f64,
    /// The driver's own, where it is measured.
    pub driver_cpu_s_per_100k: f64,
    /// Peak resident memory of all broker processes, summed.
    pub peak_rss_mib: f64,
    /// MiB written by the brokers per 100,000 messages.
    pub written_mib_per_100k: f64,
    /// Share of the machine's CPU that went to neither.
    pub foreign_share: f64,
    /// What went wrong.
    pub errors: Vec<String>,
}

/// Runs the case.
///
/// Errors: the driver could not be run or its output not be read; what the broker got wrong is in `errors`.
pub fn measure(case: &Case, running: &Running, plan: &Plan) -> Result<Measured> {
    match (running.system, case.driver) {
        (System::Nats, _) => natsbench(case, running, plan),
        (_, DriverKind::Ours) => ours(case, running, plan),
        (_, DriverKind::PerfTest) => perftest(case, running, plan),
    }
}

fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot run {program}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{program} failed: {}{}", text, String::from_utf8_lossy(&output.stderr));
    }
    Ok(text)
}

fn ours(case: &Case, running: &Running, plan: &Plan) -> Result<Measured> {
    let pids: Vec<String> = running.pids.iter().map(u32::to_string).collect();
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["amqp", "run", "--queue-arg", "x-queue-type=quorum", "--uri", &running.uris.join(",")]);
    command.args(["--pids", &pids.join(","), "--queues", &case.queues.to_string()]);
    command.args(["--window", &case.window.to_string(), "--body", &BODY_BYTES.to_string()]);
    command.args(["--prefetch", &PREFETCH.to_string(), "--secs", &plan.secs.to_string()]);
    command.args(["--warmup-secs", &plan.warmup_secs.to_string()]);
    if case.consume {
        command.arg("--consume");
    }
    let text = output(&mut command)?;
    let report: Report =
        serde_json::from_str(text.trim()).with_context(|| format!("strange report: {text}"))?;
    let messages = report.measured as f64;
    let per_100k = |value: f64| value * 1e5 / messages.max(1.0);
    let mut errors = report.errors.clone();
    for (what, count) in [
        ("lost", report.lost),
        ("doubled", report.doubled),
        ("refused", report.refused),
        ("unconfirmed", report.unconfirmed),
    ] {
        if count > 0 {
            errors.push(format!("{count} {what}"));
        }
    }
    Ok(Measured {
        confirmed_per_s: report.confirmed_per_s,
        delivered_per_s: report.delivered_per_s,
        p50_ms: report.p50_ms,
        p99_ms: report.p99_ms,
        messages,
        cpu_s_per_100k: report.cpu_s_per_100k,
        driver_cpu_s_per_100k: per_100k(report.cost.driver_cpu_s),
        peak_rss_mib: report.cost.peak_rss_mib,
        written_mib_per_100k: per_100k(report.cost.written_mib),
        foreign_share: report.cost.foreign_share,
        errors,
    })
}

/// Measures a driver that knows nothing of our processes: the whole run counts, its start included.
fn around(running: &Running, run: impl FnOnce() -> Result<(String, Measured, f64)>) -> Result<Measured> {
    let watch = Watch::start(&running.pids)?;
    let (text, mut measured, messages) = run()?;
    let cost = watch.finish()?;
    if messages < 1.0 {
        measured.errors.push(format!("no message: {}", text.lines().last().unwrap_or_default()));
    }
    let per_100k = |value: f64| value * 1e5 / messages.max(1.0);
    measured.messages = messages;
    measured.cpu_s_per_100k = per_100k(cost.cpu_s);
    measured.peak_rss_mib = cost.peak_rss_mib;
    measured.written_mib_per_100k = per_100k(cost.written_mib);
    measured.foreign_share = cost.foreign_share;
    Ok(measured)
}

fn perftest(case: &Case, running: &Running, plan: &Plan) -> Result<Measured> {
    let name = |n: usize| format!("perftest-{n}");
    let uris = if case.queues > 1 {
        running.uris.join(",")
    } else {
        running.uris.first().cloned().unwrap_or_default()
    };
    let secs = plan.secs.ceil().max(1.0);
    let mut command = Command::new("java");
    command.args([
        "-Xmx512m",
        "-cp",
        &format!("{}/*", plan.places.peers_work.join("perf-test/lib").display()),
    ]);
    command.args(["com.rabbitmq.perf.PerfTest", "-H", &uris, "-s", &BODY_BYTES.to_string()]);
    command.args(["-c", &case.window.to_string(), "-f", "persistent", "-z", &format!("{secs:.0}")]);
    command.args(["--quorum-queue", "-x", &case.queues.to_string()]);
    command.args([
        "-y",
        &if case.consume { case.queues } else { 0 }.to_string(),
        "-q",
        &PREFETCH.to_string(),
    ]);
    if case.queues > 1 {
        command.args(["--queue-pattern", "perftest-%d", "--queue-pattern-from", "1"]);
        command.args(["--queue-pattern-to", &case.queues.to_string()]);
    } else {
        command.args(["--queue", &name(1)]);
    }
    let measured = around(running, || {
        let text = output(&mut command)?;
        let measured = read_perftest(&text);
        let messages = measured.confirmed_per_s * secs;
        Ok((text, measured, messages))
    })?;
    let uri = uris.split(',').next().unwrap_or_default().parse()?;
    let queues: Vec<String> = (1..=case.queues).map(name).collect();
    amqp::on_one_thread(amqp::delete(&uri, &queues))?;
    Ok(measured)
}

/// The summary lines of PerfTest; latencies are in microseconds there.
fn read_perftest(text: &str) -> Measured {
    let rate = |what: &str| {
        let line = text.lines().rev().find_map(|line| line.split_once(what));
        line.and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0.0)
    };
    let marker = "confirm latency min/median/75th/95th/99th ";
    let latencies: Vec<f64> = text
        .lines()
        .rev()
        .find_map(|line| line.split_once(marker))
        .map(|(_, rest)| rest.split([' ', ',']).next().unwrap_or_default())
        .map(|list| list.split('/').filter_map(|n| n.parse().ok()).collect())
        .unwrap_or_default();
    let ms = |index: usize| latencies.get(index).copied().unwrap_or(f64::NAN) / 1e3;
    Measured {
        confirmed_per_s: rate("sending rate avg: "),
        delivered_per_s: rate("receiving rate avg: "),
        p50_ms: ms(1),
        p99_ms: ms(4),
        ..Default::default()
    }
}

fn natsbench(case: &Case, running: &Running, plan: &Plan) -> Result<Measured> {
    let mut command = Command::new(Path::new(&plan.places.peers_work).join("bin/natsbench"));
    command.args(["-url", &running.uris.join(","), "-mode", if case.consume { "pc" } else { "pub" }]);
    command.args(["-clients", &case.queues.to_string(), "-streams", &case.queues.to_string()]);
    command.args(["-window", &case.window.to_string(), "-size", &BODY_BYTES.to_string()]);
    command.args(["-secs", &plan.secs.to_string(), "-replicas", "3", "-prefetch", &PREFETCH.to_string()]);
    around(running, || {
        let text = output(&mut command)?;
        let (measured, messages) = read_natsbench(&text);
        Ok((text, measured, messages))
    })
}

fn read_natsbench(text: &str) -> (Measured, f64) {
    let field = |name: &str| {
        let word = text.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        word.and_then(|n| n.parse().ok()).unwrap_or(0.0)
    };
    let mut measured = Measured {
        confirmed_per_s: field("pub_rate"),
        delivered_per_s: field("recv_rate"),
        p50_ms: field("ack_p50_ms"),
        p99_ms: field("ack_p99_ms"),
        ..Default::default()
    };
    if field("errors") > 0.0 {
        measured.errors.push(format!("{} errors", field("errors")));
    }
    (measured, field("sent"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_of_perftest_is_read() {
        let text = "id: test, time 1.0 s, sent: 900 msg/s, returned: 0 msg/s, \
                    confirm latency min/median/75th/95th/99th 1/2/3/4/5 µs\n\
                    id: test, time 2.0 s, sent: 950 msg/s, \
                    confirm latency min/median/75th/95th/99th 100/2000/3000/4000/50000 µs\n\
                    id: test, sending rate avg: 12345 msg/s\nid: test, receiving rate avg: 99 msg/s\n";
        let measured = read_perftest(text);
        assert_eq!((measured.confirmed_per_s, measured.delivered_per_s), (12_345.0, 99.0));
        assert_eq!((measured.p50_ms, measured.p99_ms), (2.0, 50.0));
    }

    #[test]
    fn the_line_of_natsbench_is_read() {
        let text = "sent=1000 errors=2 pub_rate=500 recv=9 recv_rate=8 ack_p50_ms=1.50 ack_p99_ms=9.00 e2e_p50_ms=-1\n";
        let (measured, messages) = read_natsbench(text);
        assert_eq!((messages, measured.confirmed_per_s, measured.p99_ms), (1000.0, 500.0, 9.0));
        assert_eq!(measured.errors, ["2 errors"]);
    }
}
