//! One Raft message between replicas, and one entry.
//!
//! A message is `type u8, flags u8, to, from, term, log term, index, commit, commit term, reject hint: u64 each, context
//! (u16 length), count u32, entries`; an entry is `type u8, term u64, index u64, context (u16 length), data (u32 length)`.
//! Snapshots never travel here: the node crate moves them over a connection of their own.

use bytes::{BufMut, BytesMut};
use longshore_wire::{BATCH_BYTES_MAX, DecodeError, Reader};
use raft::eraftpb::{Entry, EntryType, Message, MessageType};

const REJECT: u8 = 1;
const FIXED_BYTES: usize = 2 + 8 * 8 + 2 + 4;
const ENTRY_FIXED_BYTES: usize = 1 + 8 + 8 + 2 + 4;

/// The byte of a message type that may travel; `None` for what a replica says only to itself, for forwarded
/// proposals and reads (clients ask the leader), and for snapshots.
fn type_byte(t: MessageType) -> Option<u8> {
    Some(match t {
        MessageType::MsgAppend => 1,
        MessageType::MsgAppendResponse => 2,
        MessageType::MsgRequestVote => 3,
        MessageType::MsgRequestVoteResponse => 4,
        MessageType::MsgRequestPreVote => 5,
        MessageType::MsgRequestPreVoteResponse => 6,
        MessageType::MsgHeartbeatResponse => 7,
        MessageType::MsgTimeoutNow => 8,
        _ => return None,
    })
}

fn byte_type(b: u8) -> Result<MessageType, DecodeError> {
    Ok(match b {
        1 => MessageType::MsgAppend,
        2 => MessageType::MsgAppendResponse,
        3 => MessageType::MsgRequestVote,
        4 => MessageType::MsgRequestVoteResponse,
        5 => MessageType::MsgRequestPreVote,
        6 => MessageType::MsgRequestPreVoteResponse,
        7 => MessageType::MsgHeartbeatResponse,
        8 => MessageType::MsgTimeoutNow,
        _ => return Err(DecodeError::Invalid("type of a Raft message")),
    })
}

/// Whether a message of this type may travel in a frame.
pub(crate) fn travels(t: MessageType) -> bool {
    type_byte(t).is_some()
}

fn entry_len(e: &Entry) -> usize {
    ENTRY_FIXED_BYTES + e.context.len() + e.data.len()
}

/// Bytes that [`encode`] will write.
pub(crate) fn encoded_len(m: &Message) -> usize {
    FIXED_BYTES + m.context.len() + m.entries.iter().map(entry_len).sum::<usize>()
}

/// Writes a message for which [`travels`] holds.
pub(crate) fn encode(m: &Message, out: &mut BytesMut) {
    out.put_u8(type_byte(m.get_msg_type()).unwrap_or(0));
    out.put_u8(if m.reject { REJECT } else { 0 });
    for n in [m.to, m.from, m.term, m.log_term, m.index, m.commit, m.commit_term, m.reject_hint] {
        out.put_u64_le(n);
    }
    out.put_u16_le(m.context.len() as u16);
    out.put_slice(&m.context);
    out.put_u32_le(m.entries.len() as u32);
    for e in m.entries.iter() {
        out.put_u8(entry_type_byte(e.get_entry_type()));
        out.put_u64_le(e.term);
        out.put_u64_le(e.index);
        out.put_u16_le(e.context.len() as u16);
        out.put_slice(&e.context);
        out.put_u32_le(e.data.len() as u32);
        out.put_slice(&e.data);
    }
}

/// Reads a message and checks what Raft takes for granted: entries follow each other and the term holds.
pub(crate) fn decode(r: &mut Reader) -> Result<Message, DecodeError> {
    let kind = byte_type(r.u8()?)?;
    let flags = r.u8()?;
    if flags & !REJECT != 0 {
        return Err(DecodeError::Invalid("flags of a Raft message"));
    }
    let mut m = Message::default();
    m.set_msg_type(kind);
    m.reject = flags & REJECT != 0;
    m.to = r.u64()?;
    m.from = r.u64()?;
    m.term = r.u64()?;
    m.log_term = r.u64()?;
    m.index = r.u64()?;
    m.commit = r.u64()?;
    m.commit_term = r.u64()?;
    m.reject_hint = r.u64()?;
    if m.to == 0 || m.from == 0 || m.term == 0 {
        return Err(DecodeError::Invalid("address or term of a Raft message"));
    }
    m.context = r.short()?;
    let n = r.count(ENTRY_FIXED_BYTES)?;
    if n > 0 && kind != MessageType::MsgAppend {
        return Err(DecodeError::Invalid("entries of a Raft message"));
    }
    let mut entries = Vec::with_capacity(n);
    let (mut index, mut term) = (m.index, m.log_term);
    for _ in 0..n {
        let e = decode_entry(r)?;
        let follows = index.checked_add(1) == Some(e.index) && term <= e.term && e.term <= m.term;
        if !follows {
            return Err(DecodeError::Invalid("order of a Raft message's entries"));
        }
        (index, term) = (e.index, e.term);
        entries.push(e);
    }
    m.entries = entries.into();
    Ok(m)
}

fn decode_entry(r: &mut Reader) -> Result<Entry, DecodeError> {
    let mut e = Entry::default();
    e.set_entry_type(byte_entry_type(r.u8()?).ok_or(DecodeError::Invalid("type of an entry"))?);
    e.term = r.u64()?;
    e.index = r.u64()?;
    e.context = r.short()?;
    e.data = r.long()?;
    if e.data.len() > BATCH_BYTES_MAX {
        return Err(DecodeError::Invalid("length of an entry"));
    }
    Ok(e)
}

/// The byte of an entry's type, here and in the node log.
pub(crate) fn entry_type_byte(t: EntryType) -> u8 {
    match t {
        EntryType::EntryNormal => 0,
        EntryType::EntryConfChange => 1,
        EntryType::EntryConfChangeV2 => 2,
    }
}

/// The type of an entry; the old kind of conf change is never written and never read.
pub(crate) fn byte_entry_type(b: u8) -> Option<EntryType> {
    match b {
        0 => Some(EntryType::EntryNormal),
        2 => Some(EntryType::EntryConfChangeV2),
        _ => None,
    }
}

/// Cuts an append into messages of at most `bytes_max` of entries each (one larger entry travels alone). The library
/// merges what one turn appends, and one step of it may be larger than a frame.
pub(crate) fn split_append(mut m: Message, bytes_max: usize) -> Vec<Message> {
    let total: usize = m.entries.iter().map(entry_len).sum();
    if total <= bytes_max || m.entries.len() < 2 {
        return vec![m];
    }
    let entries: Vec<Entry> = std::mem::take(&mut m.entries).into();
    let mut parts = Vec::new();
    let mut part = m.clone();
    let mut part_entries: Vec<Entry> = Vec::new();
    let mut bytes = 0;
    for e in entries {
        let len = entry_len(&e);
        if !part_entries.is_empty() && bytes + len > bytes_max {
            let last = part_entries.last().map_or((0, 0), |l| (l.index, l.term));
            part.entries = std::mem::take(&mut part_entries).into();
            parts.push(std::mem::replace(&mut part, m.clone()));
            (part.index, part.log_term) = last;
            bytes = 0;
        }
        bytes += len;
        part_entries.push(e);
    }
    part.entries = part_entries.into();
    parts.push(part);
    parts
}
