//! What a start finds.
//!
//! Duty: give back exactly what was durable; tell a torn tail (cut) from corruption (its groups are set aside). Danger: a
//! synced batch taken for a torn one is acknowledged data lost in silence. So a bad batch is torn only if no valid batch of a
//! higher number follows anywhere, and what damage cost is put into the manifest before anything is cut.
//! Called by [`crate::NodeLog::open`] only.

use crate::format::{self, BatchHeader, Body, FIRST_POSITION, GroupList, Mark, Record};
use crate::ledger::Ledger;
use crate::manifest::Lost;
use crate::segment::Segment;
use crate::table::Group;
use crate::types::{Damage, OpenError};
use crate::writer::{Effect, Written};
use bytes::Bytes;
use longshore_wire::ShardId;
use std::collections::{BTreeMap, BTreeSet};
use std::io::IoSlice;
use std::sync::Arc;

/// Reads the segments that are not retired, oldest first.
#[derive(Debug)]
pub(crate) struct Scan {
    pub(crate) groups: BTreeMap<ShardId, Group>,
    pub(crate) ledger: Ledger,
    /// Groups that are set aside.
    pub(crate) lost: BTreeSet<ShardId>,
    /// Groups that are not in `groups` are set aside.
    pub(crate) every_other_lost: bool,
    pub(crate) damage: Vec<Damage>,
    pub(crate) cut_bytes: u64,
    /// Number of the next batch, and where it goes: a place in the list of segments, and a position.
    pub(crate) sequence: u64,
    pub(crate) at: (usize, u64),
    /// Groups of the batch before that one.
    pub(crate) previous: GroupList,
    /// For each segment up to `at`, the number of its first batch.
    pub(crate) first_sequences: Vec<u64>,
    /// Start of the last whole batch, if it ends at `at`.
    last_batch: Option<u64>,
    /// Batches from this number on are not looked at; only a broken build sets it.
    pub(crate) end: u64,
    /// While set, nothing but a reset brings a group back.
    every_lost: bool,
    begun_anew: BTreeSet<ShardId>,
    known_losses: Vec<Lost>,
    /// Groups whose log begins later than anything read so far explains. If the segment before was retired, a mark that says
    /// so follows; if no such mark follows, entries are missing.
    holes: BTreeSet<ShardId>,
    /// The newest mark of each group that was read.
    marks: BTreeMap<ShardId, Mark>,
    /// The segment read last, by its place.
    content: Option<(usize, Bytes)>,
}

/// A batch that should be at a position and is not whole.
struct Bad {
    header: Option<BatchHeader>,
}

impl Scan {
    /// `sequence`: the number of the first batch; `known_losses`: what earlier starts put into the manifest.
    pub(crate) fn new(sequence: u64, mut known_losses: Vec<Lost>) -> Scan {
        known_losses.sort_by_key(|lost| lost.sequence);
        Scan {
            groups: BTreeMap::new(),
            ledger: Ledger::default(),
            lost: BTreeSet::new(),
            every_other_lost: false,
            damage: Vec::new(),
            cut_bytes: 0,
            sequence,
            at: (0, FIRST_POSITION),
            previous: Some(Vec::new()),
            first_sequences: Vec::new(),
            last_batch: None,
            end: u64::MAX,
            every_lost: false,
            begun_anew: BTreeSet::new(),
            known_losses,
            holes: BTreeSet::new(),
            marks: BTreeMap::new(),
            content: None,
        }
    }

    /// Reads everything.
    pub(crate) fn run(&mut self, segments: &[Arc<Segment>]) -> Result<(), OpenError> {
        let mut place = 0;
        let mut bytes = Bytes::new();
        let mut is_first = true;
        while let Some(segment) = segments.get(self.at.0) {
            if is_first || place != self.at.0 {
                is_first = false;
                place = self.at.0;
                bytes = self.content(place, segment)?;
                self.first_sequences.resize(place + 1, self.sequence);
            }
            if self.sequence >= self.end {
                break;
            }
            let position = self.at.1;
            let header =
                BatchHeader::decode(&bytes, segment.seed, position).filter(|h| h.sequence == self.sequence);
            let records =
                header.as_ref().and_then(|h| format::decode_body(&bytes, segment.seed, position, h));
            match (header, records) {
                (Some(header), Some(records)) => self.accept(segment, position, header, records),
                (header, _) => {
                    if !self.go_around(segments, place, &bytes, Bad { header })? {
                        break;
                    }
                }
            }
        }
        self.content = None;
        self.losses_before(u64::MAX);
        if !self.holes.is_empty()
            && let Some(segment) = segments.get(place)
        {
            let groups = Some(std::mem::take(&mut self.holes));
            self.lose(&groups);
            self.damage.push(Damage { segment: segment.id, position: FIRST_POSITION, groups });
        }
        self.every_other_lost |= self.every_lost;
        Ok(())
    }

