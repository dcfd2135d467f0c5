//! A node log that is only its bytes, messages, and short ways through the interface.

use bytes::Bytes;
use longshore_io::Disk;
use longshore_io::sim::SimDisk;
use longshore_records::*;
use longshore_wire::batch::{BatchBuilder, Item, part_places};
use longshore_wire::record::{Form, NO_CLIENT_TIME, NewRecord, flags};
use longshore_wire::row::{NEVER, Row, Source};
use longshore_wire::*;
use std::collections::BTreeMap;
use std::io;
use std::sync::Mutex;

/// The names of the files in the store's directory, as paths.
pub fn names(disk: &SimDisk) -> Vec<String> {
    disk.list("records").unwrap().into_iter().map(|name| format!("records/{name}")).collect()
}

const HEAD: usize = 24;
const CONTEXT: usize = 9;

fn head_of(segment: SegmentId, entry: &EntryKey) -> Vec<u8> {
    let mut head = Vec::new();
    head.extend(entry.group.0.to_le_bytes());
    head.extend(entry.index.0.to_le_bytes());
    head.extend(entry.term.0.to_le_bytes());
    head.extend((segment.0 as u32).to_le_bytes());
    head.resize(HEAD + CONTEXT, 7);
    head
}

/// The bytes of a node log; durable at once.
#[derive(Default)]
pub struct FakeLog {
    segments: Mutex<BTreeMap<SegmentId, Vec<u8>>>,
    pub reads: Mutex<(u64, u64)>,
}

impl FakeLog {
    pub fn append(&self, segment: SegmentId, entry: EntryKey, data: &Bytes) -> Place {
        let mut segments = self.segments.lock().unwrap();
        let bytes = segments.entry(segment).or_default();
        bytes.extend(head_of(segment, &entry));
        let position = bytes.len() as u64;
        bytes.extend_from_slice(data);
        let head = (HEAD + CONTEXT) as u32;
        Place { segment, position, head, len: data.len() as u32, term: entry.term }
    }

    pub fn size(&self, segment: SegmentId) -> u64 {
        self.segments.lock().unwrap().get(&segment).map_or(0, |bytes| bytes.len() as u64)
    }

    pub fn remove(&self, segment: SegmentId) {
        self.segments.lock().unwrap().remove(&segment);
    }

    pub fn flip(&self, segment: SegmentId, at: usize) {
        self.segments.lock().unwrap().get_mut(&segment).unwrap()[at] ^= 4;
    }

    pub fn ids(&self) -> Vec<SegmentId> {
        self.segments.lock().unwrap().keys().copied().collect()
    }
}

impl Segments for FakeLog {
    fn read(&self, segment: SegmentId, position: u64, len: usize) -> io::Result<Bytes> {
        let segments = self.segments.lock().unwrap();
        let bytes = segments.get(&segment).ok_or(io::ErrorKind::NotFound)?;
        let mut reads = self.reads.lock().unwrap();
        *reads = (reads.0 + 1, reads.1 + len as u64);
        let found = bytes.get(position as usize..position as usize + len);
        Ok(Bytes::copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?))
    }

    fn check(&self, segment: SegmentId, head: &[u8], entry: &EntryKey) -> bool {
        head == head_of(segment, entry)
    }
}

/// A message for a test.
#[derive(Clone, Debug)]
pub struct Message {
    pub targets: Vec<LogId>,
    pub body: Vec<u8>,
    /// Pieces that were sent before, in their entries.
    pub parts: Vec<Source>,
}

pub fn message(log: u64, body: &[u8]) -> Message {
    Message { targets: vec![LogId(log)], body: body.to_vec(), parts: Vec::new() }
}

pub const GROUP: ShardId = ShardId(3);

