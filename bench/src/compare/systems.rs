//! Starting and stopping what is compared: the peers by the scripts of their folder, Longshore as four processes of
//! its binary. Whatever was started is stopped when its value goes, and only that.

use crate::amqp;
use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

/// Nodes of each system.
const NODES: u16 = 3;
/// A part is ready within this time.
const READY_TIME: Duration = Duration::from_secs(60);
/// SIGKILL follows SIGTERM after this time.
const STOP_TIME: Duration = Duration::from_secs(12);
const PASSWORD: &str = "guest";

/// Something that can be started and measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum System {
    /// Three clustered nodes.
    #[value(name = "rabbitmq")]
    RabbitMq,
    /// Three servers, synced always.
    Nats,
    /// Three storage nodes and a gateway.
    Longshore,
}

/// Flags that say where programs and data are.
#[derive(Debug, Args)]
pub struct PlaceArgs {
    /// The folder of scripts that start peers (see README.md); else the variable `PEERS_DIR`. Longshore alone needs none.
    #[arg(long)]
    peers_dir: Option<PathBuf>,
    /// Where those scripts install and keep data; default: `PEERS_WORK`, else `/tmp/peers` (their own default).
    #[arg(long)]
    peers_work: Option<PathBuf>,
    /// The release binary.
    #[arg(long, default_value = "target/release/longshore")]
    longshore: PathBuf,
    /// A setting for storage nodes and gateway, as `longshore --set`; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// First of the ports that Longshore gets; eight are used.
    #[arg(long, default_value_t = 17_400)]
    port_base: u16,
    /// Data of Longshore, and the file of the probe: on the disk that the peers use, too.
    #[arg(long, default_value = "target/bench")]
    dir: PathBuf,
}

impl PlaceArgs {
    /// The places, by flag, variable or default.
    ///
    /// Errors: there is no release binary.
    pub fn places(&self) -> Result<Places> {
        if !self.longshore.is_file() {
            bail!(
                "{} does not exist: cargo build --release -p longshore, or --longshore",
                self.longshore.display()
            );
        }
        let chosen = |flag: &Option<PathBuf>, variable: &str| {
            flag.clone().or_else(|| std::env::var_os(variable).map(PathBuf::from))
        };
        Ok(Places {
            peers_dir: chosen(&self.peers_dir, "PEERS_DIR"),
            peers_work: chosen(&self.peers_work, "PEERS_WORK").unwrap_or_else(|| "/tmp/peers".into()),
            longshore: self.longshore.clone(),
            settings: self.settings.clone(),
            port_base: self.port_base,
            dir: self.dir.clone(),
        })
    }
}

/// Where programs and data are.
#[derive(Clone, Debug)]
pub struct Places {
    /// The peers' scripts, if it was said where they are.
    pub peers_dir: Option<PathBuf>,
    /// Their data and programs.
    pub peers_work: PathBuf,
    /// Longshore's binary.
    pub longshore: PathBuf,
    /// Settings beyond the addresses.
    pub settings: Vec<String>,
    /// Longshore's first port.
    pub port_base: u16,
    /// Longshore's data.
    pub dir: PathBuf,
}

/// A system that runs; stops with this value.
#[derive(Debug)]
pub struct Running {
    /// Which.
    pub system: System,
    /// Its brokers' processes.
    pub pids: Vec<u32>,
    /// Where its clients connect.
    pub uris: Vec<String>,
    /// Where Longshore's storage nodes answer HTTP; empty for the others.
    pub metrics: Vec<String>,
    /// Of Longshore: storage nodes first, the gateway last.
    children: Vec<Child>,
    stop_script: Option<PathBuf>,
    peers_work: PathBuf,
}

impl System {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            System::RabbitMq => "rabbitmq",
            System::Nats => "nats",
            System::Longshore => "longshore",
        }
    }

    /// Errors: the scripts that a peer is started by are not there. To be asked before the first measurement.
    pub fn check_scripts(self, places: &Places) -> Result<()> {
        if self != System::Longshore {
            script(places, self.name(), "start.sh")?;
            script(places, self.name(), "stop.sh")?;
        }
        Ok(())
    }

    /// Starts it with empty data and waits until it serves.
    pub fn start(self, places: &Places) -> Result<Running> {
        match self {
            System::RabbitMq => start_peer(self, places, &["3"], "amqp://guest:guest@127.0.0.1", 5_681),
            System::Nats => start_peer(self, places, &["3", "always"], "nats://127.0.0.1", 14_221),
            System::Longshore => start_longshore(places, Data::Empty),
        }
        .with_context(|| format!("cannot start {}", self.name()))
    }
}

