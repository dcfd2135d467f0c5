//! What processes cost, from `/proc`: CPU time, peak memory, bytes written, and how busy the machine was otherwise.
//!
//! The danger is a process that ends meanwhile: its cost would be missing, so that is an error. Kernel threads (the
//! journal, the block layer) belong to nobody and are seen only in the foreign share.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::fs;
use std::time::Instant;

/// Cost of some processes over a stretch of time. MiB are 1,048,576 bytes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Cost {
    /// Length of the stretch, in seconds.
    pub seconds: f64,
    /// User and system time of the watched processes, in seconds.
    pub cpu_s: f64,
    /// User and system time of this process, in seconds.
    pub driver_cpu_s: f64,
    /// Share of the machine's CPU that went to neither, 0 to 1.
    pub foreign_share: f64,
    /// Peak resident memory of the watched processes in the stretch, summed.
    pub peak_rss_mib: f64,
    /// Peak resident memory of the largest of them.
    pub peak_rss_mib_max: f64,
    /// Bytes that the watched processes caused to be written to the block layer, in MiB.
    pub written_mib: f64,
}

/// A stretch under way.
#[derive(Debug)]
pub struct Watch {
    pids: Vec<u32>,
    began: Instant,
    cpu_s: f64,
    own_s: f64,
    busy_s: f64,
    written: u64,
}

impl Watch {
    /// Begins; resets the peak memory of `pids`.
    ///
    /// Errors: a process that does not exist or may not be read.
    pub fn start(pids: &[u32]) -> Result<Watch> {
        for pid in pids {
            // Refused for processes of another user: the peak is then that since their start.
            let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
        }
        Ok(Watch {
            pids: pids.to_vec(),
            began: Instant::now(),
            cpu_s: sum(pids, cpu_s)?,
            own_s: cpu_s(std::process::id())?,
            busy_s: busy_s()?,
            written: sum(pids, written_bytes)?,
        })
    }

    /// Ends; what was spent since the start.
    ///
    /// Errors: a watched process ended meanwhile.
    pub fn finish(&self) -> Result<Cost> {
        let seconds = self.began.elapsed().as_secs_f64();
        let cpu = sum(&self.pids, cpu_s)? - self.cpu_s;
        let own = cpu_s(std::process::id())? - self.own_s;
        let busy = busy_s()? - self.busy_s;
        let peaks: Vec<f64> = self.pids.iter().map(|pid| peak_rss_mib(*pid)).collect::<Result<_>>()?;
        let processors = std::thread::available_parallelism().map_or(1, |n| n.get()) as f64;
        Ok(Cost {
            seconds,
            cpu_s: cpu,
            driver_cpu_s: own,
            foreign_share: ((busy - cpu - own).max(0.0) / (seconds * processors)).min(1.0),
            peak_rss_mib: peaks.iter().sum(),
            peak_rss_mib_max: peaks.iter().copied().fold(0.0, f64::max),
            written_mib: sum(&self.pids, written_bytes)?.saturating_sub(self.written) as f64 / MIB,
        })
    }
}

const MIB: f64 = 1_048_576.0;

fn sum<T: std::iter::Sum>(pids: &[u32], of: impl Fn(u32) -> Result<T>) -> Result<T> {
    pids.iter().map(|pid| of(*pid)).sum()
}

fn ticks_per_s() -> f64 {
    rustix::param::clock_ticks_per_second() as f64
}

fn read(pid: u32, what: &str) -> Result<String> {
    let path = format!("/proc/{pid}/{what}");
    fs::read_to_string(&path)
        .with_context(|| format!("cannot read {path}: process {pid} ended, or is not ours"))
}

/// User and system time of a process with all its threads, in seconds.
pub fn cpu_s(pid: u32) -> Result<f64> {
    let stat = read(pid, "stat")?;
    cpu_ticks(&stat)
        .map(|ticks| ticks as f64 / ticks_per_s())
        .with_context(|| format!("strange stat of process {pid}"))
}

/// Fields 14 and 15; the name before may hold blanks and parentheses.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn written_bytes(pid: u32) -> Result<u64> {
    let io = read(pid, "io")?;
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes:"));
    line.and_then(|n| n.trim().parse().ok()).with_context(|| format!("strange io of process {pid}"))
}

/// Resident memory of a process now, in MiB.
pub fn rss_mib(pid: u32) -> Result<f64> {
    memory_mib(pid, "VmRSS:")
}

fn peak_rss_mib(pid: u32) -> Result<f64> {
    memory_mib(pid, "VmHWM:")
}

fn memory_mib(pid: u32, field: &str) -> Result<f64> {
    let status = read(pid, "status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kib = line.and_then(|text| text.split_whitespace().next()?.parse::<f64>().ok());
    kib.map(|kib| kib / 1024.0).with_context(|| format!("process {pid} has no memory: it has ended"))
}

/// Seconds that all processors together were busy since boot: everything but idle and waiting for I/O.
fn busy_s() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    let fields: Vec<f64> = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .take(8)
        .map(|n| n.parse().unwrap_or(0.0))
        .collect();
    let busy: f64 = fields.iter().enumerate().filter(|(i, _)| !matches!(i, 3 | 4)).map(|(_, n)| n).sum();
    Ok(busy / ticks_per_s())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let stat = "7 (a) b) (c) S 1 7 7 0 -1 4194304 100 0 0 0 250 50 0 0 20 0";
        assert_eq!(cpu_ticks(stat), Some(300));
        assert_eq!(cpu_ticks("7 (a"), None);
    }

    #[test]
    fn this_process_can_be_watched() {
        let watch = Watch::start(&[std::process::id()]).unwrap();
        let cost = watch.finish().unwrap();
        assert!(cost.peak_rss_mib > 0.5 && cost.cpu_s >= 0.0 && cost.foreign_share <= 1.0);
    }

    #[test]
    fn a_process_that_does_not_exist_is_named() {
        let error = format!("{:#}", Watch::start(&[u32::MAX]).unwrap_err());
        assert!(error.contains("4294967295"), "{error}");
    }
}
