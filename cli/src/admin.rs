//! Administration: each command is a call of a gateway's management API, shown as a table or as JSON.

use crate::show;
use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::fmt::Write;
use std::time::Duration;

/// What can be listed, inspected and changed.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the storage nodes.
    Nodes(Target),
    /// List the shards, their replicas and leaders.
    Shards(Target),
    /// List the gateways.
    Gateways(Target),
    /// List the client connections of this gateway.
    Connections(Target),
    /// Close a client connection of this gateway.
    CloseConnection {
        /// Its id, as listed.
        id: u64,
        #[command(flatten)]
        target: Target,
    },
    /// List the queues of a virtual host.
    Queues(InVhost),
    /// List the exchanges of a virtual host.
    Exchanges(InVhost),
    /// List the bindings of a virtual host.
    Bindings(InVhost),
    /// Tell why the messages of a queue are not being delivered.
    Explain {
        /// The queue's name.
        queue: String,
        #[command(flatten)]
        vhost: InVhost,
    },
    /// Ask a part whether it is ready, or alive; fails if it is not. For health checks where no HTTP client is at hand.
    Health {
        /// What is asked, for example `http://127.0.0.1:15672/health/ready`.
        #[arg(default_value = "http://127.0.0.1:15672/health/ready")]
        url: String,
    },
    /// List the virtual hosts.
    Vhosts(Target),
    /// Make a virtual host.
    AddVhost {
        /// Its name.
        name: String,
        #[command(flatten)]
        target: Target,
    },
    /// Delete a virtual host and everything in it.
    DeleteVhost {
        /// Its name.
        name: String,
        #[command(flatten)]
        target: Target,
    },
    /// List the users.
    Users(Target),
    /// Make a user, or change its password.
    AddUser {
        /// Its name.
        name: String,
        /// Its password.
        #[arg(env = "LONGSHORE_NEW_PASSWORD", hide_env_values = true)]
        new_password: String,
        /// May administer, or (`--administrator=false`) may not any more; left out, an existing user stays what it is.
        #[arg(long, require_equals = true, num_args = 0..=1, default_missing_value = "true")]
        administrator: Option<bool>,
        #[command(flatten)]
        target: Target,
    },
    /// Delete a user; its connections close.
    DeleteUser {
        /// Its name.
        name: String,
        #[command(flatten)]
        target: Target,
    },
    /// Set what a user may configure, write and read in a virtual host (regular expressions).
    SetPermissions {
        /// The user's name.
        name: String,
        /// Names that it may make, change and delete.
        configure: String,
        /// Names that it may publish to.
        write: String,
        /// Names that it may consume from.
        read: String,
        #[command(flatten)]
        vhost: InVhost,
    },
    /// Take a user's rights in a virtual host away.
    ClearPermissions {
        /// The user's name.
        name: String,
        #[command(flatten)]
        vhost: InVhost,
    },
}

/// Which gateway is asked, as whom, and how the answer is shown.
#[derive(Clone, Debug, Args)]
pub struct Target {
    /// A gateway's management address.
    #[arg(long, default_value = "http://127.0.0.1:15672", env = "LONGSHORE_URL")]
    url: String,
    /// An administrator.
    #[arg(long, default_value = "guest", env = "LONGSHORE_USER")]
    user: String,
    /// The administrator's password.
    #[arg(long, default_value = "guest", env = "LONGSHORE_PASSWORD", hide_env_values = true)]
    password: String,
    /// Show JSON.
    #[arg(long)]
    json: bool,
}

/// A virtual host of a gateway.
#[derive(Clone, Debug, Args)]
pub struct InVhost {
    /// The virtual host.
    #[arg(long, default_value = "/")]
    vhost: String,
    #[command(flatten)]
    target: Target,
}

