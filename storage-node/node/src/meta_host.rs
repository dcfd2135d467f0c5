//! Group 0 on this node: what exists, who follows it, and while this node leads it, gateway leases and calls.
//!
//! Danger: a renewal is answered only while a majority confirms this leader, since a gateway trusts the answer.
//! Called by the turn only.

use crate::io::{Output, Reply, Ticket, WatchId};
use crate::shard_host::ENTRY_BYTES;
use bytes::Bytes;
use longshore_consensus::{Membership, Role};
use longshore_io::Mono;
use longshore_meta::{Heard, Leases, Meta};
use longshore_proto::v1::meta_command::Command;
use longshore_proto::v1::{self, MetaChange, MetaCommand, MetaError, MetaReply, WatchDown};
use longshore_wire::context::EntryContext;
use longshore_wire::{Index, Revision, SessionId, Term};
use prost::Message;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// Changes in one message to a follower.
const CHANGES_PER_MESSAGE: usize = 2_000;
/// Commands that this node itself wants in one entry.
const WANTED_PER_ENTRY: usize = 500;
/// Calls that may wait for their command to be applied.
const CALLS_MAX: usize = 65_536;
/// A call that was not answered after this long never will be (its entry was lost with a leader), in milliseconds.
const CALL_MS: u64 = 20_000;

#[derive(Debug)]
struct Watcher {
    session: SessionId,
    sent: Revision,
    /// Highest renewal heard that the lease was extended for, and the highest answered.
    heard: u64,
    answered: u64,
}

#[derive(Debug)]
pub(crate) struct MetaHost {
    pub meta: Meta,
    pub role: Role,
    pub membership: Membership,
    pub uncheckpointed_bytes: u64,
    /// While this node leads.
    leases: Option<Leases>,
    watchers: BTreeMap<WatchId, Watcher>,
    /// Calls by the number that their command carries.
    calls: BTreeMap<u64, (Ticket, Mono)>,
    barriers: BTreeMap<u64, Ticket>,
    next_call: u64,
    /// Commands that this node itself wants applied.
    pub wanted: Vec<MetaCommand>,
    /// The state changed since the last look.
    pub changed: bool,
}

impl MetaHost {
    pub fn new(meta: Meta) -> MetaHost {
        MetaHost {
            meta,
            role: Role::Follower { term: Term(0), leader: None },
            membership: Membership::default(),
            uncheckpointed_bytes: 0,
            leases: None,
            watchers: BTreeMap::new(),
            calls: BTreeMap::new(),
            barriers: BTreeMap::new(),
            next_call: 1,
            wanted: Vec::new(),
            changed: true,
        }
    }

    /// Forgets the state of a replica that was given up.
    pub fn reset(&mut self) {
        self.meta = Meta::new();
        self.uncheckpointed_bytes = 0;
        self.changed = true;
    }

    pub fn is_leader(&self) -> bool {
        matches!(self.role, Role::Leader { .. })
    }

    /// Whether meta, as far as this node knows, has this gateway.
    pub fn has_session(&self, session: SessionId) -> bool {
        self.meta.gateway(session).is_some()
    }

    /// Who leads, as a refusal says it.
    pub fn not_leader(&self) -> v1::NotLeader {
        let (term, node) = match self.role {
            Role::Leader { term } => (term, None),
            Role::Follower { term, leader } => (term, leader.map(|leader| leader.node())),
        };
        let address = node.and_then(|node| self.meta.node(node)).map(|node| node.address.clone());
        v1::NotLeader {
            term: term.0,
            node: node.map_or(0, |node| node.0),
            address: address.unwrap_or_default(),
        }
    }

    fn refusal(&self) -> MetaReply {
        MetaReply {
            error: MetaError::MetaNotLeader.into(),
            message: "this node does not lead meta".into(),
            not_leader: Some(self.not_leader()),
            ..MetaReply::default()
        }
    }

    /// A command from outside: what to propose, if anything; else it is answered here.
    pub fn call(
        &mut self,
        ticket: Ticket,
        mut command: MetaCommand,
        now: Mono,
        out: &mut Output,
    ) -> Option<Bytes> {
        if !self.is_leader() {
            out.replies.push((ticket, Reply::Meta(Box::new(self.refusal()))));
            return None;
        }
        if let Some(Command::Barrier(barrier)) = &command.command {
            self.barrier(ticket, Revision(barrier.revision), now);
            return None;
        }
        if self.calls.len() >= CALLS_MAX {
            out.replies.push((ticket, Reply::Meta(Box::new(unavailable("too many commands wait")))));
            return None;
        }
        let number = self.next_call;
        self.next_call += 1;
        self.calls.insert(number, (ticket, now));
        command.ticket = number;
        Some(command.encode_to_vec().into())
    }

