//! The little language of the transcripts. One command a line:
//!
//! ```text
//! log NAME [stream] [ttl=MS] [priorities=N]        session G
//! publish LOG m1 m2 ... [ttl=MS] [delay=MS] [prio=N] [count=N]
//! attach G/C LOG credit=N [bytes=N] [exclusive] [single-active] [priority=N] [lease=MS] [held=m1,m2]
//!        [from=first|last|next|OFFSET|time:MS]
//! credit G/C N [bytes=N]     detach G/C [return]    ack G m1 ...    return G m1 ... [uncounted]
//! get G LOG     hold G LOG m1 ...     take LOG max=N visibility=MS [wait=MS]
//! stat LOG      explain LOG           counters
//! purge LOG     rewind LOG OFFSET     trim LOG OFFSET     drop LOG
//! wait MS       leader TERM           reported G          close G     link-lost G
//! lease on|off  hold-work on|off  apply-one  load
//! declare G/CONNECTION NAME [exclusive] [auto-delete] [ttl=MS] [expires=MS] [single-active]
//! find NAME [use]     send NAME... m1 [ttl=MS] [prio=N]     tack G NAME m1 ...    treturn G NAME m1 ...
//! delete NAME [if-unused] [if-empty]     delete-owned G/CONNECTION     tpurge NAME
//! ```
//! Messages are named by their bodies; `#` begins a comment.

mod show;
mod transient;

use crate::support::{Publish, World};
use longshore_delivery::{
    Action, Attach, Config, ConsumerKey, Handed, Held, Message, Mode, QueueId, Start, TakeWish,
};
use longshore_wire::batch::{Item, Returned, Settle};
use longshore_wire::spec::{LogKind, LogSpec};
use longshore_wire::{CursorId, LeaseId, LogId, LogTime, Offset, OffsetRange, Revision, SessionId, Term};
use std::collections::BTreeMap;

/// Runs the commands of `text`; the text with what happened.
pub fn run(text: &str) -> String {
    let mut story = Story::new();
    let mut result = String::new();
    for line in text.lines().filter(|line| !line.starts_with("->")) {
        result.push_str(line);
        result.push('\n');
        let command = line.split('#').next().unwrap_or("").trim();
        if !command.is_empty() {
            for outcome in story.command(command) {
                result.push_str("-> ");
                result.push_str(&outcome);
                result.push('\n');
            }
        }
    }
    result
}

/// What a session got and under which lease.
#[derive(Clone, Copy)]
struct Got {
    lease: LeaseId,
    term: Term,
}

pub struct Story {
    world: World,
    logs: BTreeMap<String, LogId>,
    /// Bodies by place.
    bodies: BTreeMap<(LogId, Offset), String>,
    /// Places by body.
    places: BTreeMap<String, (LogId, Offset)>,
    got: BTreeMap<(SessionId, LogId, Offset), Got>,
    requests: u64,
}

/// A command's words: plain ones, `key=value` ones.
struct Words<'a> {
    plain: Vec<&'a str>,
    keyed: BTreeMap<&'a str, &'a str>,
}

impl<'a> Words<'a> {
    fn new(line: &'a str) -> Words<'a> {
        let (keyed, plain): (Vec<_>, Vec<_>) = line.split_whitespace().partition(|word| word.contains('='));
        Words { plain, keyed: keyed.into_iter().filter_map(|word| word.split_once('=')).collect() }
    }

    fn number(&self, key: &str) -> Option<u64> {
        self.keyed.get(key).map(|value| value.parse().unwrap_or_else(|_| panic!("{key}={value}")))
    }

    fn has(&self, word: &str) -> bool {
        self.plain.contains(&word)
    }
}

fn session(name: &str) -> SessionId {
    SessionId(name.trim_start_matches('g').parse().unwrap_or_else(|_| panic!("session {name}")))
}

fn consumer(name: &str) -> ConsumerKey {
    let (gateway, number) = name.split_once('/').unwrap_or_else(|| panic!("consumer {name}"));
    ConsumerKey {
        session: session(gateway),
        consumer: number.trim_start_matches(['c', 'k']).parse().unwrap(),
    }
}

fn connection(name: &str) -> (SessionId, u64) {
    let key = consumer(name);
    (key.session, key.consumer)
}

impl Story {
    fn new() -> Story {
        Story {
            world: World::new(Config { transient_queue_bytes_max: 1_200, ..Config::default() }),
            logs: BTreeMap::new(),
            bodies: BTreeMap::new(),
            places: BTreeMap::new(),
            got: BTreeMap::new(),
            requests: 0,
        }
    }

    fn log(&self, name: &str) -> LogId {
        *self.logs.get(name).unwrap_or_else(|| panic!("no log {name}"))
    }

    fn queue(&self, name: &str) -> QueueId {
        QueueId { log: self.log(name), cursor: CursorId(0) }
    }

