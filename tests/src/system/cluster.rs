//! Storage nodes, three unless said otherwise, and some gateways, each a process of its own; and everything in one process.

use super::process::{Process, free_port, free_ports};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// The ports of `longshore dev` before its `--port-offset`, seen from the lowest: AMQPS, AMQP, storage x3, management.
const DEV_PORTS: [u16; 6] = [5_671, 5_672, 7_400, 7_401, 7_402, 15_672];

/// Storage nodes and gateways on loopback. Nodes and gateways are named by their place in the list.
#[derive(Debug)]
pub struct Cluster {
    dir: PathBuf,
    settings: Vec<String>,
    node_settings: Vec<Vec<String>>,
    gateway_settings: Vec<String>,
    node_addresses: Vec<String>,
    node_http_ports: Vec<u16>,
    gateway_ports: Vec<(u16, u16)>,
    nodes: Vec<Option<Process>>,
    gateways: Vec<Option<Process>>,
}

fn set(key: &str, value: impl std::fmt::Display) -> [String; 2] {
    ["--set".to_owned(), format!("{key}={value}")]
}

impl Cluster {
    /// Three nodes and `gateways` gateways, ready. `settings` (`key=value`) are given to every node.
    pub async fn start(dir: &Path, gateways: usize, settings: &[&str]) -> Result<Cluster> {
        let mut cluster = Cluster::prepare(dir, gateways, settings)?;
        cluster.start_all().await?;
        Ok(cluster)
    }

    /// Gives every gateway that is started from now on a setting (`key=value`).
    pub fn set_gateways(&mut self, setting: &str) {
        self.gateway_settings.push(setting.to_owned());
    }

    /// Gives one node, when it is started next, a setting (`key=value`).
    pub fn set_node(&mut self, n: usize, setting: &str) {
        self.node_settings[n].push(setting.to_owned());
    }

    /// How many nodes there are, running or not.
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// A node will be at another address when it is started next.
    pub fn move_node(&mut self, n: usize) -> Result<()> {
        self.node_addresses[n] = format!("127.0.0.1:{}", free_port()?);
        Ok(())
    }

    /// Starts every node and gateway, and waits until all are ready.
    pub async fn start_all(&mut self) -> Result<()> {
        for n in 0..self.nodes.len() {
            self.spawn_node(n)?;
        }
        for n in 0..self.nodes.len() {
            self.node_ready(n).await?;
        }
        for n in 0..self.gateways.len() {
            self.start_gateway(n).await?;
        }
        Ok(())
    }

    /// Ports and names; nothing runs yet.
    pub fn prepare(dir: &Path, gateways: usize, settings: &[&str]) -> Result<Cluster> {
        Cluster::prepare_nodes(dir, 3, gateways, settings)
    }

    /// The same with as many nodes.
    pub fn prepare_nodes(dir: &Path, nodes: usize, gateways: usize, settings: &[&str]) -> Result<Cluster> {
        let addresses = (0..nodes).map(|_| Ok(format!("127.0.0.1:{}", free_port()?)));
        Cluster::prepare_at(dir, addresses.collect::<Result<Vec<_>>>()?, gateways, settings)
    }

    /// The same with the nodes at these addresses: those of a data directory that was made elsewhere, which names them.
    pub fn prepare_at(
        dir: &Path,
        node_addresses: Vec<String>,
        gateways: usize,
        settings: &[&str],
    ) -> Result<Cluster> {
        let node_http_ports = node_addresses.iter().map(|_| free_port()).collect::<Result<Vec<_>>>()?;
        let gateway_ports =
            (0..gateways).map(|_| Ok((free_port()?, free_port()?))).collect::<Result<Vec<_>>>()?;
        Ok(Cluster {
            dir: dir.to_owned(),
            settings: settings.iter().map(|setting| (*setting).to_owned()).collect(),
            node_settings: node_addresses.iter().map(|_| Vec::new()).collect(),
            gateway_settings: Vec::new(),
            nodes: node_addresses.iter().map(|_| None).collect(),
            gateways: gateway_ports.iter().map(|_| None).collect(),
            node_addresses,
            node_http_ports,
            gateway_ports,
        })
    }

    /// `HOST:PORT` of a node's gRPC listener.
    pub fn node_address(&self, n: usize) -> String {
        self.node_addresses[n].clone()
    }

    /// `127.0.0.1:PORT` of a node's health and metrics.
    pub fn node_http(&self, n: usize) -> String {
        format!("127.0.0.1:{}", self.node_http_ports[n])
    }

    /// Where a node keeps its data.
    pub fn data_dir(&self, n: usize) -> PathBuf {
        self.dir.join(format!("node{n}"))
    }

    /// The AMQP addresses of all gateways, running or not.
    pub fn amqp(&self) -> Vec<String> {
        self.gateway_ports.iter().map(|(amqp, _)| format!("127.0.0.1:{amqp}")).collect()
    }

    /// The management address of a gateway.
    pub fn management(&self, n: usize) -> String {
        format!("http://127.0.0.1:{}", self.gateway_ports[n].1)
    }