    /// The command of a call was refused before it was proposed.
    pub fn call_failed(&mut self, data: &Bytes, out: &mut Output) {
        let number = MetaCommand::decode(data.clone()).map_or(0, |command| command.ticket);
        if let Some((ticket, _)) = self.calls.remove(&number) {
            out.replies
                .push((ticket, Reply::Meta(Box::new(unavailable("too much is being proposed, try again")))));
        }
    }

    fn barrier(&mut self, ticket: Ticket, revision: Revision, now: Mono) {
        if let Some(leases) = &mut self.leases {
            let number = leases.barrier(revision, now);
            self.barriers.insert(number, ticket);
        }
    }

    /// Applies one committed entry; answers the call that proposed it, if it was made here in this term.
    pub fn apply(
        &mut self,
        index: Index,
        term: Term,
        context: &Bytes,
        data: &Bytes,
        now: Mono,
        out: &mut Vec<(Ticket, Reply)>,
    ) {
        let stamp = EntryContext::decode(context.clone()).unwrap_or_default();
        let applied = self.meta.apply(index, term, &stamp, data);
        self.uncheckpointed_bytes += ENTRY_BYTES + (context.len() + data.len()) as u64;
        if let Some(leases) = &mut self.leases {
            note_sessions(leases, &applied.changes, now);
        }
        if self.role == (Role::Leader { term }) && !data.is_empty() {
            let number = MetaCommand::decode(data.clone()).map_or(0, |command| command.ticket);
            if let Some((ticket, _)) = self.calls.remove(&number) {
                out.push((ticket, Reply::Meta(Box::new(applied.reply))));
            }
        }
        self.changed |= !applied.changes.is_empty();
    }

    /// This node begins or ceases to lead meta.
    pub fn role_changed(&mut self, role: Role, now: Mono, out: &mut Vec<(Ticket, Reply)>) {
        let led = self.is_leader();
        self.role = role;
        if self.is_leader() {
            let sessions: Vec<_> = self.meta.gateways().map(|gateway| SessionId(gateway.session)).collect();
            self.leases = Some(Leases::new(now, sessions));
        } else {
            self.leases = None;
        }
        if led {
            let refusal = self.refusal();
            let calls = std::mem::take(&mut self.calls).into_values().map(|(ticket, _)| ticket);
            let barriers = std::mem::take(&mut self.barriers).into_values();
            out.extend(calls.chain(barriers).map(|ticket| (ticket, Reply::Meta(Box::new(refusal.clone())))));
        }
        self.wanted.clear();
        self.changed = true;
    }

    /// A follower of meta, new or with news.
    pub fn watch(&mut self, watch: WatchId, up: &v1::WatchUp, now: Mono, out: &mut Output) {
        let session = SessionId(up.session);
        if session.0 != 0 && !self.is_leader() {
            let down = WatchDown { not_leader: Some(self.not_leader()), ..WatchDown::default() };
            self.watchers.remove(&watch);
            return out.watch.push((watch, down));
        }
        if let Entry::Vacant(vacant) = self.watchers.entry(watch) {
            vacant.insert(Watcher { session, sent: Revision(up.applied), heard: 0, answered: 0 });
            if up.applied == 0 {
                self.send_whole(watch, out);
            } else {
                self.changed = true;
            }
        }
        if let (Some(leases), true) = (&mut self.leases, session.0 != 0) {
            if up.renewal == 0 {
                return leases.applied(session, Revision(up.applied), now);
            }
            match leases.renew(session, Revision(up.applied), now) {
                Heard::Renewed => {
                    if let Some(watcher) = self.watchers.get_mut(&watch) {
                        watcher.heard = watcher.heard.max(up.renewal);
                    }
                }
                Heard::Lagging => {}
                Heard::Lost => {
                    self.watchers.remove(&watch);
                    out.watch.push((watch, WatchDown { lease_lost: true, ..WatchDown::default() }));
                }
            }
        }
    }

    pub fn watch_closed(&mut self, watch: WatchId) {
        self.watchers.remove(&watch);
    }

    fn send_whole(&mut self, watch: WatchId, out: &mut Output) {
        let revision = self.meta.revision();
        if let Some(watcher) = self.watchers.get_mut(&watch) {
            watcher.sent = revision;
        }
        let changes = self.meta.whole_state();
        let mut chunks = changes.chunks(CHANGES_PER_MESSAGE).peekable();
        if chunks.peek().is_none() {
            out.watch.push((watch, WatchDown { revision: revision.0, reset: true, ..WatchDown::default() }));
        }
        let mut first = true;
        while let Some(chunk) = chunks.next() {
            let more = chunks.peek().is_some();
            let changes = chunk.to_vec();
            out.watch.push((
                watch,
                WatchDown { revision: revision.0, reset: first, more, changes, ..WatchDown::default() },
            ));
            first = false;
        }
    }

