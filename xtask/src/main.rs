//! The developers' commands: `cargo xtask COMMAND`. Each says what it does before it does it.
//!
//! | command | what |
//! |---|---|
//! | `check` | format, clippy, tidy, unit tests, the simulation, the broken builds |
//! | `test` | all of that, then whole-system tests and the clients in five languages |
//! | `sim [SEED]` | the simulation: all seeds of CI, or one again |
//! | `chaos` | the fault tests at full size |
//! | `fixture` | a data directory of the present formats for `tests/fixtures` |
//! | `clients [NAME...]` | the clients in five languages |
//! | `tidy` | our own rules over the source text |

mod clients;
mod run;
mod tidy;

use anyhow::{Result, bail};

const USAGE: &str = "usage: cargo xtask check | test [--no-clients] | sim [SEED] | chaos | fixture | clients [NAME...] | tidy";

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["tidy"] => tidy::run(),
        ["check"] => check(),
        ["test"] => {
            check()?;
            system()?;
            clients::run(&[])
        }
        ["test", "--no-clients"] => {
            check()?;
            system()
        }
        ["sim"] => sim(None),
        ["sim", seed] => sim(Some(seed)),
        ["chaos"] => chaos(),
        ["fixture"] => fixture(),
        ["clients", names @ ..] => clients::run(names),
        _ => bail!(USAGE),
    }
}

/// What is quick: everything that needs no process of its own.
fn check() -> Result<()> {
    run::step("format", "cargo", &["fmt", "--all", "--check"], &[])?;
    run::step(
        "clippy, warnings refused",
        "cargo",
        &["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"],
        &[],
    )?;
    tidy::run()?;
    run::step(
        "unit tests",
        "cargo",
        &["test", "--workspace", "--exclude", "longshore-tests", "--quiet"],
        &[],
    )?;
    sim(None)?;
    broken_builds()
}

/// One more build, broken on purpose in one way after the other: the simulation must see each, and the tests next to the
/// code those that are theirs.
fn broken_builds() -> Result<()> {
    for (package, test) in [
        ("longshore-consensus", &["--test", "cluster", "broken"][..]),
        ("longshore-shard", &["--test", "mutations"]),
        ("longshore-delivery", &["--test", "delivery", "a_reused_lease_is_seen"]),
    ] {
        let build = ["test", "--quiet", "-p", package, "--features", "mutations"];
        run::step(&format!("broken builds of {package}"), "cargo", &[&build[..], test].concat(), &[])?;
    }
    let test = ["test", "--profile", "sim", "--quiet", "-p", "longshore-tests", "--features", "mutations"];
    run::step("broken builds", "cargo", &[&test[..], &["--test", "broken_builds"]].concat(), &[])
}

/// The simulation; a failing seed is printed with the command that repeats it.
fn sim(seed: Option<&str>) -> Result<()> {
    let env: Vec<(&str, &str)> = seed.map(|seed| ("LONGSHORE_SIM_SEED", seed)).into_iter().collect();
    run::step(
        "simulation",
        "cargo",
        &["test", "--profile", "sim", "--quiet", "-p", "longshore-tests", "--test", "simulation"],
        &env,
    )
}

/// Real processes of the release build, real clients, kill -9.
fn system() -> Result<()> {
    run::step("release build", "cargo", &["build", "--release", "--quiet", "-p", "longshore"], &[])?;
    let tests = ["test", "--quiet", "-p", "longshore-tests", "--test", "system", "--", "--test-threads", "2"];
    let first = run::step("whole-system tests", "cargo", &tests, &[]);
    if let Err(error) = first {
        // Real processes on a busy machine: one more try tells a fault from a slow minute. Both outcomes are shown.
        println!("   FIRST TRY FAILED, read it: {error:#}");
        return run::step("whole-system tests, second try", "cargo", &tests, &[]);
    }
    Ok(())
}

/// The fault tests at full size.
fn chaos() -> Result<()> {
    run::step("release build", "cargo", &["build", "--release", "--quiet", "-p", "longshore"], &[])?;
    run::step(
        "fault tests at full size",
        "cargo",
        &[
            "test",
            "-p",
            "longshore-tests",
            "--test",
            "system",
            "--",
            "--test-threads",
            "1",
            "--nocapture",
            "fault",
        ],
        &[("LONGSHORE_CHAOS", "full")],
    )
}

/// What every later build must open. Once a format was released its fixture is never made again.
fn fixture() -> Result<()> {
    run::step("release build", "cargo", &["build", "--release", "--quiet", "-p", "longshore"], &[])?;
    let test = ["--", "--ignored", "--exact", "--nocapture", "fixture::fixture_is_made"];
    let tests = ["test", "-p", "longshore-tests", "--test", "system"];
    run::step("fixture", "cargo", &[&tests[..], &test[..]].concat(), &[])
}
