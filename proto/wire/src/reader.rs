//! Bounded decoding of little-endian bytes that may be hostile.

use bytes::Bytes;

/// Why bytes could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes ended inside a value.
    #[error("the bytes end inside {0}")]
    Truncated(&'static str),
    /// A value outside its range.
    #[error("{0} is out of its range")]
    Invalid(&'static str),
    /// A format version that this build does not know.
    #[error("{what} has version {found}, this build knows up to {known}")]
    Version {
        /// What was read.
        what: &'static str,
        /// The version found.
        found: u8,
        /// The newest version that this build reads.
        known: u8,
    },
    /// A checksum that does not match.
    #[error("{0} fails its checksum")]
    Checksum(&'static str),
}

/// A cursor over [`Bytes`] whose slices share the buffer.
#[derive(Clone, Debug)]
pub struct Reader {
    bytes: Bytes,
    what: &'static str,
}

macro_rules! fixed {
    ($(#[$doc:meta])* $name:ident -> $ty:ty) => {
        $(#[$doc])*
        pub fn $name(&mut self) -> Result<$ty, DecodeError> {
            const N: usize = size_of::<$ty>();
            let head = self.bytes.first_chunk::<N>().ok_or(DecodeError::Truncated(self.what))?;
            let value = <$ty>::from_le_bytes(*head);
            bytes::Buf::advance(&mut self.bytes, N);
            Ok(value)
        }
    };
}

impl Reader {
    /// Reads `bytes`; `what` names them in errors.
    pub fn new(bytes: Bytes, what: &'static str) -> Reader {
        Reader { bytes, what }
    }

    fixed! {
        /// One byte.
        u8 -> u8
    }
    fixed! {
        /// Two bytes.
        u16 -> u16
    }
    fixed! {
        /// Four bytes.
        u32 -> u32
    }
    fixed! {
        /// Eight bytes.
        u64 -> u64
    }
    fixed! {
        /// Eight bytes, signed.
        i64 -> i64
    }

    /// The next `n` bytes, shared with the input.
    pub fn slice(&mut self, n: usize) -> Result<Bytes, DecodeError> {
        if n > self.bytes.len() {
            return Err(DecodeError::Truncated(self.what));
        }
        Ok(self.bytes.split_to(n))
    }

    /// A `u16` length and that many bytes.
    pub fn short(&mut self) -> Result<Bytes, DecodeError> {
        let n = self.u16()?;
        self.slice(usize::from(n))
    }

    /// A `u32` length and that many bytes.
    pub fn long(&mut self) -> Result<Bytes, DecodeError> {
        let n = self.u32()?;
        self.slice(n as usize)
    }

    /// A `u32` count of elements of at least `element_bytes_min` bytes each; refused if the rest cannot hold them.
    pub fn count(&mut self, element_bytes_min: usize) -> Result<usize, DecodeError> {
        let n = self.u32()? as usize;
        if n.saturating_mul(element_bytes_min.max(1)) > self.bytes.len() {
            return Err(DecodeError::Invalid(self.what));
        }
        Ok(n)
    }

    /// How many bytes are left.
    pub fn remaining(&self) -> usize {
        self.bytes.len()
    }

    /// The bytes that are left.
    pub fn rest(self) -> Bytes {
        self.bytes
    }

    /// Refuses bytes after the end.
    pub fn finish(self) -> Result<(), DecodeError> {
        if self.bytes.is_empty() { Ok(()) } else { Err(DecodeError::Invalid(self.what)) }
    }
}
