//! What waits to be put into a batch: chunks of encoded appends, and large bodies that go in parts.

use bytes::{Bytes, BytesMut};
use longshore_wire::batch::{BatchBuilder, Item, Origin};
use longshore_wire::record::{NewRecord, Record};
use longshore_wire::{DecodeError, SessionId};
use std::collections::{HashMap, VecDeque};

/// What an item's outcome is for.
#[derive(Debug)]
pub enum Tag<T> {
    /// An append.
    Append(T),
    /// A piece of a body: nobody waits for it alone.
    Part,
    /// A settlement, of all these.
    Settle(Vec<T>),
}

/// Appends of one connection, encoded as they came. Joined to a batch without decoding, or is one by itself.
#[derive(Debug)]
pub struct Chunk<T> {
    pub(super) builder: BatchBuilder,
    pub(super) tags: Vec<Tag<T>>,
}

impl<T> Chunk<T> {
    /// An empty one.
    pub fn new(session: SessionId) -> Chunk<T> {
        Chunk { builder: BatchBuilder::new(session), tags: Vec::new() }
    }

    /// Adds an append; on an error nothing is added (see [`NewRecord::encode`]).
    pub fn append(
        &mut self,
        origin: Option<Origin>,
        new: &NewRecord<'_>,
        body: &[Bytes],
        tag: T,
    ) -> Result<(), DecodeError> {
        self.builder.append(origin, new, body)?;
        self.tags.push(Tag::Append(tag));
        Ok(())
    }

    /// Adds an append of a record that is encoded already.
    pub fn append_record(&mut self, record: Record, tag: T) {
        self.push(&Item::Append { origin: None, record }, Tag::Append(tag));
    }

    pub(super) fn push(&mut self, item: &Item, tag: Tag<T>) {
        self.builder.push(item);
        self.tags.push(tag);
    }

    pub(super) fn join(&mut self, mut other: Chunk<T>) {
        self.builder.extend(&other.builder);
        self.tags.append(&mut other.tags);
    }

    /// Encoded size, in bytes.
    pub fn bytes(&self) -> usize {
        self.builder.bytes()
    }

    /// Whether it has no item.
    pub fn is_empty(&self) -> bool {
        self.tags.is_empty()
    }
}

/// A message whose body goes in parts before it.
#[derive(Debug)]
pub struct Upload<T> {
    /// Unique within the session; the same as in the record.
    pub id: u64,
    /// The body.
    pub body: VecDeque<Bytes>,
    /// The append that ends it: a record with `flags::PARTS`, this upload's id and an empty body.
    pub last: Chunk<T>,
}

impl<T> Upload<T> {
    fn bytes(&self) -> usize {
        self.body.iter().map(Bytes::len).sum::<usize>() + self.last.bytes()
    }

    /// The next part of at most `bytes_max`, joined from slices where they are smaller.
    fn part(&mut self, bytes_max: usize) -> Option<Item> {
        let first = self.body.front_mut()?;
        let bytes = if first.len() >= bytes_max {
            first.split_to(bytes_max)
        } else if self.body.len() == 1 {
            self.body.pop_front()?
        } else {
            let mut joined = BytesMut::with_capacity(bytes_max);
            while let Some(slice) = self.body.front_mut() {
                let room = bytes_max - joined.len();
                joined.extend_from_slice(&slice.split_to(room.min(slice.len())));
                if !slice.is_empty() {
                    break;
                }
                self.body.pop_front();
            }
            joined.freeze()
        };
        self.body.pop_front_if(|slice| slice.is_empty());
        Some(Item::Part { upload: self.id, crc: crc32c::crc32c(&bytes), bytes })
    }
}

#[derive(Debug)]
enum Work<T> {
    Chunk(Chunk<T>),
    Upload(Upload<T>),
}

#[derive(Debug)]
struct Turn<T> {
    stream: u64,
    upload: Upload<T>,
    /// It may end once so many chunks were taken: those that the stream sent before it are among them.
    after: u64,
}

/// The line of what waits. Order holds per stream (a client connection): what a stream sends after a large body
/// waits for its end, other streams pass.
#[derive(Debug)]
pub struct Line<T> {
    ready: VecDeque<Chunk<T>>,
    /// At most one per stream, served in turn, one part a batch.
    uploads: VecDeque<Turn<T>>,
    held: HashMap<u64, VecDeque<Work<T>>>,
    bytes: usize,
    /// So many at the front of `ready` were in a batch before; parts of an upload among them go before its next.
    put_back: usize,
    /// Chunks ever put into `ready`, and taken from it, but for those put back.
    pushed: u64,
    taken: u64,
    /// The last batch had no room for a part: the next one begins with one.
    part_left_out: bool,
}

impl<T> Default for Line<T> {
    fn default() -> Self {
        Line {
            ready: VecDeque::new(),
            uploads: VecDeque::new(),
            held: HashMap::new(),
            bytes: 0,
            put_back: 0,
            pushed: 0,
            taken: 0,
            part_left_out: false,
        }
    }
}

