//! How outcomes read in a transcript.

use super::Story;
use longshore_delivery::{Action, ConsumerKey, Counts, Handed, Reason};
use longshore_wire::batch::Item;
use longshore_wire::{LogId, Offset, OffsetRange};

fn key(key: &ConsumerKey) -> String {
    match key.consumer {
        0 => format!("g{}/get", key.session.0),
        n => format!("g{}/c{n}", key.session.0),
    }
}

impl Story {
    pub(super) fn show_counts(counts: &Counts) -> String {
        let Counts { ready, unacked, delayed, consumers, .. } = counts;
        format!("ready={ready} unacked={unacked} delayed={delayed} consumers={consumers}")
    }

    fn show_handed(&self, handed: &Handed) -> String {
        let mut text = self.body_of(handed);
        if handed.count > 1 {
            text.push_str(&format!(" and {} more", handed.count - 1));
        }
        if handed.redelivered {
            text.push_str(" redelivered");
        }
        if handed.returns > 0 {
            text.push_str(&format!(" returns={}", handed.returns));
        }
        text
    }

    fn show_range(&self, log: LogId, range: OffsetRange) -> String {
        let name = |at: Offset| self.bodies.get(&(log, at)).cloned().unwrap_or(format!("@{}", at.0));
        if range.first == range.last {
            name(range.first)
        } else {
            format!("{}..{}", name(range.first), name(range.last))
        }
    }

    fn show_item(&self, item: &Item) -> String {
        match item {
            Item::Settle(settle) => {
                let returned = settle.returned.iter();
                let names: Vec<_> =
                    returned.map(|back| self.show_range(settle.log, OffsetRange::one(back.offset))).collect();
                format!("proposes: return {}", names.join(" "))
            }
            Item::Expire { log, ranges, .. } => {
                let names: Vec<_> = ranges.iter().map(|range| self.show_range(*log, *range)).collect();
                format!("proposes: expire {}", names.join(" "))
            }
            Item::Take { log, offset, .. } => {
                format!("proposes: take {}", self.show_range(*log, OffsetRange::one(*offset)))
            }
            other => format!("proposes: {other:?}"),
        }
    }

    pub(super) fn show(&self, action: &Action) -> Option<String> {
        Some(match action {
            Action::Deliver { to, handed } => format!("{} {}", key(to), self.show_handed(handed)),
            Action::Propose(item) => self.show_item(item),
            Action::Got { session, result, ready, .. } => match result {
                Ok(Some(handed)) => format!("g{} got {}, {ready} left", session.0, self.show_handed(handed)),
                Ok(None) => format!("g{} got nothing", session.0),
                Err(refused) => format!("g{} refused {refused:?}", session.0),
            },
            Action::Took { result, .. } => match result {
                Ok(handed) if handed.is_empty() => "took nothing".into(),
                Ok(handed) => {
                    let names: Vec<_> = handed.iter().map(|handed| self.show_handed(handed)).collect();
                    format!("took {}", names.join(", "))
                }
                Err(refused) => format!("take refused {refused:?}"),
            },
            Action::Attached { result: Ok(()), .. } => return None,
            Action::Attached { to, result: Err(refused), .. } => format!("{} refused {refused:?}", key(to)),
            Action::Cancelled { to, reason } => format!("{} cancelled {reason:?}", key(to)),
            Action::TransientGone { name, .. } => format!("{} is gone", String::from_utf8_lossy(name)),
            Action::LoadRows { .. } | Action::FindTime { .. } => return None,
        })
    }

    pub(super) fn show_reasons(&self, reasons: &[Reason]) -> Vec<String> {
        reasons.iter().map(|reason| self.show_reason(reason)).collect()
    }

    fn show_reason(&self, reason: &Reason) -> String {
        let now = self.world.now;
        let in_ms = |at: longshore_io::Mono| at.since(now) / 1_000;
        let log_ms = |at: longshore_wire::LogTime| at.0.saturating_sub(self.world.log_time().0);
        match reason {
            Reason::NoCredit { consumers } => {
                format!("no credit: {}", consumers.iter().map(key).collect::<Vec<_>>().join(" "))
            }
            Reason::SingleActiveStandby { active, standing_by } => {
                format!("single active consumer {}, {standing_by} standing by", key(active))
            }
            Reason::WaitingForGateways { sessions, until } => {
                format!("waiting for {sessions} gateways, {} ms more", in_ms(*until))
            }
            Reason::Delayed { until, count } => {
                format!("{count} delayed, the first for {} ms", log_ms(*until))
            }
            Reason::Leased { offset, by, until, ending } => {
                let until = until.map_or(String::new(), |at| format!(" for {} ms", in_ms(at)));
                let ending = if *ending { " (its return is under way)" } else { "" };
                format!("@{} leased by {}{until}{ending}", offset.0, key(by))
            }
            Reason::Taken { offset, until } => format!("@{} taken for {} ms", offset.0, log_ms(*until)),
            Reason::Expired { offset, count } => format!("{count} expired from @{}", offset.0),
            Reason::RowsLoading { from } => format!("rows loading from @{}", from.0),
            other => format!("{other:?}"),
        }
    }
}
