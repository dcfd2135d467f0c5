//! AMQP by hand, byte by byte, for what no client library would send. Only what the tests need.

use anyhow::{Context, Result, bail, ensure};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// An answer that takes longer does not come.
const ANSWER_TIME: Duration = Duration::from_secs(15);
/// Frame types.
pub const METHOD: u8 = 1;
/// A content header.
pub const HEADER: u8 = 2;
/// A piece of a body.
pub const BODY: u8 = 3;

/// (class, method) of what the tests send or expect.
pub mod method {
    /// connection.start
    pub const START: (u16, u16) = (10, 10);
    /// connection.start-ok
    pub const START_OK: (u16, u16) = (10, 11);
    /// connection.tune
    pub const TUNE: (u16, u16) = (10, 30);
    /// connection.tune-ok
    pub const TUNE_OK: (u16, u16) = (10, 31);
    /// connection.open
    pub const OPEN: (u16, u16) = (10, 40);
    /// connection.open-ok
    pub const OPEN_OK: (u16, u16) = (10, 41);
    /// connection.close
    pub const CLOSE: (u16, u16) = (10, 50);
    /// channel.open
    pub const CHANNEL_OPEN: (u16, u16) = (20, 10);
    /// channel.open-ok
    pub const CHANNEL_OPEN_OK: (u16, u16) = (20, 11);
    /// basic.consume
    pub const CONSUME: (u16, u16) = (60, 20);
    /// basic.publish
    pub const PUBLISH: (u16, u16) = (60, 40);
}

/// One frame.
pub fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![kind];
    out.extend(channel.to_be_bytes());
    out.extend((payload.len() as u32).to_be_bytes());
    out.extend(payload);
    out.push(0xCE);
    out
}

/// A method frame.
pub fn call(channel: u16, (class, id): (u16, u16), arguments: &[u8]) -> Vec<u8> {
    let mut payload = class.to_be_bytes().to_vec();
    payload.extend(id.to_be_bytes());
    payload.extend(arguments);
    frame(METHOD, channel, &payload)
}

/// A short string.
pub fn short(text: &str) -> Vec<u8> {
    let mut out = vec![text.len() as u8];
    out.extend(text.as_bytes());
    out
}

/// A long string.
pub fn long(bytes: &[u8]) -> Vec<u8> {
    let mut out = (bytes.len() as u32).to_be_bytes().to_vec();
    out.extend(bytes);
    out
}

/// basic.publish to a queue, and a content header that announces `bytes` of body.
pub fn publish(channel: u16, queue: &str, bytes: u64) -> Vec<u8> {
    let mut out = call(channel, method::PUBLISH, &[&[0, 0][..], &short(""), &short(queue), &[0]].concat());
    out.extend(frame(HEADER, channel, &[&[0, 60, 0, 0][..], &bytes.to_be_bytes(), &[0, 0]].concat()));
    out
}

/// A connection.
#[derive(Debug)]
pub struct Raw {
    /// The socket.
    pub socket: TcpStream,
}

impl Raw {
    /// Connects and says nothing.
    pub async fn silent(address: &str) -> Result<Raw> {
        Ok(Raw { socket: tokio::time::timeout(ANSWER_TIME, TcpStream::connect(address)).await?? })
    }

    /// Connects and opens the connection as guest; the server's frame-max is accepted.
    pub async fn open(address: &str) -> Result<Raw> {
        let mut raw = Raw::silent(address).await?;
        raw.send(b"AMQP\0\0\x09\x01").await?;
        raw.expect(method::START).await?;
        let capability = [short("authentication_failure_close"), vec![b't', 1]].concat();
        let capabilities = [short("capabilities"), vec![b'F'], long(&capability)].concat();
        let start_ok =
            [long(&capabilities), short("PLAIN"), long(b"\0guest\0guest"), short("en_US")].concat();
        raw.send(&call(0, method::START_OK, &start_ok)).await?;
        let tune = raw.expect(method::TUNE).await?;
        raw.send(&call(0, method::TUNE_OK, &[&tune[..6], &[0, 0]].concat())).await?;
        raw.send(&call(0, method::OPEN, &[short("/"), short(""), vec![0]].concat())).await?;
        raw.expect(method::OPEN_OK).await?;
        Ok(raw)
    }

    /// The same with channel 1 open.
    pub async fn with_channel(address: &str) -> Result<Raw> {
        let mut raw = Raw::open(address).await?;
        raw.send(&call(1, method::CHANNEL_OPEN, &short(""))).await?;
        raw.expect(method::CHANNEL_OPEN_OK).await?;
        Ok(raw)
    }

    /// Sends bytes as they are.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(tokio::time::timeout(ANSWER_TIME, self.socket.write_all(bytes)).await??)
    }

    /// The next frame: type, channel, payload. Errors: the connection ended, or nothing came in time.
    pub async fn frame(&mut self) -> Result<(u8, u16, Vec<u8>)> {
        tokio::time::timeout(ANSWER_TIME, async {
            let mut head = [0; 7];
            self.socket.read_exact(&mut head).await?;
            let [kind, c1, c2, l1, l2, l3, l4] = head;
            let mut payload = vec![0; u32::from_be_bytes([l1, l2, l3, l4]) as usize + 1];
            self.socket.read_exact(&mut payload).await?;
            ensure!(payload.pop() == Some(0xCE), "a frame with a wrong end");
            Ok((kind, u16::from_be_bytes([c1, c2]), payload))
        })
        .await
        .context("no frame in time")?
    }

    /// The arguments of the next method, which must be `wanted`.
    pub async fn expect(&mut self, wanted: (u16, u16)) -> Result<Vec<u8>> {
        let (kind, _, payload) = self.frame().await?;
        let (class, id) = (payload.get(..2), payload.get(2..4));
        let bytes = [wanted.0.to_be_bytes(), wanted.1.to_be_bytes()];
        if kind != METHOD || class != Some(&bytes[0]) || id != Some(&bytes[1]) {
            bail!("expected method {wanted:?}, got a frame of type {kind}: {payload:?}");
        }
        Ok(payload[4..].to_vec())
    }

    /// The reply code of the connection.close that must come next.
    pub async fn close_code(&mut self) -> Result<u16> {
        let arguments = self.expect(method::CLOSE).await?;
        Ok(u16::from_be_bytes([arguments[0], arguments[1]]))
    }

    /// Everything until the server hangs up, at most 1 MiB.
    pub async fn rest(&mut self) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        let reading = async {
            let mut limited = (&mut self.socket).take(1 << 20);
            match limited.read_to_end(&mut all).await {
                Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => Err(error),
                _ => Ok(()),
            }
        };
        tokio::time::timeout(ANSWER_TIME, reading).await.context("the server does not hang up")??;
        Ok(all)
    }
}
