//! A client connection's hot path: publish, settle, credit; gathered here and handed over at each flush.
//!
//! A publish is routed (from a small cache of its own), encoded once into a chunk for its shard, and handed over
//! with all others of the burst under one lock per shard.

use crate::api::*;
use crate::connection_state::ConnectionState;
use crate::control::Control;
use crate::engine::Engine;
pub use crate::events::EventReceiver;
use crate::fan::{Fan, PublishTicket, Ticket};
use crate::mail::Settlements;
use crate::metadata::Route;
use crate::permissions::Remembered;
use crate::routes::RouteCache;
use crate::routing::Input;
use crate::session::settles::End;
use crate::session::{Chunk, Upload};
use crate::shard::{Handover, Shard, Work};
use crate::transients::Held;
use bytes::{Bytes, BytesMut};
use longshore_wire::record::{NO_CLIENT_TIME, NO_TTL, NewRecord, TARGETS_MAX, flags};
use longshore_wire::{LogId, PAYLOAD_BYTES_MAX, ShardId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A chunk is closed at this size, so that several of them share a batch.
const CHUNK_BYTES: usize = 128 << 10;
/// Largest record whose body goes inside it; a larger body goes in parts.
const INLINE_BYTES_MAX: usize = PAYLOAD_BYTES_MAX;

/// Largest record to a transient queue that has its body inside it: with as many targets as one may have, it is below
/// the size of a batch.
const TRANSIENT_INLINE_BYTES_MAX: usize = PAYLOAD_BYTES_MAX - (128 << 10);

/// Names in one message (routing key, CC and BCC) that only the storage tier can know: each is asked for.
const UNKNOWN_MAX: usize = 1000;

/// A message to known transient queues of one shard.
#[derive(Debug)]
struct ToTransient {
    shard: ShardId,
    targets: Vec<(Arc<str>, LogId)>,
    held: Held,
}

#[derive(Debug)]
struct Gather {
    shard: ShardId,
    handover: Handover,
}

/// The handle of one client connection. Not shared: its calls gather without a lock, [`Connection::flush`] hands
/// over. Dropping it ends the connection: consumers detach, what was unsettled is delivered again, exclusive
/// queues go.
#[derive(Debug)]
pub struct Connection {
    engine: Arc<Engine>,
    state: Arc<ConnectionState>,
    routes: RouteCache,
    remembered: Remembered,
    remembered_version: u64,
    gathers: Vec<Gather>,
    transient: Vec<ToTransient>,
    held: Vec<(Arc<str>, Held)>,
    tickets: u64,
    bytes: usize,
    /// Shards that had too much to do at the last flush.
    full: Vec<Arc<Shard>>,
}

impl Connection {
    pub(crate) fn new(engine: Arc<Engine>, state: Arc<ConnectionState>) -> Connection {
        Connection {
            engine,
            state,
            routes: RouteCache::default(),
            remembered: Remembered::default(),
            remembered_version: 0,
            gathers: Vec::new(),
            transient: Vec::new(),
            held: Vec::new(),
            tickets: 0,
            bytes: 0,
            full: Vec::new(),
        }
    }

    /// Routes a message and queues it for the next [`Connection::flush`].
    ///
    /// Errors: `NotFound` (no such exchange), `Forbidden` (internal exchange), `TooLarge`, `Invalid` (key over
    /// 65,535 bytes), `Limit` (over 1,000 names of queues that are not known here), `Closed`. Permissions are the adapter's to check, by [`Connection::permit`].
    pub fn publish(&mut self, publish: &Publish<'_>) -> Result<Routed, BrokerError> {
        if self.state.is_closed() {
            return Err(BrokerError::Closed);
        }
        let body_bytes = publish.body.iter().map(Bytes::len).sum::<usize>();
        let max = self.engine.config.message_bytes_max;
        if body_bytes as u64 > max {
            return Err(BrokerError::TooLarge { bytes: body_bytes as u64, max });
        }
        if publish.routing_key.len() > usize::from(u16::MAX) {
            return Err(BrokerError::Invalid("a routing key has at most 65,535 bytes".into()));
        }
        let head_bytes = publish.properties.len() + publish.routing_key.len();
        if head_bytes > PAYLOAD_BYTES_MAX / 2 {
            return Err(BrokerError::TooLarge {
                bytes: head_bytes as u64,
                max: PAYLOAD_BYTES_MAX as u64 / 2,
            });
        }
        let route = self.route(publish)?;
        if route.unknown.len() > UNKNOWN_MAX {
            let words = format!("a message names at most {UNKNOWN_MAX} queues that have to be looked for");
            return Err(BrokerError::Limit(words));
        }
        if route.is_empty() {
            metrics::counter!("longshore_gateway_unroutable_total").increment(1);
            return Ok(Routed::Unroutable);
        }
        self.send(publish, &route, body_bytes)?;
        Ok(Routed::Queued)
    }

    fn route(&mut self, publish: &Publish<'_>) -> Result<Arc<Route>, BrokerError> {
        let version = self.state.namespace.version();
        if publish.more_keys.is_empty()
            && let Some(route) = self.routes.get(version, publish.exchange, publish.routing_key)
        {
            return Ok(route);
        }
        if !publish.exchange.is_empty() {
            let missing = || BrokerError::NotFound { what: "exchange", name: publish.exchange.to_owned() };
            let exchange = self.state.namespace.exchange(publish.exchange).ok_or_else(missing)?;
            if exchange.internal {
                let words = format!("exchange '{}' is internal", publish.exchange);
                return Err(BrokerError::Forbidden(words));
            }
        }
        let input =
            Input { key: publish.routing_key, more_keys: publish.more_keys, headers: publish.headers };
        let missing = || BrokerError::NotFound { what: "exchange", name: publish.exchange.to_owned() };
        let (route, cacheable, version) =
            self.state.namespace.route(publish.exchange, &input).ok_or_else(missing)?;
        let route = Arc::new(route);
        if cacheable {
            self.routes.put(version, publish.exchange, publish.routing_key, route.clone());
        }
        Ok(route)
    }

    /// One part per shard, one per transient queue that must be looked for first.
    fn send(&mut self, publish: &Publish<'_>, route: &Route, body_bytes: usize) -> Result<(), BrokerError> {
        let namespace = self.state.namespace.id;
        let mut known: BTreeMap<ShardId, Vec<(Arc<str>, LogId)>> = BTreeMap::new();
        let mut unknown: Vec<Arc<str>> = Vec::new();
        let is_large = new_record(publish, &[]).encoded_len(body_bytes) > TRANSIENT_INLINE_BYTES_MAX;
        for name in route.transient.iter().chain(&route.unknown) {
            let log = self.engine.transients.log(namespace.0, name);
            let is_held =
                self.engine.is_finding(namespace.0, name) || self.held.iter().any(|(n, _)| n == name);
            match (log, self.engine.view.transient_shard(namespace, name)) {
                // A large one is sent by the task that looks for queues, and what comes behind it waits for that.
                (Some(log), Some(shard)) if !is_held && !is_large => {
                    known.entry(shard).or_default().push((name.clone(), log))
                }
                _ => unknown.push(name.clone()),
            }
        }
        let durable_parts: usize =
            route.durable.iter().map(|(_, logs)| logs.len().div_ceil(TARGETS_MAX)).sum();
        let parts = durable_parts + known.len() + unknown.len();
        let fan = (parts > 1).then(|| Fan::new(parts as u32));
        let message_bytes = body_bytes + publish.properties.len() + 256;
        let ticket = PublishTicket {
            connection: self.state.id,
            channel: publish.channel,
            token: publish.token,
            report: publish.report,
            bytes: u32::try_from(message_bytes).unwrap_or(u32::MAX),
            timed: parts == 1 && durable_parts == 1 && self.state.begin_timing(),
            fan,
        };
        self.tickets += parts as u64;
        self.bytes += message_bytes * parts;
        for (shard, logs) in &route.durable {
            for targets in logs.chunks(TARGETS_MAX) {
                self.append(publish, *shard, targets, body_bytes, ticket.part())?;
            }
        }
        for (shard, targets) in known {
            let logs: Vec<LogId> = targets.iter().map(|(_, log)| *log).collect();
            let record = encode(publish, &logs)?;
            let held = Held { record, body: Vec::new(), ticket: ticket.part(), again: false };
            self.transient.push(ToTransient { shard, targets, held });
        }
        let small = if unknown.is_empty() || is_large { Bytes::new() } else { encode(publish, &[LogId(0)])? };
        for name in unknown {
            let (record, body) = if is_large {
                let body = publish.body.iter().filter(|slice| !slice.is_empty()).cloned().collect();
                (encode_head(publish, self.engine.next_id())?, body)
            } else {
                (small.clone(), Vec::new())
            };
            self.held.push((name, Held { record, body, ticket: ticket.part(), again: false }));
        }
        Ok(())
    }

    fn gather(&mut self, shard: ShardId) -> &mut Handover {
        let at = match self.gathers.iter().position(|gather| gather.shard == shard) {
            Some(at) => at,
            None => {
                self.gathers.push(Gather { shard, handover: Handover::default() });
                self.gathers.len() - 1
            }
        };
        &mut self.gathers[at].handover
    }

    fn append(
        &mut self,
        publish: &Publish<'_>,
        shard: ShardId,
        targets: &[LogId],
        body_bytes: usize,
        ticket: PublishTicket,
    ) -> Result<(), BrokerError> {
        let session = self.engine.session;
        let mut new = new_record(publish, targets);
        let ticket = Ticket::Publish(ticket);
        let invalid = |error: longshore_wire::DecodeError| BrokerError::Invalid(error.to_string());
        if new.encoded_len(body_bytes) > INLINE_BYTES_MAX {
            let id = self.engine.next_id();
            new.flags |= flags::PARTS;
            new.upload = id;
            let mut last = Chunk::new(session);
            last.append(None, &new, &[], ticket).map_err(invalid)?;
            let body = publish.body.iter().filter(|slice| !slice.is_empty()).cloned().collect();
            self.gather(shard).works.push(Work::Upload(Upload { id, body, last }));
            return Ok(());
        }
        let works = &mut self.gather(shard).works;
        if !matches!(works.last(), Some(Work::Chunk(chunk)) if chunk.bytes() < CHUNK_BYTES) {
            works.push(Work::Chunk(Chunk::new(session)));
        }
        match works.last_mut() {
            Some(Work::Chunk(chunk)) => chunk.append(None, &new, publish.body, ticket).map_err(invalid),
            _ => Ok(()),
        }
    }

    /// Settles a delivery at the next flush. Unknown and already settled ones are ignored by the storage tier.
    pub fn settle(&mut self, handle: &Handle, settlement: Settlement) {
        let consumer = handle.tag.and_then(|tag| self.state.consumer(tag));
        if consumer.as_ref().is_some_and(|consumer| consumer.positional) {
            return;
        }
        let end = match settlement {
            Settlement::Acked => End::Acked,
            Settlement::Returned { counted } => End::Returned { counted },
            Settlement::Dead(reason) => End::Dead(reason),
        };
        let id = consumer.map(|consumer| consumer.id);
        self.gather(handle.shard).settles.push((*handle, id, end));
    }

    /// Lets a consumer have that many more messages and bytes (added to what it had), at the next flush.
    pub fn credit(&mut self, tag: ConsumerTag, messages: u64, bytes: u64) {
        let Some(consumer) = self.state.consumer(tag) else { return };
        let credits = &mut self.gather(consumer.shard).credits;
        match credits.iter_mut().find(|(id, ..)| *id == consumer.id) {
            Some((_, m, b)) => {
                *m = m.saturating_add(messages);
                *b = b.saturating_add(bytes);
            }
            None => credits.push((consumer.id, messages, bytes)),
        }
    }

    /// Hands over what was gathered. Call once per read burst, and before awaiting anything of [`Control`].
    pub fn flush(&mut self) -> Flow {
        if self.tickets > 0 {
            metrics::counter!("longshore_gateway_publishes_total").increment(self.tickets);
        }
        let bytes = std::mem::take(&mut self.bytes);
        self.engine.budget.submit(bytes);
        self.state.submit(std::mem::take(&mut self.tickets), bytes);
        let shard_max = self.engine.config.shard_pending_bytes_max;
        self.full.clear();
        for Gather { shard, handover } in self.gathers.drain(..) {
            let shard = self.engine.shard(shard);
            let settles = !handover.settles.is_empty();
            let (full, settlements) = shard.hand_over(self.state.id, handover, shard_max);
            debug_assert!(settles || settlements == Settlements::default());
            self.state.submit_settlements(settlements);
            if full {
                self.full.push(shard);
            }
        }
        for ToTransient { shard, targets, held } in self.transient.drain(..) {
            self.engine.send_transient(&self.state, shard, targets, held);
        }
        for (name, held) in self.held.drain(..) {
            self.engine.find_and_send(&self.state.namespace, name, held);
        }
        if self.must_wait() { Flow::Wait } else { Flow::Open }
    }

    fn must_wait(&self) -> bool {
        !self.state.is_closed() && !self.has_room(self.engine.config.connection_pending_bytes_max)
    }

    /// Whether the connection has at most so many bytes pending and nothing else holds it back.
    fn has_room(&self, pending_bytes_max: usize) -> bool {
        let shard_max = self.engine.config.shard_pending_bytes_max;
        self.state.pending_bytes() <= pending_bytes_max
            && self.engine.budget.may_publish()
            && self.engine.lease.holds()
            && self.full.iter().all(|shard| shard.pending_bytes() <= shard_max)
    }

    /// Waits until the connection may send again after [`Flow::Wait`]; returns at once if it may, or is closed.
    /// Cancel-safe.
    pub async fn writable(&self) {
        if !self.must_wait() {
            return;
        }
        // Go on at half the bound, so that a connection does not stop and go with every message.
        let half = self.engine.config.connection_pending_bytes_max / 2;
        self.state.until(|| self.state.is_closed() || self.has_room(half)).await;
    }

    /// Whether the user may do that with `name`, by its permissions as they are now. Cheap: cached by name.
    pub fn permit(&mut self, right: Right, name: &str) -> bool {
        let version = self.state.permissions_version();
        if self.remembered_version != version {
            self.remembered_version = version;
            self.remembered.clear();
        }
        let state = &self.state;
        self.remembered.permit(right, name, || state.permissions().permit(right, name))
    }

    /// The rare operations; clone it into tasks.
    pub fn control(&self) -> Control {
        Control::new(self.engine.clone(), self.state.clone())
    }

    /// Its id.
    pub fn id(&self) -> ConnectionId {
        self.state.id
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // What the client sent before it went is still sent: settlements count.
        let _ = self.flush();
        self.state.end();
        self.engine.remove_connection(&self.state);
    }
}

fn new_record<'a>(publish: &'a Publish<'_>, targets: &'a [LogId]) -> NewRecord<'a> {
    NewRecord {
        form: publish.form,
        flags: 0,
        priority: publish.priority,
        count: 1,
        delay_ms: publish.delay_ms,
        ttl_ms: publish.ttl_ms.unwrap_or(NO_TTL),
        client_time_ms: publish.client_time_ms.unwrap_or(NO_CLIENT_TIME),
        key_hash: publish.key_hash,
        upload: 0,
        targets,
        routing_key: publish.routing_key,
        properties: publish.properties,
    }
}

fn encode(publish: &Publish<'_>, targets: &[LogId]) -> Result<Bytes, BrokerError> {
    let mut out = BytesMut::new();
    new_record(publish, targets)
        .encode(publish.body, &mut out)
        .map_err(|error| BrokerError::Invalid(error.to_string()))?;
    Ok(out.freeze())
}

/// The record of a large message, whose body goes in pieces under `upload`.
fn encode_head(publish: &Publish<'_>, upload: u64) -> Result<Bytes, BrokerError> {
    let mut out = BytesMut::new();
    NewRecord { flags: flags::PARTS, upload, ..new_record(publish, &[LogId(0)]) }
        .encode(&[], &mut out)
        .map_err(|error| BrokerError::Invalid(error.to_string()))?;
    Ok(out.freeze())
}
