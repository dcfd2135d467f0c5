//! API sketch.
#![allow(clippy::todo, unused_variables, missing_docs, dead_code)]
use crate::types::*;
use bytes::Bytes;
use longshore_io::Disk;
use longshore_wire::row::{Row, Source};
use longshore_wire::{Index, LogId, Offset, OffsetRange, ShardId};
use std::sync::Arc;

/// The pseudo log under which the pieces of large bodies of a group are kept.
pub fn part_log(group: ShardId) -> LogId {
    LogId(0x7FFF_FFFF_0000_0000 | u64::from(group.0))
}
/// Blocking work on the disk.
#[derive(Debug)]
pub struct Job {}
impl Job {
    /// Does the work. Blocks.
    pub fn run(self) -> JobDone {
        todo!()
    }
}
/// A finished job.
#[derive(Debug)]
pub struct JobDone {}
/// What a finished job changed.
#[derive(Debug)]
pub enum JobOutcome {
    /// Rows became durable: see `rows_durable`.
    Indexed,
    /// Live records moved; segments may have become removable.
    Rewritten,
    /// Fetched records are durable.
    Imported,
    /// Old files are gone.
    Removed,
    /// Nothing changed.
    Failed(RecordsError),
}
/// A read.
#[derive(Debug)]
pub struct ReadTask {}
impl ReadTask {
    /// Number of this task.
    pub fn id(&self) -> u64 {
        todo!()
    }
    /// Reads. Blocks.
    pub fn run(self) -> ReadDone {
        todo!()
    }
}
/// A finished read.
#[derive(Debug)]
pub struct ReadDone {}
/// The record store of a node.
pub struct Records {}
impl Records {
    /// Opens.
    pub fn open(disk: Arc<dyn Disk>, segments: Arc<dyn Segments>, config: Config, existing: &[SegmentInfo]) -> Result<(Records, Opened), RecordsError> {
        todo!()
    }
    pub fn recover(&mut self, group: ShardId, view: &dyn LiveView) {
        todo!()
    }
    pub fn applied(&mut self, group: ShardId, index: Index, place: Option<Place>, rows: Vec<Row>, data: &Bytes) -> Result<(), RecordsError> {
        todo!()
    }
    pub fn segment_sealed(&mut self, info: &SegmentInfo) {
        todo!()
    }
    pub fn truncated(&mut self, group: ShardId, from: Index) {
        todo!()
    }
    pub fn flush(&mut self) -> Option<Job> {
        todo!()
    }
    pub fn rows_durable(&self, group: ShardId) -> Index {
        todo!()
    }
    pub fn settled(&mut self, log: LogId, ranges: &[OffsetRange]) {
        todo!()
    }
    pub fn dropped(&mut self, log: LogId) {
        todo!()
    }
    pub fn forget(&mut self, group: ShardId) {
        todo!()
    }
    pub fn uploads_from(&mut self, group: ShardId, index: Index) {
        todo!()
    }
    pub fn holds(&self, segment: SegmentId) -> bool {
        todo!()
    }
    pub fn removable(&self) -> Vec<SegmentId> {
        todo!()
    }
    pub fn segment_removed(&mut self, segment: SegmentId) {
        todo!()
    }
    pub fn garbage(&self) -> Garbage {
        todo!()
    }
    pub fn rows(&mut self, log: LogId, from: Offset, rows_max: usize) -> Lookup<Vec<Row>> {
        todo!()
    }
    pub fn read(&mut self, log: LogId, offset: Offset, parts: Parts) -> Lookup<StoredRecord> {
        todo!()
    }
    pub fn read_many(&mut self, wanted: &[(LogId, Offset)], parts: Parts) -> Many {
        todo!()
    }
    pub fn read_parts(&mut self, group: ShardId, parts: &[Source]) -> Lookup<Vec<Bytes>> {
        todo!()
    }
    pub fn export(&mut self, log: LogId, from: Offset, until: Offset) -> Lookup<Vec<StoredRecord>> {
        todo!()
    }
    pub fn read_done(&mut self, done: ReadDone) -> Answer {
        todo!()
    }
    pub fn next_job(&mut self, releasable: &dyn Fn(SegmentId) -> bool) -> Option<Job> {
        todo!()
    }
    pub fn job_done(&mut self, done: JobDone) -> JobOutcome {
        todo!()
    }
    pub fn import(&mut self, batch: Vec<Import>) -> Result<Job, RecordsError> {
        todo!()
    }
    pub fn repair(&mut self, group: ShardId, stored: StoredRecord) -> Result<Job, RecordsError> {
        todo!()
    }
    pub fn missing(&self, log: LogId, ranges: &[OffsetRange]) -> Vec<OffsetRange> {
        todo!()
    }
    pub fn pin(&mut self) -> PinId {
        todo!()
    }
    pub fn unpin(&mut self, pin: PinId) {
        todo!()
    }
}
