//! `longshore-bench`: the disk probe, the floor without Raft, an AMQP driver for any broker, and the comparison.
//!
//! Wiring only; every subcommand prints one JSON object a line on standard output, except `compare`, which prints
//! tables and writes its raw rows to a file. See `bench/README.md`.
#![forbid(unsafe_code)]

mod amqp;
mod clock;
mod compare;
mod floor;
mod histogram;
mod probe;
mod proc;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Measures disks, the floor, and AMQP brokers side by side.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// How fast the disk makes writes durable, by size.
    Probe(probe::ProbeArgs),
    /// Three processes that write, sync and acknowledge at a majority, without Raft.
    Floor(floor::FloorArgs),
    /// A follower of `floor`; started by it.
    #[command(hide = true)]
    FloorFollower(floor::FollowerArgs),
    /// Load on any AMQP 0-9-1 broker.
    Amqp {
        #[command(subcommand)]
        mode: amqp::Mode,
    },
    /// RabbitMQ or NATS and Longshore in turn, in pairs; prints medians and ratios.
    Compare(compare::CompareArgs),
    /// Start one system, run commands of this program against it, stop it.
    With(compare::WithArgs),
}

fn main() -> Result<()> {
    match Args::parse().command {
        Command::Probe(args) => probe::run(&args),
        Command::Floor(args) => floor::run(&args),
        Command::FloorFollower(args) => floor::follower(&args),
        Command::Amqp { mode } => amqp::run(mode),
        Command::Compare(args) => compare::run(&args),
        Command::With(args) => compare::with(&args),
    }
}
