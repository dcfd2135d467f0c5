//! The log thread's half: group commit.
//!
//! Duty: one write (of pages, see `tail_pages`) and one fdatasync for everything that waits. Danger: whatever is reported here as written
//! has been promised; after an error nothing more is written or reported. Called by the log thread only.

use crate::format::{self, BATCH_ALIGN, BatchHeader, Body, GroupList, Mark, Record};
use crate::pool::{Pool, PoolError};
use crate::segment::Segment;
use crate::tail_pages::TailPages;
use crate::types::{LogError, Place, SegmentId};
use longshore_wire::{Index, ShardId, Term};
use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;

/// What the store thread asks to be written, in order. Made by [`crate::NodeLog::take_request`].
#[derive(Debug, Default)]
pub struct WriteRequest {
    /// Each with the number under which its completion is known.
    pub(crate) records: VecDeque<(u64, Record)>,
    pub(crate) tickets: Vec<u64>,
    pub(crate) bytes: usize,
}

impl WriteRequest {
    /// Bytes that its records take on disk.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether it needs no write, only to wait for those before it.
    pub fn is_only_tickets(&self) -> bool {
        self.records.is_empty()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.records.is_empty() && self.tickets.is_empty()
    }

    pub(crate) fn push(&mut self, serial: u64, record: Record) {
        self.bytes += record.len();
        self.records.push_back((serial, record));
    }
}

/// What a durable record changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    Entry { index: Index, term: Term, place: Place },
    HardState,
    Conf,
    Compact(Mark),
    Snapshot(Mark),
    Reset,
    Remove,
    Aside,
    EveryOtherAside,
    State(Mark),
}

/// A record that is durable now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) group: ShardId,
    pub(crate) serial: u64,
    pub(crate) segment: SegmentId,
    pub(crate) effect: Effect,
}

impl Written {
    pub(crate) fn of(record: &Record, serial: u64, segment: SegmentId, position: u64) -> Written {
        let effect = match &record.body {
            Body::Entry(entry) => Effect::Entry {
                index: entry.index,
                term: entry.term,
                place: Place {
                    segment,
                    header_position: position as u32,
                    context_len: entry.context.len() as u16,
                    data_len: entry.data.len() as u32,
                },
            },
            Body::HardState(_) => Effect::HardState,
            Body::Conf(_) => Effect::Conf,
            Body::Compact(mark) => Effect::Compact(*mark),
            Body::Snapshot(mark) => Effect::Snapshot(*mark),
            Body::Reset => Effect::Reset,
            Body::Remove => Effect::Remove,
            Body::Aside => Effect::Aside,
            Body::EveryOtherAside => Effect::EveryOtherAside,
            Body::State(state) => Effect::State(state.mark),
        };
        Written { group: record.group, serial, segment, effect }
    }
}

/// What was synced; for [`crate::NodeLog::completed`].
#[derive(Debug, Default)]
pub struct Completion {
    /// Tickets of the requests that are durable together with all before them, in order. A follower's
    /// acknowledgements may leave from here.
    pub tickets: Vec<u64>,
    /// Requests wait in the writer because no new segment could be made (disk full): call [`LogWriter::write`] again,
    /// also without new requests, after a pause.
    pub no_space: bool,
    /// Bytes written, headers included; for metrics.
    pub bytes: usize,
    /// Syncs that it took; for metrics.
    pub syncs: usize,
    pub(crate) written: Vec<Written>,
    /// Segments whose first batch, of this number, was written.
    pub(crate) opened: Vec<(Arc<Segment>, u64)>,
}

/// Where the writer goes on after recovery.
#[derive(Debug)]
pub(crate) struct Resume {
    pub(crate) active: Option<(Arc<Segment>, u64)>,
    pub(crate) sequence: u64,
    pub(crate) previous: GroupList,
}

/// Writes and syncs; lives on the log thread.
#[derive(Debug)]
pub struct LogWriter {
    pool: Arc<Pool>,
    /// Segment and position of the next batch.
    active: Option<(Arc<Segment>, u64)>,
    sequence: u64,
    previous: GroupList,
    waiting: VecDeque<WriteRequest>,
    body_bytes_max: usize,
    groups_listed_max: usize,
    failed: Option<(String, io::ErrorKind)>,
    pages: TailPages,
}

/// The next batch, before it is taken out of the queue.
struct Chunk {
    records: usize,
    body_bytes: usize,
    groups: GroupList,
}

impl LogWriter {
    pub(crate) fn new(pool: Arc<Pool>, resume: Resume, body_bytes_max: usize) -> LogWriter {
        let groups_listed_max = format::groups_listed_max(pool.segment_bytes);
        LogWriter {
            pool,
            active: resume.active,
            sequence: resume.sequence,
            previous: resume.previous,
            waiting: VecDeque::new(),
            body_bytes_max,
            groups_listed_max,
            failed: None,
            pages: TailPages::new(),
        }
    }