fn script(places: &Places, folder: &str, name: &str) -> Result<PathBuf> {
    let dir = places.peers_dir.as_ref();
    let dir = dir.context("where are the scripts that start peers? Set PEERS_DIR or --peers-dir")?;
    let path = dir.join(folder).join(name);
    let found = path.canonicalize();
    found.with_context(|| format!("{} is missing: set PEERS_DIR or --peers-dir", path.display()))
}

fn start_peer(system: System, places: &Places, args: &[&str], uri: &str, port: u16) -> Result<Running> {
    let (start, stop) =
        (script(places, system.name(), "start.sh")?, script(places, system.name(), "stop.sh")?);
    for n in 0..NODES {
        // Another broker on a node's port would be measured in its place.
        if TcpStream::connect(("127.0.0.1", port + n)).is_ok() {
            bail!("something listens on port {} already: stop it first", port + n);
        }
    }
    let status = Command::new(&start)
        .args(args)
        .env("PEERS_WORK", &places.peers_work)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .with_context(|| format!("cannot run {}", start.display()))?;
    let mut running = Running {
        system,
        pids: Vec::new(),
        uris: (0..NODES).map(|n| format!("{uri}:{}", port + n)).collect(),
        metrics: Vec::new(),
        children: Vec::new(),
        stop_script: Some(stop),
        peers_work: places.peers_work.clone(),
    };
    if !status.success() {
        bail!(
            "{} failed; is it installed there ({}/install.sh), and none running?",
            start.display(),
            system.name()
        );
    }
    running.pids = peer_pids(system, places)?;
    Ok(running)
}

