//! Field tables, kept as the bytes that came: order, duplicates and exact types survive, and a table that nobody
//! asks about costs one scan. Reading is lazy and borrows.
//!
//! The danger is depth: a table in a table in a table costs a client two bytes a level. Nesting is therefore
//! limited to [`NESTING_MAX`] when a table is taken in; the reader itself never recurses.

use crate::CodecError;
use bytes::{BufMut, Bytes, BytesMut};

/// How deep tables and arrays may nest, the outermost table counted as 1.
pub const NESTING_MAX: usize = 64;
const WHAT: &str = "field table";

/// A field table: its encoded entries, without the length before them; checked for shape.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Table {
    bytes: Bytes,
}

impl Table {
    /// Takes the encoded entries (without their length). Checks shape and nesting; copies nothing.
    pub fn parse(bytes: Bytes) -> Result<Table, CodecError> {
        check_entries(&bytes, 1)?;
        Ok(Table { bytes })
    }

    /// The encoded entries.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// A borrowed look at it.
    pub fn view(&self) -> TableRef<'_> {
        TableRef { bytes: &self.bytes }
    }

    /// The entries in their order, duplicates included.
    pub fn iter(&self) -> Entries<'_> {
        self.view().iter()
    }

    /// The first entry with this name.
    pub fn get(&self, name: &str) -> Option<Value<'_>> {
        self.view().get(name)
    }

    /// A table whose bytes are its own: keeps no read buffer alive.
    pub fn detached(&self) -> Table {
        Table { bytes: Bytes::copy_from_slice(&self.bytes) }
    }
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.iter().map(|(k, v)| (String::from_utf8_lossy(k), v))).finish()
    }
}

/// A borrowed table. Entries that cannot be read end the iteration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableRef<'a> {
    bytes: &'a [u8],
}

impl<'a> TableRef<'a> {
    /// Looks at encoded entries that were checked before; no check here.
    pub fn new(bytes: &'a [u8]) -> TableRef<'a> {
        TableRef { bytes }
    }

    /// The entries in their order.
    pub fn iter(&self) -> Entries<'a> {
        Entries { rest: self.bytes }
    }

    /// The first entry with this name.
    pub fn get(&self, name: &str) -> Option<Value<'a>> {
        self.iter().find(|(key, _)| *key == name.as_bytes()).map(|(_, value)| value)
    }

    /// The encoded entries.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

/// A borrowed array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArrayRef<'a> {
    bytes: &'a [u8],
}

impl<'a> ArrayRef<'a> {
    /// The values in their order.
    pub fn iter(&self) -> Values<'a> {
        Values { rest: self.bytes }
    }
}

