//! Reading records: bodies for deliveries, rows for delivery's windows, exports for peers; and repairing what this
//! node's disk has damaged from a peer.
//!
//! Each read that needs the disk becomes a task with a number; what it was for is kept here until it is done.

use crate::host::Host;
use crate::io::{FetchSend, LinkId, Output, Reply, Task, Ticket};
use longshore_consensus::Event;
use longshore_delivery::LoadId;
use longshore_proto::v1::{self, FetchReply, FetchedRecord};
use longshore_records::{
    Answer, Import, Lookup, Parts, ReadDone, ReadError, ReadTask, StoredRecord, part_log,
};
use longshore_wire::row::Row;
use longshore_wire::{LogId, LogTime, NodeId, Offset, OffsetRange, Reader, ShardId};
use std::collections::{BTreeMap, BTreeSet};

/// Repairs from peers that may be under way.
const REPAIRS_MAX: usize = 64;
/// Rows looked at in one step of a search by time.
const FIND_ROWS: usize = 512;

/// What a read is for.
#[derive(Debug)]
enum Purpose {
    Rows { shard: ShardId, load: LoadId },
    FindTime { shard: ShardId, load: LoadId, log: LogId, time: LogTime },
    Bodies { link: LinkId, log: LogId },
    Export { ticket: Ticket, shard: ShardId, from: Offset, until: Offset, log: LogId },
}

/// What a fetch from a peer is for.
#[derive(Debug)]
pub(crate) enum Wanted {
    /// Bodies that a snapshot names.
    Bodies { group: ShardId, number: u64 },
    /// A record that is damaged here.
    Repair { group: ShardId, log: LogId, offset: Offset },
}

/// A record that is damaged here and wanted by deliveries.
#[derive(Debug, Default)]
struct Repair {
    queues: BTreeSet<(LinkId, LogId)>,
    /// Peers that were asked and have not ended their answer.
    asked: usize,
}

/// Reads that are under way.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    purposes: BTreeMap<u64, Purpose>,
    /// Records that are being fetched because this node's copy is damaged, with the queues that wait for them.
    repairs: BTreeMap<(LogId, Offset), Repair>,
    /// Queues whose bodies are asked for again at the next look: a read failed, or too many damaged records are being fetched.
    put_off: BTreeSet<(LinkId, LogId)>,
    /// Fetches from peers that have not ended.
    fetches: BTreeMap<u64, Wanted>,
    numbers: u64,
}

impl Reads {
    /// A number of this process's own.
    pub fn next_number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }
}

impl Host {
    fn read(&mut self, purpose: Purpose, task: ReadTask, out: &mut Output) {
        self.reads.purposes.insert(task.id(), purpose);
        out.tasks.push(Task::ReadRecords(task));
    }

    /// Rows for a window of delivery.
    pub(crate) fn load_rows(
        &mut self,
        shard: ShardId,
        load: LoadId,
        log: LogId,
        from: Offset,
        max: u32,
        out: &mut Output,
    ) {
        let max = max as usize;
        match self.records.rows(log, from, max) {
            Lookup::Ready(rows) => self.rows_loaded(shard, load, rows),
            Lookup::Missing => self.rows_loaded(shard, load, Vec::new()),
            Lookup::Task(task) => self.read(Purpose::Rows { shard, load }, task, out),
        }
    }

    fn rows_loaded(&mut self, shard: ShardId, load: LoadId, rows: Vec<Row>) {
        if let Some(host) = self.shards.get_mut(&shard) {
            host.delivery.rows_loaded(self.now, load, rows, &host.shard);
            self.dirty.insert(shard);
        }
    }

    /// The first offset appended at or after a time: rows are looked through from the log's first.
    pub(crate) fn find_time(
        &mut self,
        shard: ShardId,
        load: LoadId,
        log: LogId,
        time: LogTime,
        from: Offset,
        out: &mut Output,
    ) {
        match self.records.rows(log, from, FIND_ROWS) {
            Lookup::Ready(rows) => self.time_rows(shard, load, log, time, &rows, out),
            Lookup::Missing => self.time_rows(shard, load, log, time, &[], out),
            Lookup::Task(task) => self.read(Purpose::FindTime { shard, load, log, time }, task, out),
        }
    }

