//! Raw rows as they come, and the tables at the end: medians of both sides and of the ratios of each pair.
//!
//! Every steady pair counts; if a row has none, all its pairs do and the table says so. Failed runs have no figures
//! and are counted.

use super::cases::Case;
use super::drivers::Measured;
use super::rounds::{Pair, Run};
use super::systems::System;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

const COLUMNS: &str = "round\tsystem\trow\tsteady\tprobe before ms\tprobe after ms\tconfirmed/s\tdelivered/s\t\
    p50 ms\tp99 ms\tmessages\tbroker CPU s/100k\tdriver CPU s/100k\tpeak RSS MiB\twritten MiB/100k\tforeign CPU %\terrors";

/// The file of raw rows.
#[derive(Debug)]
pub struct RawFile {
    file: File,
    path: PathBuf,
    versions: BTreeMap<&'static str, String>,
}

impl RawFile {
    /// Makes `DIR/DATE-PEER.tsv` with what is known of the machine. A second run of a day gets a time in its name.
    pub fn create(dir: &Path, peer: &str) -> Result<RawFile> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let (date, time) = now();
        let mut path = dir.join(format!("{date}-{peer}.tsv"));
        if path.exists() {
            path = dir.join(format!("{date}-{}-{peer}.tsv", time.replace(':', "")));
        }
        let mut file = File::create_new(&path).with_context(|| format!("cannot make {}", path.display()))?;
        // Paths of one machine say nothing elsewhere: only the last part of each argument is kept.
        let command: Vec<String> = std::env::args().skip(1).map(|argument| last_part(&argument)).collect();
        writeln!(file, "# {date} {time} UTC  longshore-bench {}", command.join(" "))?;
        writeln!(file, "# {}", machine())?;
        writeln!(file, "{COLUMNS}")?;
        Ok(RawFile { file, path, versions: BTreeMap::new() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Says once which version of a system was measured.
    pub fn name(&mut self, system: System, version: &str) -> Result<()> {
        if self.versions.insert(system.name(), version.to_owned()).is_none() {
            writeln!(self.file, "# {}: {version}", system.name())?;
        }
        Ok(())
    }

    /// The versions of all systems that ran.
    pub fn versions(&self) -> String {
        self.versions.values().map(String::as_str).collect::<Vec<_>>().join(", ")
    }

    /// Writes the two runs of a pair.
    pub fn write(&mut self, case: &Case, peer: &str, pair: &Pair) -> Result<()> {
        for (system, run) in [(peer, &pair.peer), ("longshore", &pair.longshore)] {
            writeln!(self.file, "{}", raw_row(system, case, pair, run))?;
        }
        Ok(())
    }
}

fn last_part(argument: &str) -> String {
    argument.rsplit('/').next().unwrap_or(argument).to_owned()
}

fn raw_row(system: &str, case: &Case, pair: &Pair, run: &Run) -> String {
    let m = &run.measured;
    let errors = m.errors.join("; ").replace(['\t', '\n'], " ");
    let errors = if errors.is_empty() { "-" } else { errors.as_str() };
    format!(
        "{}\t{system}\t{}\t{}\t{:.3}\t{:.3}\t{:.0}\t{:.0}\t{:.3}\t{:.3}\t{:.0}\t{:.3}\t{:.3}\t{:.1}\t{:.1}\t{:.0}\t{errors}",
        pair.round,
        case.label(),
        if pair.is_steady() { "yes" } else { "no" },
        run.probe_before_ms,
        run.probe_after_ms,
        m.confirmed_per_s,
        m.delivered_per_s,
        m.p50_ms,
        m.p99_ms,
        m.messages,
        m.cpu_s_per_100k,
        m.driver_cpu_s_per_100k,
        m.peak_rss_mib,
        m.written_mib_per_100k,
        m.foreign_share * 100.0,
    )
}

/// Processors, their model, kernel.
fn machine() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let processors = std::thread::available_parallelism().map_or(1, |n| n.get());
    format!("{processors} processors, {}, Linux {}", model.map_or("unknown", |(_, name)| name), kernel.trim())
}

/// Date and time of day, UTC.
fn now() -> (String, String) {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (year, month, day) = civil(seconds / 86_400);
    let of_day = seconds % 86_400;
    let time = format!("{:02}:{:02}:{:02}", of_day / 3_600, of_day / 60 % 60, of_day % 60);
    (format!("{year:04}-{month:02}-{day:02}"), time)
}

/// Year, month and day of a day since 1970-01-01, by the rules of the Gregorian calendar.
fn civil(mut days: u64) -> (u64, u64, u64) {
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let mut month = 1;
    for length in [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}

/// The middle value; between the two middle ones of an even count. `NaN` of none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.retain(|value| value.is_finite());
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match (values.get(middle), middle.checked_sub(1).and_then(|n| values.get(n))) {
        (Some(high), Some(low)) if values.len().is_multiple_of(2) => (low + high) / 2.0,
        (Some(value), _) => *value,
        (None, _) => f64::NAN,
    }
}

/// The tables, in Markdown: medians of the peer / Longshore, then the median of the pairs' ratios.
pub fn markdown(pairs: &BTreeMap<Case, Vec<Pair>>, peer: &str, wanted: usize) -> String {
    let mut out = format!(
        "Each cell: {peer} / longshore, medians; x: median over the pairs of longshore divided by {peer}.\n\n\
         | row | pairs | confirmed/s | x | delivered/s | p50 ms | p99 ms | x p99 | broker CPU s/100k | x | peak RSS MiB | written MiB/100k | notes |\n\
         |--|--|--|--|--|--|--|--|--|--|--|--|--|\n"
    );
    for (case, list) in pairs {
        let _ = writeln!(out, "{}", markdown_row(case, list, wanted));
    }
    out
}

fn markdown_row(case: &Case, list: &[Pair], wanted: usize) -> String {
    let failed = |pair: &&Pair| pair.peer.measured.messages < 1.0 || pair.longshore.measured.messages < 1.0;
    let worked: Vec<&Pair> = list.iter().filter(|pair| !failed(pair)).collect();
    let steady: Vec<&Pair> = worked.iter().copied().filter(|pair| pair.is_steady()).collect();
    let mut notes = Vec::new();
    let used = if steady.is_empty() { &worked } else { &steady };
    if steady.is_empty() {
        notes.push("no steady pair: all counted".to_owned());
    } else if steady.len() < wanted {
        notes.push(format!("{} of {wanted} steady pairs", steady.len()));
    }
    if worked.len() < list.len() {
        notes.push(format!("{} pairs failed", list.len() - worked.len()));
    }
    let with_errors = worked
        .iter()
        .filter(|p| !(p.peer.measured.errors.is_empty() && p.longshore.measured.errors.is_empty()));
    match with_errors.count() {
        0 => {}
        n => notes.push(format!("{n} pairs with errors, see the raw rows")),
    }
    let cell = |of: fn(&Measured) -> f64, digits: usize| {
        let side = |run: fn(&Pair) -> &Run| median(used.iter().map(|pair| of(&run(pair).measured)).collect());
        format!("{:.digits$} / {:.digits$}", side(|pair| &pair.peer), side(|pair| &pair.longshore))
    };
    let ratio = |of: fn(&Measured) -> f64| {
        median(used.iter().map(|pair| of(&pair.longshore.measured) / of(&pair.peer.measured)).collect())
    };
    format!(
        "| {} | {} | {} | {:.2} | {} | {} | {} | {:.2} | {} | {:.3} | {} | {} | {} |",
        case.label(),
        used.len(),
        cell(|m| m.confirmed_per_s, 0),
        ratio(|m| m.confirmed_per_s),
        if case.consume { cell(|m| m.delivered_per_s, 0) } else { "-".into() },
        cell(|m| m.p50_ms, 2),
        cell(|m| m.p99_ms, 2),
        ratio(|m| m.p99_ms),
        cell(|m| m.cpu_s_per_100k, 2),
        ratio(|m| m.cpu_s_per_100k),
        cell(|m| m.peak_rss_mib, 0),
        cell(|m| m.written_mib_per_100k, 0),
        notes.join("; "),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::cases;

    #[test]
    fn the_calendar_is_right() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(20_778), (2026, 11, 21));
        assert_eq!(civil(20_818), (2026, 12, 31));
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(vec![1.0, f64::NAN]), 1.0);
        assert!(median(Vec::new()).is_nan());
    }

    fn run(rate: f64, probe: f64) -> Run {
        let measured = Measured { confirmed_per_s: rate, messages: rate, ..Default::default() };
        Run { measured, probe_before_ms: probe, probe_after_ms: probe }
    }

    #[test]
    fn steady_pairs_count_and_the_ratio_is_of_each_pair() {
        let pairs = vec![
            Pair { round: 1, peer: run(100.0, 1.0), longshore: run(400.0, 1.0) },
            Pair { round: 2, peer: run(200.0, 1.0), longshore: run(1_000.0, 1.1) },
            Pair { round: 3, peer: run(100.0, 1.0), longshore: run(9_000.0, 2.0) },
            Pair { round: 4, peer: run(0.0, 1.0), longshore: run(9_000.0, 1.0) },
        ];
        let case = cases::all(false)[0];
        let row = markdown_row(&case, &pairs, 3);
        assert!(row.contains("| 2 | 150 / 700 | 4.50 |"), "{row}");
        assert!(row.contains("2 of 3 steady pairs; 1 pairs failed"), "{row}");
    }

    #[test]
    fn a_day_s_second_file_does_not_replace_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = RawFile::create(dir.path(), "peer").unwrap();
        let second = RawFile::create(dir.path(), "peer").unwrap();
        assert_ne!(first.path(), second.path());
        assert!(fs::read_to_string(first.path()).unwrap().contains(COLUMNS));
    }
}
