//! The fake's shard 1: it leads it, in term 1, for ever.

use super::{Consumer, Fake, Queue, State, Stored};
use longshore_proto::v1::{self, answer, batch_outcome, gateway_item::Item as Up, node_item::Item as Down};
use longshore_wire::batch::{Batch, Item};
use longshore_wire::outcome::{self, Outcome, Refusal};
use longshore_wire::record::Record;
use longshore_wire::{LogId, Offset, ShardId};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Deliveries in a frame, so that none is over the size of a message.
const ITEMS_PER_FRAME: usize = 8;

impl State {
    fn tell(&mut self, item: Down) {
        self.waiting.push_back(v1::NodeItem { item: Some(item) });
    }

    fn answer(&mut self, request: u64, result: answer::Result) {
        self.tell(Down::Answer(v1::Answer { request, result: Some(result) }));
    }

    fn refuse(&mut self, request: u64, why: v1::Refused) {
        self.answer(request, answer::Result::Refused(why.into()));
    }

    fn submit(&mut self, bytes: bytes::Bytes) {
        let batch = Batch::parse(bytes).unwrap();
        batch.verify().unwrap();
        let (session, number) = (batch.session.0, batch.number.0);
        *self.submissions.entry(number).or_default() += 1;
        let has_append =
            batch.items().any(|i| matches!(i.unwrap().item, Item::Append { .. } | Item::Part { .. }));
        let applied = self.applied.get(&session).copied().unwrap_or(0);
        let result = if self.full && has_append {
            batch_outcome::Result::Refused(v1::Refused::NoSpace.into())
        } else if number > applied + 1 {
            batch_outcome::Result::Expected(applied + 1)
        } else {
            if number == applied + 1 {
                let outcomes: Vec<Outcome> =
                    batch.items().map(|item| self.apply(item.unwrap().item)).collect();
                self.applied.insert(session, number);
                self.outcomes.insert((session, number), outcome::encode(&outcomes));
            }
            batch_outcome::Result::Outcomes(self.outcomes[&(session, number)].clone())
        };
        if !self.silent {
            self.tell(Down::Outcome(v1::BatchOutcome { shard: 1, number, result: Some(result) }));
        }
    }

    fn apply(&mut self, item: Item) -> Outcome {
        match item {
            Item::Append { record, .. } => {
                let parts = self.uploads.remove(&record.upload()).unwrap_or_default();
                Outcome::Appended(
                    record.targets().map(|log| (log, self.append(log, &record, &parts))).collect(),
                )
            }
            Item::Part { upload, bytes, .. } => {
                self.uploads.entry(upload).or_default().push(bytes);
                Outcome::Done(0)
            }
            Item::Settle(settle) => {
                let Some(queue) = self.logs.get_mut(&settle.log.0) else {
                    return Outcome::Refused(Refusal::DroppedLog);
                };
                for range in &settle.acked {
                    for offset in range.first.0..=range.last.0 {
                        queue.messages[offset as usize].done = true;
                    }
                }
                for returned in &settle.returned {
                    queue.give_back(returned.offset.0);
                }
                Outcome::Done(1)
            }
            _ => Outcome::Refused(Refusal::Malformed),
        }
    }

    fn append(&mut self, log: LogId, record: &Record, parts: &[bytes::Bytes]) -> Result<Offset, Refusal> {
        let queue = self.logs.get_mut(&log.0).ok_or(Refusal::DroppedLog)?;
        let (record, parts) = (record.clone(), parts.to_vec());
        queue.messages.push(Stored { record, parts, out: None, done: false, returns: 0 });
        Ok(Offset(queue.messages.len() as u64 - 1))
    }

    fn deliver(&mut self) {
        let mut deliveries = Vec::new();
        for (id, consumer) in &mut self.consumers {
            let Some(queue) = self.logs.get_mut(&consumer.log) else { continue };
            for (offset, stored) in queue.messages.iter_mut().enumerate() {
                if stored.done || stored.out.is_some() || consumer.delivered >= consumer.credit {
                    continue;
                }
                stored.out = Some(*id);
                consumer.delivered += 1;
                self.next_lease += 1;
                push_delivery(&mut deliveries, *id, consumer.log, offset as u64, self.next_lease, stored);
            }
        }
        for some in deliveries.chunks(ITEMS_PER_FRAME) {
            self.tell(Down::Deliver(v1::Deliver { shard: 1, term: 1, deliveries: some.to_vec() }));
        }
    }

