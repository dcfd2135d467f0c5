//! Bytes that no client should send: the protocol's own error, bounded memory, and other clients notice nothing.

use anyhow::{Context, Result, ensure};
use longshore_tests::system::client::{connect, declare, drain, fill};
use longshore_tests::system::cluster::{Cluster, Dev};
use longshore_tests::system::raw::{BODY, HEADER, METHOD, Raw, call, frame, method, publish, short};
use longshore_tests::system::{run, until};
use rand::{RngCore, SeedableRng};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(120);
/// A hundred messages of another client take no longer, whatever happens beside them.
const UNAFFECTED: Duration = Duration::from_secs(10);
/// Connections that say nothing.
const SILENT: usize = 10_000;
/// Of them so many are made at a time.
const AT_ONCE: usize = 100;
/// What one of them may cost a gateway, in bytes.
const SILENT_BYTES_MAX: u64 = 24 << 10;
/// What a client that does not read may cost a gateway, in bytes.
const NOT_READING_BYTES_MAX: u64 = 200 << 20;

/// Another client publishes and consumes a hundred messages as ever.
async fn others_work(address: &str) -> Result<()> {
    let start = Instant::now();
    let addresses = [address.to_owned()];
    fill(&addresses, "others", 0..100, 512).await?;
    drain(&addresses, "others", (0..100).collect()).await?;
    ensure!(start.elapsed() < UNAFFECTED, "another client's 100 messages took {:?}", start.elapsed());
    Ok(())
}

/// Each frame after which a connection with channel 1 open is closed, and the code.
fn wrong_frames() -> Vec<(&'static str, Vec<u8>, u16)> {
    let announced = publish(1, "others", 2);
    vec![
        ("a frame longer than agreed", vec![METHOD, 0, 1, 0x7F, 0, 0, 0], 501),
        ("a frame of an unknown type", frame(7, 1, b""), 501),
        ("a frame with a wrong end", [&announced[..8], &[0; 64]].concat(), 501),
        ("an unknown class", frame(METHOD, 1, b"\x00\x63\x00\x0A"), 540),
        ("an unknown method", frame(METHOD, 1, b"\x00\x3C\x00\x99"), 540),
        ("arguments that end early", frame(METHOD, 1, b"\x00\x3C\x00\x28\x00"), 502),
        ("a channel that is not open", call(9, method::PUBLISH, &[&[0, 0][..], &[0, 0, 0]].concat()), 504),
        ("a body that is longer than announced", [announced.clone(), frame(BODY, 1, b"xyz")].concat(), 501),
        ("a body without a header", frame(BODY, 1, b"xyz"), 505),
        ("a header without a method", frame(HEADER, 1, &[0; 14]), 505),
    ]
}

#[test]
fn input_wrong_frames_close_their_connection_by_code() -> Result<()> {
    run("frames", LIMIT, async |dir| {
        let dev = Dev::start(dir).await?;
        others_work(&dev.amqp()).await?;
        for (what, bytes, code) in wrong_frames() {
            let mut raw = Raw::with_channel(&dev.amqp()).await?;
            raw.send(&bytes).await?;
            let given = raw.close_code().await.context(what)?;
            ensure!(given == code, "{what}: {given} instead of {code}");
        }
        others_work(&dev.amqp()).await
    })
}

#[test]
fn input_garbage_is_answered_and_hung_up_on() -> Result<()> {
    run("garbage-bytes", LIMIT, async |dir| {
        let dev = Dev::start(dir).await?;
        let mut random = rand::rngs::StdRng::seed_from_u64(1);
        for (n, opened) in (0..60).zip([false, true].into_iter().cycle()) {
            let mut noise = vec![0; 1 + 97 * n];
            random.fill_bytes(&mut noise);
            let mut raw =
                if opened { Raw::open(&dev.amqp()).await? } else { Raw::silent(&dev.amqp()).await? };
            // The server may hang up before it has read everything.
            let _ = raw.send(&noise).await;
            // A few bytes may be the beginning of a frame: then the client's end ends it.
            tokio::io::AsyncWriteExt::shutdown(&mut raw.socket).await.ok();
            let answer = raw.rest().await?;
            let header_or_close =
                answer.is_empty() || answer.starts_with(b"AMQP\0\0\x09\x01") || answer[0] == METHOD;
            ensure!(header_or_close, "noise {n} was answered by {answer:?}");
        }
        others_work(&dev.amqp()).await
    })
}

