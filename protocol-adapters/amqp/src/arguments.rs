//! Arguments of declare and consume: what is understood, what is refused because it would change behaviour and is
//! not supported, what passes unread; and when two declarations are equivalent. Pure rules; texts are RabbitMQ's.

use crate::exception::{Exception, Outcome};
use longshore_amqp_codec::method::{ExchangeDeclare, QueueDeclare};
use longshore_amqp_codec::table::TableRef;
use longshore_amqp_codec::{Table, Value};
use longshore_broker::{ExchangeInfo, ExchangeKind, QueueInfo, StartAt};
use longshore_wire::spec::{LogKind, LogSpec};

#[cfg(test)]
mod tests;

/// RabbitMQ's longest time to live and expiry: 100 years, in milliseconds.
const MS_MAX: i64 = 365 * 100 * 24 * 60 * 60 * 1000;

/// Arguments of RabbitMQ that would change what a queue does, and are not supported yet. Unknown arguments and those
/// that only tune RabbitMQ's own storage or placement pass.
const REFUSED: &[&str] = &[
    "x-max-length",
    "x-max-length-bytes",
    "x-overflow",
    "x-dead-letter-exchange",
    "x-dead-letter-routing-key",
    "x-dead-letter-strategy",
    "x-max-priority",
    "x-delivery-limit",
    "x-max-age",
    "x-consumer-timeout",
    "x-message-deduplication",
];

/// What a queue declaration asks for beside its flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QueueSettings {
    pub(crate) ttl_ms: Option<u64>,
    /// 0: never.
    pub(crate) expires_ms: u64,
    pub(crate) single_active: bool,
    /// `classic`, `quorum` or `stream`.
    pub(crate) kind: &'static str,
}

impl QueueSettings {
    /// The settings of the queue's log.
    pub(crate) fn spec(&self) -> LogSpec {
        let kind = if self.kind == "stream" { LogKind::Stream } else { LogKind::Queue };
        LogSpec { kind, ttl_ms: self.ttl_ms, ..LogSpec::QUEUE }
    }
}

fn invalid(argument: &str, thing: &str, why: &str) -> Exception {
    Exception::precondition(format!("invalid arg '{argument}' for {thing}: {why}"))
}

fn unacceptable(argument: &str, thing: &str, value: &Value<'_>) -> Exception {
    invalid(argument, thing, &format!("{{unacceptable_type,{}}}", value.type_name()))
}

fn integer(argument: &str, thing: &str, value: &Value<'_>) -> Outcome<i64> {
    let why = || invalid(argument, thing, &format!("\"expected integer, got {}\"", value.type_name()));
    value.as_int().ok_or_else(why)
}

fn milliseconds(arguments: &Table, name: &str, min: i64, thing: &str) -> Outcome<Option<u64>> {
    let Some(value) = arguments.get(name) else { return Ok(None) };
    let number = integer(name, thing, &value)?;
    let why = match number {
        n if n < 0 => format!("{{value_negative,{n}}}"),
        n if n < min => format!("{{value_zero,{n}}}"),
        n if n > MS_MAX => format!("{{value_too_large,{n}}}"),
        n => return Ok(u64::try_from(n).ok()),
    };
    Err(invalid(name, thing, &why))
}

fn queue_kind(arguments: &Table, thing: &str) -> Outcome<&'static str> {
    let Some(value) = arguments.get("x-queue-type") else { return Ok("classic") };
    let name = value.as_str().ok_or_else(|| unacceptable("x-queue-type", thing, &value))?;
    ["classic", "quorum", "stream"]
        .into_iter()
        .find(|known| *known == name)
        .ok_or_else(|| invalid("x-queue-type", thing, &format!("\"unsupported queue type '{name}'\"")))
}

/// Where and in what form RabbitMQ keeps a classic queue. It changes nothing here, but a value that RabbitMQ refuses
/// is a mistake that its sender should hear of.
fn check_storage(arguments: &Table, thing: &str) -> Outcome<()> {
    if let Some(value) = arguments.get("x-queue-mode") {
        match value {
            Value::Text(b"default" | b"lazy") => {}
            Value::Text(mode) => {
                let why = format!("\"unsupported queue mode '{}'\"", String::from_utf8_lossy(mode));
                return Err(invalid("x-queue-mode", thing, &why));
            }
            other => return Err(unacceptable("x-queue-mode", thing, &other)),
        }
    }
    if let Some(value) = arguments.get("x-queue-version") {
        let version = integer("x-queue-version", thing, &value)?;
        if !(1..=2).contains(&version) {
            let why = format!("\"unsupported queue version '{version}'\"");
            return Err(invalid("x-queue-version", thing, &why));
        }
    }
    Ok(())
}