    fn time_rows(
        &mut self,
        shard: ShardId,
        load: LoadId,
        log: LogId,
        time: LogTime,
        rows: &[Row],
        out: &mut Output,
    ) {
        let found = rows.iter().find(|row| row.time >= time).map(|row| row.offset);
        if let (None, Some(last)) = (found, rows.last()) {
            return self.find_time(shard, load, log, time, last.end(), out);
        }
        if let Some(host) = self.shards.get_mut(&shard) {
            let next = host.shard.log(log).map_or(Offset(0), |log| log.next());
            host.delivery.time_found(load, found.unwrap_or(next));
            self.dirty.insert(shard);
        }
    }

    /// Asks for the bodies that deliveries wait for.
    pub(crate) fn ask_for_bodies(&mut self, out: &mut Output) {
        for wanted in self.links.wanted() {
            let many = self.records.read_many(&wanted.offsets, Parts::All);
            for stored in &many.ready {
                self.links.body(wanted.link, wanted.log, stored);
            }
            for (log, offset) in many.missing {
                self.repair(log, offset, (wanted.link, wanted.log), out);
            }
            if let Some(task) = many.task {
                self.read(Purpose::Bodies { link: wanted.link, log: wanted.log }, task, out);
            }
        }
    }

    /// A read is finished.
    pub(crate) fn read_done(&mut self, done: ReadDone, out: &mut Output) {
        let answer = self.records.read_done(done);
        let Some(purpose) = self.reads.purposes.remove(&answer.id) else { return };
        match purpose {
            Purpose::Rows { shard, load } if answer.failed.is_empty() => {
                self.rows_loaded(shard, load, answer.rows)
            }
            Purpose::Rows { shard, load } => {
                self.report(&answer.failed);
                if let Some(host) = self.shards.get_mut(&shard) {
                    host.delivery.load_failed(self.now, load);
                }
            }
            Purpose::FindTime { shard, load, .. } if !answer.failed.is_empty() => {
                // Nothing found would mean the log's end.
                self.report(&answer.failed);
                if let Some(host) = self.shards.get_mut(&shard) {
                    host.delivery.load_failed(self.now, load);
                }
            }
            Purpose::FindTime { shard, load, log, time } => {
                self.time_rows(shard, load, log, time, &answer.rows, out)
            }
            Purpose::Bodies { link, log } => self.bodies_read(link, log, answer, out),
            Purpose::Export { ticket, shard, from, until, log } => {
                self.report(&answer.failed);
                // None at all although there are some: they could not be read.
                let whole = answer.failed.is_empty() && !answer.records.is_empty();
                let records = whole.then_some(&answer.records[..]);
                self.export_done(ticket, shard, (log, from, until), records, out)
            }
        }
    }

    fn report(&self, failed: &[ReadError]) {
        for error in failed {
            tracing::warn!(node = %self.node, %error, "a stored record cannot be read here");
            metrics::counter!("longshore_read_errors_total").increment(1);
        }
    }

    fn bodies_read(&mut self, link: LinkId, log: LogId, answer: Answer, out: &mut Output) {
        for stored in &answer.records {
            self.links.body(link, log, stored);
        }
        self.report(&answer.failed);
        let corrupt: Vec<_> = answer
            .failed
            .iter()
            .filter_map(|error| match error {
                // A damaged piece is named beside the record that it belongs to, and comes with that.
                ReadError::Corrupt { group, log, offset } => {
                    (*log != part_log(*group)).then_some((*log, *offset))
                }
                _ => None,
            })
            .collect();
        if answer.failed.is_empty() {
            self.links.ask_again(link, log);
        } else {
            // Not at once: a sector that cannot be read would be read over and over.
            self.reads.put_off.insert((link, log));
        }
        for (damaged, offset) in corrupt {
            self.repair(damaged, offset, (link, log), out);
        }
    }

    /// Fetches a record that this node has lost or damaged from another replica.
    fn repair(&mut self, log: LogId, offset: Offset, queue: (LinkId, LogId), out: &mut Output) {
        if self.reads.repairs.len() >= REPAIRS_MAX && !self.reads.repairs.contains_key(&(log, offset)) {
            self.reads.put_off.insert(queue);
            return;
        }
        let repair = self.reads.repairs.entry((log, offset)).or_default();
        let first = repair.queues.is_empty();
        repair.queues.insert(queue);
        if first {
            self.ask_for_repair(log, offset, out);
        }
    }

