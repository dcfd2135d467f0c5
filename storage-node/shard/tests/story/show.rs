//! What a command caused and what the state says, as lines.

use super::items::number;
use longshore_shard::{BatchResult, Cursor, Effects, Event, Log, Shard};
use longshore_wire::outcome::{self, Outcome};
use longshore_wire::row::{NEVER, Row};
use longshore_wire::{INTERNAL_SESSION, LogId, Offset, OffsetRange};

pub fn effects(effects: &Effects) -> Vec<String> {
    let mut lines: Vec<String> = effects.rows.iter().map(row).collect();
    lines.extend(effects.events.iter().map(event));
    lines.extend(effects.released.iter().map(|(log, freed)| format!("freed {log}: {}", list(freed))));
    for (session, number, result) in &effects.outcomes {
        let from = if *session == INTERNAL_SESSION { "leader".into() } else { format!("{session}#{number}") };
        lines.push(format!("{from} -> {}", answer(result)));
    }
    lines
}

fn range(range: &OffsetRange) -> String {
    if range.first == range.last {
        range.first.to_string()
    } else {
        format!("{}-{}", range.first, range.last)
    }
}

fn list(ranges: &[OffsetRange]) -> String {
    if ranges.is_empty() { "none".into() } else { ranges.iter().map(range).collect::<Vec<_>>().join(",") }
}

fn row(row: &Row) -> String {
    let offsets = OffsetRange { first: row.offset, last: Offset(row.end().0 - 1) };
    let mut line = format!("stored {}: {} at {}", row.log, range(&offsets), row.time);
    if row.due.0 > 0 {
        line += &format!(" due {}", row.due);
    }
    if row.expiry != NEVER {
        line += &format!(" expires {}", row.expiry);
    }
    if row.priority > 0 {
        line += &format!(" priority {}", row.priority);
    }
    if !row.parts.is_empty() {
        let parts: Vec<_> = row.parts.iter().map(|part| format!("{}+{}", part.index, part.len)).collect();
        line += &format!(" parts (entry+bytes) {}", parts.join(","));
    }
    line
}

fn event(event: &Event) -> String {
    match event {
        Event::Created { log } => format!("created {log}"),
        Event::NotCreated { log, why } => format!("not created {log}: {why:?}"),
        Event::Dropped { log } => format!("dropped {log}"),
        Event::Appended { log, first, next } => format!("appended {log}: next {first} -> {next}"),
        Event::Settled { log, ranges, .. } => format!("settled {log}: {}", list(ranges)),
        Event::Returned { log, returned, .. } => {
            let back =
                returned.iter().map(|back| format!("{}{}", back.offset, if back.counted { "" } else { "~" }));
            format!("returned {log}: {}", back.collect::<Vec<_>>().join(","))
        }
        Event::Purged { log, end, count, .. } => format!("purged {log} below {end}: {count}"),
        Event::Rewound { log, to, count, .. } => format!("rewound {log} to {to}: {count} came back"),
        Event::Taken { log, offset, lease, until, .. } => {
            format!("taken {log}: {offset} lease {lease} until {until}")
        }
        Event::Expired { log, ranges, .. } => format!("expired {log}: {}", list(ranges)),
        Event::SessionOpened(session) => format!("session {session} opened"),
        Event::SessionClosed(session) => format!("session {session} closed"),
        Event::PositionCommitted { log, name, offset } => {
            format!("position {log} {}: {offset}", String::from_utf8_lossy(name))
        }
        Event::Trimmed { log, first } => format!("trimmed {log}: first {first}"),
    }
}

fn answer(result: &BatchResult) -> String {
    match result {
        BatchResult::Gap { expected } => format!("gap, expected {expected}"),
        BatchResult::UnknownSession => "unknown session".into(),
        BatchResult::Malformed => "malformed".into(),
        BatchResult::Outcomes(bytes) => {
            let outcomes = outcome::decode(bytes.clone()).unwrap();
            outcomes.iter().map(one_outcome).collect::<Vec<_>>().join("; ")
        }
    }
}

fn one_outcome(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Done(count) => format!("done {count}"),
        Outcome::Refused(refusal) => format!("refused {refusal:?}"),
        Outcome::Appended(targets) => {
            let one = |(log, result): &(LogId, Result<Offset, _>)| match result {
                Ok(offset) => format!("{log}@{offset}"),
                Err(refusal) => format!("{log} {refusal:?}"),
            };
            targets.iter().map(one).collect::<Vec<_>>().join(" ")
        }
    }
}

pub fn state(shard: &Shard, what: &str) -> Result<Vec<String>, String> {
    match what {
        "sessions" => {
            let line = |(id, session): (_, &longshore_shard::Session)| {
                format!("session {id}: last {}, uploads {}", session.last(), session.uploads_open())
            };
            Ok(shard.sessions().map(line).collect())
        }
        "pinned" => Ok(vec![match shard.oldest_pinned_index() {
            Some(index) => format!("entries from {index} on"),
            None => "nothing".into(),
        }]),
        _ => {
            let id = LogId(number(what)?);
            match shard.log(id) {
                Some(log) => Ok(log_lines(log)),
                None if shard.is_dropped(id) => Ok(vec!["dropped".into()]),
                None => Ok(vec!["unknown".into()]),
            }
        }
    }
}

fn log_lines(log: &Log) -> Vec<String> {
    let live: Vec<_> = log.live_ranges().collect();
    let mut lines = vec![format!("first {} next {} live {}", log.first(), log.next(), list(&live))];
    lines.extend(log.cursors().map(|(_, cursor)| cursor_line(cursor)));
    for (name, position) in log.positions() {
        let name = String::from_utf8_lossy(name);
        lines.push(format!("position {name}: {} since {}", position.offset, position.time));
    }
    lines
}

fn cursor_line(cursor: &Cursor) -> String {
    let unsettled: Vec<_> = cursor.unsettled_ranges(Offset(0)).collect();
    let mut line = format!("unsettled {} = {}", cursor.unsettled_count(), list(&unsettled));
    let returned: Vec<_> = cursor.returned().map(|(offset, count)| format!("{offset} x{count}")).collect();
    let taken =
        cursor.takes().map(|(offset, taken)| format!("{offset} lease {} until {}", taken.lease, taken.until));
    let delayed = cursor.delayed().map(|(due, offset)| format!("{offset} until {due}"));
    let lists = [("returned", returned), ("taken", taken.collect()), ("delayed", delayed.collect())];
    for (name, items) in lists.iter().filter(|(_, items)| !items.is_empty()) {
        line += &format!(" | {name} {}", items.join(", "));
    }
    if cursor.rewindable_count() > 0 {
        line += &format!(" | rewindable {}", cursor.rewindable_count());
    }
    line
}
