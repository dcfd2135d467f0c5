//! Items of a batch as stories write them.
//!
//! ```text
//! queue L [ttl=MS] [rewind=MS]    stream L    drop L    open S    close S
//! append L,L [count=N] [ttl=MS] [delay=MS] [priority=N] [upload=U] [token=SCOPE/ID/ATTEMPT] [producer=ID/EPOCH/SEQ]
//! part U TEXT     ack L RANGES     reject L OFFSET     expire L RANGES
//! return L OFFSETS (a `~` after an offset: not counted)
//! purge L END [keep=RANGES]     take L OFFSET lease=N until=MS     rewind L OFFSET
//! position L NAME OFFSET     trim L OFFSET
//! ```

use crate::common::{Append, Put};
use bytes::Bytes;
use longshore_shard::OWN_CURSOR;
use longshore_wire::batch::{DeadReason, Item, Origin, Returned, Settle};
use longshore_wire::record::flags;
use longshore_wire::spec::{LogKind, LogSpec};
use longshore_wire::{LeaseId, LogId, LogTime, Offset, OffsetRange, Revision, SessionId, Term};

pub fn number(text: &str) -> Result<u64, String> {
    text.trim().parse().map_err(|_| format!("not a number: {text:?}"))
}

fn ranges(text: &str) -> Result<Vec<OffsetRange>, String> {
    let one = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        Ok(OffsetRange { first: Offset(number(first)?), last: Offset(number(last)?) })
    };
    text.split(',').map(one).collect()
}

/// The words of an item: those by place, and those by name.
struct Words<'a> {
    plain: Vec<&'a str>,
    named: Vec<(&'a str, &'a str)>,
}

impl<'a> Words<'a> {
    fn plain(&self, i: usize) -> Result<&'a str, String> {
        self.plain.get(i).copied().ok_or(format!("a word is missing after {:?}", self.plain))
    }

    fn log(&self) -> Result<LogId, String> {
        Ok(LogId(number(self.plain(0)?)?))
    }

    fn offset(&self, i: usize) -> Result<Offset, String> {
        Ok(Offset(number(self.plain(i)?)?))
    }

    fn named(&self, name: &str) -> Option<&'a str> {
        self.named.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }

    fn named_number(&self, name: &str) -> Result<Option<u64>, String> {
        self.named(name).map(number).transpose()
    }
}

pub fn parse(text: &str) -> Result<Put, String> {
    let (kind, rest) = text.split_once(' ').unwrap_or((text, ""));
    let mut words = Words { plain: Vec::new(), named: Vec::new() };
    for word in rest.split_whitespace() {
        match word.split_once('=') {
            Some(pair) => words.named.push(pair),
            None => words.plain.push(word),
        }
    }
    if kind == "append" {
        return append(&words).map(Put::Append);
    }
    item(kind, &words).map(Put::Item)
}

fn item(kind: &str, words: &Words<'_>) -> Result<Item, String> {
    let cursor = OWN_CURSOR;
    Ok(match kind {
        "queue" => {
            let ttl_ms = words.named_number("ttl")?;
            let rewind_ms = words.named_number("rewind")?.unwrap_or(0);
            Item::CreateLog { log: words.log()?, spec: LogSpec { ttl_ms, rewind_ms, ..LogSpec::QUEUE } }
        }
        "stream" => {
            Item::CreateLog { log: words.log()?, spec: LogSpec { kind: LogKind::Stream, ..LogSpec::QUEUE } }
        }
        "drop" => Item::DropLog { log: words.log()?, revision: Revision(1) },
        "open" => Item::OpenSession(SessionId(number(words.plain(0)?)?)),
        "close" => Item::CloseSession(SessionId(number(words.plain(0)?)?)),
        "part" => {
            let bytes = Bytes::copy_from_slice(words.plain(1)?.as_bytes());
            Item::Part { upload: number(words.plain(0)?)?, crc: 0, bytes }
        }
        "ack" | "return" | "reject" => settle(kind, words)?,
        "expire" => Item::Expire { log: words.log()?, cursor, ranges: ranges(words.plain(1)?)? },
        "purge" => {
            let leased = words.named("keep").map_or(Ok(Vec::new()), ranges)?;
            Item::Purge { log: words.log()?, cursor, end: words.offset(1)?, leased }
        }
        "take" => Item::Take {
            log: words.log()?,
            cursor,
            offset: words.offset(1)?,
            lease: LeaseId(words.named_number("lease")?.unwrap_or(0)),
            until: LogTime(words.named_number("until")?.unwrap_or(0)),
        },
        "rewind" => Item::Rewind { log: words.log()?, cursor, to: words.offset(1)? },
        "position" => {
            let name = Bytes::copy_from_slice(words.plain(1)?.as_bytes());
            Item::CommitPosition { log: words.log()?, name, offset: words.offset(2)? }
        }
        "trim" => Item::Trim { log: words.log()?, start: words.offset(1)? },
        _ => return Err(format!("unknown item {kind}")),
    })
}

fn settle(kind: &str, words: &Words<'_>) -> Result<Item, String> {
    let (log, cursor, term) = (words.log()?, OWN_CURSOR, Term(1));
    let mut settle = Settle { log, cursor, term, acked: Vec::new(), returned: Vec::new(), dead: Vec::new() };
    let list = words.plain(1)?;
    match kind {
        "ack" => settle.acked = ranges(list)?,
        "reject" => settle.dead = vec![(words.offset(1)?, DeadReason::Rejected)],
        _ => {
            for text in list.split(',') {
                let offset = Offset(number(text.trim_end_matches('~'))?);
                settle.returned.push(Returned { offset, lease: LeaseId(0), counted: !text.ends_with('~') });
            }
        }
    }
    Ok(Item::Settle(settle))
}

fn append(words: &Words<'_>) -> Result<Append, String> {
    let mut append = Append::to(0);
    append.targets =
        words.plain(0)?.split(',').map(|log| number(log).map(LogId)).collect::<Result<_, _>>()?;
    append.count = words.named_number("count")?.unwrap_or(1) as u32;
    append.delay_ms = words.named_number("delay")?.unwrap_or(0);
    append.priority = words.named_number("priority")?.unwrap_or(0) as u8;
    if let Some(ttl_ms) = words.named_number("ttl")? {
        append.ttl_ms = ttl_ms;
    }
    if let Some(upload) = words.named_number("upload")? {
        (append.flags, append.upload) = (flags::PARTS, upload);
    }
    let three = |text: &str| -> Result<[u64; 3], String> {
        let numbers: Vec<u64> = text.split('/').map(number).collect::<Result<_, _>>()?;
        numbers.try_into().map_err(|_| format!("three numbers are needed: {text}"))
    };
    if let Some(token) = words.named("token") {
        let [scope, id, attempt] = three(token)?;
        append.origin = Some(Origin::Token { scope, id, attempt: attempt as u32 });
    }
    if let Some(producer) = words.named("producer") {
        let [id, epoch, sequence] = three(producer)?;
        append.origin = Some(Origin::Producer { id, epoch: epoch as u16, sequence: sequence as u32 });
    }
    Ok(append)
}