    /// Writes all `requests` after those before them: one write and one fdatasync for all (more only when
    /// they exceed `batch_bytes_max` or the segment). Tickets without records wait for earlier writes and cost no sync.
    /// On a full disk what does not fit waits in here, in order.
    ///
    /// Errors: [`LogError::Failed`] after a failed write or sync; the process must end, every later call fails too.
    pub fn write(&mut self, requests: Vec<WriteRequest>) -> Result<Completion, LogError> {
        if let Some((path, kind)) = &self.failed {
            return Err(LogError::Failed { path: path.clone(), source: io::Error::from(*kind) });
        }
        self.waiting.extend(requests);
        let mut completion = Completion::default();
        loop {
            self.finish_requests(&mut completion);
            let Some(chunk) = self.next_chunk() else { return Ok(completion) };
            match self.write_chunk(chunk, &mut completion) {
                Ok(()) => {}
                Err(PoolError::NoSpace) => {
                    completion.no_space = true;
                    return Ok(completion);
                }
                Err(PoolError::Failed(error)) => {
                    if let LogError::Failed { path, source } = &error {
                        self.failed = Some((path.clone(), source.kind()));
                    }
                    return Err(error);
                }
            }
        }
    }

    /// Whether requests wait for disk space.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Gives out the tickets of requests whose records are all written.
    fn finish_requests(&mut self, completion: &mut Completion) {
        while self.waiting.front().is_some_and(|request| request.records.is_empty()) {
            if let Some(mut request) = self.waiting.pop_front() {
                completion.tickets.append(&mut request.tickets);
            }
        }
    }

    /// How much of the queue the next batch takes: everything, up to the limit.
    fn next_chunk(&self) -> Option<Chunk> {
        let mut chunk = Chunk { records: 0, body_bytes: 0, groups: None };
        let mut groups = BTreeSet::new();
        for (_, record) in self.waiting.iter().flat_map(|request| &request.records) {
            let len = record.len();
            if chunk.records > 0 && chunk.body_bytes + len > self.body_bytes_max {
                break;
            }
            chunk.records += 1;
            chunk.body_bytes += len;
            groups.insert(record.group);
        }
        if groups.len() <= self.groups_listed_max {
            chunk.groups = Some(groups.into_iter().collect());
        }
        (chunk.records > 0).then_some(chunk)
    }

    /// The segment and position for a batch of this size, and whether the segment is a new one.
    fn room_for(&mut self, total_bytes: u64) -> Result<(Arc<Segment>, u64, bool), PoolError> {
        if let Some((segment, position)) = &self.active
            && position + total_bytes <= segment.bytes
        {
            // Nothing was written yet: this is also the first batch of a segment that recovery went on with.
            return Ok((Arc::clone(segment), *position, *position == format::FIRST_POSITION));
        }
        let segment = self.pool.next_segment()?;
        self.active = Some((Arc::clone(&segment), format::FIRST_POSITION));
        Ok((segment, format::FIRST_POSITION, true))
    }

    fn write_chunk(&mut self, chunk: Chunk, completion: &mut Completion) -> Result<(), PoolError> {
        let header = BatchHeader {
            sequence: self.sequence,
            body_bytes: chunk.body_bytes as u32,
            groups: chunk.groups,
            previous: self.previous.clone(),
        };
        let total_bytes = header.total_bytes();
        let (segment, start, is_new) = self.room_for(total_bytes)?;
        let records = self.take_records(chunk.records);
        let written = write_batch(&mut self.pages, &segment, start, &header, &records, completion);
        written.map_err(|source| PoolError::Failed(LogError::Failed { path: segment.path(), source }))?;
        self.active = Some((Arc::clone(&segment), start + total_bytes));
        if is_new {
            completion.opened.push((segment, header.sequence));
        }
        self.sequence += 1;
        self.previous = header.groups;
        completion.bytes += total_bytes as usize;
        completion.syncs += 1;
        Ok(())
    }

    fn take_records(&mut self, count: usize) -> Vec<(u64, Record)> {
        let mut taken = Vec::with_capacity(count);
        for request in &mut self.waiting {
            let n = (count - taken.len()).min(request.records.len());
            taken.extend(request.records.drain(..n));
        }
        taken
    }
}

/// Encodes the batch, writes it and syncs it.
fn write_batch(
    pages: &mut TailPages,
    segment: &Segment,
    start: u64,
    header: &BatchHeader,
    records: &[(u64, Record)],
    completion: &mut Completion,
) -> io::Result<()> {
    let file = segment.writable()?;
    pages.begin(segment, file.as_ref(), start)?;
    let mut scratch = Vec::with_capacity(header.header_bytes());
    header.encode(segment.seed, start, &mut scratch);
    pages.put(file.as_ref(), &scratch)?;
    let mut position = start + header.header_bytes() as u64;
    for (serial, record) in records {
        completion.written.push(Written::of(record, *serial, segment.id, position));
        scratch.clear();
        let data = record.encode(segment.seed, position, &mut scratch);
        pages.put(file.as_ref(), &scratch)?;
        pages.put(file.as_ref(), &data)?;
        position += record.len() as u64;
    }
    let end = start + header.total_bytes();
    pages.put(file.as_ref(), &[0; BATCH_ALIGN as usize][..(end - position) as usize])?;
    pages.finish(file.as_ref(), segment.bytes)?;
    file.sync_data()
}
