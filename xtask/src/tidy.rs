//! Our own rules over the source text: what neither rustfmt nor clippy sees.

use crate::run;
use anyhow::{Result, bail};
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// No source file is longer.
const LINES_MAX: usize = 1_000;
/// The map of the code.
const MAP: &str = "ARCHITECTURE.md";
/// Characters in a line of code.
const COLUMNS_MAX: usize = 120;

/// Checks every file that git knows; lists all findings.
pub fn run() -> Result<()> {
    println!("== tidy: our own rules over the source text");
    let mut findings = Vec::new();
    let files = tracked()?;
    let mut functions = HashSet::new();
    for file in &files {
        let path = run::root().join(file);
        let Ok(text) = fs::read_to_string(&path) else { continue };
        check_text(file, &text, &mut findings);
        // The client suites are users' programs, each a package of its own.
        if file.extension().is_some_and(|extension| extension == "rs") && !file.starts_with("tests/clients") {
            check_rust(file, &text, &mut findings);
            functions.extend(text.split("fn ").skip(1).map(|rest| identifier(rest).to_owned()));
        }
        if file.ends_with("Cargo.toml") {
            check_manifest(file, &text, &mut findings);
        }
    }
    check_map(&files, &functions, &mut findings)?;
    if findings.is_empty() {
        return Ok(());
    }
    for finding in &findings {
        eprintln!("{finding}");
    }
    bail!("tidy: {} findings", findings.len())
}

fn tracked() -> Result<Vec<PathBuf>> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(run::root())
        .output()?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(PathBuf::from).collect())
}

/// The letters, digits and underscores at the beginning.
fn identifier(text: &str) -> &str {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or_default()
}

/// The ways of a message in ARCHITECTURE.md are told by names of files and functions: they exist.
fn check_map(files: &[PathBuf], functions: &HashSet<String>, findings: &mut Vec<String>) -> Result<()> {
    let text = fs::read_to_string(run::root().join(MAP))?;
    for (number, line) in text.lines().enumerate() {
        let is_step =
            line.strip_prefix("| ").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
        let quoted = line.split('`').skip(1).step_by(2).filter(|_| is_step);
        for word in quoted {
            let name = word.rsplit("::").next().unwrap_or(word);
            let exists = match name.ends_with(".rs") {
                true => files.iter().any(|file| file.ends_with(name)),
                false => identifier(name) != name || functions.contains(name),
            };
            if !exists {
                findings.push(format!("{MAP}:{}: there is no `{word}`", number + 1));
            }
        }
    }
    Ok(())
}

fn check_text(file: &Path, text: &str, findings: &mut Vec<String>) {
    // Spelled in two halves, so that this file does not find itself.
    let markers = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:")];
    let machine_paths = [concat!("/wo", "rk/"), concat!("/ro", "ot/")];
    for (number, line) in text.lines().enumerate() {
        let mut found = |what: &str| findings.push(format!("{}:{}: {what}", file.display(), number + 1));
        if markers.iter().any(|marker| line.contains(marker)) {
            found("unfinished work: finish it, or say in an issue what is missing");
        }
        if machine_paths.iter().any(|path| line.contains(path)) {
            found("a path of one machine");
        }
        if line.ends_with([' ', '\t']) && file.extension().is_some_and(|extension| extension != "md") {
            found("blanks at the end of the line");
        }
    }
}

fn check_rust(file: &Path, text: &str, findings: &mut Vec<String>) {
    let shown = file.display();
    let lines = text.lines().count();
    if lines > LINES_MAX {
        findings.push(format!("{shown}: {lines} lines, at most {LINES_MAX}: look for the seam"));
    }
    if !text.starts_with("//!") {
        findings.push(format!("{shown}: begins without its duty (//! ...)"));
    }
    let is_test = file.components().any(|part| part.as_os_str() == "tests");
    let is_crate_root = file.ends_with("src/lib.rs");
    if is_crate_root && !text.contains("#![forbid(unsafe_code)]") {
        findings.push(format!("{shown}: a crate root says #![forbid(unsafe_code)]"));
    }
    for (number, line) in text.lines().enumerate() {
        let mut found = |what: &str| findings.push(format!("{shown}:{}: {what}", number + 1));
        let is_text = line.contains('"') || line.ends_with('\\') || line.trim_start().starts_with("//");
        if line.chars().count() > COLUMNS_MAX && !is_text {
            found("a long line");
        }
        if !is_test && line.contains(concat!("unbounded", "_channel")) {
            found("an unbounded channel");
        }
    }
}

fn check_manifest(file: &Path, text: &str, findings: &mut Vec<String>) {
    // The client suites are users' programs, each a package of its own.
    if !text.contains("[package]") || file.starts_with("tests/clients") {
        return;
    }
    for key in ["description", "license.workspace", "repository.workspace", "[lints]"] {
        if !text.contains(key) {
            findings.push(format!("{}: {key} is missing", file.display()));
        }
    }
}
