//! Under strace, one message at a time: between a publish and its confirm at least two nodes have written the
//! message's bytes to a file and then synced that file. (kill -9 alone proves no sync: the page cache survives it.)

use anyhow::{Context, Result, bail, ensure};
use lapin::options::ConfirmSelectOptions;
use longshore_tests::system::client::{connect, declare, publish};
use longshore_tests::system::cluster::Cluster;
use longshore_tests::system::process::Process;
use longshore_tests::system::run;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const MESSAGES: usize = 100;
const CALLS: &str = "trace=pwrite64,pwritev,pwritev2,fdatasync,fsync";

/// The text that makes a message's bytes visible in a trace.
fn marker(number: usize) -> String {
    format!("sync-test-message-{number:06}.")
}

fn now_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn traced_node(dir: &Path, cluster: &Cluster, n: usize) -> Result<Process> {
    let mut command = Command::new("strace");
    // -D: the traced process stays our child, so that killing it ends it. One file per thread, whole lines only.
    command.args([
        "-D",
        "-ff",
        "-qq",
        "-ttt",
        "-T",
        "-y",
        "-s",
        "65536",
        "-e",
        CALLS,
        "-e",
        "signal=none",
        "-o",
    ]);
    command.arg(dir.join(format!("trace{n}"))).arg(longshore_tests::system::binary()?);
    command.args(cluster.node_args(n));
    Process::spawn_command(dir, &format!("node{n}"), command)
}

/// When each message was first covered by a sync on node `n`, in seconds since 1970: the end of the first successful
/// sync of a file, by the thread that wrote the message to that file before.
fn covered(dir: &Path, n: usize) -> Result<BTreeMap<usize, f64>> {
    let mut covered = BTreeMap::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&format!("trace{n}."))) {
            continue;
        }
        let mut written: Vec<(usize, String)> = Vec::new();
        for line in String::from_utf8_lossy(&std::fs::read(&path)?).lines() {
            let Some((start, call)) = line.split_once(' ') else { continue };
            let Some((name, arguments)) = call.split_once('(') else { continue };
            // With -y the file is named: 12</path/to/file>.
            let file = arguments.split(['>', ',']).next().unwrap_or_default().to_owned();
            if name.starts_with("pwrite") {
                written
                    .extend((0..MESSAGES).filter(|n| call.contains(&marker(*n))).map(|n| (n, file.clone())));
                continue;
            }
            if written.is_empty() || !call.contains(" = 0 ") {
                continue;
            }
            let took =
                call.rsplit_once('<').and_then(|(_, took)| took.trim_end_matches('>').parse::<f64>().ok());
            let end = start.parse::<f64>()? + took.context("a sync without its duration")?;
            written.retain(|(message, written_to)| {
                let same = *written_to == file;
                if same {
                    covered.entry(*message).and_modify(|at: &mut f64| *at = at.min(end)).or_insert(end);
                }
                !same
            });
        }
    }
    Ok(covered)
}

#[test]
fn sync_every_confirm_follows_a_sync_on_two_nodes() -> Result<()> {
    if Command::new("strace").arg("-V").output().is_err() {
        ensure!(std::env::var_os("CI").is_none(), "strace is missing");
        println!("skipped: strace is not installed");
        return Ok(());
    }
    run("sync", Duration::from_secs(120), async |dir| {
        let mut cluster = Cluster::prepare(dir, 1, &[])?;
        for n in 0..3 {
            let process = traced_node(dir, &cluster, n)?;
            cluster.adopt_node(n, process);
        }
        for n in 0..3 {
            cluster.node_ready(n).await?;
        }
        cluster.start_gateway(0).await?;
        let connection = connect(&cluster.amqp()).await?;
        let channel = connection.create_channel().await?;
        declare(&channel, "q").await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let mut confirmed = Vec::new();
        for number in 0..MESSAGES {
            let body = marker(number).into_bytes();
            ensure!(publish(&channel, "q", &body).await?.await?.is_ack(), "a publish was refused");
            confirmed.push(now_s());
        }
        // The third node may still be writing: the traces are read as they are.
        let nodes = (0..3).map(|n| covered(dir, n)).collect::<Result<Vec<_>>>()?;
        for (number, confirmed_at) in confirmed.iter().enumerate() {
            let before =
                nodes.iter().filter(|node| node.get(&number).is_some_and(|at| at <= confirmed_at)).count();
            if before < 2 {
                let at: Vec<_> = nodes.iter().map(|node| node.get(&number)).collect();
                bail!("message {number} was confirmed at {confirmed_at} after {before} syncs: {at:?}");
            }
        }
        Ok(())
    })
}
