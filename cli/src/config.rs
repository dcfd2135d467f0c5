//! The one typed schema of settings, and where values come from: defaults, then a TOML file, then `LONGSHORE_...`
//! variables (`LONGSHORE_STORAGE__DATA_DIR` is `storage.data_dir`), then flags. Later ones win.
//!
//! An unknown key or an impossible value is an error that names the key and its source.

use anyhow::{Context, Result, bail};
use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};
use longshore_gateway::config::{GatewayConfig, TlsConfig};
use longshore_storage_node::config::StorageConfig;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Prefix of environment variables.
const ENV_PREFIX: &str = "LONGSHORE_";
/// Variables with that prefix that are not settings: tests and `dev` read them by themselves.
const ENV_OTHERS: [&str; 6] = ["dev_secret_id", "dev_secret_key", "sim_seed", "sim_seeds", "chaos", "log"];

/// Everything that can be set.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Threads for sockets and gRPC, at most 256; 0: half of the processors, at least one. A storage node's store and log
    /// threads come on top. More than needed cost: an event then wakes a second thread that finds nothing to do.
    pub threads: usize,
    /// Logging.
    pub log: LogConfig,
    /// Certificates of the links between the parts and of TLS listeners.
    pub tls: TlsConfig,
    /// The storage node.
    pub storage: StorageConfig,
    /// The gateway.
    pub gateway: GatewayConfig,
}

/// Logging, always to standard error.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// `error`, `warn`, `info`, `debug`, or directives as `info,longshore_amqp=debug`.
    pub level: String,
    /// One JSON object a line instead of text.
    pub json: bool,
}

impl Default for LogConfig {
    fn default() -> Self {
        LogConfig { level: "info".into(), json: false }
    }
}

impl Config {
    /// Reads file, environment and flags over the defaults, and checks the values.
    pub fn load(file: Option<&Path>, flags: Figment) -> Result<Config> {
        let mut figment = Figment::from(Serialized::defaults(Config::default()));
        if let Some(file) = file {
            if !file.is_file() {
                bail!("the configuration file {} does not exist", file.display());
            }
            figment = figment.merge(Toml::file_exact(file));
        }
        let env =
            Env::prefixed(ENV_PREFIX).filter(|key| !ENV_OTHERS.iter().any(|other| key == other)).split("__");
        let config: Config = figment.merge(env).merge(flags).extract().context("configuration")?;
        config.check()?;
        Ok(config)
    }

    /// How many threads [`Config::threads`] means on this machine.
    pub fn thread_count(&self) -> usize {
        let half = || std::thread::available_parallelism().map_or(1, |processors| processors.get() / 2);
        if self.threads == 0 { half().max(1) } else { self.threads }
    }

    /// Values that no part could work with.
    fn check(&self) -> Result<()> {
        let engine = &self.storage.engine;
        require(self.threads <= 256, "threads", "0 to 256")?;
        require((1..=256).contains(&self.storage.shards), "storage.shards", "1 to 256")?;
        require(
            (1 << 20..=1 << 32).contains(&engine.segment_bytes),
            "storage.engine.segment_bytes",
            "1 MiB to 4 GiB",
        )?;
        require(engine.election_timeout_ms >= 100, "storage.engine.election_timeout_ms", "at least 100")?;
        require(engine.checkpoint_bytes >= 64 << 10, "storage.engine.checkpoint_bytes", "at least 65536")?;
        let amqp = &self.gateway.amqp;
        require((8_192..=1 << 20).contains(&amqp.frame_max), "gateway.amqp.frame_max", "8192 to 1048576")?;
        require(amqp.channel_max >= 1, "gateway.amqp.channel_max", "at least 1")?;
        require(amqp.message_bytes_max <= 1 << 30, "gateway.amqp.message_bytes_max", "at most 1 GiB")?;
        let tls = &self.tls;
        let given = [&tls.ca, &tls.cert, &tls.key].iter().filter(|file| file.is_some()).count();
        require(given == 0 || given == 3, "tls", "all of ca, cert and key, or none of them")
    }

    /// As TOML, without secrets.
    pub fn print(&self) -> Result<String> {
        toml::to_string(self).context("cannot show the configuration")
    }
}

fn require(holds: bool, key: &str, range: &str) -> Result<()> {
    if holds { Ok(()) } else { bail!("configuration: {key} must be {range}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn load(text: &str) -> Result<Config> {
        let mut file = tempfile::NamedTempFile::new()?;
        file.write_all(text.as_bytes())?;
        Config::load(Some(file.path()), Figment::new())
    }

    #[test]
    fn what_is_set_is_taken_and_the_rest_is_default() {
        let config = load("[storage]\nshards = 12\n").unwrap();
        assert_eq!(config.storage.shards, 12);
        assert_eq!(config.gateway.amqp.listen, "127.0.0.1:5672");
    }

    #[test]
    fn an_unknown_key_is_named_with_its_source() {
        let error = format!("{:#}", load("[storage]\nshard = 12\n").unwrap_err());
        assert!(error.contains("shard") && error.contains("TOML file"), "{error}");
    }

    #[test]
    fn an_impossible_value_is_named() {
        let error = format!("{:#}", load("[storage]\nshards = 0\n").unwrap_err());
        assert!(error.contains("storage.shards"), "{error}");
        let error = format!("{:#}", load("[storage]\nshards = \"many\"\n").unwrap_err());
        assert!(error.contains("shards") && error.contains("TOML file"), "{error}");
    }

    #[test]
    fn secrets_are_not_printed() {
        let config = load("[storage]\nadministrator_password = \"hunter2\"\n").unwrap();
        assert!(!config.print().unwrap().contains("hunter2"));
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
