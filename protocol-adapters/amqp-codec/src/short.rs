//! Short strings: at most 255 bytes, which clients do not always choose to be UTF-8; so they stay bytes.

use bytes::Bytes;
use std::borrow::Cow;
use std::fmt;

/// A string of 0 to 255 bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct ShortStr(Bytes);

/// Longest short string, in bytes.
pub const SHORT_BYTES_MAX: usize = 255;

impl ShortStr {
    /// Takes `bytes` if they are few enough.
    pub fn new(bytes: Bytes) -> Option<ShortStr> {
        (bytes.len() <= SHORT_BYTES_MAX).then_some(ShortStr(bytes))
    }

    /// A fixed text; cut to 255 bytes.
    pub fn from_static(text: &'static str) -> ShortStr {
        ShortStr(Bytes::from_static(&text.as_bytes()[..cut_at(text)]))
    }

    /// Copies `text`, cut at a character boundary to at most 255 bytes: for reply texts that quote names.
    pub fn cut(text: &str) -> ShortStr {
        ShortStr(Bytes::copy_from_slice(&text.as_bytes()[..cut_at(text)]))
    }

    /// The bytes, shared.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// The text, where it is one.
    pub fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }

    /// The text for people: what is not UTF-8 is replaced.
    pub fn lossy(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.0)
    }
}

fn cut_at(text: &str) -> usize {
    let mut end = text.len().min(SHORT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    end
}

impl std::ops::Deref for ShortStr {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for ShortStr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.lossy())
    }
}
