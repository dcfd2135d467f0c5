//! The language of the stories. A line is a comment (`#`), empty, a command, or (indented) what a command caused.
//!
//! ```text
//! at MS                          the leader's clock for what follows
//! leader ITEM; ITEM              a batch of the shard's own leader
//! S#N ITEM; ITEM                 batch number N of session S
//! raw HEX                        bytes that are no batch
//! show LOG | sessions | pinned   what others read
//! restart | snapshot             goes on with a state restored from checkpoints, or from all pages
//! ```
//! Items stand in `items.rs`. Ranges are written `3-9`, lists with commas.

mod items;
mod show;

use crate::common::{apply, batch};
use bytes::Bytes;
use longshore_shard::{Effects, Shard};
use longshore_wire::ShardId;
use std::collections::BTreeMap;

/// A story on its way.
struct Teller {
    shard: Shard,
    stamp: u64,
    stored: BTreeMap<Bytes, Bytes>,
}

/// Runs a story and returns it with what really happened.
pub fn run(told: &str) -> Result<String, String> {
    let mut teller = Teller { shard: Shard::new(ShardId(1)), stamp: 0, stored: BTreeMap::new() };
    let mut happened = String::new();
    for (n, line) in told.lines().enumerate() {
        if line.starts_with("  ") {
            continue;
        }
        happened.push_str(line);
        happened.push('\n');
        let lines = teller.command(line.trim()).map_err(|error| format!("line {}: {error}", n + 1))?;
        for line in lines {
            happened.push_str(&format!("  {line}\n"));
        }
    }
    Ok(happened)
}

impl Teller {
    fn command(&mut self, line: &str) -> Result<Vec<String>, String> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "" => Ok(Vec::new()),
            _ if word.starts_with('#') => Ok(Vec::new()),
            "at" => {
                self.stamp = items::number(rest)?;
                Ok(Vec::new())
            }
            "leader" => self.batch(0, 0, rest),
            "raw" => self.raw(rest),
            "show" => show::state(&self.shard, rest),
            "restart" => self.restart(),
            "snapshot" => self.snapshot(),
            _ => {
                let (session, number) = word.split_once('#').ok_or(format!("unknown command {word}"))?;
                self.batch(items::number(session)?, items::number(number)?, rest)
            }
        }
    }

    fn batch(&mut self, session: u64, number: u64, text: &str) -> Result<Vec<String>, String> {
        let puts = text.split(';').map(str::trim).filter(|text| !text.is_empty()).map(items::parse);
        let data = batch(session, number, &puts.collect::<Result<Vec<_>, _>>()?);
        Ok(self.apply(&data))
    }

    fn raw(&mut self, hex: &str) -> Result<Vec<String>, String> {
        let digits: Vec<char> = hex.chars().filter(|c| !c.is_whitespace()).collect();
        let bytes = digits.chunks(2).map(|pair| u8::from_str_radix(&pair.iter().collect::<String>(), 16));
        let data: Vec<u8> = bytes.collect::<Result<_, _>>().map_err(|error| error.to_string())?;
        Ok(self.apply(&Bytes::from(data)))
    }

    fn apply(&mut self, data: &Bytes) -> Vec<String> {
        let effects: Effects = apply(&mut self.shard, self.stamp, data);
        show::effects(&effects)
    }

    fn restart(&mut self) -> Result<Vec<String>, String> {
        for (key, page) in self.shard.take_dirty_pages() {
            match page {
                Some(page) => drop(self.stored.insert(key, page)),
                None => drop(self.stored.remove(&key)),
            }
        }
        self.go_on_with(self.stored.clone())
    }

    fn snapshot(&mut self) -> Result<Vec<String>, String> {
        let pages: BTreeMap<_, _> = self.shard.all_pages().into_iter().collect();
        self.stored = pages.clone();
        self.go_on_with(pages)
    }

    fn go_on_with(&mut self, pages: BTreeMap<Bytes, Bytes>) -> Result<Vec<String>, String> {
        let restored = Shard::restore(self.shard.id(), pages).map_err(|error| error.to_string())?;
        let same = restored.state_hash() == self.shard.state_hash();
        self.shard = restored;
        Ok(vec![if same { "same state".to_owned() } else { "ANOTHER STATE".to_owned() }])
    }
}
