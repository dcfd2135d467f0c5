//! The floor's follower: reads frames, checks the records, writes the bytes that came, and acknowledges from the
//! thread that synced them. Ends when the leader's connection does.
//!
//! ```text
//! u32 length of the records   u64 number of the last one   records        acknowledgement: u64 number
//! ```

use super::log::{Append, Log, check};
use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::Args;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;

/// Length and number.
pub const FRAME_HEADER_BYTES: usize = 12;
/// A frame is bounded by the leader's window; this refuses a stream that is not the leader's.
const FRAME_BYTES_MAX: usize = 256 << 20;

/// Flags of a follower.
#[derive(Debug, Args)]
pub struct FollowerArgs {
    /// Where its log is.
    #[arg(long)]
    dir: PathBuf,
}

/// Prints its address, serves one leader, ends with it.
pub fn run(args: &FollowerArgs) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen on loopback")?;
    println!("{}", listener.local_addr()?);
    let (mut stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    let mut acks = stream.try_clone()?;
    let log = Log::start(&args.dir, move |last| {
        // A leader that is gone ends this process through the reading side.
        let _ = acks.write_all(&last.to_be_bytes());
    })?;
    loop {
        let mut header = [0; FRAME_HEADER_BYTES];
        if stream.read_exact(&mut header).is_err() {
            return Ok(());
        }
        let [l0, l1, l2, l3, last @ ..] = header;
        let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
        if length > FRAME_BYTES_MAX {
            bail!("a frame of {length} bytes: this is not the floor's leader");
        }
        let mut records = vec![0; length];
        stream.read_exact(&mut records)?;
        check(&records)?;
        log.append(Append { bytes: Bytes::from(records), last: u64::from_be_bytes(last) })?;
    }
}
