//! Opening a log: manifest, files, scan, and the end made fit for appending.
//!
//! Danger: nothing is cut, recycled or removed before the manifest says what damage was found. Called by
//! [`crate::NodeLog::open`], once per process.

use crate::format::{FIRST_POSITION, SegmentHeader};
use crate::manifest::{DIR, Loaded, Lost, Manifest, Named, PATH};
use crate::pool::{Pool, PoolState};
use crate::recovery::Scan;
use crate::segment::{Segment, path_of, slot_of};
use crate::types::{LogConfig, OpenError, SegmentId};
use crate::writer::Resume;
use longshore_io::{Disk, OpenMode};
use longshore_mutations::{self as mutations, Mutation};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;

const SEGMENT_BYTES_MIN: u64 = 16 << 10;
const SEGMENT_BYTES_MAX: u64 = 1 << 30;

/// A log that is open.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) pool: Arc<Pool>,
    pub(crate) resume: Resume,
    pub(crate) scan: Scan,
    /// Segments with batches that Raft may need, with the number of each one's first batch; oldest first.
    pub(crate) raft: Vec<(Arc<Segment>, u64)>,
    /// Retired segments, with the number after each one's last batch.
    pub(crate) retired: Vec<(Arc<Segment>, u64)>,
    /// The manifest holds losses that no record in the log may say yet.
    pub(crate) has_unwritten_losses: bool,
}

fn failed(path: &str) -> impl Fn(io::Error) -> OpenError + '_ {
    move |source| OpenError::Io { path: path.to_owned(), source }
}

/// The files in the log's directory, by slot.
fn list_slots(disk: &dyn Disk) -> Result<BTreeMap<u32, u64>, OpenError> {
    let mut slots = BTreeMap::new();
    for slot in disk.list(DIR).map_err(failed(DIR))?.iter().filter_map(|name| slot_of(name)) {
        let path = path_of(slot);
        let bytes = disk.open(&path, OpenMode::Read).and_then(|file| file.len()).map_err(failed(&path))?;
        slots.insert(slot, bytes);
    }
    Ok(slots)
}

/// The manifest. Where there is none it is made; where it is lost it is rebuilt from the headers of the files. `true`: it
/// differs from what is on disk and must be saved.
fn manifest(
    disk: &dyn Disk,
    config: &LogConfig,
    slots: &BTreeMap<u32, u64>,
) -> Result<(Manifest, bool), OpenError> {
    match Manifest::load(disk)? {
        Loaded::Whole(manifest) => Ok((manifest, false)),
        Loaded::Absent if slots.is_empty() && !config.must_exist => {
            let manifest = Manifest::new(config.salt);
            manifest.save(disk).map_err(failed(PATH))?;
            Ok((manifest, false))
        }
        Loaded::Absent | Loaded::Damaged => Ok((rebuild(disk, config, slots)?, true)),
    }
}

/// A manifest from the files' own headers: every group is set aside, the files stay for the bodies in them.
fn rebuild(disk: &dyn Disk, config: &LogConfig, slots: &BTreeMap<u32, u64>) -> Result<Manifest, OpenError> {
    let mut headers = BTreeMap::new();
    for slot in slots.keys() {
        let path = path_of(*slot);
        let mut head = [0u8; 64];
        let file = disk.open(&path, OpenMode::Read).map_err(failed(&path))?;
        file.read_at(&mut head, 0).map_err(failed(&path))?;
        if let Some(header) = SegmentHeader::decode(&head) {
            headers.insert(header.id, (*slot, header));
        }
    }
    let mut manifest =
        Manifest::new(headers.values().next_back().map_or(config.salt, |(_, header)| header.salt));
    for (id, (slot, header)) in headers {
        // Where its batches end is not known: a scan of it goes as far as they follow each other.
        manifest.segments.push(Named { id, slot, bytes: header.bytes, retired: true, end_sequence: 0 });
        manifest.next_generation = id.0.saturating_add(1);
    }
    manifest.lost.push(Lost { sequence: 0, group: None });
    Ok(manifest)
}

/// Makes the files that the manifest names and the directory lacks, so that they read as zeros.
fn replace_missing(disk: &dyn Disk, named: &[Named], slots: &BTreeMap<u32, u64>) -> Result<(), OpenError> {
    for named in named.iter().filter(|named| !slots.contains_key(&named.slot)) {
        let path = path_of(named.slot);
        let file = disk.open(&path, OpenMode::Create).map_err(failed(&path))?;
        file.set_len(named.bytes).map_err(failed(&path))?;
        file.sync_data().map_err(failed(&path))?;
    }
    Ok(())
}

