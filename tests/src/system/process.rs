//! One process of the binary: started, watched until it prints `ready`, killed, stopped, ended when dropped.

use super::{binary, until};
use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

/// A start to `ready`, with other work on the machine.
const READY_TIME: Duration = Duration::from_secs(40);
/// Ports are handed out from here, below those that the system gives to outgoing connections: a process that is
/// down for a while must find its port free again.
const PORTS: std::ops::Range<u16> = 10_000..30_000;

/// A running process.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    output: PathBuf,
}

impl Process {
    /// Starts `longshore ARGS...`; what it prints is appended to `dir/NAME.log`. Does not wait.
    pub fn spawn(dir: &Path, name: &str, args: &[String]) -> Result<Process> {
        let mut command = Command::new(binary()?);
        command.args(args);
        Process::spawn_command(dir, name, command)
    }

    /// The same for any command line, for example one under strace.
    pub fn spawn_command(dir: &Path, name: &str, mut command: Command) -> Result<Process> {
        let output = dir.join(format!("{name}.log"));
        let log = |path: &Path| OpenOptions::new().create(true).append(true).open(path);
        let file = log(&output).with_context(|| format!("cannot write {}", output.display()))?;
        // What was printed before a restart must not count as this start's `ready`.
        let printed = dir.join(format!("{name}.out"));
        let ours = |(key, _): &(OsString, OsString)| key.to_string_lossy().starts_with("LONGSHORE_");
        for (key, _) in std::env::vars_os().filter(ours) {
            command.env_remove(key);
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(File::create(&printed)?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Process { name: name.to_owned(), child, output: printed })
    }

    /// Starts and waits for `ready`.
    pub async fn start(dir: &Path, name: &str, args: &[String]) -> Result<Process> {
        let mut process = Process::spawn(dir, name, args)?;
        process.ready().await?;
        Ok(process)
    }

    /// Waits until it printed `ready`. Errors: it ended, or took too long.
    pub async fn ready(&mut self) -> Result<()> {
        let (name, output) = (self.name.clone(), self.output.clone());
        until(&format!("{name} to be ready"), READY_TIME, async || {
            let printed = std::fs::read_to_string(&output).unwrap_or_default();
            if printed.lines().any(|line| line == "ready") {
                return Ok(Some(Ok(())));
            }
            match self.child.try_wait()? {
                Some(status) => Ok(Some(Err(anyhow::anyhow!("{name} ended: {status}")))),
                None => Ok(None),
            }
        })
        .await?
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// kill -9, and waits for its end.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Sends a signal by its name (`STOP`, `CONT`, `TERM`).
    pub fn signal(&self, signal: &str) -> Result<()> {
        let status = Command::new("sh").arg("-c").arg(format!("kill -{signal} {}", self.pid())).status()?;
        if !status.success() {
            bail!("kill -{signal} of {}: {status}", self.name);
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that nothing listens on, handed out once per test run.
pub fn free_port() -> Result<u16> {
    free_ports(&[0])
}

/// A base such that base + each of `offsets` is free; the bases are 100 apart.
pub fn free_ports(offsets: &[u16]) -> Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let span = PORTS.end - PORTS.start;
    let start = (std::process::id() % 97) as u16 * 200;
    let step = offsets.iter().max().copied().unwrap_or(0) + 1;
    for _ in 0..span {
        let next = NEXT.fetch_add(step, Ordering::Relaxed);
        let base = PORTS.start + (start.wrapping_add(next)) % span;
        if offsets.iter().all(|offset| TcpListener::bind(("127.0.0.1", base + offset)).is_ok()) {
            return Ok(base);
        }
    }
    bail!("no free ports")
}

/// Lets this process, and those that it starts, have at least `files` open files. Errors: the system's own limit is
/// lower.
pub fn raise_open_files(files: u64) -> Result<()> {
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    if limit.current.is_none_or(|current| current >= files) {
        return Ok(());
    }
    limit.current = Some(files);
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit)
        .with_context(|| format!("{files} open files are needed"))
}
