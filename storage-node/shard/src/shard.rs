//! The state of a shard: its parts, what others may read of it, and its way to pages and back.
//!
//! Danger: whatever is not on a page is lost by the next restart or snapshot. Owned by the node's store thread.

use crate::logs::Logs;
use crate::page::{Key, PageHasher, Pages, read_version, versioned};
use crate::producers::Producers;
use crate::sessions::Sessions;
use crate::tokens::Tokens;
use crate::{Log, Session};
use bytes::{BufMut, Bytes};
use longshore_wire::row::Source;
use longshore_wire::{
    CursorId, DecodeError, Index, LogId, LogTime, OffsetRange, Reader, SessionId, ShardId, Term,
};
use std::collections::{BTreeMap, BTreeSet};

const HEADER_VERSION: u8 = 1;

/// The state machine of one shard.
#[derive(Clone, Debug)]
pub struct Shard {
    id: ShardId,
    pub(crate) applied: Index,
    pub(crate) applied_term: Term,
    pub(crate) log_time: LogTime,
    pub(crate) logs: Logs,
    pub(crate) sessions: Sessions,
    pub(crate) tokens: Tokens,
    pub(crate) producers: Producers,
    /// When cursors have rewindable messages to release; may name some that have none any more. Not on a page:
    /// it follows from the cursors.
    pub(crate) releases: BTreeSet<(LogTime, LogId, CursorId)>,
}

/// Why pages do not make a state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// A page of a format that is newer (both versions are named), or that is damaged although its checksum
    /// matched. Start the newer build, or let this replica be rebuilt from its peers.
    #[error("the state of shard {shard} cannot be restored: {source}")]
    Page {
        /// The shard.
        shard: ShardId,
        /// What is wrong with which kind of page.
        source: DecodeError,
    },
    /// A kind of page that this build does not know: a newer build wrote it. Start that one.
    #[error("the state of shard {shard} has pages of kind {kind}, which this build does not know")]
    UnknownKind {
        /// The shard.
        shard: ShardId,
        /// First byte of the page's key.
        kind: u8,
    },
    /// There are pages, but not the one that every state has: the set is not whole.
    #[error("the state of shard {shard} has no header page: the pages are not a whole checkpoint")]
    NoHeader {
        /// The shard.
        shard: ShardId,
    },
    /// The pages belong to another shard.
    #[error("the pages are those of shard {found}, not of shard {shard}")]
    OtherShard {
        /// The shard that was to be restored.
        shard: ShardId,
        /// Whose pages they are.
        found: ShardId,
    },
}

/// What others may read.
impl Shard {
    /// A shard in which nothing has happened.
    pub fn new(id: ShardId) -> Shard {
        Shard {
            id,
            applied: Index(0),
            applied_term: Term(0),
            log_time: LogTime(0),
            logs: Logs::default(),
            sessions: Sessions::default(),
            tokens: Tokens::default(),
            producers: Producers::default(),
            releases: BTreeSet::new(),
        }
    }

    /// Which shard this is.
    pub fn id(&self) -> ShardId {
        self.id
    }

    /// Index of the last applied entry, 0 before the first.
    pub fn applied(&self) -> Index {
        self.applied
    }

    /// Term of the last applied entry.
    pub fn applied_term(&self) -> Term {
        self.applied_term
    }

    /// The log time of the last applied entry; never goes back.
    pub fn log_time(&self) -> LogTime {
        self.log_time
    }

    /// A log that exists now.
    pub fn log(&self, log: LogId) -> Option<&Log> {
        self.logs.get(log)
    }

    /// All logs that exist now, by id.
    pub fn logs(&self) -> impl Iterator<Item = &Log> + '_ {
        self.logs.iter()
    }

    /// Whether the log was dropped; it can never be made again.
    pub fn is_dropped(&self, log: LogId) -> bool {
        self.logs.is_dropped(log)
    }

    /// An open gateway session.
    pub fn session(&self, session: SessionId) -> Option<&Session> {
        self.sessions.get(session)
    }

    /// Whether a gateway session was closed here: it will never be open again.
    pub fn is_session_closed(&self, session: SessionId) -> bool {
        self.sessions.is_closed(session)
    }

    /// All open gateway sessions by id.
    pub fn sessions(&self) -> impl Iterator<Item = (SessionId, &Session)> + '_ {
        self.sessions.iter()
    }

    /// The oldest entry that holds a piece of an open upload: it and everything after it in the node log must
    /// stay readable until the upload ends. O(open pieces).
    pub fn oldest_pinned_index(&self) -> Option<Index> {
        self.upload_sources().map(|source| source.index).min()
    }

    /// Where the pieces of open uploads lie; a snapshot carries these bytes, too.
    pub fn upload_sources(&self) -> impl Iterator<Item = Source> + '_ {
        self.sessions.upload_sources()
    }

    /// What the record store must keep of a log, ascending; nothing of an unknown one. See [`Log::live_ranges`].
    pub fn live_ranges(&self, log: LogId) -> impl Iterator<Item = OffsetRange> + '_ {
        self.log(log).into_iter().flat_map(Log::live_ranges)
    }
}

