//! Large bodies on their way to transient queues: pieces in the memory of the shard's leader until their record comes.
//!
//! Danger: a body with a hole would be delivered as if it were whole. Each piece says where it belongs, the record says
//! how long the body is, and what does not fit is refused. Called by the items of gateways.

use bytes::Bytes;
use longshore_wire::SessionId;
use std::collections::BTreeMap;

/// Bytes of all pieces that wait in a shard; a little over the largest message.
const BYTES_MAX: u64 = 160 << 20;
/// Bodies that are under way in a shard.
const UPLOADS_MAX: usize = 1_024;

#[derive(Debug, Default)]
struct Upload {
    parts: Vec<Bytes>,
    bytes: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct TransientUploads {
    uploads: BTreeMap<(SessionId, u64), Upload>,
    bytes: u64,
}

impl TransientUploads {
    /// A piece came. One that does not fit ends its upload, whose record is then refused.
    pub fn part(&mut self, session: SessionId, upload: u64, at: u64, bytes: Bytes) {
        let key = (session, upload);
        let len = bytes.len() as u64;
        let known = self.uploads.get(&key).map_or(0, |open| open.bytes);
        let room = self.bytes.saturating_add(len) <= BYTES_MAX
            && (self.uploads.contains_key(&key) || self.uploads.len() < UPLOADS_MAX);
        if at != known || !room {
            self.take(session, upload, 0);
            return;
        }
        let open = self.uploads.entry(key).or_default();
        open.parts.push(bytes);
        open.bytes += len;
        self.bytes += len;
    }

    /// The record came: the pieces, if they are a whole body of that length.
    pub fn take(&mut self, session: SessionId, upload: u64, body_bytes: u64) -> Option<Vec<Bytes>> {
        let ended = self.uploads.remove(&(session, upload))?;
        self.bytes = self.bytes.saturating_sub(ended.bytes);
        (ended.bytes == body_bytes).then_some(ended.parts)
    }

    /// The session's stream ended, and with it what was under way.
    pub fn forget(&mut self, session: SessionId) {
        let gone = self.uploads.extract_if((session, 0)..=(session, u64::MAX), |_, _| true);
        let bytes: u64 = gone.map(|(_, upload)| upload.bytes).sum();
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// Another node leads from now on.
    pub fn clear(&mut self) {
        *self = TransientUploads::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: SessionId = SessionId(1);

    fn piece(len: usize) -> Bytes {
        vec![1; len].into()
    }

    #[test]
    fn pieces_make_a_body_once() {
        let mut uploads = TransientUploads::default();
        uploads.part(S, 5, 0, piece(10));
        uploads.part(S, 6, 0, piece(3));
        uploads.part(S, 5, 10, piece(7));
        assert_eq!(uploads.take(S, 5, 17), Some(vec![piece(10), piece(7)]));
        assert_eq!(uploads.take(S, 5, 17), None);
        uploads.forget(S);
        assert_eq!((uploads.take(S, 6, 3), uploads.bytes), (None, 0));
    }

    #[test]
    fn a_body_with_a_hole_or_an_end_missing_is_none() {
        let mut uploads = TransientUploads::default();
        uploads.part(S, 5, 0, piece(10));
        uploads.part(S, 5, 11, piece(7));
        uploads.part(S, 5, 18, piece(2));
        assert_eq!(uploads.take(S, 5, 20), None);
        uploads.part(S, 6, 0, piece(10));
        assert_eq!(uploads.take(S, 6, 11), None);
        assert_eq!(uploads.bytes, 0);
    }

    #[test]
    fn beyond_the_bound_an_upload_ends() {
        let mut uploads = TransientUploads::default();
        let mib = piece(1 << 20);
        for n in 0..160 {
            uploads.part(S, 1, n << 20, mib.clone());
        }
        uploads.part(S, 2, 0, mib.clone());
        assert_eq!(uploads.take(S, 2, 1 << 20), None);
        assert_eq!(uploads.take(S, 1, 160 << 20).map(|parts| parts.len()), Some(160));
    }
}
