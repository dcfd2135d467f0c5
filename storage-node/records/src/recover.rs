//! Opening after a start, and liveness from the state machine.
//!
//! Index files and store files tell what is held; the state tells what of it is needed. Nothing here looks at single
//! records: counts come from directories and from sets, a bit per offset.

use crate::block;
use crate::cache::{AheadCache, BlockCache};
use crate::directory::{Unusable, load, read_exact};
use crate::file::{BlockRef, Content, FileKey, FileState};
use crate::job::Written;
use crate::logs::LogState;
use crate::manifest::{Listed, Manifest};
use crate::read::Io;
use crate::store::{Records, is_part_log, part_key, part_log};
use crate::tail::Tail;
use crate::types::{Config, Damaged, LiveView, Opened, RecordsError, SegmentInfo, Segments, StoreId};
use longshore_io::{Disk, OpenMode};
use longshore_wire::{LogId, OffsetRange, ShardId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

impl Records {
    /// Opens the store in `config.dir`, making it if the data directory is new. `existing` are the segments that the node
    /// log has now; indexes of others are removed. Blocks on the disk. Call [`Records::recover`] for each group next.
    ///
    /// Errors: the manifest or the disk cannot be read, or a file is of a newer build. Damaged index files are no
    /// error: see [`Opened`].
    pub fn open(
        disk: Arc<dyn Disk>,
        segments: Arc<dyn Segments>,
        config: Config,
        existing: &[SegmentInfo],
    ) -> Result<(Records, Opened), RecordsError> {
        let manifest = Arc::new(Manifest::open(disk.clone(), &config.dir)?);
        let listed = manifest.listed();
        let io = Arc::new(Io { disk, segments, dir: config.dir.clone() });
        let mut records = Records {
            tail: Tail::new(config.tail_bytes_max),
            blocks: BlockCache::new(config.block_cache_bytes_max),
            ahead: AheadCache::new(config.read_cache_bytes_max),
            config,
            io,
            manifest,
            logs: BTreeMap::new(),
            files: BTreeMap::new(),
            guards: BTreeMap::new(),
            segments: BTreeMap::new(),
            groups: BTreeMap::new(),
            large: BTreeMap::new(),
            part_users: BTreeMap::new(),
            running: BTreeSet::new(),
            leaving: BTreeMap::new(),
            freed: BTreeSet::new(),
            suspect: BTreeSet::new(),
            pins: BTreeMap::new(),
            next_pin: 1,
            next_task: 0,
            next_store: listed.next_store,
        };
        for info in existing {
            records.segment_sealed(info);
        }
        for segment in &listed.retired {
            match records.segments.get_mut(segment) {
                Some(state) => state.replaced = true,
                None => {
                    records.freed.insert(*segment);
                }
            }
        }
        let opened = records.load_files(&listed)?;
        records.load_large()?;
        Ok((records, opened))
    }

    fn load_files(&mut self, listed: &Listed) -> Result<Opened, RecordsError> {
        let io = self.io.clone();
        // What a killed process renamed is here but not durable yet; its data is. From here on it counts.
        io.disk.sync_dir(&io.dir).map_err(|error| RecordsError::Io {
            what: "sync",
            file: io.dir.clone(),
            error,
        })?;
        let names = io.disk.list(&io.dir).map_err(|error| RecordsError::Io {
            what: "list",
            file: io.dir.clone(),
            error,
        })?;
        let mut opened = Opened { reached: listed.reached.clone(), ..Opened::default() };
        let mut absent: BTreeSet<StoreId> = listed.stores.clone();
        for name in names {
            let Some(key) = FileKey::parse(&name) else {
                if name.ends_with(".tmp") {
                    let path = format!("{}/{name}", io.dir);
                    let failed = |error| RecordsError::Io { what: "remove", file: path.clone(), error };
                    io.disk.remove(&path).map_err(failed)?;
                }
                continue;
            };
            let counts = match key {
                FileKey::Segment(segment, part) => match self.segments.get_mut(&segment) {
                    Some(state) => {
                        state.next_part = state.next_part.max(part.saturating_add(1));
                        !state.replaced
                    }
                    None => false,
                },
                FileKey::Store(store) => {
                    self.next_store = self.next_store.max(store.0 + 1);
                    absent.remove(&store)
                }
            };
            if counts {
                self.load_file(key, &mut opened)?;
            } else {
                // Left by a crash, or no longer of use.
                self.leaving.entry(key.data()).or_default().push(name);
            }
        }
        for store in absent {
            opened.damaged.push(Damaged { file: io.path(FileKey::Store(store)), segment: None });
        }
        Ok(opened)
    }

    fn load_file(&mut self, key: FileKey, opened: &mut Opened) -> Result<(), RecordsError> {
        let path = self.io.path(key);
        let failed = |error| RecordsError::Io { what: "read", file: path.clone(), error };
        let file = self.io.disk.open(&path, OpenMode::Read).map_err(failed)?;
        let (directory, bytes) = match load(&*file, key) {
            Ok(loaded) => loaded,
            Err(Unusable::Io(error)) => return Err(failed(error)),
            Err(Unusable::Version(found)) => {
                return Err(RecordsError::Version { file: path, found, known: crate::directory::VERSION });
            }
            Err(Unusable::Damaged) => {
                let segment = match key {
                    FileKey::Segment(segment, _) => Some(segment),
                    FileKey::Store(_) => None,
                };
                opened.damaged.push(Damaged { file: path, segment });
                return Ok(());
            }
        };
        match key {
            FileKey::Store(store) => self.add_store(Written { store, directory, bytes }, true),
            FileKey::Segment(..) => {
                for (slot, section) in directory.sections.iter().enumerate() {
                    let state = self.logs.entry(section.log).or_insert_with(|| LogState::new(section.group));
                    state.add(key, slot as u32, section.first, section.last);
                }
                self.guards.entry(key.data()).or_default();
                let content = Content::Written(directory.blocks);
                self.files.insert(key, FileState { sections: directory.sections, content, bytes: 0 });
            }
        }
        Ok(())
    }

    /// Finds the records whose bodies came in parts: only blocks that say so are read.
    fn load_large(&mut self) -> Result<(), RecordsError> {
        let mut with_parts: Vec<(FileKey, ShardId, LogId, BlockRef)> = Vec::new();
        for (key, file) in &self.files {
            let Content::Written(blocks) = &file.content else { continue };
            for section in &file.sections {
                let range = section.blocks.start as usize..section.blocks.end as usize;
                let of_section = blocks.get(range).unwrap_or_default().iter().filter(|block| block.parts);
                with_parts.extend(of_section.map(|block| (*key, section.group, section.log, *block)));
            }
        }
        for (key, group, log, at) in with_parts {
            let path = self.io.path(key);
            let failed = |error| RecordsError::Io { what: "read", file: path.clone(), error };
            let file = self.io.disk.open(&path, OpenMode::Read).map_err(failed)?;
            let bytes = read_exact(&*file, at.position, at.len as usize).map_err(failed)?;
            // A damaged block is found, and said, when it is read.
            for located in block::decode(log, &bytes).unwrap_or_default() {
                if !located.row.parts.is_empty() {
                    self.use_parts(group, &located.row);
                }
            }
        }
        Ok(())
    }

    /// Takes the state machine's word on one group: after a start with the checkpoint's state, after a snapshot with
    /// the new one (before the snapshot's checkpoint is written, see [`Records::rows_durable`]: rows that counted as held
    /// may still be in memory only). What the index has beyond `applied` stays; entries from there on are applied (again) next.
    pub fn recover(&mut self, group: ShardId, view: &dyn LiveView) {
        let applied = view.applied();
        let state = self.groups.entry(group).or_default();
        state.applied = applied;
        if state.unwritten.is_empty() {
            state.durable = applied;
        }
        self.tail.clear();
        let logs: Vec<LogId> =
            self.logs.iter().filter(|(_, state)| state.group == group).map(|(log, _)| *log).collect();
        for log in logs {
            if is_part_log(log) {
                self.reset_dead(log, 0, |_| ());
                continue;
            }
            match view.first(log) {
                Some(first) => {
                    self.reset_dead(log, first.0, |bury| view.dead(log, bury));
                }
                None => {
                    let newer = self.logs.get(&log).is_some_and(|state| {
                        state.sections().iter().any(|at| {
                            self.section(at.key, at.slot)
                                .is_some_and(|section| section.index_last > applied.0)
                        })
                    });
                    if !newer {
                        self.dropped(log);
                    }
                }
            }
        }
        self.recount_parts(group);
        self.uploads_from(group, view.uploads_from());
    }

    fn reset_dead(&mut self, log: LogId, first: u64, fill: impl FnOnce(&mut dyn FnMut(OffsetRange))) {
        let Some(state) = self.logs.get_mut(&log) else { return };
        let reach = state.reach();
        state.floor = first;
        let mut dead = crate::set::OffsetSet::default();
        fill(&mut |range: OffsetRange| {
            let (low, high) = (range.first.0.max(first), range.last.0.min(reach));
            if low <= high {
                dead.insert(low, high, &mut |_, _| {});
            }
        });
        state.floor = dead.advance(first);
        state.dead = dead;
        for at in state.sections() {
            let Some(file) = self.files.get_mut(&at.key) else { continue };
            if let Some(section) = file.sections.get_mut(at.slot as usize) {
                section.live = section.held_count().saturating_sub(state.dead_of(section));
            }
        }
    }

    /// Counts anew which pieces live records use.
    fn recount_parts(&mut self, group: ShardId) {
        let pieces = part_log(group);
        self.part_users.retain(|(log, _), _| *log != pieces);
        let logs = &self.logs;
        self.large.retain(|(log, at), large| {
            let end = at.saturating_add(u64::from(large.count));
            large.group != group
                || logs.get(log).is_some_and(|state| state.next_live(*at).is_some_and(|live| live < end))
        });
        for large in self.large.values().filter(|large| large.group == group) {
            for part in large.parts.iter() {
                *self.part_users.entry((pieces, part_key(part))).or_default() += 1;
            }
        }
    }
}
