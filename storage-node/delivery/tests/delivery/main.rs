//! Delivery against the real shard state machine. This file runs the stories in `tests/transcripts/*.txt`: commands, and after each what came of it (`-> ...`).
//!
//! They are the documentation of behaviour; `UPDATE_TRANSCRIPTS=1 cargo test -p longshore-delivery --test delivery stories`
//! writes the outcomes anew, to be read before they are committed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test's helpers fail by panicking.

mod admit;
mod memory;
mod model;
mod scale;
mod support;
mod transcript;

use std::path::Path;

#[test]
fn stories_come_out_as_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    let update = std::env::var_os("UPDATE_TRANSCRIPTS").is_some();
    let mut wrong = Vec::new();
    for file in files {
        let written = std::fs::read_to_string(&file).unwrap();
        let happened = transcript::run(&written);
        if update {
            std::fs::write(&file, happened).unwrap();
        } else if happened != written {
            wrong.push(format!("{}:\n{}", file.display(), difference(&written, &happened)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn difference(written: &str, happened: &str) -> String {
    let (left, right): (Vec<_>, Vec<_>) = (written.lines().collect(), happened.lines().collect());
    let at = left.iter().zip(&right).take_while(|(a, b)| a == b).count();
    let show =
        |lines: &[&str]| lines.iter().skip(at).take(6).map(|l| format!("    {l}\n")).collect::<String>();
    format!("  line {}\n  written:\n{}  happened:\n{}", at + 1, show(&left), show(&right))
}
