//! What apply answers to a batch, item by item. Kept in the shard's state for the last batches of a session.

use crate::{DecodeError, LogId, Offset, Reader};
use bytes::{BufMut, Bytes, BytesMut};

/// Why an item was not carried out. Stable numbers: they are replicated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Refusal {
    /// The log never existed in this shard.
    UnknownLog = 1,
    /// The log was dropped: counts as unroutable.
    DroppedLog = 2,
    /// The item's bytes make no sense.
    Malformed = 3,
    /// A part is missing, or the upload is unknown.
    UnknownUpload = 4,
    /// A producer's epoch is older than one seen.
    FencedProducer = 5,
    /// A producer's sequence leaves a gap.
    OutOfSequence = 6,
    /// The log has no such cursor.
    UnknownCursor = 7,
    /// A bound of the shard's state is reached.
    LimitReached = 8,
    /// The session was closed for ever and cannot be opened again.
    UnknownSession = 9,
}

impl Refusal {
    /// The refusal with this number.
    pub fn from_u8(n: u8) -> Option<Refusal> {
        Some(match n {
            1 => Refusal::UnknownLog,
            2 => Refusal::DroppedLog,
            3 => Refusal::Malformed,
            4 => Refusal::UnknownUpload,
            5 => Refusal::FencedProducer,
            6 => Refusal::OutOfSequence,
            7 => Refusal::UnknownCursor,
            8 => Refusal::LimitReached,
            9 => Refusal::UnknownSession,
            _ => return None,
        })
    }
}

/// What became of one item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An append: per target its first offset, or why that log did not take it.
    Appended(Vec<(LogId, Result<Offset, Refusal>)>),
    /// Anything else that was carried out, with a count where one makes sense (messages settled or purged).
    Done(u64),
    /// The item was refused.
    Refused(Refusal),
}

/// Encodes the outcomes of a batch.
pub fn encode(outcomes: &[Outcome]) -> Bytes {
    let mut out = BytesMut::with_capacity(8 + 16 * outcomes.len());
    out.put_u32_le(outcomes.len() as u32);
    for outcome in outcomes {
        match outcome {
            Outcome::Appended(targets) => {
                out.put_u8(1);
                out.put_u16_le(targets.len() as u16);
                for (log, result) in targets {
                    out.put_u64_le(log.0);
                    match result {
                        Ok(offset) => {
                            out.put_u8(0);
                            out.put_u64_le(offset.0);
                        }
                        Err(refusal) => out.put_u8(*refusal as u8),
                    }
                }
            }
            Outcome::Done(count) => {
                out.put_u8(2);
                out.put_u64_le(*count);
            }
            Outcome::Refused(refusal) => {
                out.put_u8(3);
                out.put_u8(*refusal as u8);
            }
        }
    }
    out.freeze()
}

/// Reads what [`encode`] wrote.
pub fn decode(bytes: Bytes) -> Result<Vec<Outcome>, DecodeError> {
    let mut r = Reader::new(bytes, "outcomes");
    let n = r.count(2)?;
    let outcomes = (0..n).map(|_| read_one(&mut r)).collect::<Result<Vec<_>, _>>()?;
    r.finish()?;
    Ok(outcomes)
}

fn read_one(r: &mut Reader) -> Result<Outcome, DecodeError> {
    let refusal = |n| Refusal::from_u8(n).ok_or(DecodeError::Invalid("refusal"));
    Ok(match r.u8()? {
        1 => {
            let n = r.u16()?;
            let targets = (0..n).map(|_| {
                let log = LogId(r.u64()?);
                let result = match r.u8()? {
                    0 => Ok(Offset(r.u64()?)),
                    n => Err(refusal(n)?),
                };
                Ok((log, result))
            });
            Outcome::Appended(targets.collect::<Result<_, DecodeError>>()?)
        }
        2 => Outcome::Done(r.u64()?),
        3 => Outcome::Refused(refusal(r.u8()?)?),
        _ => return Err(DecodeError::Invalid("outcome kind")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_read_back() {
        let all = vec![
            Outcome::Appended(vec![(LogId(1), Ok(Offset(9))), (LogId(2), Err(Refusal::DroppedLog))]),
            Outcome::Done(77),
            Outcome::Refused(Refusal::Malformed),
        ];
        assert_eq!(decode(encode(&all)).unwrap(), all);
    }
}