/// Reads a queue declaration's arguments. `thing` names the queue in texts: `queue 'q' in vhost '/'`.
pub(crate) fn queue_settings(declare: &QueueDeclare, thing: &str) -> Outcome<QueueSettings> {
    let arguments = &declare.arguments;
    let kind = queue_kind(arguments, thing)?;
    for name in REFUSED {
        if arguments.get(name).is_some() {
            return Err(Exception::precondition(format!(
                "arg '{name}' for {thing} is not supported yet, and would change what the queue does"
            )));
        }
    }
    check_storage(arguments, thing)?;
    let single_active = match arguments.get("x-single-active-consumer") {
        None => false,
        Some(Value::Bool(on)) => on,
        Some(value) => return Err(unacceptable("x-single-active-consumer", thing, &value)),
    };
    let settings = QueueSettings {
        ttl_ms: milliseconds(arguments, "x-message-ttl", 0, thing)?,
        expires_ms: milliseconds(arguments, "x-expires", 1, thing)?.unwrap_or(0),
        single_active,
        kind,
    };
    check_kind(declare, &settings, thing)?;
    Ok(settings)
}

/// What replicated queue types demand of a declaration.
fn check_kind(declare: &QueueDeclare, settings: &QueueSettings, thing: &str) -> Outcome<()> {
    if settings.kind == "classic" {
        return Ok(());
    }
    let properties = [
        (!declare.durable, "non-durable"),
        (declare.exclusive, "exclusive-owner"),
        (declare.auto_delete, "auto-delete"),
    ];
    if let Some((_, property)) = properties.iter().find(|(set, _)| *set) {
        return Err(Exception::precondition(format!("invalid property '{property}' for {thing}")));
    }
    if settings.kind == "stream" {
        for name in ["x-message-ttl", "x-expires", "x-single-active-consumer"] {
            if declare.arguments.get(name).is_some() {
                let text = format!("invalid arg '{name}' for {thing} of queue type rabbit_stream_queue");
                return Err(Exception::precondition(text));
            }
        }
    }
    Ok(())
}

fn flag(argument: &str, thing: &str, received: bool, current: bool) -> Outcome<()> {
    if received == current {
        return Ok(());
    }
    Err(Exception::inequivalent(argument, thing, &format!("'{received}'"), &format!("'{current}'")))
}

fn text_of(value: &Value<'_>) -> String {
    match value {
        Value::Text(bytes) | Value::Binary(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::Bool(b) => b.to_string(),
        other => other.as_int().map_or_else(|| format!("{other:?}"), |n| n.to_string()),
    }
}

fn same(a: Option<Value<'_>>, b: Option<Value<'_>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) if a.as_int().is_some() => a.as_int() == b.as_int(),
        (a, b) => a == b,
    }
}

fn argument(name: &str, thing: &str, received: TableRef<'_>, current: TableRef<'_>) -> Outcome<()> {
    let (received, current) = (received.get(name), current.get(name));
    if same(received, current) {
        return Ok(());
    }
    let both = received.is_some() && current.is_some();
    let shown = |value: Option<Value<'_>>| match value {
        None => "none".to_owned(),
        Some(value) if both => format!("'{}'", text_of(&value)),
        Some(value) => format!("the value '{}' of type '{}'", text_of(&value), value.type_name()),
    };
    Err(Exception::inequivalent(name, thing, &shown(received), &shown(current)))
}

/// Whether a declaration fits the queue that exists: RabbitMQ's checks, in its order.
pub(crate) fn check_queue(
    declare: &QueueDeclare,
    settings: &QueueSettings,
    existing: &QueueInfo,
    vhost: &str,
    thing: &str,
) -> Outcome<()> {
    if !existing.accessible || existing.exclusive != declare.exclusive {
        return Err(Exception::locked(&existing.name, vhost));
    }
    // An exclusive queue is never stored as durable here, whatever was asked for; only its owner can ask again.
    if !existing.exclusive {
        flag("durable", thing, declare.durable, existing.durable)?;
    }
    flag("auto_delete", thing, declare.auto_delete, existing.auto_delete)?;
    if settings.kind != existing.kind {
        let (received, current) = (format!("'{}'", settings.kind), format!("'{}'", existing.kind));
        return Err(Exception::inequivalent("x-queue-type", thing, &received, &current));
    }
    let current = TableRef::new(&existing.arguments);
    for name in ["x-expires", "x-message-ttl", "x-single-active-consumer", "x-queue-mode"] {
        argument(name, thing, declare.arguments.view(), current)?;
    }
    Ok(())
}