impl<T> Line<T> {
    /// Bytes that wait.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.ready.is_empty() && self.uploads.is_empty()
    }

    /// Adds appends of a stream.
    pub fn push(&mut self, stream: u64, chunk: Chunk<T>) {
        self.bytes += chunk.bytes();
        match self.held.get_mut(&stream) {
            Some(held) => held.push_back(Work::Chunk(chunk)),
            None => self.line_up(chunk),
        }
    }

    fn line_up(&mut self, chunk: Chunk<T>) {
        self.pushed += 1;
        self.ready.push_back(chunk);
    }

    /// Adds a large message of a stream.
    pub fn push_upload(&mut self, stream: u64, upload: Upload<T>) {
        self.bytes += upload.bytes();
        match self.held.get_mut(&stream) {
            Some(held) => held.push_back(Work::Upload(upload)),
            None => self.begin(stream, upload),
        }
    }

    fn begin(&mut self, stream: u64, upload: Upload<T>) {
        self.held.entry(stream).or_default();
        self.uploads.push_back(Turn { stream, upload, after: self.pushed });
    }

    /// Puts back what was in a batch that never counted, before everything else.
    pub(super) fn put_back(&mut self, chunk: Chunk<T>) {
        self.bytes += chunk.bytes();
        self.put_back += 1;
        self.ready.push_front(chunk);
    }

    /// Takes what fits into a batch of `bytes_max`: whole chunks in order, and one part of one upload, of at most
    /// `part_bytes`; `None`: large bodies wait.
    pub(super) fn take(
        &mut self,
        session: SessionId,
        bytes_max: usize,
        part_bytes: Option<usize>,
    ) -> Option<Chunk<T>> {
        let uploading = part_bytes.is_some() && !self.uploads.is_empty();
        let part_bytes = part_bytes.unwrap_or(0);
        let part_room = part_bytes + PART_ROOM_BYTES;
        let mut batch: Option<Chunk<T>> = None;
        if uploading && self.part_left_out && self.put_back == 0 {
            self.step_upload(session, &mut batch, part_bytes);
            self.part_left_out = false;
            if batch.is_some() {
                return batch;
            }
        }
        let chunks_max = if uploading { bytes_max.saturating_sub(part_room) } else { bytes_max };
        while let Some(next) = self.ready.front() {
            if batch.as_ref().is_some_and(|batch| batch.bytes() + next.bytes() > chunks_max) {
                break;
            }
            let Some(next) = self.ready.pop_front() else { break };
            match self.put_back {
                0 => self.taken += 1,
                _ => self.put_back -= 1,
            }
            self.bytes = self.bytes.saturating_sub(next.bytes());
            match &mut batch {
                None => batch = Some(next),
                Some(batch) => batch.join(next),
            }
        }
        let room = bytes_max.saturating_sub(batch.as_ref().map_or(0, Chunk::bytes));
        if uploading && self.put_back == 0 {
            self.part_left_out = room < part_room && batch.is_some();
            if !self.part_left_out {
                self.step_upload(session, &mut batch, part_bytes);
            }
        }
        batch
    }

    fn step_upload(&mut self, session: SessionId, batch: &mut Option<Chunk<T>>, part_bytes: usize) {
        let may_go = |turn: &Turn<T>| !turn.upload.body.is_empty() || turn.after <= self.taken;
        let Some(at) = self.uploads.iter().position(may_go) else { return };
        let Some(mut turn) = self.uploads.remove(at) else { return };
        let target = batch.get_or_insert_with(|| Chunk::new(session));
        match turn.upload.part(part_bytes) {
            Some(item) => {
                if let Item::Part { bytes, .. } = &item {
                    self.bytes = self.bytes.saturating_sub(bytes.len());
                }
                target.push(&item, Tag::Part);
                self.uploads.push_back(turn);
            }
            None => {
                self.bytes = self.bytes.saturating_sub(turn.upload.last.bytes());
                target.join(turn.upload.last);
                self.release(turn.stream);
            }
        }
    }

    /// The stream's large message is on its way: what came after it may go, up to its next large one.
    fn release(&mut self, stream: u64) {
        let Some(mut held) = self.held.remove(&stream) else { return };
        while let Some(work) = held.pop_front() {
            match work {
                Work::Chunk(chunk) => self.line_up(chunk),
                Work::Upload(upload) => {
                    self.begin(stream, upload);
                    self.held.insert(stream, held);
                    return;
                }
            }
        }
    }

    /// Everything that waits for an outcome.
    pub fn into_tags(self) -> Vec<T> {
        let held = self.held.into_values().flatten().map(|work| match work {
            Work::Chunk(chunk) => chunk,
            Work::Upload(upload) => upload.last,
        });
        let uploads = self.uploads.into_iter().map(|turn| turn.upload.last);
        let chunks = self.ready.into_iter().chain(uploads).chain(held);
        chunks.flat_map(|chunk| chunk.tags).flat_map(Tag::into_all).collect()
    }
}

/// What a part's item or an upload's last record may need beside the part's bytes.
const PART_ROOM_BYTES: usize = 72 << 10;

impl<T> Tag<T> {
    /// All whose fate hangs on the item.
    pub fn into_all(self) -> Vec<T> {
        match self {
            Tag::Append(tag) => vec![tag],
            Tag::Part => Vec::new(),
            Tag::Settle(tags) => tags,
        }
    }
}
