//! PROXY protocol, versions 1 and 2: a load balancer in front says whom a connection comes from.
//!
//! Only asked for connections from configured sources; the header is read before anything else, within a bound of
//! 536 bytes and the listener's handshake time. Reference: the PROXY protocol specification, sections 2.1 and 2.2.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use tokio::io::{AsyncRead, AsyncReadExt};

const V2_SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
const V1_LINE_MAX: usize = 107;
const V2_BODY_MAX: usize = 520;

/// Networks whose connections begin with a PROXY header.
#[derive(Clone, Debug, Default)]
pub struct Sources(Vec<(IpAddr, u8)>);

impl Sources {
    /// Reads addresses and networks (`10.0.0.0/8`).
    ///
    /// Errors: the text that is neither.
    pub fn parse(texts: &[String]) -> Result<Sources, String> {
        let parse = |text: &String| {
            let (address, bits) = text.split_once('/').unwrap_or((text, ""));
            let address: IpAddr = address.parse().map_err(|_| text.clone())?;
            let width = if address.is_ipv4() { 32 } else { 128 };
            let bits = if bits.is_empty() { width } else { bits.parse().map_err(|_| text.clone())? };
            if bits > width { Err(text.clone()) } else { Ok((address, bits)) }
        };
        texts.iter().map(parse).collect::<Result<_, _>>().map(Sources)
    }

    /// Whether `address` is one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|(network, bits)| match (network, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let shift = 32 - u32::from(*bits);
                u32::from(*network).checked_shr(shift) == u32::from(address).checked_shr(shift)
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let shift = 128 - u32::from(*bits);
                u128::from(*network).checked_shr(shift) == u128::from(address).checked_shr(shift)
            }
            _ => false,
        })
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Reads the header; `None` means that the proxy speaks for itself (LOCAL, UNKNOWN).
pub async fn read_header(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<SocketAddr>> {
    let mut head = [0; 12];
    stream.read_exact(&mut head).await?;
    if head == V2_SIGNATURE { read_v2(stream).await } else { read_v1(head, stream).await }
}

async fn read_v1(head: [u8; 12], stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<SocketAddr>> {
    if !head.starts_with(b"PROXY ") {
        return Err(invalid("no PROXY header"));
    }
    let mut line = head.to_vec();
    while !line.ends_with(b"\r\n") {
        if line.len() >= V1_LINE_MAX {
            return Err(invalid("PROXY line too long"));
        }
        line.push(stream.read_u8().await?);
    }
    let text = std::str::from_utf8(&line).map_err(|_| invalid("PROXY line"))?;
    let words: Vec<&str> = text.split_whitespace().collect();
    match words.as_slice() {
        ["PROXY", "UNKNOWN", ..] => Ok(None),
        ["PROXY", "TCP4" | "TCP6", source, _, port, _] => {
            let address = source.parse().map_err(|_| invalid("PROXY address"))?;
            let port = port.parse().map_err(|_| invalid("PROXY port"))?;
            Ok(Some(SocketAddr::new(address, port)))
        }
        _ => Err(invalid("PROXY line")),
    }
}

async fn read_v2(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<SocketAddr>> {
    let command = stream.read_u8().await?;
    let family = stream.read_u8().await?;
    let len = usize::from(stream.read_u16().await?);
    if command >> 4 != 2 || len > V2_BODY_MAX {
        return Err(invalid("PROXY v2 header"));
    }
    let mut body = vec![0; len];
    stream.read_exact(&mut body).await?;
    if command & 0xF == 0 {
        return Ok(None);
    }
    match (family, body.as_slice()) {
        (0x11, [a, b, c, d, _, _, _, _, hi, lo, ..]) => {
            Ok(Some(SocketAddr::new(Ipv4Addr::new(*a, *b, *c, *d).into(), u16::from_be_bytes([*hi, *lo]))))
        }
        (0x21, body) if body.len() >= 36 => {
            let source: [u8; 16] = body[..16].try_into().map_err(|_| invalid("PROXY v2 address"))?;
            Ok(Some(SocketAddr::new(Ipv6Addr::from(source).into(), u16::from_be_bytes([body[32], body[33]]))))
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(bytes: &[u8]) -> io::Result<Option<SocketAddr>> {
        read_header(&mut io::Cursor::new(bytes.to_vec())).await
    }

    #[tokio::test(flavor = "current_thread")]
    async fn both_versions_name_the_client() {
        let v1 = b"PROXY TCP4 203.0.113.7 10.0.0.1 4711 5672\r\n";
        assert_eq!(read(v1).await.unwrap(), Some("203.0.113.7:4711".parse().unwrap()));
        let mut v2 = V2_SIGNATURE.to_vec();
        v2.extend([0x21, 0x11, 0, 12, 203, 0, 113, 7, 10, 0, 0, 1, 0x12, 0x67, 0x16, 0x28]);
        assert_eq!(read(&v2).await.unwrap(), Some("203.0.113.7:4711".parse().unwrap()));
        assert_eq!(read(b"PROXY UNKNOWN\r\n").await.unwrap(), None);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn anything_else_is_refused_within_its_bound() {
        assert!(read(b"AMQP\0\0\x09\x01____").await.is_err());
        assert!(read(&[b"PROXY TCP4 ".as_slice(), &[b'1'; 500]].concat()).await.is_err());
        let mut v2 = V2_SIGNATURE.to_vec();
        v2.extend([0x21, 0x11, 0xFF, 0xFF]);
        assert!(read(&v2).await.is_err());
    }

    #[test]
    fn sources_are_addresses_and_networks() {
        let sources = Sources::parse(&["10.0.0.0/8".into(), "192.0.2.1".into(), "::1".into()]).unwrap();
        for inside in ["10.1.2.3", "192.0.2.1", "::1"] {
            assert!(sources.contains(inside.parse().unwrap()), "{inside}");
        }
        for outside in ["11.1.2.3", "192.0.2.2", "::2"] {
            assert!(!sources.contains(outside.parse().unwrap()), "{outside}");
        }
        assert_eq!(Sources::parse(&["10.0.0.0/33".into()]).unwrap_err(), "10.0.0.0/33");
    }
}
