//! Batches for tests, built as a gateway or a leader builds them.

use bytes::Bytes;
use longshore_shard::{Effects, Shard};
use longshore_wire::batch::{BatchBuilder, Item, Origin};
use longshore_wire::context::EntryContext;
use longshore_wire::record::{Form, NewRecord};
use longshore_wire::{BatchNo, Index, LogId, LogTime, SessionId, Term};

/// What a test puts into a batch: any item, or a record that is still to be encoded.
#[derive(Clone, Debug)]
pub enum Put {
    Item(Item),
    Append(Append),
}

#[derive(Clone, Debug)]
pub struct Append {
    pub targets: Vec<LogId>,
    pub origin: Option<Origin>,
    pub count: u32,
    pub ttl_ms: u64,
    pub delay_ms: u64,
    pub flags: u16,
    pub upload: u64,
    pub priority: u8,
}

impl Append {
    pub fn to(log: u64) -> Append {
        Append {
            targets: vec![LogId(log)],
            origin: None,
            count: 1,
            ttl_ms: longshore_wire::record::NO_TTL,
            delay_ms: 0,
            flags: 0,
            upload: 0,
            priority: 0,
        }
    }
}

pub fn batch(session: u64, number: u64, puts: &[Put]) -> Bytes {
    let mut builder = BatchBuilder::new(SessionId(session));
    for put in puts {
        match put {
            Put::Item(item) => builder.push(item),
            Put::Append(append) => {
                let mut new = NewRecord::plain(Form::Amqp, &append.targets, b"key", b"");
                new.count = append.count;
                new.ttl_ms = append.ttl_ms;
                new.delay_ms = append.delay_ms;
                new.flags = append.flags;
                new.upload = append.upload;
                new.priority = append.priority;
                builder.append(append.origin, &new, &[Bytes::from_static(b"body")]).unwrap();
            }
        }
    }
    builder.finish(BatchNo(number))
}

/// Applies bytes as the next entry.
pub fn apply(shard: &mut Shard, stamp: u64, data: &Bytes) -> Effects {
    let mut out = Effects::default();
    let index = Index(shard.applied().0 + 1);
    shard.apply(index, Term(1), &EntryContext { stamp: LogTime(stamp) }, data, &mut out);
    out
}
