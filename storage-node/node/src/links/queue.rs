//! One queue of deliveries: those of one log over one link, in order, some of them without their bodies yet.
//!
//! Danger: with a large credit it is long, and a record comes for each of its slots. Nothing here may walk the whole
//! queue per record: bodies find their slots by offset, and asking goes on where it stopped.

use bytes::Bytes;
use longshore_proto::v1;
use longshore_records::StoredRecord;
use longshore_wire::row::Row;
use longshore_wire::{LogId, Offset, ShardId, Term};
use std::collections::{BTreeSet, VecDeque};

/// Most slots from the first on whose bodies are asked for or here.
const READS_AHEAD_MAX: u64 = 512;

/// A delivery whose body may still be missing.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) shard: ShardId,
    pub(super) term: Term,
    pub(super) kind: SlotKind,
    pub(super) delivery: v1::Delivery,
    row: Option<Row>,
    state: SlotState,
}

#[derive(Debug)]
pub(super) enum SlotKind {
    Consumer,
    /// The answer to a get.
    Get {
        request: u64,
        ready: u64,
    },
}

#[derive(Debug, PartialEq, Eq)]
enum SlotState {
    Wanted,
    Asked,
    Here(Vec<Bytes>),
}

impl Slot {
    /// A delivery of a record that must be read.
    pub(super) fn stored(
        shard: ShardId,
        term: Term,
        kind: SlotKind,
        delivery: v1::Delivery,
        row: Row,
    ) -> Slot {
        Slot { shard, term, kind, delivery, row: Some(row), state: SlotState::Wanted }
    }

    /// A delivery that carries its record already.
    pub(super) fn in_memory(
        shard: ShardId,
        term: Term,
        kind: SlotKind,
        delivery: v1::Delivery,
        parts: Vec<Bytes>,
    ) -> Slot {
        Slot { shard, term, kind, delivery, row: None, state: SlotState::Here(parts) }
    }

    pub(super) fn shard(&self) -> ShardId {
        self.shard
    }

    /// Whether its body, the record at this offset, is not here yet.
    pub(super) fn waits_for(&self, offset: Offset) -> bool {
        !matches!(self.state, SlotState::Here(_)) && self.row.as_ref().is_some_and(|row| row.offset == offset)
    }

    /// The offset that it hands over.
    pub(super) fn offset(&self) -> Offset {
        Offset(self.delivery.offset)
    }

    pub(super) fn consumer(&self) -> u64 {
        self.delivery.consumer
    }
}

/// Slots are numbered from the first one ever pushed; the numbers start anew when slots are taken from the middle.
#[derive(Debug, Default)]
pub(super) struct Queue {
    slots: VecDeque<Slot>,
    /// The number of the first slot.
    first: u64,
    /// No slot below this number is `Wanted`.
    asked_until: u64,
    /// Slots that are `Asked`, by the offset of their row.
    asked: BTreeSet<(Offset, u64)>,
}

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Whether a slot waits for the record at this offset.
    pub(super) fn waits_for(&self, record: Offset) -> bool {
        self.slots.iter().any(|slot| slot.waits_for(record))
    }

    pub(super) fn push(&mut self, slot: Slot) {
        self.slots.push_back(slot);
    }

    /// Where asking ends for now.
    fn ahead(&self) -> u64 {
        self.first + READS_AHEAD_MAX.min(self.slots.len() as u64)
    }

    fn slot(&mut self, number: u64) -> Option<&mut Slot> {
        self.slots.get_mut(number.checked_sub(self.first)? as usize)
    }

    /// The rows whose bodies must be asked for now; they count as asked.
    pub(super) fn ask(&mut self) -> Vec<(LogId, Offset)> {
        let mut rows = Vec::new();
        for number in self.asked_until.max(self.first)..self.ahead() {
            let Some(slot) = self.slot(number) else { break };
            if let (SlotState::Wanted, Some(row)) = (&slot.state, &slot.row) {
                let (log, offset) = (row.log, row.offset);
                slot.state = SlotState::Asked;
                self.asked.insert((offset, number));
                rows.push((log, offset));
            }
        }
        self.asked_until = self.asked_until.max(self.ahead());
        rows
    }

    /// A body that was asked for is here: every slot that waits for its row has it now.
    pub(super) fn body(&mut self, stored: &StoredRecord) {
        let offset = stored.row.offset;
        let numbers: Vec<u64> = self.asked.range((offset, 0)..=(offset, u64::MAX)).map(|(_, n)| *n).collect();
        for number in numbers {
            self.asked.remove(&(offset, number));
            let Some(slot) = self.slot(number) else { continue };
            slot.delivery.record = stored.record.clone();
            slot.delivery.body_bytes = stored.parts.iter().map(|part| part.len() as u64).sum();
            slot.state = SlotState::Here(stored.parts.clone());
        }
    }

    /// What was asked for and did not come is wanted again.
    pub(super) fn ask_again(&mut self) {
        for (_, number) in std::mem::take(&mut self.asked) {
            self.asked_until = self.asked_until.min(number);
            if let Some(slot) = self.slot(number) {
                slot.state = SlotState::Wanted;
            }
        }
    }

    /// Takes away what must not leave any more.
    pub(super) fn retain(&mut self, keep: impl FnMut(&Slot) -> bool) {
        let before = self.slots.len();
        self.slots.retain(keep);
        if self.slots.len() == before {
            return;
        }
        self.first = 0;
        self.asked_until = 0;
        let asked = (0..).zip(&self.slots).filter(|(_, slot)| slot.state == SlotState::Asked);
        self.asked = asked.filter_map(|(number, slot)| Some((slot.row.as_ref()?.offset, number))).collect();
    }

    /// The shard of the first slot, if it is ready to leave.
    pub(super) fn first_ready(&self) -> Option<ShardId> {
        let slot = self.slots.front()?;
        matches!(slot.state, SlotState::Here(_)).then_some(slot.shard)
    }

    /// Takes the first slot, with the parts of its body, if it is ready to leave.
    pub(super) fn pop_ready(&mut self) -> Option<(Slot, Vec<Bytes>)> {
        self.first_ready()?;
        let mut slot = self.slots.pop_front()?;
        self.first += 1;
        match std::mem::replace(&mut slot.state, SlotState::Wanted) {
            SlotState::Here(parts) => Some((slot, parts)),
            SlotState::Wanted | SlotState::Asked => None,
        }
    }

    /// Whether something could be asked for now.
    pub(super) fn wants_more(&self) -> bool {
        self.asked_until.max(self.first) < self.ahead()
    }
}

#[cfg(test)]
mod tests;
