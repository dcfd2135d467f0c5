//! A block of the index: up to 256 rows of one log, column by column, with the place of each in its file.
//!
//! ```text
//! 0 u32 crc32c over the rest   4 u8 version = 1   5 varint rows   columns
//! ```
//! Columns are differences from what is expected, so that a queue of equal small messages costs 2 to 4 bytes a row.
//! Danger: a decoded block is believed only after its checksum; positions in it are checked again against what lies there.

use crate::column::{put_column, put_varint, take_column, take_varint, unzigzag, zigzag};
use longshore_wire::record::NO_CLIENT_TIME;
use longshore_wire::row::{NEVER, Row, Source};
use longshore_wire::{DecodeError, Index, LogId, LogTime, Offset, Term};

const VERSION: u8 = 1;
/// Most rows of a block.
pub(crate) const BLOCK_ROWS_MAX: usize = 256;
/// Most parts that the rows of one block may name together; a writer closes the block earlier.
pub(crate) const BLOCK_PARTS_MAX: usize = 1 << 18;

const CLIENT_TIME: u64 = 1;
const DUE: u64 = 2;
const EXPIRY: u64 = 4;
const KEY: u64 = 8;
const PARTS: u64 = 16;

/// A row and where its bytes lie in the file that the block belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Located {
    pub row: Row,
    /// The entry's term; 0 in a store file.
    pub term: Term,
    /// Position of the record's first byte in its file.
    pub position: u64,
    /// Bytes from the start of the local header (of the entry, or of the record in a store file) to `position`.
    pub head: u32,
}

/// Memory that a decoded row takes, in bytes, about.
pub(crate) const LOCATED_BYTES: usize = size_of::<Located>();

#[derive(Default)]
struct Columns {
    gap: Vec<u64>,
    count: Vec<u64>,
    flags: Vec<u64>,
    index: Vec<u64>,
    start: Vec<u64>,
    len: Vec<u64>,
    term: Vec<u64>,
    position: Vec<u64>,
    head: Vec<u64>,
    time: Vec<u64>,
    client: Vec<u64>,
    due: Vec<u64>,
    expiry: Vec<u64>,
    priority: Vec<u64>,
    key: Vec<u64>,
    parts: Vec<u64>,
    part_index: Vec<u64>,
    part_start: Vec<u64>,
    part_len: Vec<u64>,
}

/// What the next row's columns are differences from.
struct Expected {
    offset: u64,
    index: u64,
    source_end: u64,
    position: u64,
    time: u64,
}

impl Expected {
    fn first() -> Expected {
        Expected { offset: 0, index: 0, source_end: 0, position: 0, time: 0 }
    }

    fn after(located: &Located) -> Expected {
        let row = &located.row;
        Expected {
            offset: row.end().0,
            index: row.record.index.0,
            source_end: u64::from(row.record.start) + u64::from(row.record.len),
            position: located.position.wrapping_add(u64::from(row.record.len)),
            time: row.time.0,
        }
    }

    /// A record of the same entry comes right after its predecessor; the first one of another comes early in its batch.
    fn start(&self, index: u64) -> u64 {
        if index == self.index { self.source_end } else { 0 }
    }
}

fn flags_of(row: &Row) -> u64 {
    let flag = |set: bool, bit: u64| if set { bit } else { 0 };
    flag(row.client_time_ms != NO_CLIENT_TIME, CLIENT_TIME)
        | flag(row.due.0 != 0, DUE)
        | flag(row.expiry != NEVER, EXPIRY)
        | flag(row.key_hash != 0, KEY)
        | flag(!row.parts.is_empty(), PARTS)
}

