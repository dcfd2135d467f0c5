//! The asynchronous side of declare, delete, consume and get. Each runs beside the session and ends in one [`Done`];
//! only the channel that asked waits.

use crate::arguments::{QueueSettings, check_exchange, check_queue};
use crate::backend::Operations;
use crate::consume::{Consuming, check_stream};
use crate::entities::clamp;
use crate::exception::{Exception, Outcome};
use crate::session::{Done, Facts};
use longshore_amqp_codec::ShortStr;
use longshore_amqp_codec::method::{QueueDeclare as DeclareMethod, QueueDeclareOk};
use longshore_broker::{
    Attach, BrokerError, ExchangeInfo, QueueDeclare, QueueInfo, QueueName, QueueState, StartAt,
};
use longshore_wire::spec::LogSpec;

/// Makes the broker's error the client's.
fn broker<T>(facts: &Facts, result: Result<T, BrokerError>) -> Outcome<T> {
    result.map_err(|error| Exception::from_broker(error, &facts.vhost))
}

fn declared(state: &QueueState, exclusive: bool, nowait: bool) -> Done {
    let answer = QueueDeclareOk {
        queue: ShortStr::cut(&state.name),
        message_count: clamp(state.ready),
        consumer_count: clamp(state.consumers),
    };
    Done::Declared { name: state.name.clone(), exclusive, answer: (!nowait).then(|| answer.into()) }
}

/// A passive declare.
pub(crate) async fn look_queue<C: Operations>(
    control: &C,
    facts: &Facts,
    name: &str,
    nowait: bool,
) -> Outcome<Done> {
    let state = broker(facts, control.stat(name).await)?;
    Ok(declared(&state, false, nowait))
}

/// Names of the queues behind direct reply-to begin so.
pub(crate) const REPLIES_PREFIX: &str = "amq.rabbitmq.reply-to.";

/// A passive declare of the queue behind somebody's direct reply-to: whether the requester is still there. Anybody may
/// ask.
pub(crate) async fn look_replies<C: Operations>(
    control: &C,
    facts: &Facts,
    name: &str,
    nowait: bool,
) -> Outcome<Done> {
    broker(facts, control.queue(name).await)?;
    let state = QueueState { name: name.to_owned(), ready: 0, consumers: 1, created: false };
    Ok(declared(&state, false, nowait))
}

/// A declare: an existing queue is compared by RabbitMQ's rules, a missing one is made.
pub(crate) async fn declare_queue<C: Operations>(
    control: &C,
    facts: &Facts,
    name: String,
    method: DeclareMethod,
    settings: QueueSettings,
) -> Outcome<Done> {
    let thing = format!("queue '{name}' in vhost '{}'", facts.vhost);
    if let Some(existing) = find_queue(control, facts, &name).await? {
        check_queue(&method, &settings, &existing, &facts.vhost, &thing)?;
        match control.stat(&name).await {
            // It went between the two looks: make it.
            Err(BrokerError::NotFound { .. }) => {}
            state => return Ok(declared(&broker(facts, state)?, method.exclusive, method.nowait)),
        }
    }
    let declare = QueueDeclare {
        name: if name.is_empty() { QueueName::Generated("amq.gen-") } else { QueueName::Given(name.clone()) },
        durable: method.durable && !method.exclusive,
        exclusive: method.exclusive,
        auto_delete: method.auto_delete,
        arguments: method.arguments.bytes().clone(),
        spec: settings.spec(),
        expires_ms: settings.expires_ms,
        single_active: settings.single_active,
        kind: settings.kind.to_owned(),
    };
    match control.declare_queue(declare).await {
        // Somebody else made one meanwhile: say what differs in RabbitMQ's words.
        Err(error @ BrokerError::Inequivalent { .. }) => {
            if let Some(existing) = find_queue(control, facts, &name).await? {
                check_queue(&method, &settings, &existing, &facts.vhost, &thing)?;
                let state = broker(facts, control.stat(&name).await)?;
                return Ok(declared(&state, method.exclusive, method.nowait));
            }
            Err(Exception::from_broker(error, &facts.vhost))
        }
        state => Ok(declared(&broker(facts, state)?, method.exclusive, method.nowait)),
    }
}

async fn find_queue<C: Operations>(control: &C, facts: &Facts, name: &str) -> Outcome<Option<QueueInfo>> {
    if name.is_empty() {
        return Ok(None);
    }
    match control.queue(name).await {
        Ok(info) => Ok(Some(info)),
        Err(BrokerError::NotFound { .. }) => Ok(None),
        Err(error) => Err(Exception::from_broker(error, &facts.vhost)),
    }
}

