//! The client suites: unchanged clients in five languages run the same table of assertions.
//!
//! `tests/clients/table.txt` names the assertions. A suite prints `ok NAME` or `not ok NAME reason` per assertion; one that
//! is missing fails like one that went wrong. What a suite needs is installed from its registry into the build folder.
//! The suites of `tests/clients/extras` are other people's programs; each names what it checks in a file `expected.txt`.

use crate::run;
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A client suite: its folder below `tests/clients`, and the programs that must exist.
/// The folder's `run.sh` installs it when called with `setup WORK`, and prints the assertions when called with `run WORK URI`.
struct Suite {
    name: &'static str,
    needs: &'static [&'static str],
}

const SUITES: [Suite; 8] = [
    Suite { name: "python", needs: &["python3"] },
    Suite { name: "go", needs: &["go"] },
    Suite { name: "node", needs: &["node", "npm"] },
    Suite { name: "java", needs: &["java", "javac", "mvn"] },
    Suite { name: "rust", needs: &["cargo"] },
    Suite { name: "extras/perftest", needs: &["java", "mvn"] },
    Suite { name: "extras/celery", needs: &["python3"] },
    Suite { name: "extras/amqp091-go-tests", needs: &["go"] },
];

impl Suite {
    fn dir(&self) -> PathBuf {
        run::root().join("tests/clients").join(self.name)
    }

    /// The assertions it must pass: those of its `expected.txt` if it has one, else the common table.
    fn assertions(&self) -> Result<BTreeSet<String>> {
        let own = self.dir().join("expected.txt");
        let path = if own.exists() { own } else { run::root().join("tests/clients/table.txt") };
        let text = fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
        let names = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split_whitespace().next());
        Ok(names.map(str::to_owned).collect())
    }
}

/// Runs the suites named, or all, against a `longshore dev` of their own.
pub fn run(names: &[&str]) -> Result<()> {
    if let Some(unknown) = names.iter().find(|name| SUITES.iter().all(|suite| suite.name != **name)) {
        let known: Vec<&str> = SUITES.iter().map(|suite| suite.name).collect();
        bail!("no client suite {unknown}: there are {}", known.join(", "));
    }
    run::step("release build", "cargo", &["build", "--release", "--quiet", "-p", "longshore"], &[])?;
    let mut ran = 0;
    for suite in SUITES.iter().filter(|suite| names.is_empty() || names.contains(&suite.name)) {
        let missing: Vec<_> = suite.needs.iter().filter(|program| !run::has(program)).collect();
        if !missing.is_empty() {
            if run::is_ci() {
                bail!("client suite {}: {missing:?} not installed, and CI skips nothing", suite.name);
            }
            println!("== client suite {}: SKIPPED, {missing:?} not installed", suite.name);
            continue;
        }
        ran += run_suite(suite)?;
    }
    println!("{ran} passed, 0 failed");
    Ok(())
}

/// Runs a suite against a broker of its own; answers how many assertions passed.
fn run_suite(suite: &Suite) -> Result<usize> {
    println!("== client suite {}", suite.name);
    let table = suite.assertions()?;
    let dir = suite.dir();
    let work = run::target_dir().join("clients").join(suite.name);
    fs::create_dir_all(&work)?;
    let script = dir.join("run.sh");
    let status = Command::new("bash").arg(&script).arg("setup").arg(&work).current_dir(&dir).status()?;
    if !status.success() {
        bail!(
            "client suite {}: setup failed; repeat with: bash {} setup {}",
            suite.name,
            script.display(),
            work.display()
        );
    }
    let broker = Broker::start(&work)?;
    let output = Command::new("bash")
        .arg(&script)
        .arg("run")
        .arg(&work)
        .arg(format!("amqp://guest:guest@127.0.0.1:{}", broker.amqp_port))
        .current_dir(&dir)
        .stderr(Stdio::inherit())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let passed: BTreeSet<String> =
        text.lines().filter_map(|line| line.strip_prefix("ok ")).map(|rest| rest.trim().to_owned()).collect();
    for line in text.lines().filter(|line| line.starts_with("not ok")) {
        eprintln!("   {line}");
    }
    let missing: Vec<_> = table.difference(&passed).collect();
    if !missing.is_empty() || !output.status.success() {
        bail!(
            "client suite {}: {} of {} assertions passed, without {missing:?}; broker log: {}",
            suite.name,
            passed.len(),
            table.len(),
            broker.log.display()
        );
    }
    println!("   {} assertions", passed.len());
    Ok(table.len())
}

/// A `longshore dev` on free ports with a fresh data directory, ended when dropped.
struct Broker {
    child: std::process::Child,
    amqp_port: u16,
    log: PathBuf,
}

impl Broker {
    fn start(work: &Path) -> Result<Broker> {
        let data = work.join("data");
        let _ = fs::remove_dir_all(&data);
        let offset = free_offset()?;
        let log = work.join("longshore.log");
        let mut child = Command::new(run::target_dir().join("release/longshore"))
            .args(["dev", "--data-dir"])
            .arg(&data)
            .args(["--port-offset", &offset.to_string()])
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&log)?)
            .spawn()
            .context("cannot start longshore dev")?;
        let stdout = child.stdout.take().context("no output")?;
        let mut lines = BufReader::new(stdout).lines();
        if !lines.by_ref().map_while(|line| line.ok()).any(|line| line == "ready") {
            let _ = child.kill();
            bail!("longshore dev ended before it was ready; see {}", log.display());
        }
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Broker { child, amqp_port: 5672 + offset, log })
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An offset at which the ports of AMQP, management and the storage nodes are free now.
fn free_offset() -> Result<u16> {
    let start = (std::process::id() % 200) as u16 * 20;
    (0..200)
        .map(|n| 1_000 + (start + n * 20) % 4_000 + 10_000)
        .find(|offset| {
            [5671, 5672, 7400, 7401, 7402, 15672]
                .iter()
                .all(|port| std::net::TcpListener::bind(("127.0.0.1", port + offset)).is_ok())
        })
        .context("no free ports")
}