/// A field's value, by RabbitMQ's types; the letter is the tag on the wire.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// `t`
    Bool(bool),
    /// `b`
    I8(i8),
    /// `B`
    U8(u8),
    /// `s`
    I16(i16),
    /// `u`
    U16(u16),
    /// `I`
    I32(i32),
    /// `i`
    U32(u32),
    /// `l` (and `L`, which RabbitMQ reads alike)
    I64(i64),
    /// `f`
    F32(f32),
    /// `d`
    F64(f64),
    /// `D`: value divided by ten to the power of scale
    Decimal {
        /// Digits after the point.
        scale: u8,
        /// The digits.
        value: u32,
    },
    /// `S`: bytes, usually text
    Text(&'a [u8]),
    /// `x`: bytes
    Binary(&'a [u8]),
    /// `T`: seconds since the Unix epoch
    Timestamp(u64),
    /// `A`
    Array(ArrayRef<'a>),
    /// `F`
    Table(TableRef<'a>),
    /// `V`
    Void,
}

impl<'a> Value<'a> {
    /// The number, if it is one of the integer types.
    pub fn as_int(&self) -> Option<i64> {
        match *self {
            Value::I8(n) => Some(n.into()),
            Value::U8(n) => Some(n.into()),
            Value::I16(n) => Some(n.into()),
            Value::U16(n) => Some(n.into()),
            Value::I32(n) => Some(n.into()),
            Value::U32(n) => Some(n.into()),
            Value::I64(n) => Some(n),
            _ => None,
        }
    }

    /// The text, if it is a long string of UTF-8.
    pub fn as_str(&self) -> Option<&'a str> {
        match *self {
            Value::Text(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// Appends the encoded form: type tag, then the value.
    pub fn encode(&self, out: &mut BytesMut) {
        put_value(out, *self);
    }

    /// The name that RabbitMQ gives the type in its reply texts.
    pub fn type_name(&self) -> &'static str {
        match self {
            Value::Bool(_) => "bool",
            Value::I8(_) => "byte",
            Value::U8(_) => "unsignedbyte",
            Value::I16(_) => "short",
            Value::U16(_) => "unsignedshort",
            Value::I32(_) => "signedint",
            Value::U32(_) => "unsignedint",
            Value::I64(_) => "long",
            Value::F32(_) => "float",
            Value::F64(_) => "double",
            Value::Decimal { .. } => "decimal",
            Value::Text(_) => "longstr",
            Value::Binary(_) => "binary",
            Value::Timestamp(_) => "timestamp",
            Value::Array(_) => "array",
            Value::Table(_) => "table",
            Value::Void => "void",
        }
    }
}

/// Iterator over a table's entries.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Entries<'a> {
    type Item = (&'a [u8], Value<'a>);
    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        match read_entry(&mut self.rest) {
            Ok(entry) => Some(entry),
            Err(_) => {
                self.rest = &[];
                None
            }
        }
    }
}

/// Iterator over an array's values.
#[derive(Clone, Debug)]
pub struct Values<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Values<'a> {
    type Item = Value<'a>;
    fn next(&mut self) -> Option<Value<'a>> {
        if self.rest.is_empty() {
            return None;
        }
        match read_value(&mut self.rest) {
            Ok(value) => Some(value),
            Err(_) => {
                self.rest = &[];
                None
            }
        }
    }
}

fn take<'a>(rest: &mut &'a [u8], n: usize) -> Result<&'a [u8], CodecError> {
    let (head, tail) = rest.split_at_checked(n).ok_or(CodecError::Length(WHAT))?;
    *rest = tail;
    Ok(head)
}

fn fixed<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], CodecError> {
    let (head, tail) = rest.split_first_chunk::<N>().ok_or(CodecError::Length(WHAT))?;
    *rest = tail;
    Ok(*head)
}

fn long<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], CodecError> {
    let len = u32::from_be_bytes(fixed(rest)?);
    take(rest, len as usize)
}

fn read_entry<'a>(rest: &mut &'a [u8]) -> Result<(&'a [u8], Value<'a>), CodecError> {
    let [len] = fixed(rest)?;
    let name = take(rest, usize::from(len))?;
    Ok((name, read_value(rest)?))
}

/// Reads one value; what it nests is sliced, not entered.
fn read_value<'a>(rest: &mut &'a [u8]) -> Result<Value<'a>, CodecError> {
    let [tag] = fixed(rest)?;
    Ok(match tag {
        b't' => Value::Bool(fixed::<1>(rest)? != [0]),
        b'b' => Value::I8(i8::from_be_bytes(fixed(rest)?)),
        b'B' => Value::U8(u8::from_be_bytes(fixed(rest)?)),
        b's' => Value::I16(i16::from_be_bytes(fixed(rest)?)),
        b'u' => Value::U16(u16::from_be_bytes(fixed(rest)?)),
        b'I' => Value::I32(i32::from_be_bytes(fixed(rest)?)),
        b'i' => Value::U32(u32::from_be_bytes(fixed(rest)?)),
        b'l' | b'L' => Value::I64(i64::from_be_bytes(fixed(rest)?)),
        b'f' => Value::F32(f32::from_be_bytes(fixed(rest)?)),
        b'd' => Value::F64(f64::from_be_bytes(fixed(rest)?)),
        b'D' => {
            let [scale] = fixed(rest)?;
            Value::Decimal { scale, value: u32::from_be_bytes(fixed(rest)?) }
        }
        b'S' => Value::Text(long(rest)?),
        b'x' => Value::Binary(long(rest)?),
        b'T' => Value::Timestamp(u64::from_be_bytes(fixed(rest)?)),
        b'A' => Value::Array(ArrayRef { bytes: long(rest)? }),
        b'F' => Value::Table(TableRef { bytes: long(rest)? }),
        b'V' => Value::Void,
        _ => return Err(CodecError::Value("unknown type of a field")),
    })
}

