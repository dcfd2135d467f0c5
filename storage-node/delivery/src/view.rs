//! What delivery reads of the shard's state: a narrow window, so that it can be tested against a naive model.
//! Implemented for `longshore_shard::Shard`; nothing here changes anything.

use longshore_shard::{Cursor, Log, Shard};
use longshore_wire::spec::LogSpec;
use longshore_wire::{CursorId, Index, LogId, LogTime, Offset, SessionId};

/// A shard's applied state.
pub trait View {
    /// A settlement cursor.
    type Cursor<'a>: CursorView
    where
        Self: 'a;

    /// The index of the last applied entry.
    fn applied(&self) -> Index;
    /// The log, unless it never existed or was dropped.
    fn log(&self, log: LogId) -> Option<LogInfo>;
    /// A cursor of a log.
    fn cursor(&self, log: LogId, cursor: CursorId) -> Option<Self::Cursor<'_>>;
    /// Sessions that are open, in order.
    fn sessions(&self) -> Vec<SessionId>;
    /// Settlement cursors that have something unsettled, in order.
    fn unsettled_queues(&self) -> Vec<(LogId, CursorId)>;
}

/// What is fixed or simple about a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogInfo {
    /// First stored offset.
    pub first: Offset,
    /// The next append's offset.
    pub next: Offset,
    /// Its settings.
    pub spec: LogSpec,
}

/// A settlement cursor's applied state.
pub trait CursorView {
    /// The first unsettled offset at or after `from`.
    fn next_unsettled(&self, from: Offset) -> Option<Offset>;
    /// Whether the message is done with (or never existed).
    fn is_settled(&self, offset: Offset) -> bool;
    /// How often the message was returned and counted.
    fn returns(&self, offset: Offset) -> u32;
    /// Whether the message was returned at all, counted or not.
    fn redelivered(&self, offset: Offset) -> bool;
    /// Until when a taken message is out, if it is.
    fn taken_until(&self, offset: Offset) -> Option<LogTime>;
    /// How many messages are unsettled.
    fn unsettled_count(&self) -> u64;
}

impl View for Shard {
    type Cursor<'a> = &'a Cursor;

    fn applied(&self) -> Index {
        Shard::applied(self)
    }

    fn log(&self, log: LogId) -> Option<LogInfo> {
        Shard::log(self, log).map(|log| LogInfo { first: log.first(), next: log.next(), spec: *log.spec() })
    }

    fn cursor(&self, log: LogId, cursor: CursorId) -> Option<&Cursor> {
        Shard::log(self, log)?.cursor(cursor)
    }

    fn sessions(&self) -> Vec<SessionId> {
        Shard::sessions(self).map(|(id, _)| id).collect()
    }

    fn unsettled_queues(&self) -> Vec<(LogId, CursorId)> {
        let cursors = |log: &Log| -> Vec<_> {
            let unsettled = log.cursors().filter(|(_, cursor)| cursor.unsettled_count() > 0);
            unsettled.map(|(cursor, _)| (log.id(), cursor)).collect()
        };
        self.logs().flat_map(cursors).collect()
    }
}

impl CursorView for &Cursor {
    fn next_unsettled(&self, from: Offset) -> Option<Offset> {
        Cursor::next_unsettled(self, from)
    }

    fn is_settled(&self, offset: Offset) -> bool {
        Cursor::is_settled(self, offset)
    }

    fn returns(&self, offset: Offset) -> u32 {
        Cursor::returns(self, offset)
    }

    fn redelivered(&self, offset: Offset) -> bool {
        Cursor::redelivered(self, offset)
    }

    fn taken_until(&self, offset: Offset) -> Option<LogTime> {
        self.taken(offset).map(|taken| taken.until)
    }

    fn unsettled_count(&self) -> u64 {
        Cursor::unsettled_count(self)
    }
}