/// Encodes rows of one log, ascending, at most [`BLOCK_ROWS_MAX`].
pub(crate) fn encode(rows: &[Located]) -> Vec<u8> {
    let mut columns = Columns::default();
    let mut expected = Expected::first();
    for located in rows {
        let row = &located.row;
        let (flags, time) = (flags_of(row), row.time.0);
        let since = |set: u64, value: u64| {
            if flags & set != 0 { Some(zigzag(value.wrapping_sub(time))) } else { None }
        };
        columns.gap.push(row.offset.0.wrapping_sub(expected.offset));
        columns.count.push(u64::from(row.count));
        columns.flags.push(flags);
        columns.index.push(zigzag(row.record.index.0.wrapping_sub(expected.index)));
        let start = u64::from(row.record.start).wrapping_sub(expected.start(row.record.index.0));
        columns.start.push(zigzag(start));
        columns.len.push(u64::from(row.record.len));
        columns.term.push(located.term.0);
        columns.position.push(zigzag(located.position.wrapping_sub(expected.position)));
        columns.head.push(zigzag(u64::from(located.head).wrapping_sub(u64::from(row.record.start))));
        columns.time.push(zigzag(time.wrapping_sub(expected.time)));
        columns.client.extend(since(CLIENT_TIME, row.client_time_ms as u64));
        columns.due.extend(since(DUE, row.due.0));
        columns.expiry.extend(since(EXPIRY, row.expiry.0));
        columns.priority.push(u64::from(row.priority));
        if flags & KEY != 0 {
            columns.key.push(row.key_hash);
        }
        if flags & PARTS != 0 {
            columns.parts.push(row.parts.len() as u64);
            for part in &row.parts {
                columns.part_index.push(zigzag(part.index.0.wrapping_sub(row.record.index.0)));
                columns.part_start.push(u64::from(part.start));
                columns.part_len.push(u64::from(part.len));
            }
        }
        expected = Expected::after(located);
    }
    let mut out = vec![0, 0, 0, 0, VERSION];
    put_varint(rows.len() as u64, &mut out);
    // The first row's differences are from nothing: they stand apart, so that they do not widen the column.
    for column in columns.differences() {
        put_column(&column[..column.len().min(1)], &mut out);
        put_column(&column[column.len().min(1)..], &mut out);
    }
    for column in columns.plain() {
        put_column(column, &mut out);
    }
    let crc = crc32c::crc32c(&out[4..]);
    out[..4].copy_from_slice(&crc.to_le_bytes());
    out
}

impl Columns {
    fn differences(&self) -> [&Vec<u64>; 5] {
        [&self.gap, &self.index, &self.start, &self.position, &self.time]
    }

    fn plain(&self) -> [&Vec<u64>; 14] {
        [
            &self.count,
            &self.flags,
            &self.len,
            &self.term,
            &self.head,
            &self.priority,
            &self.client,
            &self.due,
            &self.expiry,
            &self.key,
            &self.parts,
            &self.part_index,
            &self.part_start,
            &self.part_len,
        ]
    }

    fn take(bytes: &mut &[u8], n: usize) -> Result<Columns, DecodeError> {
        let apart = |bytes: &mut &[u8]| -> Result<Vec<u64>, DecodeError> {
            let mut column = take_column(bytes, n.min(1))?;
            column.extend(take_column(bytes, n.saturating_sub(1))?);
            Ok(column)
        };
        let mut c = Columns {
            gap: apart(bytes)?,
            index: apart(bytes)?,
            start: apart(bytes)?,
            position: apart(bytes)?,
            time: apart(bytes)?,
            count: take_column(bytes, n)?,
            flags: take_column(bytes, n)?,
            len: take_column(bytes, n)?,
            term: take_column(bytes, n)?,
            head: take_column(bytes, n)?,
            priority: take_column(bytes, n)?,
            ..Columns::default()
        };
        let having = |flag: u64| c.flags.iter().filter(|flags| **flags & flag != 0).count();
        let (client, due, expiry, key, parts) =
            (having(CLIENT_TIME), having(DUE), having(EXPIRY), having(KEY), having(PARTS));
        c.client = take_column(bytes, client)?;
        c.due = take_column(bytes, due)?;
        c.expiry = take_column(bytes, expiry)?;
        c.key = take_column(bytes, key)?;
        c.parts = take_column(bytes, parts)?;
        let pieces = c.parts.iter().fold(0_u64, |sum, parts| sum.saturating_add(*parts));
        if pieces > BLOCK_PARTS_MAX as u64 {
            return Err(DecodeError::Invalid("index block"));
        }
        let pieces = pieces as usize;
        c.part_index = take_column(bytes, pieces)?;
        c.part_start = take_column(bytes, pieces)?;
        c.part_len = take_column(bytes, pieces)?;
        if bytes.is_empty() { Ok(c) } else { Err(DecodeError::Invalid("index block")) }
    }
}

fn narrow(value: u64) -> Result<u32, DecodeError> {
    u32::try_from(value).map_err(|_| DecodeError::Invalid("index block"))
}

