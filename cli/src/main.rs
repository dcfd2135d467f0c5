//! The `longshore` command: wiring only. Each subcommand is a file; what it starts lives in its own crate.
#![forbid(unsafe_code)]

mod admin;
mod args;
mod config;
mod dev;
mod logging;
mod part;
mod show;

use clap::Parser;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    longshore_gateway::contain::abort_on_others();
    let args = args::Args::parse();
    match args.run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("longshore: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