    fn place(&self, body: &str) -> (LogId, Offset) {
        *self.places.get(body).unwrap_or_else(|| panic!("no message {body}"))
    }

    fn command(&mut self, line: &str) -> Vec<String> {
        let words = Words::new(line);
        let mut said = Vec::new();
        if !self.replicated(&words)
            && !self.consuming(&words, &mut said)
            && !self.transient(&words, &mut said)
        {
            self.other(&words, &mut said);
        }
        let actions = self.world.pump();
        self.tell(actions, &mut said);
        said
    }

    fn tell(&mut self, actions: Vec<Action>, said: &mut Vec<String>) {
        for action in actions {
            self.remember(&action);
            said.extend(self.show(&action));
        }
    }

    fn remember(&mut self, action: &Action) {
        let (session, handed) = match action {
            Action::Deliver { to, handed } => (to.session, handed),
            Action::Got { session, result: Ok(Some(handed)), .. } => (*session, handed),
            _ => return,
        };
        if let Message::Memory(message) = &handed.message {
            let body = String::from_utf8(message.record.body().to_vec()).unwrap();
            self.name(handed.log, handed.offset, &body);
        }
        let got = Got { lease: handed.lease, term: self.world.term };
        self.got.insert((session, handed.log, handed.offset), got);
    }

    fn name(&mut self, log: LogId, at: Offset, body: &str) {
        self.bodies.insert((log, at), body.to_string());
        self.places.insert(body.to_string(), (log, at));
    }

    /// Commands that become entries.
    fn replicated(&mut self, words: &Words<'_>) -> bool {
        let log = |story: &Story| story.log(words.plain[1]);
        match words.plain[0] {
            "log" => self.make_log(words),
            "session" => self.world.command(Item::OpenSession(session(words.plain[1]))),
            "close" => self.world.command(Item::CloseSession(session(words.plain[1]))),
            "publish" => self.publish(words),
            "ack" | "return" => self.settle(words),
            "purge" => {
                let item = self.world.delivery.purge_item(self.queue(words.plain[1]), &self.world.shard);
                self.world.command(item.unwrap());
            }
            "rewind" => {
                let to = Offset(words.plain[2].parse().unwrap());
                self.world.command(Item::Rewind { log: log(self), cursor: CursorId(0), to });
            }
            "trim" => {
                let start = Offset(words.plain[2].parse().unwrap());
                self.world.command(Item::Trim { log: log(self), start });
            }
            "drop" => self.world.command(Item::DropLog { log: log(self), revision: Revision(1) }),
            _ => return false,
        }
        true
    }

    fn make_log(&mut self, words: &Words<'_>) {
        let log = LogId(self.logs.len() as u64 + 1);
        self.logs.insert(words.plain[1].to_string(), log);
        let spec = LogSpec {
            kind: if words.has("stream") { LogKind::Stream } else { LogKind::Queue },
            ttl_ms: words.number("ttl"),
            priority_max: words.number("priorities").unwrap_or(0) as u8,
            rewind_ms: words.number("rewind").unwrap_or(0),
            ..LogSpec::QUEUE
        };
        self.world.command(Item::CreateLog { log, spec });
    }

    fn options(words: &Words<'_>) -> Publish {
        Publish {
            ttl_ms: words.number("ttl"),
            delay_ms: words.number("delay").unwrap_or(0),
            priority: words.number("prio").unwrap_or(0) as u8,
            count: words.number("count").unwrap_or(1) as u32,
        }
    }

    fn publish(&mut self, words: &Words<'_>) {
        let (log, how) = (self.log(words.plain[1]), Story::options(words));
        for body in &words.plain[2..] {
            let at = self.world.publish(log, body, how);
            self.name(log, at, body);
            for n in 1..u64::from(how.count) {
                self.name(log, at.plus(n), &format!("{body}+{n}"));
            }
        }
    }

    fn settle(&mut self, words: &Words<'_>) {
        let mut by_log: BTreeMap<LogId, Vec<Offset>> = BTreeMap::new();
        for body in words.plain[2..].iter().filter(|word| **word != "uncounted") {
            let (log, at) = self.place(body);
            by_log.entry(log).or_default().push(at);
        }
        let from = session(words.plain[1]);
        for (log, offsets) in by_log {
            let got = |at: &Offset| self.got.get(&(from, log, *at)).copied();
            let returns = words.plain[0] != "ack";
            let got_in = offsets.first().and_then(got).filter(|_| returns).map(|got| got.term);
            let term = words.number("term").map(Term).or(got_in).unwrap_or(self.world.term);
            let mut settle =
                Settle { log, cursor: CursorId(0), term, acked: vec![], returned: vec![], dead: vec![] };
            if returns {
                // Of the session's newest hand-over.
                let lease = |at: &Offset| got(at).map_or(LeaseId(0), |got| got.lease);
                let counted = !words.has("uncounted");
                let back = |offset| Returned { offset, lease: lease(&offset), counted };
                settle.returned = offsets.into_iter().map(back).collect();
            } else {
                settle.acked = offsets.into_iter().map(OffsetRange::one).collect();
            }
            self.world.submit(from, &[Item::Settle(settle)]);
        }
    }

