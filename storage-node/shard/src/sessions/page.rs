//! Sessions as pages: one per session with its numbers and outcomes, one per open upload, one for what is closed.

use super::{Session, Sessions, Upload};
use crate::id_ranges::IdRanges;
use crate::page::{Key, Pages, read_version, versioned};
use bytes::{BufMut, Bytes};
use longshore_mutations::{self as mutations, Mutation};
use longshore_wire::row::Source;
use longshore_wire::{BATCHES_IN_FLIGHT_MAX, DecodeError, Index, Reader, SessionId};

const VERSION: u8 = 1;
const UPLOAD_VERSION: u8 = 1;
const CLOSED_VERSION: u8 = 1;

impl Session {
    fn page(&self) -> Bytes {
        versioned(VERSION, |out| {
            out.put_u64_le(self.last);
            out.put_u8(u8::from(self.uploads_refused));
            out.put_u8(self.outcomes.len() as u8);
            for outcomes in &self.outcomes {
                out.put_u32_le(outcomes.len() as u32);
                out.put_slice(outcomes);
            }
        })
    }

    fn restored(page: Bytes) -> Result<Session, DecodeError> {
        let mut r = Reader::new(page, "session page");
        read_version(&mut r, "session page", VERSION)?;
        let mut session = Session { last: r.u64()?, uploads_refused: r.u8()? != 0, ..Session::default() };
        let n = usize::from(r.u8()?);
        if n > BATCHES_IN_FLIGHT_MAX || n as u64 > session.last {
            return Err(DecodeError::Invalid("number of outcomes"));
        }
        for _ in 0..n {
            session.outcomes.push_back(r.long()?);
        }
        r.finish()?;
        if mutations::on(Mutation::BatchNumberLost) {
            session = Session::default();
        }
        Ok(session)
    }

    fn upload_page(&self, upload: u64) -> Option<Bytes> {
        let upload = self.uploads.get(&upload)?;
        Some(versioned(UPLOAD_VERSION, |out| {
            out.put_u64_le(upload.bytes);
            out.put_u8(u8::from(upload.broken));
            out.put_u32_le(upload.parts.len() as u32);
            for part in &upload.parts {
                out.put_u64_le(part.index.0);
                out.put_u32_le(part.start);
                out.put_u32_le(part.len);
            }
        }))
    }
}

impl Sessions {
    fn closed_page(&self) -> Bytes {
        versioned(CLOSED_VERSION, |out| self.closed.encode(out))
    }

    fn upload_page(&self, id: SessionId, upload: u64) -> Option<Bytes> {
        self.open.get(&id)?.upload_page(upload)
    }

    pub(crate) fn take_dirty(&mut self, pages: &mut Pages) {
        if std::mem::take(&mut self.dirty_closed) {
            pages.push(Key::Closed, Some(self.closed_page()));
        }
        for id in std::mem::take(&mut self.dirty) {
            pages.push(Key::Session(id), self.open.get(&id).map(Session::page));
        }
        for (id, upload) in std::mem::take(&mut self.dirty_uploads) {
            pages.push(Key::Upload(id, upload), self.upload_page(id, upload));
        }
    }

    pub(crate) fn all(&self, pages: &mut Pages) {
        if !self.closed.is_empty() {
            pages.push(Key::Closed, Some(self.closed_page()));
        }
        for (id, session) in &self.open {
            pages.push(Key::Session(*id), Some(session.page()));
            for upload in session.uploads.keys() {
                pages.push(Key::Upload(*id, *upload), session.upload_page(*upload));
            }
        }
    }

    pub(crate) fn restore_closed(&mut self, page: Bytes) -> Result<(), DecodeError> {
        let mut r = Reader::new(page, "closed sessions page");
        read_version(&mut r, "closed sessions page", CLOSED_VERSION)?;
        self.closed = IdRanges::decode(&mut r)?;
        r.finish()
    }

    pub(crate) fn restore_session(&mut self, id: SessionId, page: Bytes) -> Result<(), DecodeError> {
        self.open.insert(id, Session::restored(page)?);
        Ok(())
    }

    pub(crate) fn restore_upload(
        &mut self,
        id: SessionId,
        upload: u64,
        page: Bytes,
    ) -> Result<(), DecodeError> {
        let session = self.open.get_mut(&id).ok_or(DecodeError::Invalid("session of an upload"))?;
        let mut r = Reader::new(page, "upload page");
        read_version(&mut r, "upload page", UPLOAD_VERSION)?;
        let (bytes, broken) = (r.u64()?, r.u8()? != 0);
        let n = r.count(16)?;
        let parts = (0..n)
            .map(|_| Ok(Source { index: Index(r.u64()?), start: r.u32()?, len: r.u32()? }))
            .collect::<Result<_, DecodeError>>()?;
        session.uploads.insert(upload, Upload { parts, bytes, broken });
        r.finish()
    }
}
