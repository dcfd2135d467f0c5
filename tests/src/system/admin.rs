//! The `longshore` admin commands, as an operator calls them.

use super::binary;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::time::Duration;
use tokio::process::Command;

/// A command that takes longer has hung.
const COMMAND_TIME: Duration = Duration::from_secs(20);

/// Runs `longshore ARGS... --json` against a gateway's management address, as guest; the answer.
/// Errors: what the command printed to standard error.
pub async fn admin(management: &str, args: &[&str]) -> Result<Value> {
    let mut command = Command::new(binary()?);
    for (key, _) in std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("LONGSHORE_")) {
        command.env_remove(key);
    }
    command.args(args).args(["--json", "--url", management]).kill_on_drop(true);
    let output =
        tokio::time::timeout(COMMAND_TIME, command.output()).await.context("the command hangs")??;
    if !output.status.success() {
        bail!("longshore {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    serde_json::from_slice(&output.stdout).context("the answer is not JSON")
}

/// One queue of virtual host `/` as `longshore queues` lists it.
pub async fn queue(management: &str, name: &str) -> Result<Value> {
    let list = admin(management, &["queues"]).await?;
    let found = list.as_array().and_then(|list| list.iter().find(|queue| queue["name"] == name));
    found.cloned().with_context(|| format!("no queue {name} in {list}"))
}
