//! Records of the floor, and its log thread: takes all that waits, one vectored write, one fdatasync, one report.
//!
//! ```text
//! u32 length of what follows the checksum   u32 crc32c of it   u32 group   u8 kind   u64 term   u64 index   body
//! ```

use anyhow::{Result, bail};
use bytes::{BufMut, Bytes, BytesMut};
use longshore_io::real::RealDisk;
use longshore_io::{Disk, DiskFile, OpenMode};
use std::io::IoSlice;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Length and checksum.
const PREFIX_BYTES: usize = 8;
/// Group, kind, term, index.
const HEADER_BYTES: usize = 21;
const KIND_ENTRY: u8 = 1;
const FILE_BYTES: u64 = 64 << 20;
const FILE_NAME: &str = "floor.log";
/// One write takes no more than this.
const WRITE_BYTES_MAX: usize = 4 << 20;
/// Batches that may wait for the log thread; a leader's window bounds them further.
const QUEUE_MAX: usize = 8_192;

/// Appends a record.
pub fn encode(out: &mut BytesMut, group: u32, term: u64, index: u64, body: &[u8]) {
    let start = out.len();
    out.put_u32((HEADER_BYTES + body.len()) as u32);
    out.put_u32(0);
    out.put_u32(group);
    out.put_u8(KIND_ENTRY);
    out.put_u64(term);
    out.put_u64(index);
    out.put_slice(body);
    let crc = crc32c::crc32c(&out[start + PREFIX_BYTES..]);
    out[start + 4..start + PREFIX_BYTES].copy_from_slice(&crc.to_be_bytes());
}

/// Checks the records of a batch; answers how many there are.
///
/// Errors: a checksum or a length that does not hold.
pub fn check(mut batch: &[u8]) -> Result<u64> {
    let mut records = 0;
    while !batch.is_empty() {
        let Some((prefix, rest)) = batch.split_first_chunk::<PREFIX_BYTES>() else { bail!("a cut record") };
        let [l0, l1, l2, l3, crc @ ..] = *prefix;
        let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
        let Some((record, rest)) = rest.split_at_checked(length) else { bail!("a cut record") };
        if crc32c::crc32c(record) != u32::from_be_bytes(crc) {
            bail!("a record's checksum does not hold");
        }
        records += 1;
        batch = rest;
    }
    Ok(records)
}

/// A batch on its way to disk.
pub struct Append {
    /// Encoded records.
    pub bytes: Bytes,
    /// The number of the last record in them, counted over all groups.
    pub last: u64,
}

/// The log thread's front: what is sent here is written in order.
pub struct Log {
    queue: SyncSender<Append>,
    syncs: Arc<AtomicU64>,
}

impl Log {
    /// Opens a log over a file whose blocks are written already, and starts its thread. `durable` is called on that
    /// thread with the last record's number after each sync. A failed write or sync ends the process.
    pub fn start(dir: &Path, durable: impl FnMut(u64) + Send + 'static) -> Result<Log> {
        let disk = RealDisk::open(dir)?;
        let _ = disk.remove(FILE_NAME);
        let file = disk.open(FILE_NAME, OpenMode::Create)?;
        let zeros = vec![0u8; 1 << 20];
        for at in (0..FILE_BYTES).step_by(zeros.len()) {
            file.write_at(&[IoSlice::new(&zeros)], at)?;
        }
        file.sync_data()?;
        let (queue, appends) = sync_channel(QUEUE_MAX);
        let syncs = Arc::new(AtomicU64::new(0));
        let counted = syncs.clone();
        std::thread::Builder::new().name("log".into()).spawn(move || {
            // The lock of the directory lives as long as the thread.
            let _disk = disk;
            if let Err(error) = write_all(&*file, &appends, &counted, durable) {
                eprintln!("the floor's log failed: {error:#}");
                std::process::exit(1);
            }
        })?;
        Ok(Log { queue, syncs })
    }

    /// Queues a batch. Errors: the log thread has ended.
    pub fn append(&self, append: Append) -> Result<()> {
        self.queue.send(append).map_err(|_| anyhow::anyhow!("the log thread has ended"))
    }

    /// fdatasync calls so far.
    pub fn syncs(&self) -> Arc<AtomicU64> {
        self.syncs.clone()
    }
}

fn write_all(
    file: &dyn DiskFile,
    appends: &Receiver<Append>,
    syncs: &AtomicU64,
    mut durable: impl FnMut(u64),
) -> Result<()> {
    let mut at = 0;
    while let Ok(first) = appends.recv() {
        let mut batch = vec![first];
        let mut length = batch.iter().map(|a| a.bytes.len()).sum::<usize>();
        while length < WRITE_BYTES_MAX {
            let Ok(next) = appends.try_recv() else { break };
            length += next.bytes.len();
            batch.push(next);
        }
        if at + length as u64 > FILE_BYTES {
            at = 0;
        }
        let slices: Vec<IoSlice<'_>> = batch.iter().map(|a| IoSlice::new(&a.bytes)).collect();
        file.write_at(&slices, at)?;
        file.sync_data()?;
        syncs.fetch_add(1, Ordering::Relaxed);
        at += length as u64;
        if let Some(last) = batch.last() {
            durable(last.last);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_counted_and_a_flipped_bit_is_seen() {
        let mut out = BytesMut::new();
        encode(&mut out, 3, 1, 1, b"hello");
        encode(&mut out, 4, 1, 1, b"");
        assert_eq!(check(&out).unwrap(), 2);
        assert!(check(&out[..out.len() - 1]).is_err());
        out[PREFIX_BYTES + HEADER_BYTES] ^= 1;
        assert!(check(&out).is_err());
    }

    #[test]
    fn what_was_appended_is_reported_durable_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let (report, durable) = std::sync::mpsc::sync_channel(64);
        let log = Log::start(dir.path(), move |last| {
            let _ = report.send(last);
        })
        .unwrap();
        for last in 1..=20 {
            log.append(Append { bytes: Bytes::from_static(b"x"), last }).unwrap();
        }
        let mut newest = 0;
        while newest < 20 {
            let next = durable.recv().unwrap();
            assert!(next > newest);
            newest = next;
        }
        assert!(log.syncs().load(Ordering::Relaxed) <= 20);
    }
}
