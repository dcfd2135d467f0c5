//! Which group has which file, and what is under way.
//!
//! Duty: hand out one [`Job`] per group at a time and take its result back; keep what a failed job could not write
//! until the next one. Danger: pages handed to [`PageStore::begin`] are no longer dirty in their machine, so losing
//! them here loses them for good. Called by the node's turn loop; does no I/O after [`PageStore::open`].

use crate::job::{Changes, Job, JobDone, Work};
use crate::load::{self, GroupFile};
use crate::{Config, JobError, Mark, OpenError, Opened, Saved};
use bytes::Bytes;
use longshore_io::Disk;
use longshore_wire::ShardId;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// A job of this group is under way, or its checkpoint was found damaged and must be removed first. The pages come
/// back, unchanged.
#[derive(Debug, thiserror::Error)]
#[error("group {group} cannot begin a checkpoint now ({why}); try again after its job is done")]
pub struct Busy<T> {
    /// The group.
    pub group: ShardId,
    /// Which of the two it is.
    pub why: &'static str,
    /// What was to be written.
    pub pages: T,
}

/// Changed pages: key, and value or removed.
pub type DirtyPages = Vec<(Bytes, Option<Bytes>)>;

#[derive(Debug)]
enum State {
    /// Nothing is under way; no file yet if `None`.
    Idle(Option<GroupFile>),
    /// A job has the file.
    Running,
    /// The file is not to be trusted; only a removal is allowed.
    Damaged,
}

#[derive(Debug)]
struct Group {
    state: State,
    mark: Option<Mark>,
    /// What a failed job left to be written.
    unsaved: Changes,
}

/// All checkpoints of a data directory.
pub struct PageStore {
    disk: Arc<dyn Disk>,
    config: Config,
    groups: BTreeMap<ShardId, Group>,
}

impl fmt::Debug for PageStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageStore").field("config", &self.config).field("groups", &self.groups).finish()
    }
}

impl PageStore {
    /// Reads every checkpoint of the data directory, cuts torn deltas, removes what an interrupted rewrite left.
    ///
    /// Errors: [`OpenError`]; a group whose file is damaged is no error but an entry in [`Opened::damaged`].
    pub fn open(disk: Arc<dyn Disk>, config: Config) -> Result<Opened, OpenError> {
        let (files, damaged) = load::read_all(disk.as_ref(), &config)?;
        let mut groups = BTreeMap::new();
        let mut loaded = Vec::with_capacity(files.len());
        for (found, file) in files {
            let mark = Some(found.mark.clone());
            let group = Group { state: State::Idle(Some(file)), mark, unsaved: Changes::default() };
            groups.insert(found.group, group);
            loaded.push(found);
        }
        for bad in &damaged {
            let group = Group { state: State::Damaged, mark: None, unsaved: Changes::default() };
            groups.insert(bad.group, group);
        }
        Ok(Opened { store: PageStore { disk, config, groups }, loaded, damaged })
    }

    /// Starts a checkpoint: `dirty` holds the pages changed since the last `begin` of this group (all of them the
    /// first time), `mark` up to where they hold. A key given twice counts as it is given last.
    ///
    /// Errors: [`Busy`] with the pages; nothing was begun.
    pub fn begin(&mut self, group: ShardId, mark: Mark, dirty: DirtyPages) -> Result<Job, Busy<DirtyPages>> {
        let file = match self.take_file(group) {
            Ok(file) => file,
            Err(why) => return Err(Busy { group, why, pages: dirty }),
        };
        let mut changes = self.take_unsaved(group);
        changes.pages.extend(dirty);
        Ok(self.job(group, Work::Save { file, mark, changes }))
    }

    /// Starts a checkpoint that consists of `pages` and nothing else (an installed snapshot, or the whole state).
    ///
    /// Errors: [`Busy`] with the pages; nothing was begun.
    pub fn replace(
        &mut self,
        group: ShardId,
        mark: Mark,
        pages: BTreeMap<Bytes, Bytes>,
    ) -> Result<Job, Busy<BTreeMap<Bytes, Bytes>>> {
        let file = match self.take_file(group) {
            Ok(file) => file,
            Err(why) => return Err(Busy { group, why, pages }),
        };
        let changes = Changes {
            whole: true,
            pages: pages.into_iter().map(|(key, value)| (key, Some(value))).collect(),
        };
        self.take_unsaved(group);
        Ok(self.job(group, Work::Save { file, mark, changes }))
    }

    /// Starts the removal of everything kept for a group; damaged files too.
    ///
    /// Errors: [`Busy`] while a job of the group is under way.
    pub fn remove(&mut self, group: ShardId) -> Result<Job, Busy<()>> {
        if self.is_busy(group) {
            return Err(Busy { group, why: "a job is under way", pages: () });
        }
        self.groups.insert(group, Group { state: State::Running, mark: None, unsaved: Changes::default() });
        Ok(self.job(group, Work::Remove))
    }

    /// Takes the result of a job back. What it answers with `Ok` is durable.
    ///
    /// Errors: [`JobError`]; after [`JobError::NoSpace`] the pages are kept and written with the next `begin`.
    pub fn job_done(&mut self, done: JobDone) -> Result<Saved, JobError> {
        let JobDone { group, file, left, result } = done;
        match &result {
            Ok(Saved { mark: None, .. }) => {
                self.groups.remove(&group);
            }
            Ok(saved) => {
                let unsaved = Changes::default();
                let mark = saved.mark.clone();
                self.groups.insert(group, Group { state: State::Idle(file), mark, unsaved });
            }
            Err(_) => {
                let mark = self.groups.get_mut(&group).and_then(|known| known.mark.take());
                self.groups.insert(group, Group { state: State::Idle(file), mark, unsaved: left });
            }
        }
        result
    }

    /// Whether a job of the group is under way.
    pub fn is_busy(&self, group: ShardId) -> bool {
        self.groups.get(&group).is_some_and(|known| matches!(known.state, State::Running))
    }

    /// Up to where the group's durable checkpoint holds; `None` without one.
    pub fn mark(&self, group: ShardId) -> Option<&Mark> {
        self.groups.get(&group)?.mark.as_ref()
    }

    /// Groups that have a durable checkpoint, ascending.
    pub fn groups(&self) -> impl Iterator<Item = ShardId> + '_ {
        self.groups.iter().filter(|(_, known)| known.mark.is_some()).map(|(group, _)| *group)
    }

    fn take_file(&mut self, group: ShardId) -> Result<Option<GroupFile>, &'static str> {
        let known = self.groups.entry(group).or_insert_with(|| Group {
            state: State::Idle(None),
            mark: None,
            unsaved: Changes::default(),
        });
        match &mut known.state {
            State::Running => Err("a job is under way"),
            State::Damaged => Err("its checkpoint is damaged: remove it first"),
            State::Idle(file) => {
                let file = file.take();
                known.state = State::Running;
                Ok(file)
            }
        }
    }

    fn take_unsaved(&mut self, group: ShardId) -> Changes {
        self.groups.get_mut(&group).map(|known| std::mem::take(&mut known.unsaved)).unwrap_or_default()
    }

    fn job(&self, group: ShardId, work: Work) -> Job {
        Job { group, disk: Arc::clone(&self.disk), config: self.config.clone(), work }
    }
}
