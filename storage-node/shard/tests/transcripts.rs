//! Runs the stories in `tests/transcripts`: commands at the margin, what they caused below them, indented.
//! `LONGSHORE_REWRITE=1 cargo test -p longshore-shard --test transcripts` writes what happens now into the files;
//! read the difference before you commit it.
#![cfg(test)]

mod common;
mod story;

use std::path::Path;

#[test]
fn stories_come_out_as_told() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let rewrite = std::env::var_os("LONGSHORE_REWRITE").is_some();
    let mut wrong = Vec::new();
    let mut count = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let told = std::fs::read_to_string(&path).unwrap();
        let happened = story::run(&told).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        count += 1;
        if told == happened {
            continue;
        }
        if rewrite {
            std::fs::write(&path, happened).unwrap();
        } else {
            wrong.push(format!("{}\n{}", path.display(), first_difference(&told, &happened)));
        }
    }
    assert!(count >= 10, "only {count} stories were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

fn first_difference(told: &str, happened: &str) -> String {
    let mut lines = told.lines().zip(happened.lines()).enumerate();
    match lines.find(|(_, (told, happened))| told != happened) {
        Some((n, (told, happened))) => format!("line {}\n  told:     {told}\n  happened: {happened}", n + 1),
        None => "one of them ends earlier".to_owned(),
    }
}