impl Command {
    /// Makes the call and shows the answer.
    pub fn run(self) -> Result<()> {
        match self {
            Command::Nodes(target) => target.list("nodes"),
            Command::Shards(target) => target.list("shards"),
            Command::Gateways(target) => target.list("gateways"),
            Command::Connections(target) => target.list("connections"),
            Command::CloseConnection { id, target } => {
                target.change("DELETE", &format!("connections/{id}"), None)
            }
            Command::Queues(vhost) => vhost.target.list(&format!("queues/{}", encode(&vhost.vhost))),
            Command::Exchanges(vhost) => vhost.target.list(&format!("exchanges/{}", encode(&vhost.vhost))),
            Command::Bindings(vhost) => vhost.target.list(&format!("bindings/{}", encode(&vhost.vhost))),
            Command::Explain { queue, vhost } => {
                let path = format!("explain/{}/{}", encode(&vhost.vhost), encode(&queue));
                vhost.target.show(&path, show::explanation)
            }
            Command::Health { url } => health(&url),
            Command::Vhosts(target) => target.list("vhosts"),
            Command::AddVhost { name, target } => {
                target.change("PUT", &format!("vhosts/{}", encode(&name)), None)
            }
            Command::DeleteVhost { name, target } => {
                target.change("DELETE", &format!("vhosts/{}", encode(&name)), None)
            }
            Command::Users(target) => target.list("users"),
            Command::AddUser { name, new_password, administrator, target } => {
                let body = json!({"password": new_password, "administrator": administrator});
                target.change("PUT", &format!("users/{}", encode(&name)), Some(body))
            }
            Command::DeleteUser { name, target } => {
                target.change("DELETE", &format!("users/{}", encode(&name)), None)
            }
            Command::SetPermissions { name, configure, write, read, vhost } => {
                let body = json!({"configure": configure, "write": write, "read": read});
                vhost.target.change("PUT", &permission(&vhost, &name), Some(body))
            }
            Command::ClearPermissions { name, vhost } => {
                vhost.target.change("DELETE", &permission(&vhost, &name), None)
            }
        }
    }
}

/// A health check waits this long for its answer.
const HEALTH_TIME: Duration = Duration::from_secs(3);

fn health(url: &str) -> Result<()> {
    let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(HEALTH_TIME));
    let agent: ureq::Agent = config.build().into();
    let mut response = agent.get(url).call().with_context(|| format!("cannot reach {url}"))?;
    let text = response.body_mut().read_to_string()?;
    if !response.status().is_success() {
        bail!("{}: {}", response.status(), text.trim());
    }
    println!("{}", text.trim());
    Ok(())
}

fn permission(vhost: &InVhost, user: &str) -> String {
    format!("permissions/{}/{}", encode(&vhost.vhost), encode(user))
}

impl Target {
    fn list(&self, path: &str) -> Result<()> {
        self.show(path, show::table)
    }

    fn show(&self, path: &str, as_text: fn(&Value) -> String) -> Result<()> {
        let answer = self.call("GET", path, None)?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&answer)?);
        } else {
            print!("{}", as_text(&answer));
        }
        Ok(())
    }

    fn change(&self, method: &str, path: &str, body: Option<Value>) -> Result<()> {
        let answer = self.call(method, path, body)?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&answer)?);
        } else {
            println!("done");
        }
        Ok(())
    }

    fn call(&self, method: &str, path: &str, body: Option<Value>) -> Result<Value> {
        let url = format!("{}/api/{path}", self.url.trim_end_matches('/'));
        let credentials = base64::Engine::encode(
            &base64::engine::general_purpose::STANDARD,
            format!("{}:{}", self.user, self.password),
        );
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let authorization = format!("Basic {credentials}");
        let sent = match method {
            "GET" => agent.get(&url).header("Authorization", &authorization).call(),
            "DELETE" => agent.delete(&url).header("Authorization", &authorization).call(),
            _ => agent.put(&url).header("Authorization", &authorization).send_json(body.unwrap_or(json!({}))),
        };
        let mut response = sent.with_context(|| format!("cannot reach a gateway at {}", self.url))?;
        let status = response.status();
        let text = response.body_mut().read_to_string()?;
        let answer: Value = serde_json::from_str(&text).unwrap_or(Value::String(text));
        if !status.is_success() {
            bail!(
                "{}",
                answer.get("error").and_then(Value::as_str).unwrap_or("the gateway refused without a word")
            );
        }
        Ok(answer)
    }
}

/// Percent-encodes one part of a path.
fn encode(part: &str) -> String {
    let mut out = String::new();
    for byte in part.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_parts_are_encoded() {
        assert_eq!(encode("/"), "%2F");
        assert_eq!(encode("a b"), "a%20b");
    }
}