    /// Asks again for what no peer could give when it was asked; now and then.
    pub(crate) fn ask_for_repairs(&mut self, out: &mut Output) {
        for (link, log) in std::mem::take(&mut self.reads.put_off) {
            self.links.ask_again(link, log);
        }
        let unasked = self.reads.repairs.iter().filter(|(_, repair)| repair.asked == 0).map(|(key, _)| *key);
        for (log, offset) in unasked.collect::<Vec<_>>() {
            self.forget_settled(log, offset);
            if self.links.waits_for(log, offset) {
                self.ask_for_repair(log, offset, out);
            } else {
                self.reads.repairs.remove(&(log, offset));
            }
        }
    }

    /// Deliveries of what was settled or dropped while they waited for this record go: nobody brings it any more, and what
    /// is behind them must not wait.
    fn forget_settled(&mut self, log: LogId, record: Offset) {
        let known = self.shards.values().find_map(|host| host.shard.log(log));
        self.links.forget_record(log, record, |offset| {
            known.is_some_and(|log| log.live_ranges().any(|live| live.first <= offset && offset <= live.last))
        });
    }

    fn ask_for_repair(&mut self, log: LogId, offset: Offset, out: &mut Output) {
        let group = self.shards.values().find(|host| host.shard.log(log).is_some()).map(|host| host.id);
        let Some(host) = group.and_then(|group| self.shards.get(&group)) else {
            // The log is gone, or this node's replica of it.
            self.reads.repairs.remove(&(log, offset));
            return self.forget_settled(log, offset);
        };
        let (group, voters) = (host.id, host.membership.voters.iter());
        let others: Vec<_> = voters.map(|replica| replica.node()).filter(|node| *node != self.node).collect();
        if let Some(repair) = self.reads.repairs.get_mut(&(log, offset)) {
            repair.asked += others.len();
        }
        for to_node in others {
            let request = v1::FetchRequest {
                cluster: self.config.cluster.clone(),
                shard: group.0,
                snapshot_index: 0,
                log: log.0,
                from: offset.0,
                until: offset.0 + 1,
            };
            self.fetch(Wanted::Repair { group, log, offset }, to_node, group, request, out);
        }
    }

    /// Asks a peer for records.
    pub(crate) fn fetch(
        &mut self,
        wanted: Wanted,
        to_node: NodeId,
        group: ShardId,
        request: v1::FetchRequest,
        out: &mut Output,
    ) {
        let fetch = self.reads.next_number();
        self.reads.fetches.insert(fetch, wanted);
        out.fetches.push(FetchSend { fetch, to_node, group, request });
    }

    /// A peer answered a fetch, or did not.
    pub(crate) fn fetched(
        &mut self,
        fetch: u64,
        reply: Option<FetchReply>,
        events: &mut Vec<Event>,
        out: &mut Output,
    ) {
        let ended = reply.as_ref().is_none_or(|reply| reply.done || reply.unknown_snapshot);
        match self.reads.fetches.get(&fetch) {
            None => return,
            Some(&Wanted::Bodies { group, number }) => {
                self.bodies_fetched((group, number), reply, events, out);
            }
            Some(&Wanted::Repair { group, log, offset }) => {
                self.repaired(group, reply.unwrap_or_default(), out);
                if let Some(repair) = self.reads.repairs.get_mut(&(log, offset)).filter(|_| ended) {
                    repair.asked = repair.asked.saturating_sub(1);
                }
            }
        }
        if ended {
            self.reads.fetches.remove(&fetch);
        }
    }

    /// A peer sent a record that was damaged here.
    fn repaired(&mut self, group: ShardId, reply: FetchReply, out: &mut Output) {
        for fetched in reply.records {
            let Ok(stored) = stored_record(fetched) else { continue };
            let key = (stored.row.log, stored.row.offset);
            let Some(repair) = self.reads.repairs.remove(&key) else { continue };
            for (link, log) in repair.queues {
                self.links.body(link, log, &stored);
            }
            match self.records.repair(group, stored) {
                Ok(job) => out.tasks.push(Task::Records(job)),
                Err(error) => tracing::warn!(%group, %error, "cannot repair a record"),
            }
        }
    }