/// The processes of a peer: what its script recorded, and for RabbitMQ what each node wrote by itself, because a node
/// may accept clients before its pid file exists and then misses in the script's list, which is mended here.
fn peer_pids(system: System, places: &Places) -> Result<Vec<u32>> {
    let list = places.peers_work.join("run").join(format!("{}.pids", system.name()));
    let numbers = |path: &Path| -> Vec<u32> {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
    };
    let until = Instant::now() + READY_TIME;
    loop {
        let mut pids = numbers(&list);
        if system == System::RabbitMq {
            let data = places.peers_work.join("data").join(system.name());
            pids.extend((1..=NODES).flat_map(|n| numbers(&data.join(n.to_string()).join("pid"))));
        }
        pids.sort_unstable();
        pids.dedup();
        if pids.len() == usize::from(NODES) {
            let lines: Vec<String> = pids.iter().map(|pid| format!("{pid}\n")).collect();
            fs::write(&list, lines.concat()).with_context(|| format!("cannot write {}", list.display()))?;
            return Ok(pids);
        }
        if Instant::now() > until {
            bail!("{} names {} processes, expected {NODES}", list.display(), pids.len());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// What a start finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Data {
    Empty,
    Kept,
}

fn start_longshore(places: &Places, found: Data) -> Result<Running> {
    let data = places.dir.join("longshore");
    if found == Data::Empty && data.exists() {
        fs::remove_dir_all(&data).with_context(|| format!("cannot empty {}", data.display()))?;
    }
    fs::create_dir_all(&data)?;
    let address = |n: u16| format!("127.0.0.1:{}", places.port_base + n);
    let quoted: Vec<String> = (0..NODES).map(|n| format!("{:?}", address(n))).collect();
    let list = format!("[{}]", quoted.join(", "));
    let mut running = Running {
        system: System::Longshore,
        pids: Vec::new(),
        uris: vec![format!("amqp://guest:{PASSWORD}@{}", address(NODES))],
        metrics: (0..NODES).map(|n| address(NODES + 2 + n)).collect(),
        children: Vec::new(),
        stop_script: None,
        peers_work: PathBuf::new(),
    };
    let mut waits = Vec::new();
    for n in 0..NODES {
        let settings = [
            format!("storage.data_dir={:?}", data.join(format!("node{n}"))),
            format!("storage.listen={:?}", address(n)),
            format!("storage.http_listen={:?}", address(NODES + 2 + n)),
            format!("storage.initial_nodes={list}"),
            "storage.administrator=guest".to_owned(),
            format!("storage.administrator_password={PASSWORD}"),
            "storage.administrator_loopback_only=true".to_owned(),
        ];
        waits.push(running.spawn(places, "storage-node", &settings, &data.join(format!("node{n}.log")))?);
    }
    for ready in waits {
        ready.wait()?;
    }
    let settings = [
        format!("gateway.storage_nodes={list}"),
        format!("gateway.amqp.listen={:?}", address(NODES)),
        format!("gateway.http.listen={:?}", address(NODES + 1)),
    ];
    running.spawn(places, "gateway", &settings, &data.join("gateway.log"))?.wait()?;
    Ok(running)
}

impl Running {
    /// The nodes that store, without Longshore's gateway.
    pub fn storage_pids(&self) -> &[u32] {
        self.pids.get(..usize::from(NODES)).unwrap_or(&self.pids)
    }

    /// Product and version: RabbitMQ says its own to clients, the others to who asks their binary.
    pub fn version(&self, places: &Places) -> Result<String> {
        let binary = match self.system {
            System::RabbitMq => {
                let uri = self.uris.first().context("no address")?.parse()?;
                return amqp::on_one_thread(amqp::server_name(&uri));
            }
            System::Nats => places.peers_work.join("bin/nats-server"),
            System::Longshore => places.longshore.clone(),
        };
        let output = Command::new(&binary).arg("--version").output();
        let output = output.with_context(|| format!("cannot run {}", binary.display()))?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Stops Longshore and starts it again with its data; the new processes, and the time from the start of the first
    /// to `ready` of the last.
    ///
    /// Errors: the system is not Longshore; a part is not ready in time.
    pub fn restart(self, places: &Places) -> Result<(Running, Duration)> {
        if self.system != System::Longshore {
            bail!("only Longshore can be restarted with its data here");
        }
        drop(self);
        let began = Instant::now();
        let running = start_longshore(places, Data::Kept).context("cannot start longshore again")?;
        Ok((running, began.elapsed()))
    }

    fn spawn(
        &mut self,
        places: &Places,
        part: &'static str,
        settings: &[String],
        log: &Path,
    ) -> Result<Ready> {
        let mut command = Command::new(&places.longshore);
        command.arg(part).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(log)?);
        for setting in settings.iter().chain(&places.settings) {
            command.arg("--set").arg(setting);
        }
        let mut child =
            command.spawn().with_context(|| format!("cannot run {}", places.longshore.display()))?;
        let stdout = child.stdout.take();
        self.pids.push(child.id());
        self.children.push(child);
        let (send, lines) = sync_channel(1);
        std::thread::spawn(move || {
            // Reads to the end, so that the child never blocks on a full pipe.
            for line in stdout.into_iter().flat_map(|out| BufReader::new(out).lines()).map_while(Result::ok) {
                if line == "ready" {
                    let _ = send.try_send(());
                }
            }
        });
        Ok(Ready { part, lines, log: log.to_owned() })
    }
}

/// A part that was started.
struct Ready {
    part: &'static str,
    lines: std::sync::mpsc::Receiver<()>,
    log: PathBuf,
}

impl Ready {
    fn wait(&self) -> Result<()> {
        let waited = self.lines.recv_timeout(READY_TIME);
        waited.with_context(|| format!("the {} is not ready; its log: {}", self.part, self.log.display()))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(stop) = &self.stop_script {
            let status =
                Command::new(stop).env("PEERS_WORK", &self.peers_work).stdout(Stdio::null()).status();
            if !status.is_ok_and(|status| status.success()) {
                eprintln!("{} failed: stop {} by hand", stop.display(), self.system.name());
            }
        }
        // The gateway first, as an orderly stop wants it.
        for child in self.children.iter_mut().rev() {
            stop(child);
        }
    }
}

fn stop(child: &mut Child) {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // It may have ended by itself.
        let _ = kill_process(pid, Signal::TERM);
    }
    let until = Instant::now() + STOP_TIME;
    while Instant::now() < until {
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    let _ = child.wait();
}
