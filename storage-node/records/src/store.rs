//! [`Records`]: what the store thread knows of every file and every log, and how rows come in.
//!
//! Danger: a row that is neither pending nor in a named index file is a lost message. A checkpoint of a group may become
//! durable only at or below [`Records::rows_durable`].

use crate::block::Located;
use crate::cache::{AheadCache, BlockCache};
use crate::file::{Content, DataKey, FileKey, FileState, Section};
use crate::job::What;
use crate::logs::LogState;
use crate::manifest::Manifest;
use crate::read::Io;
use crate::tail::Tail;
use crate::types::{Config, PinId, Place, RecordsError, SegmentId, SegmentInfo};
use bytes::Bytes;
use longshore_wire::batch::part_places;
use longshore_wire::record::NO_CLIENT_TIME;
use longshore_wire::row::{NEVER, Row, Source};
use longshore_wire::{Index, LogId, LogTime, Offset, ShardId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Ids of pseudo logs: meta never gives them, and they are not transient.
const PART_LOGS: u64 = 0x7FFF_FFFF_0000_0000;
/// An entry's batch is shorter than 2 MiB, so a start fits below the index.
const PART_START_BITS: u32 = 21;

/// The pseudo log under which the pieces of large bodies of a group are kept. They are rows like others, so that
/// liveness, rewriting and snapshots treat them as they treat records.
pub fn part_log(group: ShardId) -> LogId {
    LogId(PART_LOGS | u64::from(group.0))
}

/// Whether a log is one of [`part_log`].
pub(crate) fn is_part_log(log: LogId) -> bool {
    log.0 & 0xFFFF_FFFF_0000_0000 == PART_LOGS
}

/// The offset of a piece in its pseudo log.
pub(crate) fn part_key(part: &Source) -> u64 {
    part.index.0 << PART_START_BITS | u64::from(part.start) & ((1 << PART_START_BITS) - 1)
}

/// Where a piece is asked for: its offset in [`part_log`], which [`Records::export`] answers.
pub fn part_offset(part: &Source) -> Offset {
    Offset(part_key(part))
}

/// The index below which all pieces have keys below this.
pub(crate) fn part_floor(index: Index) -> u64 {
    index.0 << PART_START_BITS
}

/// The row of a piece in its pseudo log.
pub(crate) fn part_row(group: ShardId, part: Source) -> Row {
    Row {
        log: part_log(group),
        offset: Offset(part_key(&part)),
        count: 1,
        time: LogTime(0),
        client_time_ms: NO_CLIENT_TIME,
        due: LogTime(0),
        expiry: NEVER,
        priority: 0,
        key_hash: 0,
        record: part,
        parts: Vec::new(),
    }
}

/// A record whose body came in parts.
#[derive(Clone, Debug)]
pub(crate) struct Large {
    pub group: ShardId,
    pub count: u32,
    pub parts: Arc<[Source]>,
}

/// A segment of the node log.
#[derive(Debug)]
pub(crate) struct SegmentState {
    pub bytes: u64,
    pub sealed: bool,
    pub retired: bool,
    pub last: Vec<(ShardId, Index)>,
    /// The part of its index that takes rows now.
    pub open_part: Option<u32>,
    pub next_part: u32,
    /// Its live rest lies in a store file.
    pub replaced: bool,
}

impl SegmentState {
    pub(crate) fn new() -> SegmentState {
        SegmentState {
            bytes: 0,
            sealed: false,
            retired: false,
            last: Vec::new(),
            open_part: None,
            next_part: 0,
            replaced: false,
        }
    }
}

/// How far a group is.
#[derive(Debug, Default)]
pub(crate) struct GroupState {
    pub applied: Index,
    pub durable: Index,
    /// Files with rows of the group that no index file has yet.
    pub unwritten: BTreeSet<FileKey>,
    /// Pieces below this index belong to a record, or to nobody.
    pub uploads_from: Index,
}

/// The record store of one node. Owned by the store thread.
pub struct Records {
    pub(crate) config: Config,
    pub(crate) io: Arc<Io>,
    pub(crate) manifest: Arc<Manifest>,
    pub(crate) logs: BTreeMap<LogId, LogState>,
    pub(crate) files: BTreeMap<FileKey, FileState>,
    /// Cloned by whoever reads a data file, so that it stays.
    pub(crate) guards: BTreeMap<DataKey, Arc<()>>,
    pub(crate) segments: BTreeMap<SegmentId, SegmentState>,
    pub(crate) groups: BTreeMap<ShardId, GroupState>,
    pub(crate) tail: Tail,
    pub(crate) blocks: BlockCache,
    pub(crate) ahead: AheadCache,
    /// Live records whose body came in parts: about 100 bytes for each MiB stored.
    pub(crate) large: BTreeMap<(LogId, u64), Large>,
    /// How many live records use a piece.
    pub(crate) part_users: BTreeMap<(LogId, u64), u32>,
    pub(crate) running: BTreeSet<What>,
    /// Names to be removed once nobody reads the data that they belong to.
    pub(crate) leaving: BTreeMap<DataKey, Vec<String>>,
    /// Segments that the node log has freed, to be taken out of the manifest.
    pub(crate) freed: BTreeSet<SegmentId>,
    /// Files with a corrupt live record: not rewritten before it was repaired.
    pub(crate) suspect: BTreeSet<DataKey>,
    pub(crate) pins: BTreeMap<PinId, Vec<Arc<()>>>,
    pub(crate) next_pin: u64,
    pub(crate) next_task: u64,
    pub(crate) next_store: u64,
}

impl std::fmt::Debug for Records {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Records").field("logs", &self.logs.len()).field("files", &self.files.len()).finish()
    }
}