    /// The command line of a node, after the binary's name.
    pub fn node_args(&self, n: usize) -> Vec<String> {
        let addresses: Vec<String> =
            self.node_addresses.iter().map(|address| format!("\"{address}\"")).collect();
        let mut args = vec!["storage-node".to_owned()];
        args.extend(set("storage.data_dir", self.data_dir(n).display()));
        args.extend(set("storage.listen", self.node_address(n)));
        args.extend(set("storage.http_listen", self.node_http(n)));
        args.extend(set("storage.initial_nodes", format!("[{}]", addresses.join(","))));
        args.extend(set("storage.administrator", "guest"));
        args.extend(set("storage.administrator_password", "guest"));
        let own = self.settings.iter().chain(&self.node_settings[n]);
        args.extend(own.flat_map(|setting| ["--set".to_owned(), setting.clone()]));
        args
    }

    fn gateway_args(&self, n: usize) -> Vec<String> {
        let addresses: Vec<String> =
            self.node_addresses.iter().map(|address| format!("\"{address}\"")).collect();
        let mut args = vec!["gateway".to_owned()];
        args.extend(set("gateway.storage_nodes", format!("[{}]", addresses.join(","))));
        args.extend(set("gateway.amqp.listen", &self.amqp()[n]));
        args.extend(set("gateway.http.listen", format!("127.0.0.1:{}", self.gateway_ports[n].1)));
        args.extend(self.gateway_settings.iter().flat_map(|setting| ["--set".to_owned(), setting.clone()]));
        args
    }

    /// Starts a node without waiting.
    pub fn spawn_node(&mut self, n: usize) -> Result<()> {
        self.nodes[n] = Some(Process::spawn(&self.dir, &format!("node{n}"), &self.node_args(n))?);
        Ok(())
    }

    /// Puts a process that was started otherwise in a node's place.
    pub fn adopt_node(&mut self, n: usize, process: Process) {
        self.nodes[n] = Some(process);
    }

    /// Waits for a node's `ready`.
    pub async fn node_ready(&mut self, n: usize) -> Result<()> {
        self.nodes[n].as_mut().context("the node does not run")?.ready().await
    }

    /// Starts a node and waits.
    pub async fn start_node(&mut self, n: usize) -> Result<()> {
        self.spawn_node(n)?;
        self.node_ready(n).await
    }

    /// Starts a gateway and waits.
    pub async fn start_gateway(&mut self, n: usize) -> Result<()> {
        let args = self.gateway_args(n);
        self.gateways[n] = Some(Process::start(&self.dir, &format!("gateway{n}"), &args).await?);
        Ok(())
    }

    /// kill -9 of a node.
    pub fn kill_node(&mut self, n: usize) -> Result<()> {
        self.nodes[n].take().context("the node does not run")?.kill()
    }

    /// kill -9 of a gateway.
    pub fn kill_gateway(&mut self, n: usize) -> Result<()> {
        self.gateways[n].take().context("the gateway does not run")?.kill()
    }

    /// kill -9 of everything at once: the signals leave before the first end is awaited.
    pub fn kill_all(&mut self) -> Result<()> {
        let all: Vec<Process> =
            self.nodes.iter_mut().chain(&mut self.gateways).filter_map(Option::take).collect();
        for process in &all {
            process.signal("KILL")?;
        }
        Ok(())
    }

    /// A running node.
    pub fn node(&self, n: usize) -> Result<&Process> {
        self.nodes[n].as_ref().context("the node does not run")
    }

    /// A running gateway.
    pub fn gateway(&self, n: usize) -> Result<&Process> {
        self.gateways[n].as_ref().context("the gateway does not run")
    }

    /// SIGTERM to everything, gateways first, and waits until all have ended.
    pub async fn stop_all(&mut self) -> Result<()> {
        for processes in [&mut self.gateways, &mut self.nodes] {
            let mut all: Vec<Process> = processes.iter_mut().filter_map(Option::take).collect();
            for process in &all {
                process.signal("TERM")?;
            }
            super::until("processes to stop", std::time::Duration::from_secs(20), async || {
                Ok((!all.iter_mut().any(Process::runs)).then_some(()))
            })
            .await?;
        }
        Ok(())
    }

    /// Bytes that a node's data directory takes on disk.
    pub fn disk_bytes(&self, n: usize) -> u64 {
        disk_bytes(&self.data_dir(n))
    }
}

fn disk_bytes(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => disk_bytes(&entry.path()),
        Ok(meta) => meta.blocks() * 512,
        Err(_) => 0,
    });
    sizes.sum()
}

/// `longshore dev`.
#[derive(Debug)]
pub struct Dev {
    dir: PathBuf,
    offset: u16,
    process: Option<Process>,
}

impl Dev {
    /// Starts it with its data in `dir/data` and waits.
    pub async fn start(dir: &Path) -> Result<Dev> {
        let lowest = DEV_PORTS[0];
        let base = free_ports(&DEV_PORTS.map(|port| port - lowest))?;
        let mut dev = Dev { dir: dir.to_owned(), offset: base - lowest, process: None };
        dev.restart().await?;
        Ok(dev)
    }

    /// Starts it again on the same data.
    pub async fn restart(&mut self) -> Result<()> {
        let data = self.dir.join("data").display().to_string();
        let args = ["dev", "--data-dir", &data, "--port-offset", &self.offset.to_string()].map(str::to_owned);
        self.process = Some(Process::start(&self.dir, "dev", &args).await?);
        Ok(())
    }

    /// kill -9.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("dev does not run")?.kill()
    }

    /// Its AMQP address.
    pub fn amqp(&self) -> String {
        format!("127.0.0.1:{}", 5_672 + self.offset)
    }

    /// Its management address.
    pub fn management(&self) -> String {
        format!("http://127.0.0.1:{}", 15_672 + self.offset)
    }
}