#[test]
fn input_before_authentication_frames_are_small() -> Result<()> {
    run("early", LIMIT, async |dir| {
        let dev = Dev::start(dir).await?;
        let mut raw = Raw::silent(&dev.amqp()).await?;
        raw.send(b"AMQP\0\0\x09\x01").await?;
        raw.expect(method::START).await?;
        raw.send(&frame(METHOD, 0, &[0; 5_000])).await?;
        ensure!(raw.close_code().await? == 501, "a frame of 5,000 bytes was taken before authentication");
        others_work(&dev.amqp()).await
    })
}

fn resident_bytes(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.split_whitespace().nth(1).context("no number")?.parse()?;
    Ok(kib << 10)
}

#[test]
fn input_a_client_that_stops_reading_costs_bounded_memory() -> Result<()> {
    run("not-reading", LIMIT, async |dir| {
        let cluster = Cluster::start(dir, 1, &[]).await?;
        let address = &cluster.amqp()[0];
        // 256 MiB wait in the queue; the consumer asks for all of it, without acks, and reads nothing.
        fill(&cluster.amqp(), "much", 0..4_096, 64 << 10).await?;
        let before = resident_bytes(cluster.gateway(0)?.pid())?;
        let mut raw = Raw::with_channel(address).await?;
        let arguments = [vec![0, 0], short("much"), short(""), vec![2], vec![0; 4]].concat();
        raw.send(&call(1, method::CONSUME, &arguments)).await?;
        let watched = Instant::now();
        let mut peak = before;
        while watched.elapsed() < Duration::from_secs(6) {
            peak = peak.max(resident_bytes(cluster.gateway(0)?.pid())?);
            others_work(address).await?;
        }
        println!("resident before {} MiB, peak {} MiB", before >> 20, peak >> 20);
        let grown = peak.saturating_sub(before);
        ensure!(grown < NOT_READING_BYTES_MAX, "a client that does not read cost {grown} bytes");
        // It was served all the time: what the sockets hold is messages.
        while raw.frame().await?.0 != BODY {}
        Ok(())
    })
}

#[test]
fn input_ten_thousand_silent_connections() -> Result<()> {
    // One end of each connection here and one in the gateway, and what the parts need.
    longshore_tests::system::process::raise_open_files(SILENT as u64 + 1_000)?;
    run("silent", LIMIT, async |dir| {
        let mut cluster = Cluster::prepare(dir, 1, &[])?;
        // They are hung up on once their time for the handshake is over: not before all are there.
        cluster.set_gateways("gateway.amqp.handshake_ms_max=25000");
        cluster.start_all().await?;
        let address = cluster.amqp()[0].clone();
        let gateway = cluster.gateway(0)?.pid();
        let steady = connect(std::slice::from_ref(&address)).await?;
        let channel = steady.create_channel().await?;
        declare(&channel, "steady").await?;
        others_work(&address).await?;
        let (before, start) = (resident_bytes(gateway)?, Instant::now());
        let mut silent = Vec::with_capacity(SILENT);
        while silent.len() < SILENT {
            let more = (0..AT_ONCE).map(|_| Raw::silent(&address));
            silent.extend(futures_util::future::try_join_all(more).await?);
        }
        until("the gateway to have all of them", Duration::from_secs(20), async || {
            let open = std::fs::read_dir(format!("/proc/{gateway}/fd"))?.count();
            Ok((open > SILENT).then_some(()))
        })
        .await?;
        let grown = resident_bytes(gateway)?.saturating_sub(before);
        println!("{SILENT} connections in {:?}, {} KiB in the gateway", start.elapsed(), grown >> 10);
        ensure!(grown < SILENT as u64 * SILENT_BYTES_MAX, "{SILENT} silent connections cost {grown} bytes");
        others_work(&address).await?;
        declare(&channel, "steady").await?;
        let mut last = silent.pop().context("connections")?;
        until("silent connections to be hung up on", Duration::from_secs(40), async || {
            Ok(last.rest().await.ok())
        })
        .await?;
        others_work(&address).await?;
        ensure!(steady.status().connected(), "a client that behaves lost its connection");
        Ok(())
    })
}