/// Checks entries at `depth`; recursion is bounded by [`NESTING_MAX`] before it goes a level down.
pub(crate) fn check_entries(mut rest: &[u8], depth: usize) -> Result<(), CodecError> {
    while !rest.is_empty() {
        let (_, value) = read_entry(&mut rest)?;
        check_nested(value, depth)?;
    }
    Ok(())
}

fn check_nested(value: Value<'_>, depth: usize) -> Result<(), CodecError> {
    match value {
        Value::Table(_) | Value::Array(_) if depth >= NESTING_MAX => Err(CodecError::Nesting),
        Value::Table(table) => check_entries(table.bytes, depth + 1),
        Value::Array(array) => {
            let mut rest = array.bytes;
            while !rest.is_empty() {
                check_nested(read_value(&mut rest)?, depth + 1)?;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Makes a table entry by entry. Names over 255 bytes are cut; nesting is the caller's to bound.
#[derive(Clone, Debug, Default)]
pub struct TableBuilder {
    out: BytesMut,
}

impl TableBuilder {
    /// An empty one.
    pub fn new() -> TableBuilder {
        TableBuilder::default()
    }

    /// Starts from a table's entries.
    pub fn from_table(table: TableRef<'_>) -> TableBuilder {
        TableBuilder { out: BytesMut::from(table.bytes) }
    }

    /// Adds an entry at the end.
    #[must_use]
    pub fn put(mut self, name: &str, value: Value<'_>) -> TableBuilder {
        self.push(name.as_bytes(), value);
        self
    }

    /// Adds an entry at the end, in place.
    pub fn push(&mut self, name: &[u8], value: Value<'_>) {
        let name = &name[..name.len().min(255)];
        self.out.put_u8(name.len() as u8);
        self.out.put_slice(name);
        put_value(&mut self.out, value);
    }

    /// Adds a table as an entry.
    #[must_use]
    pub fn put_table(self, name: &str, table: &Table) -> TableBuilder {
        self.put(name, Value::Table(table.view()))
    }

    /// Adds an array of texts as an entry.
    #[must_use]
    pub fn put_texts(self, name: &str, texts: &[&str]) -> TableBuilder {
        let mut items = BytesMut::new();
        for text in texts {
            put_value(&mut items, Value::Text(text.as_bytes()));
        }
        self.put(name, Value::Array(ArrayRef { bytes: &items }))
    }

    /// The table.
    pub fn build(self) -> Table {
        Table { bytes: self.out.freeze() }
    }
}

fn put_long(out: &mut BytesMut, tag: u8, bytes: &[u8]) {
    out.put_u8(tag);
    out.put_u32(bytes.len() as u32);
    out.put_slice(bytes);
}

fn put_value(out: &mut BytesMut, value: Value<'_>) {
    match value {
        Value::Bool(b) => out.put_slice(&[b't', u8::from(b)]),
        Value::I8(n) => out.put_slice(&[b'b', n as u8]),
        Value::U8(n) => out.put_slice(&[b'B', n]),
        Value::I16(n) => tagged(out, b's', &n.to_be_bytes()),
        Value::U16(n) => tagged(out, b'u', &n.to_be_bytes()),
        Value::I32(n) => tagged(out, b'I', &n.to_be_bytes()),
        Value::U32(n) => tagged(out, b'i', &n.to_be_bytes()),
        Value::I64(n) => tagged(out, b'l', &n.to_be_bytes()),
        Value::F32(n) => tagged(out, b'f', &n.to_be_bytes()),
        Value::F64(n) => tagged(out, b'd', &n.to_be_bytes()),
        Value::Decimal { scale, value } => {
            out.put_slice(&[b'D', scale]);
            out.put_u32(value);
        }
        Value::Text(bytes) => put_long(out, b'S', bytes),
        Value::Binary(bytes) => put_long(out, b'x', bytes),
        Value::Timestamp(n) => tagged(out, b'T', &n.to_be_bytes()),
        Value::Array(array) => put_long(out, b'A', array.bytes),
        Value::Table(table) => put_long(out, b'F', table.bytes),
        Value::Void => out.put_u8(b'V'),
    }
}

fn tagged(out: &mut BytesMut, tag: u8, bytes: &[u8]) {
    out.put_u8(tag);
    out.put_slice(bytes);
}