/// To pages and back.
impl Shard {
    fn header_page(&self) -> Bytes {
        versioned(HEADER_VERSION, |out| {
            out.put_u32_le(self.id.0);
            out.put_u64_le(self.applied.0);
            out.put_u64_le(self.applied_term.0);
            out.put_u64_le(self.log_time.0);
        })
    }

    /// The pages that changed since the last call, `None` for those that are gone (also ones that never were
    /// handed out). They are one unit: a state is restored from all pages of a checkpoint or from none. The caller
    /// keeps them until they are durable: they are not given out a second time.
    pub fn take_dirty_pages(&mut self) -> Vec<(Bytes, Option<Bytes>)> {
        let mut pages = Pages::default();
        pages.push(Key::Header, Some(self.header_page()));
        self.sessions.take_dirty(&mut pages);
        self.tokens.take_dirty(&mut pages);
        self.producers.take_dirty(&mut pages);
        self.logs.take_dirty(&mut pages);
        pages.0
    }

    /// The whole state, for a snapshot; equal states give equal pages. Sorted by key.
    pub fn all_pages(&self) -> Vec<(Bytes, Bytes)> {
        let mut pages = Pages::default();
        pages.push(Key::Header, Some(self.header_page()));
        self.sessions.all(&mut pages);
        self.tokens.all(&mut pages);
        self.producers.all(&mut pages);
        self.logs.all(&mut pages);
        let mut all: Vec<_> = pages.0.into_iter().filter_map(|(key, page)| Some((key, page?))).collect();
        all.sort_unstable();
        all
    }

    /// A hash that is equal on equal state, on every machine and after any restore.
    pub fn state_hash(&self) -> u64 {
        let mut hasher = PageHasher::new();
        for (key, page) in self.all_pages() {
            hasher.add(&key);
            hasher.add(&page);
        }
        hasher.finish()
    }

    /// The state that pages hold, in any order; no pages at all are an empty shard. The result has no dirty pages.
    ///
    /// Errors: see [`RestoreError`].
    pub fn restore(
        id: ShardId,
        pages: impl IntoIterator<Item = (Bytes, Bytes)>,
    ) -> Result<Shard, RestoreError> {
        // Sorted, a log's page comes before those of its chunks, a session's before those of its uploads.
        let pages: BTreeMap<Bytes, Bytes> = pages.into_iter().collect();
        let mut shard = Shard::new(id);
        if pages.is_empty() {
            return Ok(shard);
        }
        let bad = |source| RestoreError::Page { shard: id, source };
        let mut has_header = false;
        for (key, page) in pages {
            let kind = key.first().copied().unwrap_or(0);
            let key = Key::decode(&key).map_err(bad)?;
            let key = key.ok_or(RestoreError::UnknownKind { shard: id, kind })?;
            has_header |= key == Key::Header;
            let found = shard.restore_page(key, page).map_err(bad)?;
            if found != id {
                return Err(RestoreError::OtherShard { shard: id, found });
            }
        }
        if !has_header {
            return Err(RestoreError::NoHeader { shard: id });
        }
        shard.finish_restore().map_err(bad)?;
        Ok(shard)
    }

    /// Takes up a page and tells whose it is.
    fn restore_page(&mut self, key: Key, page: Bytes) -> Result<ShardId, DecodeError> {
        match key {
            Key::Header => {
                let mut r = Reader::new(page, "shard page");
                read_version(&mut r, "shard page", HEADER_VERSION)?;
                let found = ShardId(r.u32()?);
                self.applied = Index(r.u64()?);
                self.applied_term = Term(r.u64()?);
                self.log_time = LogTime(r.u64()?);
                r.finish()?;
                return Ok(found);
            }
            Key::Dropped => self.logs.restore_dropped(page)?,
            Key::Closed => self.sessions.restore_closed(page)?,
            Key::Session(session) => self.sessions.restore_session(session, page)?,
            Key::Upload(session, upload) => self.sessions.restore_upload(session, upload, page)?,
            Key::Tokens(_) => self.tokens.restore(page)?,
            Key::Producers(_) => self.producers.restore(page)?,
            Key::Log(log) => self.logs.restore_log(log, page)?,
            Key::Chunk(log, cursor, n) => self.logs.restoring(log)?.restore_chunk(cursor, n, page)?,
            Key::Position(log, name) => self.logs.restoring(log)?.restore_position(name, page)?,
        }
        Ok(self.id)
    }

    fn finish_restore(&mut self) -> Result<(), DecodeError> {
        for log in self.logs.iter() {
            log.check_restored()?;
            for (id, cursor) in log.cursors() {
                let release = cursor.next_release(log.spec().rewind_ms);
                self.releases.extend(release.map(|at| (at, log.id(), id)));
            }
        }
        Ok(())
    }
}
