//! Queues, exchanges and bindings: names, permissions and arguments are checked here; what needs storage follows in
//! `operations`. The permission of each operation is RabbitMQ's table.

use crate::arguments;
use crate::backend::{Link, Operations};
use crate::exception::{Exception, Outcome};
use crate::operations;
use crate::operations::REPLIES_PREFIX;
use crate::publish::DIRECT_REPLY_TO;
use crate::session::{Done, Session};
use longshore_amqp_codec::method::{
    ExchangeBind, ExchangeBindOk, ExchangeDeclare, ExchangeDeclareOk, ExchangeDelete, ExchangeDeleteOk,
    ExchangeUnbind, ExchangeUnbindOk, QueueBind, QueueBindOk, QueueDeclare, QueueDeclareOk, QueueDelete,
    QueueDeleteOk, QueuePurge, QueuePurgeOk, QueueUnbind, QueueUnbindOk,
};
use longshore_amqp_codec::{Method, ReplyCode, ShortStr, Table, Value};
use longshore_broker::{BindingInfo, Destination, ExchangeKind, Right};

const RESERVED_PREFIX: &str = "amq.";
/// What permissions are asked about before the broker has made a name up.
const GENERATED_SAMPLE: &str = "amq.gen-AAAAAAAAAAAAAAAAAAAAAA";

/// Whether bindings are made or removed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    Bind,
    Unbind,
}

impl<L: Link> Session<L> {
    /// A declared name: RabbitMQ drops line ends that scripts leave in it.
    fn declared_name(&self, what: &'static str, name: &ShortStr) -> Outcome<String> {
        let text =
            name.as_str().ok_or_else(|| Exception::precondition(format!("{what} name is not UTF-8")))?;
        Ok(text.replace(['\r', '\n'], ""))
    }

    pub(crate) fn queue_declare(&mut self, number: u16, mut method: QueueDeclare) -> Outcome<()> {
        let name = self.declared_name("queue", &method.queue)?;
        if name == DIRECT_REPLY_TO {
            if !method.nowait {
                self.say(number, QueueDeclareOk { queue: method.queue, message_count: 0, consumer_count: 1 });
            }
            return Ok(());
        }
        let (facts, control) = (self.facts.clone(), self.control.clone());
        if method.passive {
            let nowait = method.nowait;
            if name.starts_with(REPLIES_PREFIX) {
                return self.start(number, async move {
                    operations::look_replies(&control, &facts, &name, nowait).await
                });
            }
            return self
                .start(number, async move { operations::look_queue(&control, &facts, &name, nowait).await });
        }
        if name.starts_with(RESERVED_PREFIX) {
            return Err(Exception::reserved_name("queue", &name));
        }
        self.permit(Right::Configure, "queue", if name.is_empty() { GENERATED_SAMPLE } else { &name })?;
        let thing = format!("queue '{name}' in vhost '{}'", self.facts.vhost);
        let settings = arguments::queue_settings(&method, &thing)?;
        method.arguments = method.arguments.detached();
        method.queue = ShortStr::default();
        self.start(number, async move {
            operations::declare_queue(&control, &facts, name, method, settings).await
        })
    }

    pub(crate) fn queue_delete(&mut self, number: u16, method: &QueueDelete) -> Outcome<()> {
        let name = self.queue_name(number, &method.queue)?;
        self.permit(Right::Configure, "queue", &name)?;
        let (facts, control) = (self.facts.clone(), self.control.clone());
        let QueueDelete { if_unused, if_empty, nowait, .. } = *method;
        self.start(number, async move {
            let count = operations::delete_queue(&control, &facts, &name, if_unused, if_empty).await?;
            let answer = (!nowait).then(|| QueueDeleteOk { message_count: clamp(count) }.into());
            Ok(Done::Deleted { name, answer })
        })
    }

    pub(crate) fn queue_purge(&mut self, number: u16, method: &QueuePurge) -> Outcome<()> {
        let name = self.queue_name(number, &method.queue)?;
        self.permit(Right::Read, "queue", &name)?;
        let (facts, control) = (self.facts.clone(), self.control.clone());
        let nowait = method.nowait;
        self.start(number, async move {
            let purged = operations::purge(&control, &facts, &name).await?;
            Ok(Done::Answer((!nowait).then(|| QueuePurgeOk { message_count: clamp(purged) }.into())))
        })
    }

    pub(crate) fn queue_bind(&mut self, number: u16, method: QueueBind) -> Outcome<()> {
        let key = self.binding_key(number, &method.queue, method.routing_key)?;
        let queue = self.queue_name(number, &method.queue)?;
        let answer = (!method.nowait).then(|| QueueBindOk {}.into());
        let destination = Destination::Queue(queue);
        self.change_binding(
            number,
            Change::Bind,
            &method.exchange,
            destination,
            key,
            &method.arguments,
            answer,
        )
    }

    pub(crate) fn queue_unbind(&mut self, number: u16, method: QueueUnbind) -> Outcome<()> {
        let key = self.binding_key(number, &method.queue, method.routing_key)?;
        let queue = self.queue_name(number, &method.queue)?;
        let answer = Some(QueueUnbindOk {}.into());
        let destination = Destination::Queue(queue);
        self.change_binding(
            number,
            Change::Unbind,
            &method.exchange,
            destination,
            key,
            &method.arguments,
            answer,
        )
    }

    pub(crate) fn exchange_bind(&mut self, number: u16, method: ExchangeBind) -> Outcome<()> {
        let destination = Destination::Exchange(self.name("exchange", &method.destination)?);
        let answer = (!method.nowait).then(|| ExchangeBindOk {}.into());
        let (source, key) = (method.source, method.routing_key);
        self.change_binding(number, Change::Bind, &source, destination, key, &method.arguments, answer)
    }