    /// Commands of consumers.
    fn consuming(&mut self, words: &Words<'_>, said: &mut Vec<String>) -> bool {
        let now = self.world.now;
        match words.plain[0] {
            "attach" => {
                let attach = self.attach(words);
                self.world.delivery.attach(now, attach, &self.world.shard);
            }
            "credit" => {
                let bytes = words.number("bytes").unwrap_or(u64::MAX);
                self.world.delivery.credit(consumer(words.plain[1]), words.plain[2].parse().unwrap(), bytes);
            }
            "detach" => {
                self.world.delivery.detach(now, consumer(words.plain[1]), !words.has("return"));
            }
            "get" => {
                self.requests += 1;
                let (from, queue) = (session(words.plain[1]), self.queue(words.plain[2]));
                self.world.delivery.get(from, self.requests, queue, &self.world.shard);
            }
            "hold" => {
                let (owner, queue) = (session(words.plain[1]), self.queue(words.plain[2]));
                let held = self.held(owner, &words.plain[3..]);
                self.world.delivery.hold(now, owner, queue, &held, &self.world.shard);
            }
            "take" => {
                self.requests += 1;
                let wish = TakeWish {
                    max: words.number("max").unwrap_or(1) as u32,
                    visibility_ms: words.number("visibility").unwrap_or(1_000),
                    wait_ms: words.number("wait").unwrap_or(0),
                };
                let queue = self.queue(words.plain[1]);
                self.world.delivery.take(now, self.requests, queue, wish, &self.world.shard);
            }
            "stat" => {
                let counts = self.world.delivery.stat(self.queue(words.plain[1]), &self.world.shard);
                said.push(counts.map_or("no such log".into(), |counts| Story::show_counts(&counts)));
            }
            "explain" => {
                let queue = self.queue(words.plain[1]);
                let (log_time, may) = (self.world.log_time(), self.world.may_deliver);
                let found = self.world.delivery.explain(log_time, may, queue, &self.world.shard);
                said.extend(self.show_reasons(&found.reasons));
            }
            _ => return false,
        }
        true
    }

    fn held(&self, owner: SessionId, bodies: &[&str]) -> Vec<Held> {
        let held = |body: &&str| {
            let (log, offset) = self.place(body);
            let got = self.got.get(&(owner, log, offset)).unwrap_or_else(|| panic!("{body} was not got"));
            Held { offset, lease: got.lease, term: got.term }
        };
        bodies.iter().map(held).collect()
    }

    fn attach(&self, words: &Words<'_>) -> Attach {
        let key = consumer(words.plain[1]);
        let start = words.keyed.get("from").map(|from| match *from {
            "first" => Start::First,
            "last" => Start::Last,
            "next" => Start::Next,
            other => match other.strip_prefix("time:") {
                Some(ms) => Start::Time(LogTime(ms.parse().unwrap())),
                None => Start::Offset(Offset(other.parse().unwrap())),
            },
        });
        let held: Vec<&str> = words.keyed.get("held").map_or(Vec::new(), |held| held.split(',').collect());
        Attach {
            key,
            queue: self.queue(words.plain[2]),
            mode: start.map_or(Mode::Settle, Mode::Position),
            exclusive: words.has("exclusive"),
            single_active: words.has("single-active"),
            priority: words.number("priority").unwrap_or(0) as i32,
            credit_messages: words.number("credit").unwrap_or(0),
            credit_bytes: words.number("bytes").unwrap_or(u64::MAX),
            lease_ms: words.number("lease"),
            held: self.held(key.session, &held),
            attempt: 1,
        }
    }

    fn other(&mut self, words: &Words<'_>, said: &mut Vec<String>) {
        match words.plain[0] {
            "wait" => {
                let actions = self.world.wait(words.plain[1].parse().unwrap());
                self.tell(actions, said);
            }
            "leader" => {
                let actions = self.world.lead(words.plain[1].parse().unwrap());
                self.tell(actions, said);
            }
            "reported" => self.world.delivery.session_reported(self.world.now, session(words.plain[1])),
            "link-lost" => self.world.delivery.link_lost(session(words.plain[1])),
            "lease" => self.world.may_deliver = words.plain[1] == "on",
            "apply-one" => self.world.release_one(),
            "load" => self.world.release_loads(),
            "hold-work" => {
                self.world.hold = words.plain[1] == "on";
                if !self.world.hold {
                    self.world.release();
                }
            }
            "counters" => said.push(format!("{:?}", self.world.delivery.counters())),
            other => panic!("unknown command {other}"),
        }
    }

    fn body_of(&self, handed: &Handed) -> String {
        self.bodies.get(&(handed.log, handed.offset)).cloned().unwrap_or(format!("@{}", handed.offset.0))
    }
}
