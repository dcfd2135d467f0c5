//! Runs a command as a named step, and stops at the first that fails with the way to repeat it.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// Where builds and downloaded client libraries go.
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Whether this is CI, where nothing may be skipped.
pub fn is_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| value == "true")
}

/// Whether `program` is on the PATH.
pub fn has(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

/// Runs `program args` in the root, announced as `name`.
pub fn step(name: &str, program: &str, args: &[&str], env: &[(&str, &str)]) -> Result<()> {
    step_in(&root(), name, program, args, env)
}

/// Runs `program args` in `dir`, announced as `name`.
pub fn step_in(dir: &Path, name: &str, program: &str, args: &[&str], env: &[(&str, &str)]) -> Result<()> {
    let shown: Vec<String> = env.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let line = format!("{} {program} {}", shown.join(" "), args.join(" "));
    println!("== {name}: {}", line.trim());
    let started = Instant::now();
    let status = Command::new(program)
        .args(args)
        .envs(env.iter().copied())
        .current_dir(dir)
        .status()
        .with_context(|| format!("{name}: cannot start {program}"))?;
    if !status.success() {
        bail!("{name} failed ({status}); repeat it with: {}", line.trim());
    }
    println!("   {name}: {:.0} s", started.elapsed().as_secs_f64());
    Ok(())
}
