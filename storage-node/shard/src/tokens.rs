//! Tokens: appends that count once although they may come again under another session (a dead letter, an MQTT
//! QoS 2 publish). The oldest are forgotten, by number and by log time (see [`crate::bounds`]).

use crate::bounds::{TOKEN_AGE_MS_MAX, TOKEN_TARGETS_MAX, TOKENS_MAX};
use crate::page::{Key, Pages, read_version, versioned};
use bytes::{BufMut, Bytes};
use longshore_wire::outcome::{self, Outcome, Refusal};
use longshore_wire::{DecodeError, LogId, LogTime, Offset, Reader};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

const VERSION: u8 = 1;
/// Tokens per page.
const BLOCK: u64 = 256;

/// Scope, id, attempt.
pub(crate) type Token = (u64, u64, u32);
/// What an append came to, target by target.
pub(crate) type Targets = Vec<(LogId, Result<Offset, Refusal>)>;

#[derive(Clone, Debug)]
struct Remembered {
    token: Token,
    time: LogTime,
    targets: Targets,
}

/// The remembered tokens, oldest first, each with a serial number that places it on a page.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tokens {
    queue: VecDeque<Remembered>,
    /// Serial number of the first one in `queue`.
    first: u64,
    serials: BTreeMap<Token, u64>,
    targets: usize,
    dirty: BTreeSet<u64>,
}

impl Tokens {
    /// The outcome of the append that came first under this token.
    pub(crate) fn get(&self, token: Token) -> Option<&Targets> {
        let serial = self.serials.get(&token)?;
        self.queue.get((serial - self.first) as usize).map(|remembered| &remembered.targets)
    }

    pub(crate) fn remember(&mut self, token: Token, targets: Targets, now: LogTime) {
        let serial = self.first + self.queue.len() as u64;
        self.targets += targets.len();
        self.serials.insert(token, serial);
        self.queue.push_back(Remembered { token, time: now, targets });
        self.dirty.insert(serial / BLOCK);
        while self.queue.len() > TOKENS_MAX || self.targets > TOKEN_TARGETS_MAX || self.oldest_is_over(now) {
            self.forget_oldest();
        }
    }

    fn oldest_is_over(&self, now: LogTime) -> bool {
        self.queue.front().is_some_and(|oldest| now.0.saturating_sub(oldest.time.0) > TOKEN_AGE_MS_MAX)
    }

    fn forget_oldest(&mut self) {
        if let Some(oldest) = self.queue.pop_front() {
            self.serials.remove(&oldest.token);
            self.targets -= oldest.targets.len();
            self.dirty.insert(self.first / BLOCK);
            self.first += 1;
        }
    }

    fn page(&self, block: u64) -> Option<Bytes> {
        let end = self.first + self.queue.len() as u64;
        let (from, to) = ((block * BLOCK).max(self.first), ((block + 1) * BLOCK).min(end));
        if from >= to {
            return None;
        }
        Some(versioned(VERSION, |out| {
            out.put_u64_le(from);
            out.put_u32_le((to - from) as u32);
            let skipped = (from - self.first) as usize;
            for remembered in self.queue.iter().skip(skipped).take((to - from) as usize) {
                let (scope, id, attempt) = remembered.token;
                out.put_u64_le(scope);
                out.put_u64_le(id);
                out.put_u32_le(attempt);
                out.put_u64_le(remembered.time.0);
                let encoded = outcome::encode(&[Outcome::Appended(remembered.targets.clone())]);
                out.put_u32_le(encoded.len() as u32);
                out.put_slice(&encoded);
            }
        }))
    }

    pub(crate) fn take_dirty(&mut self, pages: &mut Pages) {
        for block in std::mem::take(&mut self.dirty) {
            pages.push(Key::Tokens(block), self.page(block));
        }
    }

    pub(crate) fn all(&self, pages: &mut Pages) {
        let end = self.first + self.queue.len() as u64;
        for block in self.first / BLOCK..end.div_ceil(BLOCK) {
            if let Some(page) = self.page(block) {
                pages.push(Key::Tokens(block), Some(page));
            }
        }
    }

    /// Takes up a page; pages come in ascending order.
    pub(crate) fn restore(&mut self, page: Bytes) -> Result<(), DecodeError> {
        let mut r = Reader::new(page, "tokens page");
        read_version(&mut r, "tokens page", VERSION)?;
        let serial = r.u64()?;
        if self.queue.is_empty() {
            self.first = serial;
        }
        if serial != self.first + self.queue.len() as u64 || serial > u64::MAX / 2 {
            return Err(DecodeError::Invalid("serial number of a token"));
        }
        for n in 0..r.count(32)? as u64 {
            let token = (r.u64()?, r.u64()?, r.u32()?);
            let time = LogTime(r.u64()?);
            let targets = match outcome::decode(r.long()?)?.pop() {
                Some(Outcome::Appended(targets)) => targets,
                _ => return Err(DecodeError::Invalid("outcome of a token")),
            };
            self.targets += targets.len();
            self.serials.insert(token, serial + n);
            self.queue.push_back(Remembered { token, time, targets });
        }
        r.finish()
    }
}