/// Reads an exchange declaration. Errors: an unknown type (503, the connection), a malformed alternate exchange.
pub(crate) fn exchange(declare: &ExchangeDeclare, name: String, thing: &str) -> Outcome<ExchangeInfo> {
    let kind = declare.kind.as_str().and_then(ExchangeKind::parse).ok_or_else(|| {
        let text = format!("unknown exchange type '{}'", declare.kind.lossy());
        Exception::new(longshore_amqp_codec::ReplyCode::CommandInvalid, text)
    })?;
    let alternate = match declare.arguments.get("alternate-exchange") {
        None => None,
        Some(value) => {
            Some(value.as_str().ok_or_else(|| unacceptable("alternate-exchange", thing, &value))?.to_owned())
        }
    };
    Ok(ExchangeInfo {
        name,
        kind,
        durable: declare.durable,
        auto_delete: declare.auto_delete,
        internal: declare.internal,
        arguments: declare.arguments.detached().bytes().clone(),
        alternate,
    })
}

/// Whether a declaration fits the exchange that exists.
pub(crate) fn check_exchange(declare: &ExchangeInfo, existing: &ExchangeInfo, thing: &str) -> Outcome<()> {
    if declare.kind != existing.kind {
        let (received, current) =
            (format!("'{}'", declare.kind.as_str()), format!("'{}'", existing.kind.as_str()));
        return Err(Exception::inequivalent("type", thing, &received, &current));
    }
    flag("durable", thing, declare.durable, existing.durable)?;
    flag("auto_delete", thing, declare.auto_delete, existing.auto_delete)?;
    flag("internal", thing, declare.internal, existing.internal)?;
    argument(
        "alternate-exchange",
        thing,
        TableRef::new(&declare.arguments),
        TableRef::new(&existing.arguments),
    )
}

/// `x-priority` of a consumer; 0 without.
pub(crate) fn consumer_priority(arguments: &Table) -> Outcome<i32> {
    let Some(value) = arguments.get("x-priority") else { return Ok(0) };
    let number = integer("x-priority", "'basic.consume'", &value)?;
    i32::try_from(number).map_err(|_| invalid("x-priority", "'basic.consume'", "out of range"))
}

/// Where a stream's reader begins: `x-stream-offset`, `next` without it. `now_ms` is the wall clock, for intervals.
pub(crate) fn stream_start(arguments: &Table, now_ms: u64) -> Outcome<StartAt> {
    const NAME: &str = "x-stream-offset";
    if arguments.get("x-stream-filter").is_some() {
        return Err(Exception::precondition("arg 'x-stream-filter' of 'basic.consume' is not supported yet"));
    }
    let Some(value) = arguments.get(NAME) else { return Ok(StartAt::Next) };
    let wrong =
        || invalid(NAME, "'basic.consume'", "not an offset, a timestamp, an interval, first, last or next");
    match value {
        Value::Timestamp(seconds) => Ok(StartAt::TimeMs(seconds.saturating_mul(1_000))),
        Value::Text(b"first") => Ok(StartAt::First),
        Value::Text(b"last") => Ok(StartAt::Last),
        Value::Text(b"next") => Ok(StartAt::Next),
        Value::Text(text) => {
            let back = interval_ms(text).ok_or_else(wrong)?;
            Ok(StartAt::TimeMs(now_ms.saturating_sub(back)))
        }
        other => other.as_int().and_then(|n| u64::try_from(n).ok()).map(StartAt::Offset).ok_or_else(wrong),
    }
}

/// RabbitMQ's intervals: a number and one of `Y M D h m s`.
fn interval_ms(text: &[u8]) -> Option<u64> {
    let (unit, digits) = text.split_last()?;
    let seconds: u64 = match unit {
        b'Y' => 365 * 24 * 3_600,
        b'M' => 30 * 24 * 3_600,
        b'D' => 24 * 3_600,
        b'h' => 3_600,
        b'm' => 60,
        b's' => 1,
        _ => return None,
    };
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    number.checked_mul(seconds)?.checked_mul(1_000)
}
