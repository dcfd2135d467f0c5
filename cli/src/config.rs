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
const ENV_OTHERS: [&str; 11] = [
    "dev_secret_id",
    "dev_secret_key",
    "sim_seed",
    "sim_seeds",
    "chaos",
    "log",
    // Of the commands that talk to a running cluster, and of docker-compose.yml.
    "url",
    "user",
    "password",
    "new_password",
    "admin_password",
];
/// The setting whose variable is taken as it stands: a password of digits is no number.
const SECRET: (&str, &str) = ("storage.administrator_password", "LONGSHORE_STORAGE__ADMINISTRATOR_PASSWORD");

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
        figment = figment.merge(env);
        if let Ok(text) = std::env::var(SECRET.1) {
            figment = figment.merge(Serialized::default(SECRET.0, secret(&text)));
        }
        let figment = figment.merge(flags);
        let config: Config = figment.extract().context("configuration")?;
        if let Err(OutOfRange { key, range }) = config.check() {
            bail!("configuration: {key} must be {range}{}", source(&figment, key));
        }
        Ok(config)
    }

    /// How many threads [`Config::threads`] means on this machine.
    pub fn thread_count(&self) -> usize {
        let half = || std::thread::available_parallelism().map_or(1, |processors| processors.get() / 2);
        if self.threads == 0 { half().max(1) } else { self.threads }
    }

    /// Values that no part could work with.
    fn check(&self) -> Result<(), OutOfRange> {
        let engine = &self.storage.engine;
        require(self.threads <= 256, "threads", "0 to 256")?;
        require((1..=256).contains(&self.storage.shards), "storage.shards", "1 to 256")?;
        require(
            (1 << 20..=1 << 30).contains(&engine.segment_bytes),
            "storage.engine.segment_bytes",
            "1 MiB to 1 GiB",
        )?;
        require(engine.election_timeout_ms >= 100, "storage.engine.election_timeout_ms", "at least 100")?;
        require(engine.checkpoint_bytes >= 64 << 10, "storage.engine.checkpoint_bytes", "at least 65536")?;
        let amqp = &self.gateway.amqp;
        require((8_192..=1 << 20).contains(&amqp.frame_max), "gateway.amqp.frame_max", "8192 to 1048576")?;
        require(amqp.handshake_ms_max >= 100, "gateway.amqp.handshake_ms_max", "at least 100")?;
        require(amqp.channel_max >= 1, "gateway.amqp.channel_max", "at least 1")?;
        require(
            amqp.message_bytes_max <= 128 << 20,
            "gateway.amqp.message_bytes_max",
            "at most 134217728, the largest that storage takes",
        )?;
        require(
            self.gateway.pending_bytes_max >= 16 << 20,
            "gateway.pending_bytes_max",
            "at least 16777216",
        )?;
        let tls = &self.tls;
        let given = [&tls.ca, &tls.cert, &tls.key].iter().filter(|file| file.is_some()).count();
        require(given == 0 || given == 3, "tls", "all of ca, cert and key, or none of them")
    }

    /// As TOML, without secrets.
    pub fn print(&self) -> Result<String> {
        toml::to_string(self).context("cannot show the configuration")
    }
}

/// A secret as it was meant: quotes around all of it are not part of it.
fn secret(text: &str) -> &str {
    text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text)
}

/// A value that could be read and cannot be used.
struct OutOfRange {
    key: &'static str,
    range: &'static str,
}

fn require(holds: bool, key: &'static str, range: &'static str) -> Result<(), OutOfRange> {
    if holds { Ok(()) } else { Err(OutOfRange { key, range }) }
}

/// Where a key's value came from, for the end of a sentence.
fn source(figment: &Figment, key: &str) -> String {
    let Some(metadata) = figment.find_metadata(key) else { return String::new() };
    let place = metadata.source.as_ref().map(|source| format!(" {source}")).unwrap_or_default();
    format!(" (it came from: {}{place})", metadata.name)
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
    fn an_impossible_value_is_named_with_its_source() {
        let error = format!("{:#}", load("[storage]\nshards = 0\n").unwrap_err());
        assert!(error.contains("storage.shards must be 1 to 256") && error.contains("TOML file"), "{error}");
        let flags = crate::args::flags(&["storage.shards=0".to_owned()]).unwrap();
        let error = format!("{:#}", Config::load(None, flags).unwrap_err());
        assert!(error.contains("storage.shards") && error.contains("--set"), "{error}");
        let error = format!("{:#}", load("[tls]\nca = \"ca.crt\"\n").unwrap_err());
        assert!(error.contains("tls must be") && error.contains("TOML file"), "{error}");
        let error = format!("{:#}", load("[storage]\nshards = \"many\"\n").unwrap_err());
        assert!(error.contains("shards") && error.contains("TOML file"), "{error}");
    }

    #[test]
    fn a_time_that_refuses_every_client_is_refused() {
        let error = format!("{:#}", load("[gateway.amqp]\nhandshake_ms_max = 0\n").unwrap_err());
        assert!(error.contains("gateway.amqp.handshake_ms_max"), "{error}");
        let error = format!("{:#}", load("[gateway]\npending_bytes_max = 1\n").unwrap_err());
        assert!(error.contains("gateway.pending_bytes_max"), "{error}");
    }

    #[test]
    fn a_secret_of_digits_stays_text() {
        assert_eq!([secret("0123"), secret("\"0123\""), secret("\"")], ["0123", "0123", "\""]);
    }

    #[test]
    fn variables_of_commands_are_no_settings() {
        use clap::CommandFactory;
        let mut waiting = vec![crate::args::Args::command()];
        let mut seen = 0;
        while let Some(command) = waiting.pop() {
            for name in command.get_arguments().filter_map(|argument| argument.get_env()?.to_str()) {
                let name = name.strip_prefix(ENV_PREFIX).unwrap().to_lowercase();
                assert!(ENV_OTHERS.contains(&name.as_str()), "{name}");
                seen += 1;
            }
            waiting.extend(command.get_subcommands().cloned());
        }
        assert!(seen > 0);
    }

    #[test]
    fn a_flag_that_is_no_setting_is_named_as_it_was_given() {
        let flags = crate::args::flags(&["foo.bar=1".to_owned()]).unwrap();
        let error = format!("{:#}", Config::load(None, flags).unwrap_err());
        assert!(error.contains("--set foo.bar"), "{error}");
        assert!(!error.contains("default.foo"), "{error}");
    }

    #[test]
    fn secrets_are_not_printed() {
        let config = load("[storage]\nadministrator_password = \"hunter2\"\n").unwrap();
        assert!(!config.print().unwrap().contains("hunter2"));
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