impl Records {
    /// Takes the rows of one applied entry and its batch, in the order of the group's log. Call it for every entry of a
    /// shard, also one without rows: pieces of large bodies are found here. Entries at or below what was applied
    /// before are ignored, and rows that an index file has are not doubled.
    ///
    /// `place`: where the node log has the entry. It may be absent for an entry whose rows are held already.
    ///
    /// Errors: [`RecordsError::Unplaced`]: its rows would be lost, the process must end. [`RecordsError::Mismatch`]: a row
    /// names bytes outside its entry; nothing was taken.
    pub fn applied(
        &mut self,
        group: ShardId,
        index: Index,
        place: Option<Place>,
        mut rows: Vec<Row>,
        data: &Bytes,
    ) -> Result<(), RecordsError> {
        if index <= self.groups.entry(group).or_default().applied {
            return Ok(());
        }
        let parts = part_places(data).map(|(start, len)| part_row(group, Source { index, start, len }));
        rows.extend(parts);
        rows.retain(|row| !row.log.is_transient());
        if let Some(row) = rows.iter().find(|row| {
            row.record.index != index
                || row.count == 0
                || row.offset.0.checked_add(u64::from(row.count)).is_none()
                || u64::from(row.record.start) + u64::from(row.record.len) > data.len() as u64
        }) {
            return Err(RecordsError::Mismatch { log: row.log, offset: row.offset });
        }
        rows.sort_unstable_by_key(|row| (row.log, row.offset));
        for row in &rows {
            if self.is_held(row.log, row.offset.0) {
                continue;
            }
            let Some(place) = place else {
                return Err(RecordsError::Unplaced { group, index });
            };
            self.take_row(group, &place, row.clone())?;
        }
        self.tail.push(rows, data);
        self.groups.entry(group).or_default().applied = index;
        Ok(())
    }

    /// Whether any section holds this offset.
    pub(crate) fn is_held(&self, log: LogId, offset: u64) -> bool {
        let Some(state) = self.logs.get(&log) else { return false };
        state.touching(offset, offset).any(|at| {
            self.section(at.key, at.slot).is_some_and(|section| section.held_in(offset, offset) > 0)
        })
    }

    pub(crate) fn section(&self, key: FileKey, slot: u32) -> Option<&Section> {
        self.files.get(&key)?.sections.get(slot as usize)
    }

    /// Puts a row into the open part of its segment's index.
    fn take_row(&mut self, group: ShardId, place: &Place, row: Row) -> Result<(), RecordsError> {
        if !row.parts.is_empty() {
            self.use_parts(group, &row);
        }
        let segment = self.segments.entry(place.segment).or_insert_with(SegmentState::new);
        let part = *segment.open_part.get_or_insert_with(|| {
            segment.next_part += 1;
            segment.next_part - 1
        });
        let key = FileKey::Segment(place.segment, part);
        self.guards.entry(key.data()).or_default();
        let file = self.files.entry(key).or_insert_with(FileState::pending);
        let Content::Pending { rows, by_log } = &mut file.content else {
            // An open part is in memory: flushing closes it first. Better to stop than to lose a row.
            return Err(RecordsError::Unplaced { group, index: row.record.index });
        };
        // Shared only once a job writes the part, and then it is not open.
        let rows = Arc::make_mut(rows);
        let (log, last) = (row.log, row.end().0 - 1);
        let state = self.logs.entry(log).or_insert_with(|| LogState::new(group));
        let located = Located {
            term: place.term,
            position: place.position + u64::from(row.record.start),
            head: place.head.saturating_add(row.record.start),
            row,
        };
        match by_log.get(&log) {
            Some(slot) => {
                if let Some(section) = file.sections.get_mut(*slot as usize) {
                    section.extend(&located);
                }
                state.grow(key, *slot, last);
                if let Some(rows) = rows.get_mut(*slot as usize) {
                    rows.push(located);
                }
            }
            None => {
                let slot = file.sections.len() as u32;
                let section = Section::begin(group, &located, 0);
                state.add(key, slot, section.first, section.last);
                file.sections.push(section);
                by_log.insert(log, slot);
                let mut pending = crate::file::PendingRows::default();
                pending.push(located);
                rows.push(pending);
            }
        }
        self.groups.entry(group).or_default().unwritten.insert(key);
        Ok(())
    }

    /// Remembers which pieces a record uses.
    pub(crate) fn use_parts(&mut self, group: ShardId, row: &Row) {
        let large = Large { group, count: row.count, parts: row.parts.clone().into() };
        if self.large.insert((row.log, row.offset.0), large).is_none() {
            for part in &row.parts {
                *self.part_users.entry((part_log(group), part_key(part))).or_default() += 1;
            }
        }
    }

    /// The highest index of the group up to which every row is in a synced index file. A checkpoint at a higher index must
    /// not become durable; if one is wanted, run [`Records::flush`]'s job first.
    pub fn rows_durable(&self, group: ShardId) -> Index {
        match self.groups.get(&group) {
            None => Index(0),
            Some(state) if state.unwritten.is_empty() => state.applied,
            Some(state) => state.durable,
        }
    }

    /// The node log has a segment: call it when one is sealed, and at start for each (by [`Records::open`]).
    pub fn segment_sealed(&mut self, info: &SegmentInfo) {
        let segment = self.segments.entry(info.id).or_insert_with(SegmentState::new);
        segment.bytes = info.bytes;
        segment.sealed |= info.sealed;
        segment.retired |= info.retired;
        segment.last = info.last.clone();
    }

    /// Every entry of the segment is below its group's durable checkpoint and first index.
    pub fn segment_retired(&mut self, segment: SegmentId) {
        let segment = self.segments.entry(segment).or_insert_with(SegmentState::new);
        segment.sealed = true;
        segment.retired = true;
    }
}
