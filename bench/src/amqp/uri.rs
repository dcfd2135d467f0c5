//! `amqp://user:password@host:port/vhost`, as clients of RabbitMQ write it.

use anyhow::{Context, Result, bail};
use std::str::FromStr;

const PORT_DEFAULT: u16 = 5672;

/// Where a broker is and who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uri {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// User name.
    pub user: String,
    /// Password.
    pub password: String,
    /// Virtual host.
    pub vhost: String,
}

impl FromStr for Uri {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Uri> {
        let Some(rest) = text.strip_prefix("amqp://") else {
            bail!("{text}: expected amqp://user:password@host:port/vhost");
        };
        let (authority, path) = rest.split_once('/').map_or((rest, None), |(a, p)| (a, Some(p)));
        let (login, address) = authority.rsplit_once('@').unwrap_or(("guest:guest", authority));
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        let (host, port) = match address.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().with_context(|| format!("{text}: strange port"))?),
            None => (address, PORT_DEFAULT),
        };
        let vhost = match path {
            None | Some("") => "/".to_owned(),
            Some(path) => decode(path)?,
        };
        Ok(Uri { host: host.into(), port, user: decode(user)?, password: decode(password)?, vhost })
    }
}

/// Undoes percent encoding.
fn decode(text: &str) -> Result<String> {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digits = [bytes.next(), bytes.next()].map(|d| char::from(d.unwrap_or(b' ')).to_digit(16));
        let [Some(high), Some(low)] = digits else { bail!("{text}: a % without two hexadecimal digits") };
        out.push((high * 16 + low) as u8);
    }
    String::from_utf8(out).with_context(|| format!("{text}: not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_parts_and_their_defaults() {
        let uri: Uri = "amqp://u:p%40ss@10.0.0.1:5681/a%2fb".parse().unwrap();
        assert_eq!((uri.user.as_str(), uri.password.as_str(), uri.vhost.as_str()), ("u", "p@ss", "a/b"));
        assert_eq!((uri.host.as_str(), uri.port), ("10.0.0.1", 5681));
        let uri: Uri = "amqp://localhost".parse().unwrap();
        assert_eq!((uri.user.as_str(), uri.port, uri.vhost.as_str()), ("guest", 5672, "/"));
        for bad in ["localhost", "amqps://localhost", "amqp://h:port", "amqp://h/%2"] {
            assert!(bad.parse::<Uri>().is_err(), "{bad}");
        }
    }
}
