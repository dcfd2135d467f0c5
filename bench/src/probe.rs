//! The disk probe: how often a second the disk makes a write of a size durable. Run around every measurement, since
//! the disk of a shared machine changes by the minute.
//!
//! It writes through the node log's file layer: one write and one fdatasync at a time, into a file whose blocks were
//! written before (a recycled segment), so that no sync has to journal new blocks. But it writes through the page cache,
//! which the node log passes by.

use crate::histogram::Histogram;
use anyhow::{Context, Result};
use clap::Args;
use longshore_io::real::RealDisk;
use longshore_io::{Disk, OpenMode};
use serde::{Deserialize, Serialize};
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Size of the file that is written round and round, in bytes.
pub const FILE_BYTES: u64 = 64 << 20;
const FILE_NAME: &str = "probe.bin";

/// Flags of `probe`.
#[derive(Debug, Args)]
pub struct ProbeArgs {
    /// A directory on the disk in question; a file is made in it and removed.
    #[arg(long, default_value = "target/bench/probe")]
    dir: PathBuf,
    /// Seconds per size.
    #[arg(long, default_value_t = 2.0)]
    secs: f64,
    /// Sizes of a write, in bytes.
    #[arg(long, value_delimiter = ',', default_values_t = [4_096, 65_536, 1_048_576])]
    sizes: Vec<u64>,
}

/// What one size gave.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProbeRow {
    /// Bytes per write.
    pub bytes: u64,
    /// Writes made durable, per second.
    pub syncs_per_s: f64,
    /// Median of write and fdatasync together, in milliseconds.
    pub p50_ms: f64,
    /// 99th percentile, in milliseconds.
    pub p99_ms: f64,
    /// The longest, in milliseconds.
    pub max_ms: f64,
}

/// Runs the subcommand.
pub fn run(args: &ProbeArgs) -> Result<()> {
    for row in measure(&args.dir, &args.sizes, args.secs)? {
        println!("{}", serde_json::to_string(&row)?);
    }
    Ok(())
}

/// Probes `dir` with each size for `secs` seconds.
///
/// Errors: whatever the file system says; the directory is in use by another probe.
pub fn measure(dir: &Path, sizes: &[u64], secs: f64) -> Result<Vec<ProbeRow>> {
    let disk = RealDisk::open(dir).with_context(|| format!("cannot probe {}", dir.display()))?;
    // Left behind by a probe that was killed.
    let _ = disk.remove(FILE_NAME);
    let file = disk.open(FILE_NAME, OpenMode::Create)?;
    file.allocate(FILE_BYTES)?;
    let zeros = vec![0u8; 1 << 20];
    for at in (0..FILE_BYTES).step_by(zeros.len()) {
        file.write_at(&[IoSlice::new(&zeros)], at)?;
    }
    file.sync_data()?;
    let rows = sizes.iter().map(|bytes| one_size(&*file, (*bytes).clamp(1, FILE_BYTES), secs)).collect();
    disk.remove(FILE_NAME)?;
    rows
}

fn one_size(file: &dyn longshore_io::DiskFile, bytes: u64, secs: f64) -> Result<ProbeRow> {
    let data = vec![0xA5u8; usize::try_from(bytes)?];
    let mut histogram = Histogram::default();
    let began = Instant::now();
    let until = began + Duration::try_from_secs_f64(secs)?;
    let mut at = 0;
    loop {
        let start = Instant::now();
        if start >= until && histogram.len() > 0 {
            break;
        }
        file.write_at(&[IoSlice::new(&data)], at)?;
        file.sync_data()?;
        histogram.record(u64::try_from(start.elapsed().as_nanos())?);
        at += bytes;
        if at + bytes > FILE_BYTES {
            at = 0;
        }
    }
    let ms = |ns: u64| ns as f64 / 1e6;
    Ok(ProbeRow {
        bytes,
        syncs_per_s: histogram.len() as f64 / began.elapsed().as_secs_f64(),
        p50_ms: ms(histogram.quantile(0.5)),
        p99_ms: ms(histogram.quantile(0.99)),
        max_ms: ms(histogram.max()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_measures_and_leaves_nothing_but_its_lock() {
        let dir = tempfile::tempdir().unwrap();
        let rows = measure(dir.path(), &[4_096], 0.02).unwrap();
        assert!(rows.len() == 1 && rows[0].syncs_per_s > 0.0 && rows[0].p50_ms <= rows[0].max_ms);
        assert!(!dir.path().join(FILE_NAME).exists());
    }
}