/// Deleting what is not there is no error.
pub(crate) async fn delete_queue<C: Operations>(
    control: &C,
    facts: &Facts,
    name: &str,
    if_unused: bool,
    if_empty: bool,
) -> Outcome<u64> {
    let thing = || format!("queue '{name}' in vhost '{}'", facts.vhost);
    match control.delete_queue(name, if_unused, if_empty).await {
        Ok(count) => Ok(count),
        Err(BrokerError::NotFound { .. }) => Ok(0),
        Err(BrokerError::InUse(_)) => Err(Exception::precondition(format!("{} in use", thing()))),
        Err(BrokerError::NotEmpty(_)) => Err(Exception::precondition(format!("{} not empty", thing()))),
        Err(error) => Err(Exception::from_broker(error, &facts.vhost)),
    }
}

/// Makes an exchange; one that came to be meanwhile is compared.
pub(crate) async fn declare_exchange<C: Operations>(
    control: &C,
    facts: &Facts,
    declare: ExchangeInfo,
    thing: &str,
) -> Outcome<()> {
    match control.declare_exchange(declare.clone()).await {
        Err(BrokerError::Inequivalent { .. }) => match control.exchange(&declare.name) {
            Some(existing) => check_exchange(&declare, &existing, thing),
            None => Err(Exception::precondition(format!("inequivalent arg 'type' for {thing}"))),
        },
        result => broker(facts, result),
    }
}

/// Deleting what is not there is no error.
pub(crate) async fn delete_exchange<C: Operations>(
    control: &C,
    facts: &Facts,
    name: &str,
    if_unused: bool,
) -> Outcome<()> {
    match control.delete_exchange(name, if_unused).await {
        Err(BrokerError::NotFound { .. }) => Ok(()),
        Err(BrokerError::InUse(_)) => {
            Err(Exception::precondition(format!("exchange '{name}' in vhost '{}' in use", facts.vhost)))
        }
        result => broker(facts, result),
    }
}

/// Looks at the queue, then attaches; the consumer gets its credit once the client knows of it.
pub(crate) async fn consume<C: Operations>(
    control: &C,
    facts: &Facts,
    mut attach: Attach,
    start_at: Outcome<StartAt>,
    mut consuming: Consuming,
) -> Outcome<Done> {
    let info = broker(facts, control.queue(&attach.queue).await)?;
    if !info.accessible {
        return Err(Exception::locked(&info.name, &facts.vhost));
    }
    if info.single_active && attach.exclusive {
        return Err(Exception::from_broker(BrokerError::ExclusiveUse(info.name), &facts.vhost));
    }
    if info.kind == "stream" {
        attach.start = Some(check_stream(&consuming.consumer, &attach.queue, &facts.vhost, start_at)?);
        consuming.consumer.stream = true;
    }
    broker(facts, control.attach(attach).await)?;
    Ok(Done::Consuming(Box::new(consuming)))
}

/// Makes the queue behind direct reply-to and consumes from it.
pub(crate) async fn consume_replies<C: Operations>(
    control: &C,
    facts: &Facts,
    mut consuming: Consuming,
) -> Outcome<Done> {
    let declare = QueueDeclare {
        name: QueueName::Generated(REPLIES_PREFIX),
        durable: false,
        exclusive: true,
        auto_delete: true,
        arguments: bytes::Bytes::new(),
        spec: LogSpec::QUEUE,
        expires_ms: 0,
        single_active: false,
        kind: "classic".to_owned(),
    };
    let queue = broker(facts, control.declare_queue(declare).await)?.name;
    let attach = Attach {
        tag: consuming.tag,
        queue: queue.clone(),
        exclusive: true,
        priority: 0,
        start: None,
        credit_messages: 0,
        credit_bytes: 0,
    };
    broker(facts, control.attach(attach).await)?;
    consuming.consumer.replies = true;
    consuming.reply_queue = Some(queue);
    Ok(Done::Consuming(Box::new(consuming)))
}

/// Drops what is ready.
pub(crate) async fn purge<C: Operations>(control: &C, facts: &Facts, name: &str) -> Outcome<u64> {
    if broker(facts, control.queue(name).await)?.kind == "stream" {
        let text =
            format!("queue.purge not supported by stream queues queue '{name}' in vhost '{}'", facts.vhost);
        return Err(Exception::not_implemented(text));
    }
    broker(facts, control.purge(name).await)
}

/// Takes one message.
pub(crate) async fn get<C: Operations>(
    control: &C,
    facts: &Facts,
    queue: &str,
    no_ack: bool,
) -> Outcome<Done> {
    let info = broker(facts, control.queue(queue).await)?;
    if !info.accessible {
        return Err(Exception::locked(&info.name, &facts.vhost));
    }
    if info.kind == "stream" {
        let text =
            format!("basic.get not supported by stream queues queue '{queue}' in vhost '{}'", facts.vhost);
        return Err(Exception::not_implemented(text));
    }
    let got = broker(facts, control.get(queue).await)?;
    Ok(Done::Got { got: got.map(Box::new), no_ack })
}
