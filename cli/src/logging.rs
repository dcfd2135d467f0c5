//! Structured logs to standard error.

use crate::config::LogConfig;
use anyhow::{Result, anyhow};
use tracing_subscriber::EnvFilter;

/// Installs the process's log output. Fails on directives that make no sense.
pub fn init(config: &LogConfig) -> Result<()> {
    let filter = EnvFilter::try_new(&config.level).map_err(|error| anyhow!("log.level: {error}"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let result = if config.json { builder.json().try_init() } else { builder.with_target(true).try_init() };
    result.map_err(|error| anyhow!("cannot start logging: {error}"))
}
