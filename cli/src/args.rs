//! The command line.

use crate::config::Config;
use crate::{admin, dev, part};
use anyhow::{Context, Result, bail};
use clap::{Args as ClapArgs, Parser, Subcommand};
use figment::providers::Serialized;
use figment::value::{Dict, Map};
use figment::{Figment, Metadata, Profile, Provider};
use std::path::PathBuf;

/// Longshore: one message queue for RabbitMQ, MQTT, Kafka and HTTPS clients.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run everything in one process, on loopback, with a default user (the default command).
    Dev(dev::DevArgs),
    /// Run a gateway.
    Gateway(PartArgs),
    /// Run a storage node.
    StorageNode(PartArgs),
    /// Make development certificates.
    Certs(CertsArgs),
    /// List, inspect and administer, through a gateway's management port.
    #[command(flatten)]
    Admin(admin::Command),
}

/// Settings of a part, from a file, `LONGSHORE_...` variables and flags.
#[derive(Debug, ClapArgs)]
pub struct PartArgs {
    /// A TOML file of settings.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// A setting, for example `--set storage.shards=12`; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Show the settings (without secrets) and end.
    #[arg(long)]
    pub print_config: bool,
}

impl PartArgs {
    /// The settings after all sources.
    pub fn load(&self) -> Result<Config> {
        Config::load(self.config.as_deref(), flags(&self.set)?)
    }
}

/// One `--set`; errors name it by its key, since its value may be a secret.
struct Flag {
    key: String,
    value: figment::value::Value,
}

impl Provider for Flag {
    fn metadata(&self) -> Metadata {
        Metadata::named(format!("--set {}", self.key)).interpolater(|_, keys| keys.join("."))
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Serialized::default(&self.key, &self.value).data()
    }
}

/// Turns `key=value` flags into a source of settings that errors can name.
pub fn flags(set: &[String]) -> Result<Figment> {
    let mut figment = Figment::new();
    for text in set {
        let (key, value) =
            text.split_once('=').with_context(|| format!("--set {text}: expected KEY=VALUE"))?;
        if key.is_empty() {
            bail!("--set {text}: expected KEY=VALUE");
        }
        let value: figment::value::Value =
            value.parse().unwrap_or_else(|error: std::convert::Infallible| match error {});
        figment = figment.merge(Flag { key: key.to_owned(), value });
    }
    Ok(figment)
}

#[derive(Debug, ClapArgs)]
struct CertsArgs {
    /// The folder to write to.
    #[arg(long, default_value = "certs/dev")]
    dir: PathBuf,
    /// A host name or address that the certificate is good for; may be repeated.
    #[arg(long = "host", default_values_t = ["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()])]
    hosts: Vec<String>,
}

impl Args {
    /// Runs the chosen subcommand to its end.
    pub fn run(self) -> Result<()> {
        match self.command {
            None => dev::run(dev::DevArgs::default()),
            Some(Command::Dev(args)) => dev::run(args),
            Some(Command::Gateway(args)) => part::gateway(&args),
            Some(Command::StorageNode(args)) => part::storage_node(&args),
            Some(Command::Certs(args)) => {
                longshore_certs::write_all(&args.dir, &args.hosts)?;
                println!("wrote {} to {}", longshore_certs::FILES.join(", "), args.dir.display());
                Ok(())
            }
            Some(Command::Admin(command)) => command.run(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }
}