/// A batch of messages, and its rows under the given next offsets.
pub fn batch(index: u64, messages: &[Message], next: &mut BTreeMap<LogId, u64>) -> (Bytes, Vec<Row>) {
    let mut builder = BatchBuilder::new(SessionId(1));
    for message in messages {
        let mut new = NewRecord::plain(Form::Amqp, &message.targets, b"key", b"props");
        if !message.parts.is_empty() {
            (new.flags, new.upload) = (flags::PARTS, 1);
        }
        builder.append(None, &new, &[Bytes::copy_from_slice(&message.body)]).unwrap();
    }
    let data = builder.finish(BatchNo(index));
    let mut rows = Vec::new();
    let items = longshore_wire::batch::Batch::parse(data.clone()).unwrap().items();
    for (located, message) in items.map(Result::unwrap).zip(messages) {
        for log in &message.targets {
            let offset = next.entry(*log).or_default();
            rows.push(Row {
                log: *log,
                offset: Offset(*offset),
                count: 1,
                time: LogTime(1_700_000_000_000 + index * 3),
                client_time_ms: NO_CLIENT_TIME,
                due: LogTime(0),
                expiry: NEVER,
                priority: 0,
                key_hash: 0,
                record: Source { index: Index(index), start: located.start, len: located.len },
                parts: message.parts.clone(),
            });
            *offset += 1;
        }
    }
    (data, rows)
}

/// A batch of one piece of a large body, and the piece.
pub fn piece(index: u64, bytes: &[u8]) -> (Bytes, Source) {
    let mut builder = BatchBuilder::new(SessionId(1));
    let crc = crc32c::crc32c(bytes);
    builder.push(&Item::Part { upload: 1, crc, bytes: Bytes::copy_from_slice(bytes) });
    let data = builder.finish(BatchNo(index));
    let (start, len) = part_places(&data).next().unwrap();
    (data, Source { index: Index(index), start, len })
}

/// Small limits, no tail: everything goes by the disk.
pub fn small() -> Config {
    Config {
        tail_bytes_max: 0,
        block_cache_bytes_max: 64 << 10,
        read_cache_bytes_max: 64 << 10,
        read_ahead_bytes: 4 << 10,
        read_bytes_max: 64 << 10,
        rewrite_bytes_per_run: 32 << 10,
        rewrite_live_percent_max: 50,
        ..Config::default()
    }
}

/// What the state machine says: everything from `first` on is live but `dead`.
#[derive(Clone, Default)]
pub struct View {
    pub applied: u64,
    pub logs: BTreeMap<LogId, (u64, Vec<OffsetRange>)>,
    pub uploads_from: u64,
}

impl LiveView for View {
    fn applied(&self) -> Index {
        Index(self.applied)
    }
    fn first(&self, log: LogId) -> Option<Offset> {
        self.logs.get(&log).map(|(first, _)| Offset(*first))
    }
    fn dead(&self, log: LogId, dead: &mut dyn FnMut(OffsetRange)) {
        self.logs[&log].1.iter().for_each(|range| dead(*range));
    }
    fn uploads_from(&self) -> Index {
        Index(self.uploads_from)
    }
}

/// Reads one record, by whatever way, or says why not.
pub fn read(records: &mut Records, log: LogId, offset: u64) -> Result<Option<StoredRecord>, ReadError> {
    match records.read(log, Offset(offset), Parts::All) {
        Lookup::Ready(record) => Ok(Some(record)),
        Lookup::Missing => Ok(None),
        Lookup::Task(task) => {
            let mut answer = records.read_done(task.run());
            match answer.failed.pop() {
                Some(error) => Err(error),
                None => Ok(answer.records.into_iter().find(|record| record.row.log == log)),
            }
        }
    }
}

/// All rows of a log from `from` on.
pub fn all_rows(records: &mut Records, log: LogId, from: u64, at_a_time: usize) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    let mut at = Offset(from);
    loop {
        let more = match records.rows(log, at, at_a_time) {
            Lookup::Ready(rows) => rows,
            Lookup::Task(task) => {
                let answer = records.read_done(task.run());
                assert!(answer.failed.is_empty(), "{:?}", answer.failed);
                assert!(!answer.rows.is_empty(), "a task that brings nothing would be asked for for ever");
                answer.rows
            }
            Lookup::Missing => Vec::new(),
        };
        let Some(last) = more.last() else { return rows };
        at = last.end();
        rows.extend(more);
    }
}

/// Runs every job that is due.
pub fn settle_down(records: &mut Records) {
    while let Some(job) = records.next_job() {
        let outcome = records.job_done(job.run());
        assert!(!matches!(outcome, JobOutcome::Failed(..)), "{outcome:?}");
    }
}

pub fn flush(records: &mut Records) {
    if let Some(job) = records.flush() {
        let outcome = records.job_done(job.run());
        assert!(matches!(outcome, JobOutcome::Indexed), "{outcome:?}");
    }
}