    /// What this node itself wants applied: several commands of a turn make one entry.
    pub fn take_wanted(&mut self) -> Vec<MetaCommand> {
        let mut wanted = std::mem::take(&mut self.wanted);
        let mut entries = Vec::new();
        while wanted.len() > 1 {
            let rest = wanted.split_off(wanted.len().min(WANTED_PER_ENTRY));
            let commands = std::mem::replace(&mut wanted, rest);
            let many = Some(Command::Many(v1::Many { commands }));
            entries.push(MetaCommand { command: many, ..MetaCommand::default() });
        }
        entries.append(&mut wanted);
        entries
    }

    /// What is due: changes to followers, answered renewals, ended leases, passed barriers.
    pub fn turn(&mut self, now: Mono, confirmed: bool, out: &mut Output) {
        if std::mem::take(&mut self.changed) {
            self.send_changes(out);
        }
        if self.is_leader() {
            self.answer_renewals(confirmed, out);
            self.end_leases(now);
            self.pass_barriers(out);
            self.give_up_calls(now, out);
        } else {
            self.turn_gateways_away(out);
        }
    }

    fn send_changes(&mut self, out: &mut Output) {
        let revision = self.meta.revision();
        let behind: Vec<_> =
            self.watchers.iter().filter(|(_, w)| w.sent < revision).map(|(id, w)| (*id, w.sent)).collect();
        for (watch, sent) in behind {
            let Ok(changes) = self.meta.changes_since(sent) else {
                self.send_whole(watch, out);
                continue;
            };
            for chunk in changes.chunks(CHANGES_PER_MESSAGE) {
                let last = chunk.last().map_or(revision.0, |change| change.revision);
                let down = WatchDown { revision: last, changes: chunk.to_vec(), ..WatchDown::default() };
                out.watch.push((watch, down));
            }
            if let Some(watcher) = self.watchers.get_mut(&watch) {
                watcher.sent = revision;
            }
        }
    }

    fn answer_renewals(&mut self, confirmed: bool, out: &mut Output) {
        if !confirmed {
            return;
        }
        for (watch, watcher) in
            self.watchers.iter_mut().filter(|(_, watcher)| watcher.heard > watcher.answered)
        {
            watcher.answered = watcher.heard;
            let down = WatchDown { revision: watcher.sent.0, renewed: watcher.heard, ..WatchDown::default() };
            out.watch.push((*watch, down));
        }
    }

    fn end_leases(&mut self, now: Mono) {
        let Some(leases) = &mut self.leases else { return };
        for session in leases.ended(now) {
            let close = Command::CloseGateway(v1::CloseGateway { session: session.0 });
            self.wanted.push(MetaCommand { command: Some(close), ..MetaCommand::default() });
        }
    }

    fn pass_barriers(&mut self, out: &mut Output) {
        let Some(leases) = &mut self.leases else { return };
        for passed in leases.passed() {
            let Some(ticket) = self.barriers.remove(&passed.ticket) else { continue };
            let reply = if passed.given_up {
                unavailable("too many wait for the gateways")
            } else {
                MetaReply { revision: self.meta.revision().0, ..MetaReply::default() }
            };
            out.replies.push((ticket, Reply::Meta(Box::new(reply))));
        }
    }

    fn give_up_calls(&mut self, now: Mono, out: &mut Output) {
        while let Some(entry) = self.calls.first_entry() {
            if now < entry.get().1.plus_ms(CALL_MS) {
                return;
            }
            let (ticket, _) = entry.remove();
            out.replies.push((ticket, Reply::Meta(Box::new(unavailable("no majority answered in time")))));
        }
    }

    fn turn_gateways_away(&mut self, out: &mut Output) {
        let not_leader = self.not_leader();
        self.watchers.retain(|watch, watcher| {
            if watcher.session.0 != 0 {
                let down = WatchDown { not_leader: Some(not_leader.clone()), ..WatchDown::default() };
                out.watch.push((*watch, down));
            }
            watcher.session.0 == 0
        });
    }

    /// When [`MetaHost::turn`] must be called next.
    pub fn next_wake(&self) -> Option<Mono> {
        self.leases.as_ref().and_then(Leases::next_wake)
    }
}

fn note_sessions(leases: &mut Leases, changes: &[MetaChange], now: Mono) {
    for change in changes {
        match &change.change {
            Some(v1::meta_change::Change::Gateway(gateway)) => {
                leases.opened(SessionId(gateway.session), Revision(change.revision), now);
            }
            Some(v1::meta_change::Change::GatewayGone(session)) => leases.closed(SessionId(*session), now),
            _ => {}
        }
    }
}

fn unavailable(why: &str) -> MetaReply {
    MetaReply { error: MetaError::MetaUnavailable.into(), message: why.into(), ..MetaReply::default() }
}