    pub(crate) fn exchange_unbind(&mut self, number: u16, method: ExchangeUnbind) -> Outcome<()> {
        let destination = Destination::Exchange(self.name("exchange", &method.destination)?);
        let answer = (!method.nowait).then(|| ExchangeUnbindOk {}.into());
        let (source, key) = (method.source, method.routing_key);
        self.change_binding(number, Change::Unbind, &source, destination, key, &method.arguments, answer)
    }

    /// With neither queue nor key given, both mean the queue declared last.
    fn binding_key(&mut self, number: u16, queue: &ShortStr, key: ShortStr) -> Outcome<ShortStr> {
        if queue.is_empty() && key.is_empty() {
            return Ok(ShortStr::cut(&self.queue_name(number, queue)?));
        }
        Ok(key)
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of four methods that differ in nothing else")]
    fn change_binding(
        &mut self,
        number: u16,
        change: Change,
        source: &ShortStr,
        destination: Destination,
        key: ShortStr,
        arguments: &Table,
        answer: Option<Method>,
    ) -> Outcome<()> {
        let source = self.name("exchange", source)?;
        let (what, name) = match &destination {
            Destination::Queue(name) => ("queue", name),
            Destination::Exchange(name) => ("exchange", name),
        };
        if source.is_empty() || (what == "exchange" && name.is_empty()) {
            return Err(Exception::default_exchange());
        }
        self.permit(Right::Write, what, name)?;
        self.permit(Right::Read, "exchange", &source)?;
        if change == Change::Bind {
            self.check_match(&source, arguments)?;
        }
        let binding = BindingInfo {
            source,
            destination,
            routing_key: bytes::Bytes::copy_from_slice(&key),
            arguments: arguments.detached().bytes().clone(),
        };
        let (facts, control) = (self.facts.clone(), self.control.clone());
        self.start(number, async move {
            let result = match change {
                Change::Bind => control.bind(binding).await,
                Change::Unbind => control.unbind(binding).await,
            };
            result.map_err(|error| Exception::from_broker(error, &facts.vhost))?;
            Ok(Done::Answer(answer))
        })
    }

    /// `x-match` of a binding to a headers exchange.
    fn check_match(&self, source: &str, arguments: &Table) -> Outcome<()> {
        let Some(value) = arguments.get("x-match") else { return Ok(()) };
        let headers =
            self.control.exchange(source).is_some_and(|exchange| exchange.kind == ExchangeKind::Headers);
        if !headers || matches!(value.as_str(), Some("all" | "any" | "all-with-x" | "any-with-x")) {
            return Ok(());
        }
        let text = match value {
            Value::Text(mode) => format!(
                "Invalid x-match field value '{}'; expected all, any, all-with-x, or any-with-x",
                String::from_utf8_lossy(mode)
            ),
            other => format!("Invalid x-match field type {}; expected longstr", other.type_name()),
        };
        Err(Exception::precondition(text))
    }

    pub(crate) fn exchange_declare(&mut self, number: u16, method: ExchangeDeclare) -> Outcome<()> {
        let name = self.declared_name("exchange", &method.exchange)?;
        let answer: Option<Method> = (!method.nowait).then(|| ExchangeDeclareOk {}.into());
        let existing = self.control.exchange(&name);
        if method.passive {
            if name.is_empty() {
                return Err(Exception::default_exchange());
            }
            if existing.is_none() {
                return Err(Exception::not_found("exchange", &name, &self.facts.vhost));
            }
            return self.answer(number, answer);
        }
        if name.is_empty() {
            return Err(Exception::default_exchange());
        }
        let thing = format!("exchange '{name}' in vhost '{}'", self.facts.vhost);
        let declare = arguments::exchange(&method, name, &thing)?;
        self.permit(Right::Configure, "exchange", &declare.name)?;
        if let Some(existing) = existing {
            arguments::check_exchange(&declare, &existing, &thing)?;
            return self.answer(number, answer);
        }
        if declare.name.starts_with(RESERVED_PREFIX) {
            return Err(Exception::reserved_name("exchange", &declare.name));
        }
        if let Some(alternate) = &declare.alternate {
            self.permit(Right::Read, "exchange", &declare.name)?;
            self.permit(Right::Write, "exchange", alternate)?;
        }
        let (facts, control) = (self.facts.clone(), self.control.clone());
        self.start(number, async move {
            operations::declare_exchange(&control, &facts, declare, &thing).await?;
            Ok(Done::Answer(answer))
        })
    }

    fn answer(&mut self, number: u16, answer: Option<Method>) -> Outcome<()> {
        if let Some(method) = answer {
            self.say(number, method);
        }
        Ok(())
    }

    pub(crate) fn exchange_delete(&mut self, number: u16, method: &ExchangeDelete) -> Outcome<()> {
        let name = self.name("exchange", &method.exchange)?;
        if name.is_empty() {
            return Err(Exception::default_exchange());
        }
        if name.starts_with(RESERVED_PREFIX) {
            let text =
                format!("deletion of system exchange '{name}' in vhost '{}' not allowed", self.facts.vhost);
            return Err(Exception::new(ReplyCode::AccessRefused, text));
        }
        self.permit(Right::Configure, "exchange", &name)?;
        let (facts, control) = (self.facts.clone(), self.control.clone());
        let ExchangeDelete { if_unused, nowait, .. } = *method;
        self.start(number, async move {
            operations::delete_exchange(&control, &facts, &name, if_unused).await?;
            Ok(Done::Answer((!nowait).then(|| ExchangeDeleteOk {}.into())))
        })
    }
}

/// A count as the protocol says it.
pub(crate) fn clamp(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