    fn counts(&self, log: u64) -> Option<v1::LogCounts> {
        let queue = self.logs.get(&log)?;
        let live = queue.messages.iter().filter(|stored| !stored.done);
        let unacked = live.clone().filter(|stored| stored.out.is_some()).count() as u64;
        let consumers = self.consumers.values().filter(|consumer| consumer.log == log).count() as u64;
        Some(v1::LogCounts { ready: live.count() as u64 - unacked, unacked, consumers, first: 0, next: 0 })
    }

    fn find_transient(&self, name: &str) -> Option<v1::TransientQueue> {
        let found = self.logs.iter().find(|(_, q)| q.transient.as_ref().is_some_and(|(n, _)| n == name));
        let (log, queue) = found?;
        let owner = queue.transient.as_ref().map_or(0, |(_, owner)| *owner);
        Some(v1::TransientQueue {
            log: *log,
            counts: self.counts(*log),
            exclusive: true,
            owner_session: self.sessions,
            owner,
            ..v1::TransientQueue::default()
        })
    }

    fn item(&mut self, item: Up) {
        match item {
            Up::Hello(_) | Up::Reported(_) | Up::Hold(_) => {}
            Up::Submit(submit) => self.submit(submit.batch),
            Up::Attach(attach) => {
                for held in &attach.held {
                    self.logs.get_mut(&attach.log).unwrap().messages[held.offset as usize].out =
                        Some(attach.consumer);
                }
                let refused =
                    (!self.logs.contains_key(&attach.log)).then_some(v1::Refused::UnknownLog.into());
                let consumer = Consumer { log: attach.log, credit: attach.credit_messages, delivered: 0 };
                self.consumers.insert(attach.consumer, consumer);
                let (consumer, attempt) = (attach.consumer, attach.attempt);
                let attached = v1::Attached { shard: 1, consumer, term: 1, refused, attempt };
                self.tell(Down::Attached(attached));
            }
            Up::Detach(detach) => {
                self.consumers.remove(&detach.consumer);
                for queue in self.logs.values_mut().filter(|_| !detach.keep_leases) {
                    for offset in 0..queue.messages.len() {
                        if queue.messages[offset].out == Some(detach.consumer) {
                            queue.give_back(offset as u64);
                        }
                    }
                }
            }
            Up::Credit(credit) => {
                if let Some(consumer) = self.consumers.get_mut(&credit.consumer) {
                    consumer.credit = consumer.credit.max(credit.messages);
                }
            }
            Up::Get(get) => self.get(get),
            Up::LogStat(stat) => {
                self.uses += u64::from(stat.r#use);
                match self.counts(stat.log) {
                    Some(counts) => self.answer(stat.request, answer::Result::Counts(counts)),
                    None => self.refuse(stat.request, v1::Refused::UnknownLog),
                }
            }
            Up::EnsureLog(ensure) => {
                self.logs.entry(ensure.log).or_default();
                self.answer(ensure.request, answer::Result::Done(0));
            }
            Up::Purge(purge) => self.refuse(purge.request, v1::Refused::UnknownLog),
            Up::Explain(explain) => {
                self.answer(explain.request, answer::Result::Text("{\"reason\":\"no consumer\"}".into()));
            }
            transient => self.transient_item(transient),
        }
        self.deliver();
    }

    fn get(&mut self, get: v1::Get) {
        let mut deliveries = Vec::new();
        let messages = self.logs.get_mut(&get.log).map(|queue| &mut queue.messages).unwrap();
        let free = messages.iter_mut().enumerate().find(|(_, stored)| !stored.done && stored.out.is_none());
        if let Some((offset, stored)) = free {
            stored.out = Some(0);
            self.next_lease += 1;
            push_delivery(&mut deliveries, 0, get.log, offset as u64, self.next_lease, stored);
        }
        let ready = self.counts(get.log).unwrap().ready;
        let mut deliveries = deliveries.into_iter();
        let delivery = deliveries.next();
        self.tell(Down::Got(v1::Got { request: get.request, term: 1, delivery, ready }));
        for piece in deliveries {
            self.tell(Down::Deliver(v1::Deliver { shard: 1, term: 1, deliveries: vec![piece] }));
        }
    }

    fn transient_item(&mut self, item: Up) {
        match item {
            Up::TransientDeclare(declare) => {
                if let Some(found) = self.find_transient(&declare.name) {
                    return self.answer(declare.request, answer::Result::Transient(found));
                }
                self.next_transient += 1;
                let log = LogId::transient(ShardId(1), self.next_transient);
                let transient = Some((declare.name.clone(), declare.owner));
                self.logs.insert(log.0, Queue { transient, ..Queue::default() });
                let mut made = self.find_transient(&declare.name).unwrap();
                made.created = true;
                self.answer(declare.request, answer::Result::Transient(made));
                if std::mem::take(&mut self.depose) {
                    self.logs.remove(&log.0);
                    self.term += 1;
                    let term = 1 + self.term;
                    self.tell(Down::Leader(v1::Leader { shard: 1, term, node: 1, request: 0 }));
                }
            }
            Up::TransientFind(find) => {
                self.uses += u64::from(find.r#use);
                match self.find_transient(&find.name) {
                    Some(found) => self.answer(find.request, answer::Result::Transient(found)),
                    None => self.refuse(find.request, v1::Refused::UnknownLog),
                }
            }
            Up::TransientDelete(delete) => {
                self.logs.retain(|log, queue| match &queue.transient {
                    Some((_, owner)) => *log != delete.log && (delete.owner == 0 || *owner != delete.owner),
                    None => true,
                });
                self.answer(delete.request, answer::Result::Done(0));
            }
            Up::TransientAppend(append) => {
                let record = Record::parse(append.record).unwrap();
                record.verify().unwrap();
                let targets: Vec<LogId> = record.targets().collect();
                let parts = self.uploads.remove(&record.upload()).unwrap_or_default();
                assert_eq!(parts.iter().map(|part| part.len() as u64).sum::<u64>(), append.body_bytes);
                let gone = |log: &LogId| self.append(*log, &record, &parts).is_err();
                let missing = targets.iter().copied().filter(gone).map(|log| log.0).collect();
                let outcome = v1::TransientOutcome { request: append.request, missing, ..Default::default() };
                self.tell(Down::TransientOutcome(outcome));
            }
            Up::TransientPart(part) => {
                let parts = self.uploads.entry(part.upload).or_default();
                assert_eq!(parts.iter().map(|part| part.len() as u64).sum::<u64>(), part.at);
                parts.push(part.bytes);
            }
            Up::TransientSettle(settle) => {
                if let Some(queue) = self.logs.get_mut(&settle.log) {
                    for offset in settle.acked {
                        queue.messages[offset as usize].done = true;
                    }
                }
            }
            _ => {}
        }
    }
}

impl Queue {
    fn give_back(&mut self, offset: u64) {
        let stored = &mut self.messages[offset as usize];
        stored.out = None;
        stored.returns += 1;
    }
}

/// A body that came in parts goes in pieces.
fn push_delivery(
    out: &mut Vec<v1::Delivery>,
    consumer: u64,
    log: u64,
    offset: u64,
    lease: u64,
    stored: &Stored,
) {
    let delivery = v1::Delivery { consumer, log, offset, lease, ..v1::Delivery::default() };
    out.push(v1::Delivery {
        redelivered: stored.returns > 0,
        returns: stored.returns,
        record: stored.record.bytes().clone(),
        body_bytes: stored.parts.iter().map(|part| part.len() as u64).sum(),
        ..delivery.clone()
    });
    for piece in &stored.parts {
        out.push(v1::Delivery { piece: piece.clone(), ..delivery.clone() });
    }
}

#[tonic::async_trait]
impl v1::storage_server::Storage for Fake {
    type LinkStream = UnboundedReceiverStream<Result<v1::NodeFrame, Status>>;

    async fn link(
        &self,
        request: Request<Streaming<v1::GatewayFrame>>,
    ) -> Result<Response<Self::LinkStream>, Status> {
        let mut inbound = request.into_inner();
        let (sender, receiver) = mpsc::unbounded_channel();
        {
            let mut state = self.lock();
            state.links.push(sender);
            let welcome = v1::Welcome { cluster: "fake".into(), node: 1, version: longshore_proto::VERSION };
            state.tell(Down::Welcome(welcome));
            state.tell(Down::Leader(v1::Leader { shard: 1, term: 1, node: 1, request: 0 }));
            state.send();
        }
        let fake = self.clone();
        tokio::spawn(async move {
            while let Ok(Some(frame)) = inbound.message().await {
                let mut state = fake.lock();
                for item in frame.items {
                    state.item(item.item.unwrap());
                }
                state.send();
            }
        });
        Ok(Response::new(UnboundedReceiverStream::new(receiver)))
    }
}

impl State {
    /// What waits goes to the newest link.
    pub fn send(&mut self) {
        if self.held {
            return;
        }
        let Some(link) = self.links.last() else { return self.waiting.clear() };
        let mut waiting = self.waiting.drain(..).peekable();
        while let Some(item) = waiting.next() {
            let mut items = vec![item];
            // An answer and the end of its leader come in one frame.
            items.extend(waiting.next_if(|item| matches!(item.item, Some(Down::Leader(_)))));
            let _ = link.send(Ok(v1::NodeFrame { items }));
        }
    }
}