    /// A peer wants records that we have.
    pub(crate) fn export(&mut self, ticket: Ticket, request: &v1::FetchRequest, out: &mut Output) {
        let (log, from, until) = (LogId(request.log), Offset(request.from), Offset(request.until));
        let (shard, range) = (ShardId(request.shard), (log, from, until));
        match self.records.export(log, from, until, Parts::All) {
            Lookup::Ready(records) => self.export_done(ticket, shard, range, Some(&records), out),
            Lookup::Missing => self.export_done(ticket, shard, range, Some(&[]), out),
            Lookup::Task(task) => {
                self.read(Purpose::Export { ticket, shard, from, until, log }, task, out);
            }
        }
    }

    /// Whether live records of [from, until) are not held here, or nothing is known of the shard.
    fn lacks(&self, shard: ShardId, log: LogId, from: Offset, until: Offset) -> bool {
        let Some(host) = self.shards.get(&shard) else { return true };
        let Some(known) = host.shard.log(log) else { return false };
        !self.records.missing(log, &within(known.live_ranges(), from, until)).is_empty()
    }

    /// Answers a peer. What this node should have and cannot give is never left out in silence: the peer would acknowledge
    /// a snapshot without these bodies. What was settled since the snapshot does not come: those entries are committed without the
    /// receiver, so that every majority has a replica that holds them in its log, and none needs them from the receiver.
    fn export_done(
        &mut self,
        ticket: Ticket,
        shard: ShardId,
        (log, from, until): (LogId, Offset, Offset),
        records: Option<&[StoredRecord]>,
        out: &mut Output,
    ) {
        let end = records.and_then(|records| records.last()).map_or(until, |last| last.row.end());
        let Some(records) = records.filter(|_| !self.lacks(shard, log, from, end.min(until))) else {
            tracing::warn!(node = %self.node, %log, %from, %until, "records that a peer asks for cannot be read here");
            let refused = FetchReply { unknown_snapshot: true, ..FetchReply::default() };
            return out.replies.push((ticket, Reply::Fetched(refused)));
        };
        let fetched = records.iter().map(|stored| {
            let mut row = Vec::new();
            stored.row.encode(&mut row);
            FetchedRecord {
                log: log.0,
                offset: stored.row.offset.0,
                row: row.into(),
                record: stored.record.clone(),
                parts: stored.parts.clone(),
            }
        });
        let reply = FetchReply { records: fetched.collect(), done: end >= until, unknown_snapshot: false };
        out.replies.push((ticket, Reply::Fetched(reply)));
    }
}

/// The part of ascending ranges that is in [from, until).
fn within(ranges: impl Iterator<Item = OffsetRange>, from: Offset, until: Offset) -> Vec<OffsetRange> {
    let inside = ranges.skip_while(|range| range.last < from).take_while(|range| range.first < until);
    let cut = |range: OffsetRange| OffsetRange {
        first: range.first.max(from),
        last: range.last.min(Offset(until.0.saturating_sub(1))),
    };
    inside.map(cut).collect()
}

/// A record as a peer sent it.
pub(crate) fn stored_record(fetched: FetchedRecord) -> Result<StoredRecord, longshore_wire::DecodeError> {
    let row = Row::decode(&mut Reader::new(fetched.row, "fetched row"))?;
    Ok(StoredRecord { row, record: fetched.record, parts: fetched.parts })
}

/// As the record store takes it: a record, or a piece of an upload without an end.
pub(crate) fn import(group: ShardId, fetched: FetchedRecord) -> Result<Import, longshore_wire::DecodeError> {
    let stored = stored_record(fetched)?;
    if stored.row.log == part_log(group) {
        return Ok(Import::Part { group, source: stored.row.record, bytes: stored.record });
    }
    Ok(Import::Record { group, stored })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use longshore_shard::Shard;

    #[test]
    fn what_cannot_be_read_is_not_read_again_at_once() {
        let mut host = testing::host(Shard::new(ShardId(3)));
        let (link, log) = (LinkId(5), LogId(7));
        let failed =
            ReadError::Io { file: "a store file".into(), error: std::io::Error::other("a bad sector") };
        let answer =
            Answer { id: 1, rows: Vec::new(), records: Vec::new(), parts: Vec::new(), failed: vec![failed] };
        host.bodies_read(link, log, answer, &mut Output::default());
        assert!(host.reads.put_off.contains(&(link, log)), "the next look asks again");
        host.ask_for_repairs(&mut Output::default());
        assert!(host.reads.put_off.is_empty());
    }
}
