//! A log on a simulated disk beside a simple model of what it must say.

use crate::*;
use bytes::Bytes;
use longshore_io::sim::{Rng, SimDisk};
use longshore_wire::{Index, ReplicaId, ShardId, Term};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub const SEGMENT_BYTES: u64 = 16 << 10;

pub fn config() -> LogConfig {
    LogConfig {
        segment_bytes: SEGMENT_BYTES,
        batch_bytes_max: 4 << 10,
        tail_bytes_max: 6 << 10,
        standby_segments: 1,
        free_segments_max: 2,
        log_bytes_max: 8 * SEGMENT_BYTES,
        raft_segments_max: 4,
        salt: [7; 16],
        must_exist: false,
    }
}

pub fn open(disk: &SimDisk) -> Result<(NodeLog, LogWriter, Recovery), OpenError> {
    NodeLog::open(Arc::new(disk.clone()), config())
}

/// One group as the model knows it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plain {
    pub mark: (u64, u64),
    /// Term and data; the first one has index `mark.0 + 1`.
    pub entries: Vec<(u64, Bytes)>,
    pub hard_state: HardState,
    pub conf: Bytes,
}

impl Plain {
    pub fn last(&self) -> u64 {
        self.mark.0 + self.entries.len() as u64
    }
}

/// All groups; a set-aside one is in `aside` only.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Model {
    pub groups: BTreeMap<ShardId, Plain>,
    pub aside: BTreeSet<ShardId>,
}

/// One change, as done to the log and to the model alike.
#[derive(Clone, Debug)]
pub enum Op {
    Append(u64, u64, Bytes),
    HardState(u64, u64),
    Conf(Bytes),
    Compact(u64),
    Snapshot(u64, u64),
    Reset,
    Remove,
    Aside,
}

impl Model {
    pub fn apply(&mut self, group: ShardId, op: &Op) {
        match op {
            Op::Reset => {
                self.aside.remove(&group);
                self.groups.insert(group, Plain::default());
                return;
            }
            Op::Remove => {
                self.aside.remove(&group);
                self.groups.remove(&group);
                return;
            }
            Op::Aside => {
                self.groups.remove(&group);
                self.aside.insert(group);
                return;
            }
            _ => {}
        }
        let plain = self.groups.entry(group).or_default();
        match op {
            Op::Append(index, term, data) => {
                plain.entries.truncate((index - plain.mark.0 - 1) as usize);
                plain.entries.push((*term, data.clone()));
            }
            Op::HardState(term, commit) => {
                plain.hard_state =
                    HardState { term: Term(*term), vote: ReplicaId(*term), commit: Index(*commit) };
            }
            Op::Conf(conf) => plain.conf = conf.clone(),
            Op::Compact(to) => {
                let n = (to - plain.mark.0) as usize;
                plain.mark = (*to, plain.entries[n - 1].0);
                plain.entries.drain(..n);
            }
            Op::Snapshot(index, term) => {
                plain.mark = (*index, *term);
                plain.entries.clear();
            }
            Op::Reset | Op::Remove | Op::Aside => unreachable!(),
        }
    }
}

/// Does the change to the log. The log must allow it.
pub fn apply(log: &mut NodeLog, group: ShardId, op: &Op) {
    match op {
        Op::Append(index, term, data) => log
            .append(
                group,
                Entry {
                    index: Index(*index),
                    term: Term(*term),
                    kind: 3,
                    context: Bytes::from_static(b"context"),
                    data: data.clone(),
                },
            )
            .unwrap(),
        Op::HardState(term, commit) => log
            .set_hard_state(
                group,
                HardState { term: Term(*term), vote: ReplicaId(*term), commit: Index(*commit) },
            )
            .unwrap(),
        Op::Conf(conf) => log.set_conf(group, conf.clone()).unwrap(),
        Op::Compact(to) => {
            log.checkpointed(group, Index(*to));
            assert_eq!(log.compact(group, Index(*to)), Index(to + 1));
        }
        Op::Snapshot(index, term) => log.install_snapshot(group, Index(*index), Term(*term)).unwrap(),
        Op::Reset => log.reset(group),
        Op::Remove => log.remove(group),
        Op::Aside => log.set_aside(group),
    }
}

/// Data that tells where it belongs and compresses badly.
pub fn data(rng: &mut Rng, bytes_max: u64) -> Bytes {
    let len = rng.below(bytes_max);
    (0..len).map(|_| rng.next_u64() as u8).collect()
}

/// All entries of a group from the log, from memory and disk.
pub fn read_all(log: &NodeLog, group: ShardId) -> Result<Vec<Entry>, ReadError> {
    let mut low = log.first_index(group).unwrap();
    let last = log.last_appended(group).unwrap().0;
    let mut all = Vec::new();
    while low <= last {
        let got = match log.entries(group, low, Index(last.0 + 1), 700)? {
            Fetched::Ready(entries) => entries,
            Fetched::Read(task) => task.run().entries?,
        };
        assert!(!got.is_empty());
        low = Index(low.0 + got.len() as u64);
        all.extend(got);
    }
    Ok(all)
}

/// What the log says, in the model's words.
pub fn observe(log: &NodeLog) -> Result<Model, ReadError> {
    let mut model = Model::default();
    for group in log.groups() {
        let first = log.first_index(group).unwrap().0;
        let entries = read_all(log, group)?;
        for (i, entry) in entries.iter().enumerate() {
            assert_eq!(entry.index.0, first + i as u64);
            assert_eq!(entry.kind, 3);
            assert_eq!(entry.context, &b"context"[..]);
            assert_eq!(log.term(group, entry.index)?, entry.term);
        }
        model.groups.insert(
            group,
            Plain {
                mark: (first - 1, log.term(group, Index(first - 1))?.0),
                entries: entries.into_iter().map(|e| (e.term.0, e.data)).collect(),
                hard_state: log.hard_state(group).unwrap(),
                conf: log.conf(group).unwrap(),
            },
        );
    }
    model.aside = (0..64).map(ShardId).filter(|g| log.is_set_aside(*g)).collect();
    Ok(model)
}

/// Writes everything that is open and completes it.
pub fn flush(log: &mut NodeLog, writer: &mut LogWriter) -> Progress {
    let request = log.take_request();
    let completion = writer.write(request.into_iter().collect()).unwrap();
    log.completed(completion)
}

/// Runs all maintenance there is.
pub fn maintain(log: &mut NodeLog, writer: &mut LogWriter) {
    // Small states that are written again hold their segment back until they are durable.
    for _ in 0..20 {
        let job = log.maintain();
        flush(log, writer);
        if let Some(job) = job {
            log.maintained(job.run()).unwrap();
        }
    }
}

/// A log with `count` entries of `bytes` each in group 1, each in a batch of its own.
pub fn fill(
    log: &mut NodeLog,
    writer: &mut LogWriter,
    model: &mut Model,
    group: ShardId,
    count: u64,
    bytes: u64,
) {
    for _ in 0..count {
        let next = model.groups.get(&group).map_or(1, |p| p.last() + 1);
        let op = Op::Append(next, 1, Bytes::from(vec![next as u8; bytes as usize]));
        apply(log, group, &op);
        model.apply(group, &op);
        flush(log, writer);
    }
}