/// Decodes a block of `log`. Refuses a wrong checksum, an unknown version and rows that do not ascend.
pub(crate) fn decode(log: LogId, bytes: &[u8]) -> Result<Vec<Located>, DecodeError> {
    let (crc, checked) = bytes.split_first_chunk::<4>().ok_or(DecodeError::Truncated("index block"))?;
    if crc32c::crc32c(checked) != u32::from_le_bytes(*crc) {
        return Err(DecodeError::Checksum("index block"));
    }
    let (version, mut rest) = checked.split_first().ok_or(DecodeError::Truncated("index block"))?;
    if *version != VERSION {
        return Err(DecodeError::Version { what: "index block", found: *version, known: VERSION });
    }
    let n = take_varint(&mut rest)?;
    if n > BLOCK_ROWS_MAX as u64 {
        return Err(DecodeError::Invalid("index block"));
    }
    let n = n as usize;
    let columns = Columns::take(&mut rest, n)?;
    let mut sparse = Sparse::of(&columns);
    let mut rows: Vec<Located> = Vec::with_capacity(n);
    let mut expected = Expected::first();
    for i in 0..n {
        let located = columns.row(log, i, &expected, &mut sparse)?;
        if located.row.count == 0 || i > 0 && located.row.offset.0 < expected.offset {
            return Err(DecodeError::Invalid("index block"));
        }
        expected = Expected::after(&located);
        rows.push(located);
    }
    Ok(rows)
}

type Values<'a> = std::slice::Iter<'a, u64>;

/// The columns that only some rows have a value in.
struct Sparse<'a> {
    client: Values<'a>,
    due: Values<'a>,
    expiry: Values<'a>,
    key: Values<'a>,
    parts: Values<'a>,
    part_index: Values<'a>,
    part_start: Values<'a>,
    part_len: Values<'a>,
}

impl<'a> Sparse<'a> {
    fn of(columns: &'a Columns) -> Sparse<'a> {
        Sparse {
            client: columns.client.iter(),
            due: columns.due.iter(),
            expiry: columns.expiry.iter(),
            key: columns.key.iter(),
            parts: columns.parts.iter(),
            part_index: columns.part_index.iter(),
            part_start: columns.part_start.iter(),
            part_len: columns.part_len.iter(),
        }
    }

    fn part(&mut self, near: u64) -> Result<Source, DecodeError> {
        let mut value = |column: fn(&mut Self) -> &mut Values<'a>| column(self).next().copied().unwrap_or(0);
        let index = Index(near.wrapping_add(unzigzag(value(|s| &mut s.part_index))));
        let (start, len) = (value(|s| &mut s.part_start), value(|s| &mut s.part_len));
        Ok(Source { index, start: narrow(start)?, len: narrow(len)? })
    }
}

impl Columns {
    fn row(
        &self,
        log: LogId,
        i: usize,
        expected: &Expected,
        sparse: &mut Sparse<'_>,
    ) -> Result<Located, DecodeError> {
        let flags = self.flags[i];
        let time = expected.time.wrapping_add(unzigzag(self.time[i]));
        let since = |flag: u64, column: &mut Values<'_>, otherwise: u64| match flags & flag {
            0 => otherwise,
            _ => column.next().map_or(otherwise, |value| time.wrapping_add(unzigzag(*value))),
        };
        let index = expected.index.wrapping_add(unzigzag(self.index[i]));
        let start = narrow(expected.start(index).wrapping_add(unzigzag(self.start[i])))?;
        let parts = if flags & PARTS != 0 { sparse.parts.next().copied().unwrap_or(0) } else { 0 };
        let row = Row {
            log,
            offset: Offset(expected.offset.wrapping_add(self.gap[i])),
            count: narrow(self.count[i])?,
            time: LogTime(time),
            client_time_ms: since(CLIENT_TIME, &mut sparse.client, NO_CLIENT_TIME as u64) as i64,
            due: LogTime(since(DUE, &mut sparse.due, 0)),
            expiry: LogTime(since(EXPIRY, &mut sparse.expiry, NEVER.0)),
            priority: self.priority[i] as u8,
            key_hash: if flags & KEY != 0 { sparse.key.next().copied().unwrap_or(0) } else { 0 },
            record: Source { index: Index(index), start, len: narrow(self.len[i])? },
            parts: (0..parts).map(|_| sparse.part(index)).collect::<Result<_, _>>()?,
        };
        Ok(Located {
            term: Term(self.term[i]),
            position: expected.position.wrapping_add(unzigzag(self.position[i])),
            head: narrow(u64::from(start).wrapping_add(unzigzag(self.head[i])))?,
            row,
        })
    }
}

#[cfg(test)]
#[path = "block/tests.rs"]
mod tests;
