//! One system, and commands of this program against it: for the claims that are no row of the comparison.

use super::systems::{PlaceArgs, Running, System};
use anyhow::{Context, Result, bail};
use clap::Args;
use std::process::Command;

/// Between two commands.
const NEXT: &str = "+";
/// The command that is not one of the program's.
const RESTART: &str = "restart";

/// Flags of `with`.
#[derive(Debug, Args)]
pub struct WithArgs {
    /// What to start, on empty data.
    #[arg(value_enum)]
    system: System,
    #[command(flatten)]
    places: PlaceArgs,
    /// Commands, with `+` between them; `@uri` and `@pids` stand for the system's; `restart` restarts Longshore.
    #[arg(last = true, required = true)]
    commands: Vec<String>,
}

/// Runs the subcommand; the commands print their own reports.
pub fn run(args: &WithArgs) -> Result<()> {
    let places = args.places.places()?;
    let mut running = args.system.start(&places)?;
    for command in args.commands.split(|word| word == NEXT) {
        if command == [RESTART] {
            let (again, time) = running.restart(&places)?;
            running = again;
            println!("{}", serde_json::json!({ "restart_to_ready_s": time.as_secs_f64() }));
        } else {
            execute(command, &running)?;
        }
    }
    Ok(())
}

fn execute(command: &[String], running: &Running) -> Result<()> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let status = Command::new(program).args(filled_in(command, running)).status()?;
    if !status.success() {
        bail!("{} failed: {status}", command.join(" "));
    }
    Ok(())
}

fn filled_in(command: &[String], running: &Running) -> Vec<String> {
    let pids: Vec<String> = running.pids.iter().map(u32::to_string).collect();
    let words = command.iter().map(|word| match word.as_str() {
        "@uri" => running.uris.join(","),
        "@pids" => pids.join(","),
        other => other.to_owned(),
    });
    words.collect()
}