    fn content(&mut self, place: usize, segment: &Segment) -> Result<Bytes, OpenError> {
        match &self.content {
            Some((cached, bytes)) if *cached == place => Ok(bytes.clone()),
            _ => {
                let bytes = load(segment)?;
                self.content = Some((place, bytes.clone()));
                Ok(bytes)
            }
        }
    }

    fn accept(&mut self, segment: &Segment, position: u64, header: BatchHeader, records: Vec<(u64, Record)>) {
        self.losses_before(header.sequence);
        for (at, record) in records {
            self.replay(segment, at, record);
        }
        self.last_batch = Some(position);
        self.at.1 = position + header.total_bytes();
        self.sequence = header.sequence + 1;
        self.previous = header.groups;
    }

    /// The batch at `self.at` is not whole: goes on at the next valid one, noting what lies between as damage. `false`: there is
    /// none, so this is the end.
    fn go_around(
        &mut self,
        segments: &[Arc<Segment>],
        place: usize,
        bytes: &Bytes,
        bad: Bad,
    ) -> Result<bool, OpenError> {
        let position = self.at.1;
        let Some(segment) = segments.get(place) else { return Ok(false) };
        if bad.header.is_none() && self.continues_in_next(segments, place)? {
            return Ok(true);
        }
        let (from, sequence_min) = match &bad.header {
            Some(header) => (position + header.total_bytes(), self.sequence + 1),
            None => (position, self.sequence),
        };
        let mut found =
            format::find_batch(bytes, segment.seed, from, sequence_min).map(|(p, h)| (place, p, h));
        for (later, candidate) in segments.iter().enumerate().skip(place + 1) {
            if found.is_some() {
                break;
            }
            let content = self.content(later, candidate)?;
            found = format::find_batch(&content, candidate.seed, FIRST_POSITION, sequence_min)
                .map(|(p, h)| (later, p, h));
        }
        let Some((next_place, next_position, next)) = found else {
            self.cut_bytes = bad.header.map_or(0, |header| header.total_bytes());
            return Ok(false);
        };
        let first_missing = self.sequence + u64::from(bad.header.is_some());
        if bad.header.is_some() || next.sequence > first_missing {
            let known = bad.header.map_or_else(|| Some(Vec::new()), |header| header.groups);
            let between = match next.sequence - first_missing {
                0 => Some(Vec::new()),
                1 => next.previous.clone(),
                _ => None,
            };
            let groups = known.zip(between).map(|(a, b)| a.into_iter().chain(b).collect());
            self.lose(&groups);
            self.damage.push(Damage { segment: segment.id, position, groups });
        }
        self.first_sequences.resize(next_place + 1, next.sequence);
        self.at = (next_place, next_position);
        self.sequence = next.sequence;
        self.previous = next.previous;
        self.last_batch = None;
        Ok(true)
    }

    /// The usual end of a segment: the next one begins with the number that is due.
    fn continues_in_next(&mut self, segments: &[Arc<Segment>], place: usize) -> Result<bool, OpenError> {
        let Some(next) = segments.get(place + 1) else { return Ok(false) };
        let content = self.content(place + 1, next)?;
        let begins = BatchHeader::decode(&content, next.seed, FIRST_POSITION);
        if begins.is_none_or(|header| header.sequence != self.sequence) {
            return Ok(false);
        }
        self.at = (place + 1, FIRST_POSITION);
        self.last_batch = None;
        Ok(true)
    }

    /// Sets groups aside: these, or for `None` every one.
    fn lose(&mut self, groups: &Option<BTreeSet<ShardId>>) {
        match groups {
            Some(groups) => {
                for group in groups {
                    self.groups.remove(group);
                    self.ledger.forget(*group);
                    self.begun_anew.remove(group);
                    self.holes.remove(group);
                    self.marks.remove(group);
                    self.lost.insert(*group);
                }
            }
            None => {
                self.lost.extend(std::mem::take(&mut self.groups).into_keys());
                self.ledger.forget_all();
                self.begun_anew.clear();
                self.holes.clear();
                self.marks.clear();
                self.every_lost = true;
            }
        }
    }

