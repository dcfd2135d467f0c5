//! The primitive fields of methods: a bounded reader over a frame's payload and the writer beside it.
//! Consecutive bits share octets, lowest bit first.

use crate::{CodecError, ShortStr, Table};
use bytes::{Buf, BufMut, Bytes, BytesMut};

const WHAT: &str = "method arguments";

/// Reads fields out of a payload; slices share its buffer.
pub(crate) struct Reader {
    bytes: Bytes,
    bits: u8,
    bits_left: u8,
}

impl Reader {
    pub(crate) fn new(bytes: Bytes) -> Reader {
        Reader { bytes, bits: 0, bits_left: 0 }
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        self.bits_left = 0;
        let head = *self.bytes.first_chunk::<N>().ok_or(CodecError::Length(WHAT))?;
        self.bytes.advance(N);
        Ok(head)
    }

    fn slice(&mut self, n: usize) -> Result<Bytes, CodecError> {
        if n > self.bytes.len() {
            return Err(CodecError::Length(WHAT));
        }
        Ok(self.bytes.split_to(n))
    }

    pub(crate) fn finish(self) -> Result<(), CodecError> {
        if self.bytes.is_empty() { Ok(()) } else { Err(CodecError::Length(WHAT)) }
    }
}

/// Writes fields; remembers the octet that the next bit goes into.
pub(crate) struct Writer<'a> {
    out: &'a mut BytesMut,
    bit_octet: Option<(usize, u8)>,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(out: &'a mut BytesMut) -> Writer<'a> {
        Writer { out, bit_octet: None }
    }

    fn plain(&mut self) -> &mut BytesMut {
        self.bit_octet = None;
        self.out
    }
}

/// A field's kind on the wire.
pub(crate) trait Field: Sized {
    fn read(r: &mut Reader) -> Result<Self, CodecError>;
    fn write(&self, w: &mut Writer<'_>);
}

macro_rules! integer {
    ($ty:ty, $put:ident) => {
        impl Field for $ty {
            fn read(r: &mut Reader) -> Result<$ty, CodecError> {
                Ok(<$ty>::from_be_bytes(r.fixed()?))
            }
            fn write(&self, w: &mut Writer<'_>) {
                w.plain().$put(*self);
            }
        }
    };
}
integer!(u8, put_u8);
integer!(u16, put_u16);
integer!(u32, put_u32);
integer!(u64, put_u64);

impl Field for bool {
    fn read(r: &mut Reader) -> Result<bool, CodecError> {
        if r.bits_left == 0 {
            let [octet] = r.fixed()?;
            r.bits = octet;
            r.bits_left = 8;
        }
        let bit = r.bits & 1 == 1;
        r.bits >>= 1;
        r.bits_left -= 1;
        Ok(bit)
    }

    fn write(&self, w: &mut Writer<'_>) {
        let (at, bit) = match w.bit_octet {
            Some((at, bit)) if bit < 8 => (at, bit),
            _ => {
                w.out.put_u8(0);
                (w.out.len() - 1, 0)
            }
        };
        if let Some(octet) = w.out.get_mut(at) {
            *octet |= u8::from(*self) << bit;
        }
        w.bit_octet = Some((at, bit + 1));
    }
}

impl Field for ShortStr {
    fn read(r: &mut Reader) -> Result<ShortStr, CodecError> {
        let [len] = r.fixed()?;
        let bytes = r.slice(usize::from(len))?;
        ShortStr::new(bytes).ok_or(CodecError::Length(WHAT))
    }

    fn write(&self, w: &mut Writer<'_>) {
        let out = w.plain();
        out.put_u8(self.len() as u8);
        out.put_slice(self);
    }
}

/// A long string.
impl Field for Bytes {
    fn read(r: &mut Reader) -> Result<Bytes, CodecError> {
        let len = u32::from_be_bytes(r.fixed()?);
        r.slice(len as usize)
    }

    fn write(&self, w: &mut Writer<'_>) {
        let out = w.plain();
        out.put_u32(self.len() as u32);
        out.put_slice(self);
    }
}

impl Field for Table {
    fn read(r: &mut Reader) -> Result<Table, CodecError> {
        Table::parse(Bytes::read(r)?)
    }

    fn write(&self, w: &mut Writer<'_>) {
        self.bytes().write(w);
    }
}
