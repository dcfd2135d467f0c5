//! State pages on their way: packed for snapshots, and the head of a snapshot.

use bytes::{BufMut, Bytes, BytesMut};
use longshore_consensus::{Membership, SnapshotMeta};
use longshore_proto::v1::SnapshotHead;
use longshore_wire::{DecodeError, Index, Reader, ReplicaId, ShardId, Term};

const VERSION: u8 = 1;
/// Pages are packed into pieces of about this many bytes.
const PIECE_BYTES: usize = 512 << 10;

/// Packs pages: each key and value with its length.
pub(crate) fn pack(pages: Vec<(Bytes, Bytes)>) -> Vec<Bytes> {
    let mut pieces = Vec::new();
    let mut piece = BytesMut::new();
    for (key, value) in pages {
        piece.put_u16_le(key.len() as u16);
        piece.put_u32_le(value.len() as u32);
        piece.put_slice(&key);
        piece.put_slice(&value);
        if piece.len() >= PIECE_BYTES {
            pieces.push(piece.split().freeze());
        }
    }
    if !piece.is_empty() {
        pieces.push(piece.freeze());
    }
    pieces
}

/// Reads what [`pack`] wrote.
pub(crate) fn unpack(pieces: &[Bytes]) -> Result<Vec<(Bytes, Bytes)>, DecodeError> {
    let mut pages = Vec::new();
    for piece in pieces {
        let mut r = Reader::new(piece.clone(), "state pages");
        while r.remaining() > 0 {
            let (key, value) = (usize::from(r.u16()?), r.u32()? as usize);
            pages.push((r.slice(key)?, r.slice(value)?));
        }
    }
    Ok(pages)
}

/// The head of a snapshot.
pub(crate) fn snapshot_head(
    cluster: &str,
    group: ShardId,
    from: ReplicaId,
    meta: &SnapshotMeta,
) -> SnapshotHead {
    let mut membership = BytesMut::new();
    membership.put_u8(VERSION);
    let m = &meta.membership;
    for list in [&m.voters, &m.outgoing, &m.learners, &m.learners_next] {
        membership.put_u32_le(list.len() as u32);
        list.iter().for_each(|id| membership.put_u64_le(id.0));
    }
    SnapshotHead {
        cluster: cluster.to_owned(),
        group: group.0,
        from: from.0,
        index: meta.index.0,
        term: meta.term.0,
        membership: membership.freeze(),
    }
}

/// Where the snapshot with this head stands.
pub fn snapshot_meta(head: &SnapshotHead) -> Result<SnapshotMeta, DecodeError> {
    let mut r = Reader::new(head.membership.clone(), "snapshot membership");
    let version = r.u8()?;
    if version != VERSION {
        return Err(DecodeError::Version { what: "snapshot membership", found: version, known: VERSION });
    }
    let mut list = || {
        let n = r.count(8)?;
        (0..n).map(|_| r.u64().map(ReplicaId)).collect::<Result<Vec<_>, DecodeError>>()
    };
    let membership =
        Membership { voters: list()?, outgoing: list()?, learners: list()?, learners_next: list()? };
    r.finish()?;
    Ok(SnapshotMeta { index: Index(head.index), term: Term(head.term), membership })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_and_heads_are_read_back() {
        let pages: Vec<_> = (0..1_000_u32)
            .map(|n| (Bytes::from(n.to_le_bytes().to_vec()), Bytes::from(vec![n as u8; 1_000])))
            .collect();
        let pieces = pack(pages.clone());
        assert!(pieces.len() > 1);
        assert_eq!(unpack(&pieces), Ok(pages));
        let membership =
            Membership { learners: vec![ReplicaId(9)], ..Membership::of_voters(vec![ReplicaId(7)]) };
        let meta = SnapshotMeta { index: Index(5), term: Term(2), membership };
        assert_eq!(snapshot_meta(&snapshot_head("c", ShardId(1), ReplicaId(7), &meta)), Ok(meta));
    }
}