    /// What earlier starts found lost takes effect after the last batch that was there then.
    fn losses_before(&mut self, sequence: u64) {
        while self.known_losses.first().is_some_and(|lost| lost.sequence < sequence) {
            let lost = self.known_losses.remove(0);
            self.lose(&lost.group.map(|group| BTreeSet::from([group])));
        }
    }

    fn is_lost(&self, group: ShardId) -> bool {
        self.lost.contains(&group) || (self.every_lost && !self.begun_anew.contains(&group))
    }

    fn replay(&mut self, segment: &Segment, position: u64, record: Record) {
        let group = record.group;
        let written = Written::of(&record, 0, segment.id, position);
        match &record.body {
            Body::EveryOtherAside => {
                self.every_other_lost = true;
                self.ledger.note(&written);
                return;
            }
            Body::Reset => {
                self.lost.remove(&group);
                self.begun_anew.insert(group);
                self.groups.insert(group, Group::default());
            }
            Body::Remove => {
                self.lost.remove(&group);
                self.groups.remove(&group);
            }
            Body::Aside => {
                self.lose(&Some(BTreeSet::from([group])));
            }
            _ if self.is_lost(group) => return,
            body => self.replay_living(group, body, &written),
        }
        if matches!(record.body, Body::Reset | Body::Remove) {
            self.holes.remove(&group);
            self.marks.remove(&group);
        }
        self.ledger.note(&written);
    }

    /// A record of a group that is whole as far as is known.
    fn replay_living(&mut self, id: ShardId, body: &Body, written: &Written) {
        let group = self.groups.entry(id).or_default();
        match (body, written.effect) {
            (Body::Entry(_), Effect::Entry { index, term, place }) => {
                if !group.follows(index.0) {
                    // What lay between is in a retired segment: compacted, or overwritten further on.
                    group.rebase(index.0);
                    let mark = self.marks.get(&id).copied().unwrap_or_default();
                    if mark.index == group.mark().index {
                        group.recovered_mark(mark);
                        self.holes.remove(&id);
                    } else {
                        self.holes.insert(id);
                    }
                }
                group.recovered(index, term, place);
            }
            (Body::HardState(state), _) => group.hard_state = *state,
            (Body::Conf(conf), _) => group.conf = Bytes::copy_from_slice(conf),
            (Body::Compact(mark), _) => self.replay_mark(id, *mark),
            (Body::Snapshot(mark), _) => {
                group.install(*mark, 0);
                group.mark_durable(*mark, 0);
                self.marks.insert(id, *mark);
                self.holes.remove(&id);
            }
            (Body::State(state), _) => {
                group.hard_state = state.hard_state;
                group.conf = Bytes::copy_from_slice(&state.conf);
                self.replay_mark(id, state.mark);
            }
            _ => {}
        }
    }

    /// Entries up to the mark are gone; where the log begins later, the mark of that is still to come.
    fn replay_mark(&mut self, id: ShardId, mark: Mark) {
        let known = self.marks.entry(id).or_default();
        if mark.index >= known.index {
            *known = mark;
        }
        let group = self.groups.entry(id).or_default();
        if mark.index >= group.mark().index {
            group.recovered_mark(mark);
            self.holes.remove(&id);
        }
    }

    /// Prepares the end for appending. The last batch that was read is made durable once more, because the process before may
    /// have died after a failed sync; what lies behind it is zeroed.
    pub(crate) fn seal_end(&self, segment: &Segment) -> Result<(), OpenError> {
        let failed = |source| OpenError::Io { path: segment.path(), source };
        let bytes = load(segment)?;
        let end = self.at.1;
        let file = segment.writable().map_err(failed)?;
        let part = |from: u64, to: u64| bytes.get(from as usize..to as usize).unwrap_or_default();
        if let Some(start) = self.last_batch {
            file.write_at(&[IoSlice::new(part(start, end))], start).map_err(failed)?;
        }
        if part(end, segment.bytes).iter().any(|byte| *byte != 0) {
            crate::pool::write_zeros(file.as_ref(), end, segment.bytes).map_err(failed)?;
        }
        file.sync_data().map_err(failed)
    }
}

fn load(segment: &Segment) -> Result<Bytes, OpenError> {
    segment.read_all().map_err(|source| OpenError::Io { path: segment.path(), source })
}