/// Deletes the files that neither are segments nor can become one; returns the slots of those that can.
fn free_slots(
    disk: &dyn Disk,
    config: &LogConfig,
    manifest: &Manifest,
    slots: &BTreeMap<u32, u64>,
) -> Result<Vec<u32>, OpenError> {
    let mut free = Vec::new();
    for (slot, bytes) in slots {
        if manifest.segments.iter().any(|named| named.slot == *slot) {
            continue;
        }
        if *bytes == config.segment_bytes && free.len() < config.free_segments_max {
            free.push(*slot);
        } else {
            let path = path_of(*slot);
            disk.remove(&path).map_err(failed(&path))?;
        }
    }
    Ok(free)
}

fn check(config: &LogConfig) -> Result<(), OpenError> {
    if !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&config.segment_bytes) {
        return Err(OpenError::Config("segment_bytes must be from 16 KiB to 1 GiB"));
    }
    if config.batch_bytes_max == 0 {
        return Err(OpenError::Config("batch_bytes_max must not be 0"));
    }
    Ok(())
}

/// Opens or makes the log.
pub(crate) fn open(disk: Arc<dyn Disk>, config: &LogConfig) -> Result<Opened, OpenError> {
    check(config)?;
    disk.create_dir(DIR).map_err(failed(DIR))?;
    disk.sync_dir("").map_err(failed(""))?;
    let slots = list_slots(disk.as_ref())?;
    let (mut manifest, mut changed) = manifest(disk.as_ref(), config, &slots)?;
    replace_missing(disk.as_ref(), &manifest.segments, &slots)?;

    let segments_of = |retired: bool| -> Vec<Arc<Segment>> {
        let named = manifest.segments.iter().filter(|named| named.retired == retired);
        named.map(|n| Arc::new(Segment::new(&disk, &manifest.salt, n.id, n.slot, n.bytes))).collect()
    };
    let (raft, retired) = (segments_of(false), segments_of(true));
    let mut scan = Scan::new(manifest.tail_sequence, manifest.lost.clone());
    scan.run(&raft)?;
    if mutations::on(Mutation::SyncedTailCut) {
        let end = scan.sequence.saturating_sub(1);
        scan = Scan::new(manifest.tail_sequence, manifest.lost.clone());
        scan.end = end;
        scan.run(&raft)?;
    }

    // Segments behind the end were never written to, or hold a torn batch only: their files go back to the pool.
    let unused: Vec<SegmentId> = raft.iter().skip(scan.at.0 + 1).map(|segment| segment.id).collect();
    changed |= !unused.is_empty() || !scan.damage.is_empty();
    manifest.segments.retain(|named| !unused.contains(&named.id));
    let before = scan.sequence.saturating_sub(1);
    for damage in &scan.damage {
        match &damage.groups {
            None => manifest.lost.push(Lost { sequence: before, group: None }),
            Some(groups) => {
                manifest.lost.extend(groups.iter().map(|g| Lost { sequence: before, group: Some(*g) }));
            }
        }
    }
    if changed {
        manifest.save(disk.as_ref()).map_err(failed(PATH))?;
    }
    let slots = list_slots(disk.as_ref())?;
    let free = free_slots(disk.as_ref(), config, &manifest, &slots)?;
    // Names that an earlier process left in the cache only.
    disk.sync_dir(DIR).map_err(failed(DIR))?;
    let active = raft.get(scan.at.0).map(|segment| (Arc::clone(segment), scan.at.1));
    if let Some((segment, _)) = &active {
        scan.seal_end(segment)?;
    }

    let written = raft.iter().enumerate().filter(|(i, _)| *i < scan.at.0 || scan.at.1 > FIRST_POSITION);
    let raft_written = written
        .take(scan.at.0 + 1)
        .filter_map(|(i, segment)| Some((Arc::clone(segment), *scan.first_sequences.get(i)?)))
        .collect();
    let end_of = |segment: &Arc<Segment>| {
        manifest.segments.iter().find(|named| named.id == segment.id).map_or(0, |named| named.end_sequence)
    };
    let retired = retired.into_iter().map(|segment| (Arc::clone(&segment), end_of(&segment))).collect();
    let has_unwritten_losses = !manifest.lost.is_empty();
    let next_slot = slots.keys().next_back().map_or(1, |slot| slot.saturating_add(1));
    let state = PoolState { manifest, free, standby: VecDeque::new(), next_slot };
    let pool = Arc::new(Pool::new(disk, config.segment_bytes, config.free_segments_max, state));
    let resume = Resume { active, sequence: scan.sequence, previous: scan.previous.clone() };
    Ok(Opened { pool, resume, scan, raft: raft_written, retired, has_unwritten_losses })
}
