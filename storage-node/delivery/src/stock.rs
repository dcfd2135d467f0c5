//! A durable cursor's window as the desk's stock: which of its rows may go, and how they are marked.

use crate::core::{OFFSETS_PER_ITEM_MAX, Turn};
use crate::desk::{Stock, Taken};
use crate::view::CursorView;
use crate::window::Window;
use longshore_wire::{Index, Offset};

/// The window as the desk's stock, for one turn.
pub(crate) struct WindowStock<'a, C> {
    pub window: &'a mut Window,
    pub cursor: &'a C,
    pub unread: bool,
    /// Rows of entries up to here wait for the gateways' reports.
    pub gate: Index,
    pub inherited: Index,
    pub expired: Vec<Offset>,
    pub pending_takes: u64,
}

impl<C: CursorView> Stock for WindowStock<'_, C> {
    fn prepare(&mut self, turn: &mut Turn<'_>) -> bool {
        while let Some(front) = self.window.ready.front() {
            if front.row.record.index <= self.gate {
                return false;
            }
            if self.window.back.first().is_some_and(|back| *back < front.offset()) {
                return false;
            }
            if !front.expired(turn.log_time, turn.core.turn) {
                return true;
            }
            if self.expired.len() >= OFFSETS_PER_ITEM_MAX {
                return false;
            }
            let at = front.offset();
            self.window.ready.pop_front();
            self.window.expiring.insert(at, turn.again());
            self.expired.push(at);
        }
        false
    }

    fn take(&mut self) -> Option<Taken> {
        let entry = self.window.ready.pop_front()?;
        let at = entry.offset();
        let returns = self.cursor.returns(at);
        let redelivered =
            entry.row.record.index <= self.inherited || returns > 0 || self.cursor.redelivered(at);
        Some(Taken { entry, returns, redelivered })
    }

    fn more_coming(&self) -> bool {
        !self.window.ready.is_empty()
            || !self.window.back.is_empty()
            || self.window.load.is_some_and(|load| load.back.is_some())
            || self.unread
    }

    fn ready(&self, leased: u64) -> u64 {
        self.window.ready_count(self.cursor.unsettled_count(), leased + self.pending_takes)
    }
}

impl Window {
    /// How many messages are ready, given how many are unsettled and out.
    pub fn ready_count(&self, unsettled: u64, out: u64) -> u64 {
        let ending = self.expiring.len() + self.lapsing.len();
        let held = out + (self.delayed.len() + self.taken.len() + ending) as u64;
        unsettled.saturating_sub(held)
    }
}
