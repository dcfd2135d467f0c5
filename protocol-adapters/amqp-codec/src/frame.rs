//! Frames: split out of the read buffer as shared slices, the length checked before anything else.
//!
//! ```text
//! u8 type   u16 channel   u32 payload length   payload   u8 0xCE
//! ```

use crate::{CodecError, FRAME_OVERHEAD_BYTES, PROTOCOL_HEADER};
use bytes::{Buf, Bytes, BytesMut};

/// The byte after every payload.
pub const FRAME_END: u8 = 0xCE;
const HEADER_BYTES: usize = 7;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// A method.
    Method = 1,
    /// A content header.
    Header = 2,
    /// A piece of a body.
    Body = 3,
    /// A sign of life, on channel 0.
    Heartbeat = 8,
}

impl FrameKind {
    /// The kind with this number.
    pub fn from_u8(n: u8) -> Option<FrameKind> {
        match n {
            1 => Some(FrameKind::Method),
            2 => Some(FrameKind::Header),
            3 => Some(FrameKind::Body),
            8 => Some(FrameKind::Heartbeat),
            _ => None,
        }
    }
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it carries.
    pub kind: FrameKind,
    /// The channel, 0 for the connection itself.
    pub channel: u16,
    /// What is between length and end byte; shares the read buffer.
    pub payload: Bytes,
}

/// What the first 8 bytes of a client are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Greeting {
    /// Not all there yet.
    Incomplete,
    /// AMQP 0-9-1: go on.
    Amqp091,
    /// Something else: answer [`PROTOCOL_HEADER`] and close.
    Other,
}

/// Takes the protocol header from the front of `input`. Anything that already differs is `Other`, so that a
/// client of another protocol that sends fewer than 8 bytes is answered too.
pub fn take_greeting(input: &mut BytesMut) -> Greeting {
    let seen = input.len().min(PROTOCOL_HEADER.len());
    if input[..seen] != PROTOCOL_HEADER[..seen] {
        return Greeting::Other;
    }
    if seen < PROTOCOL_HEADER.len() {
        return Greeting::Incomplete;
    }
    input.advance(PROTOCOL_HEADER.len());
    Greeting::Amqp091
}

/// Takes one whole frame from the front of `input`, or answers `None` if it is not all there.
///
/// `frame_bytes_max` is the limit agreed for a whole frame, overhead included; 0 means none was agreed and 4 GiB
/// hold. A frame beyond it is refused as soon as its length is known. After an error the stream cannot be read on.
pub fn split(input: &mut BytesMut, frame_bytes_max: usize) -> Result<Option<Frame>, CodecError> {
    let Some(head) = input.first_chunk::<HEADER_BYTES>() else {
        return match input.first() {
            Some(&n) if FrameKind::from_u8(n).is_none() => Err(CodecError::FrameType(n)),
            _ => Ok(None),
        };
    };
    let kind = FrameKind::from_u8(head[0]).ok_or(CodecError::FrameType(head[0]))?;
    let channel = u16::from_be_bytes([head[1], head[2]]);
    let len = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
    let whole = u64::from(len) + FRAME_OVERHEAD_BYTES as u64;
    if frame_bytes_max != 0 && whole > frame_bytes_max as u64 {
        return Err(CodecError::FrameTooLarge { found: whole, max: frame_bytes_max as u64 });
    }
    let Some(&end) = input.get(HEADER_BYTES + len as usize) else {
        return Ok(None);
    };
    if end != FRAME_END {
        return Err(CodecError::FrameEnd(end));
    }
    let mut frame = input.split_to(len as usize + FRAME_OVERHEAD_BYTES);
    frame.advance(HEADER_BYTES);
    frame.truncate(len as usize);
    Ok(Some(Frame { kind, channel, payload: frame.freeze() }))
}

/// How many bytes the frame at the front of `input` needs in all, once its header is there: what to reserve for.
/// Never more than `frame_bytes_max`.
pub fn wanted(input: &[u8], frame_bytes_max: usize) -> Option<usize> {
    let head = input.first_chunk::<HEADER_BYTES>()?;
    let len = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
    Some(len.saturating_add(FRAME_OVERHEAD_BYTES).min(frame_bytes_max))
}
