//! The table of assertions by lapin: `client-suite-rust URI`. Each test is named as in ../../table.txt.

mod scene;

use lapin::options::*;
use lapin::types::{AMQPValue, ByteArray, DecimalValue, FieldArray, FieldTable, ShortString};
use lapin::{BasicProperties, ExchangeKind};
use scene::*;
use std::process::ExitCode;
use std::time::Duration;

/// A test that takes longer has failed.
const TEST_LIMIT: Duration = Duration::from_secs(60);
const REPLY_TO: &str = "amq.rabbitmq.reply-to";

async fn declare_server_named(scene: &mut Scene, _: &mut Scene) -> Outcome {
    let queue = scene.private_queue().await?;
    ensure(queue.as_str().starts_with("amq.gen-"), queue.as_str())?;
    scene.send(&queue, &["x"]).await?;
    scene.holds(&queue, &["x"]).await
}

async fn declare_equivalent(scene: &mut Scene, _: &mut Scene) -> Outcome {
    let queue = scene.queue().await?;
    scene.send(&queue, &["1", "2"]).await?;
    let again =
        scene.channel.queue_declare(queue, QueueDeclareOptions::durable(), FieldTable::default()).await?;
    equal(again.message_count(), 2)
}

async fn declare_inequivalent(scene: &mut Scene, _: &mut Scene) -> Outcome {
    let queue = scene.queue().await?;
    let declared =
        scene.channel.queue_declare(queue, QueueDeclareOptions::default(), FieldTable::default()).await;
    let text = refused(406, declared)?;
    ensure(text.contains("inequivalent arg"), text)
}

async fn declare_passive_missing(scene: &mut Scene, _: &mut Scene) -> Outcome {
    let text = refused(404, scene.passive(&"rs-missing".into()).await)?;
    ensure(text.contains("no queue 'rs-missing'"), text)
}

async fn declare_reserved_name(scene: &mut Scene, _: &mut Scene) -> Outcome {
    let name = "amq.something".into();
    refused(
        403,
        scene.channel.queue_declare(name, QueueDeclareOptions::durable(), FieldTable::default()).await,
    )
    .map(drop)
}

async fn exclusive_locked(scene: &mut Scene, other: &mut Scene) -> Outcome {
    let queue = scene.private_queue().await?;
    refused(405, other.passive(&queue).await).map(drop)
}

async fn exclusive_gone(scene: &mut Scene, other: &mut Scene) -> Outcome {
    let queue = scene.private_queue().await?;
    scene.connection.close(200, "done".into()).await?;
    refused(404, other.passive(&queue).await).map(drop)
}

async fn queue_type_quorum(scene: &mut Scene, _: &mut Scene) -> Outcome {
    let queue = scene.queue_with(table([("x-queue-type", text("quorum"))])).await?;
    scene.send(&queue, &["x"]).await?;
    scene.holds(&queue, &["x"]).await
}

async fn exchange_inequivalent(scene: &mut Scene, _: &mut Scene) -> Outcome {
    let exchange = scene.exchange(ExchangeKind::Direct).await?;
    let options = ExchangeDeclareOptions::default();
    refused(
        406,
        scene.channel.exchange_declare(exchange, ExchangeKind::Fanout, options, FieldTable::default()).await,
    )
    .map(drop)
}

async fn bind_direct(scene: &mut Scene, _: &mut Scene) -> Outcome {
    let (exchange, queue) = (scene.exchange(ExchangeKind::Direct).await?, scene.queue().await?);
    scene.bind(&queue, &exchange, "yes", FieldTable::default()).await?;
    scene.send_to(&exchange, "yes", &["1"]).await?;
    scene.send_to(&exchange, "no", &["2"]).await?;
    scene.send_to(&exchange, "yes", &["3"]).await?;
    scene.holds(&queue, &["1", "3"]).await
}

async fn bind_topic(scene: &mut Scene, _: &mut Scene) -> Outcome {
    let exchange = scene.exchange(ExchangeKind::Topic).await?;
    let (star, hash) = (scene.queue().await?, scene.queue().await?);
    scene.bind(&star, &exchange, "a.*.c", FieldTable::default()).await?;
    scene.bind(&hash, &exchange, "a.#", FieldTable::default()).await?;
    for key in ["a.b.c", "a", "a.b.b.c", "b.a"] {
        scene.send_to(&exchange, key, &[key]).await?;
    }
    scene.holds(&star, &["a.b.c"]).await?;
    scene.holds(&hash, &["a.b.c", "a", "a.b.b.c"]).await
}

async fn bind_fanout(scene: &mut Scene, _: &mut Scene) -> Outcome {
    let exchange = scene.exchange(ExchangeKind::Fanout).await?;
    let queues = [scene.queue().await?, scene.queue().await?, scene.queue().await?];
    for queue in &queues {
        scene.bind(queue, &exchange, "", FieldTable::default()).await?;
    }
    scene.send_to(&exchange, "any", &["x"]).await?;
    for queue in &queues {
        scene.holds(queue, &["x"]).await?;
    }
    Ok(())
}

async fn bind_headers(scene: &mut Scene, _: &mut Scene) -> Outcome {
    let exchange = scene.exchange(ExchangeKind::Headers).await?;
    let (all, any) = (scene.queue().await?, scene.queue().await?);
    let both = [("a", AMQPValue::LongInt(1)), ("b", text("two"))];
    for (queue, mode) in [(&all, "all"), (&any, "any")] {
        let [a, b] = both.clone();
        scene.bind(queue, &exchange, "", table([("x-match", text(mode)), a, b])).await?;
    }
    let headers = |fields| BasicProperties::default().with_headers(fields);
    scene.publish(&exchange, "", "both", headers(table(both))).await?;
    scene.publish(&exchange, "", "one", headers(table([("a", AMQPValue::LongInt(1))]))).await?;
    scene.publish(&exchange, "", "none", headers(table([("c", AMQPValue::LongInt(1))]))).await?;
    scene.holds(&all, &["both"]).await?;
    scene.holds(&any, &["both", "one"]).await
}

async fn bind_exchange(scene: &mut Scene, _: &mut Scene) -> Outcome {
    let (outer, inner) =
        (scene.exchange(ExchangeKind::Topic).await?, scene.exchange(ExchangeKind::Fanout).await?);
    let queue = scene.queue().await?;
    let options = ExchangeBindOptions::default();
    scene
        .channel
        .exchange_bind(inner.clone(), outer.clone(), "k.#".into(), options, FieldTable::default())
        .await?;
    scene.bind(&queue, &inner, "", FieldTable::default()).await?;
    scene.send_to(&outer, "k.1", &["1"]).await?;
    scene.send_to(&outer, "other", &["2"]).await?;
    scene.holds(&queue, &["1"]).await
}

async fn unbind_stops(scene: &mut Scene, _: &mut Scene) -> Outcome {
    let (exchange, queue) = (scene.exchange(ExchangeKind::Direct).await?, scene.queue().await?);
    scene.bind(&queue, &exchange, "k", FieldTable::default()).await?;
    scene.send_to(&exchange, "k", &["1"]).await?;
    scene.channel.queue_unbind(queue.clone(), exchange.clone(), "k".into(), FieldTable::default()).await?;
    scene.send_to(&exchange, "k", &["2"]).await?;
    scene.holds(&queue, &["1"]).await
}

async fn alternate_exchange(scene: &mut Scene, _: &mut Scene) -> Outcome {
    let (alternate, queue) = (scene.exchange(ExchangeKind::Fanout).await?, scene.queue().await?);
    let arguments = table([("alternate-exchange", text(alternate.as_str()))]);
    let exchange = scene.exchange_with(ExchangeKind::Direct, arguments).await?;
    scene.bind(&queue, &alternate, "", FieldTable::default()).await?;
    scene.send_to(&exchange, "nowhere", &["x"]).await?;
    scene.holds(&queue, &["x"]).await
}

async fn publish_confirmed(scene: &mut Scene, _: &mut Scene) -> Outcome {
    let (queue, bodies) = (scene.queue().await?, numbers(1000));
    scene.send(&queue, &bodies).await?;
    equal(scene.passive(&queue).await?, 1000)?;
    scene.holds(&queue, &bodies).await
}

/// The client hands a returned message over with its confirm, and only if it came before the confirm.
async fn publish_returned(scene: &mut Scene, _: &mut Scene) -> Outcome {
    let options = BasicPublishOptions { mandatory: true, ..Default::default() };
    let confirm = scene
        .channel
        .basic_publish("".into(), "rs-missing".into(), options, b"x", persistent())
        .await?
        .await?;
    ensure(confirm.is_ack(), "was refused")?;
    let returned = confirm.take_message().ok_or("was not returned before its confirm")?;
    equal(returned.reply_code, 312)?;
    equal(returned.delivery.data.as_slice(), b"x")
}

async fn publish_missing_exchange(scene: &mut Scene, _: &mut Scene) -> Outcome {
    let options = BasicPublishOptions::default();
    let confirm =
        scene.channel.basic_publish("rs-missing".into(), "k".into(), options, b"x", persistent()).await?;
    refused(404, confirm.await).map(drop)
}

async fn consume_ack(scene: &mut Scene, _: &mut Scene) -> Outcome {
    let (queue, bodies) = (scene.queue().await?, numbers(100));
    scene.send(&queue, &bodies).await?;
    let got = take(&mut scene.consume(&queue, false).await?, 100).await?;
    equal(bodies_of(&got), bodies)?;
    for message in &got {
        message.ack(BasicAckOptions::default()).await?;
    }
    scene.reopen().await?;
    equal(scene.passive(&queue).await?, 0)
}

async fn consume_no_ack(scene: &mut Scene, _: &mut Scene) -> Outcome {
    let queue = scene.queue().await?;
    scene.send(&queue, &numbers(20)).await?;
    take(&mut scene.consume(&queue, true).await?, 20).await?;
    scene.reopen().await?;
    scene.until_count(&queue, 0).await
}

async fn prefetch_limits(scene: &mut Scene, _: &mut Scene) -> Outcome {
    let queue = scene.queue().await?;
    scene.send(&queue, &numbers(30)).await?;
    scene.channel.basic_qos(10, BasicQosOptions::default()).await?;
    let mut consumer = scene.consume(&queue, false).await?;
    let got = take(&mut consumer, 10).await?;
    silent(&mut consumer).await?;
    scene.channel.basic_ack(got[0].delivery_tag, BasicAckOptions::default()).await?;
    next(&mut consumer).await?;
    silent(&mut consumer).await
}

async fn unacked_come_back(scene: &mut Scene, _: &mut Scene) -> Outcome {
    let queue = scene.queue().await?;
    scene.send(&queue, &["1", "2", "3"]).await?;
    let first = scene.connection.create_channel().await?;
    let got = take(&mut consume(&first, &queue, BasicConsumeOptions::default()).await?, 3).await?;
    ensure(!got.iter().any(|message| message.redelivered), "marked redelivered at first")?;
    first.close(200, "done".into()).await?;
    for wanted in ["1", "2", "3"] {
        let message = scene.get(&queue, true).await?;
        equal((body(&message), message.delivery.redelivered), (wanted.to_owned(), true))?;
    }
    Ok(())
}

async fn reject_requeue(scene: &mut Scene, _: &mut Scene) -> Outcome {
    let queue = scene.queue().await?;
    scene.send(&queue, &["x"]).await?;
    scene.get(&queue, false).await?.reject(BasicRejectOptions { requeue: true }).await?;
    let message = scene.get(&queue, true).await?;
    equal((body(&message), message.delivery.redelivered), ("x".to_owned(), true))
}

/// The delivery tags of a queue's next three messages, which stay unacked.
async fn take_three(scene: &Scene, queue: &ShortString) -> Outcome<[u64; 3]> {
    let mut tags = [0; 3];
    for tag in &mut tags {
        *tag = scene.get(queue, false).await?.delivery.delivery_tag;
    }
    Ok(tags)
}

async fn nack_multiple(scene: &mut Scene, _: &mut Scene) -> Outcome {
    let queue = scene.queue().await?;
    scene.send(&queue, &["1", "2", "3"]).await?;
    let taken = take_three(scene, &queue).await?;
    scene.channel.basic_nack(taken[2], BasicNackOptions { multiple: true, requeue: true }).await?;
    scene.holds(&queue, &["1", "2", "3"]).await
}

async fn ack_multiple(scene: &mut Scene, _: &mut Scene) -> Outcome {
    let queue = scene.queue().await?;
    scene.send(&queue, &["1", "2", "3"]).await?;
    let taken = take_three(scene, &queue).await?;
    scene.channel.basic_ack(taken[1], BasicAckOptions { multiple: true }).await?;
    scene.reopen().await?;
    scene.holds(&queue, &["3"]).await
}

/// The client tells a channel's consumers what the channel was closed with.
async fn ack_unknown_tag(scene: &mut Scene, _: &mut Scene) -> Outcome {
    let queue = scene.queue().await?;
    let mut consumer = scene.consume(&queue, false).await?;
    scene.channel.basic_ack(99, BasicAckOptions::default()).await?;
    let end = futures_lite::StreamExt::next(&mut consumer);
    let result = tokio::time::timeout(PATIENCE, end).await?.ok_or("the consumer ended without an error")?;
    let text = refused(406, result)?;
    ensure(text.contains("unknown delivery tag 99"), text)
}

async fn get_message(scene: &mut Scene, _: &mut Scene) -> Outcome {
    let queue = scene.queue().await?;
    scene.send(&queue, &["1", "2", "3"]).await?;
    let message = scene.get(&queue, true).await?;
    equal((body(&message), message.message_count), ("1".to_owned(), 2))
}

async fn get_empty(scene: &mut Scene, _: &mut Scene) -> Outcome {
    let queue = scene.queue().await?;
    scene.empty(&queue).await
}

async fn purge_counts(scene: &mut Scene, _: &mut Scene) -> Outcome {
    let queue = scene.queue().await?;
    scene.send(&queue, &numbers(7)).await?;
    equal(scene.channel.queue_purge(queue.clone(), QueuePurgeOptions::default()).await?, 7)?;
    scene.empty(&queue).await
}

async fn delete_if_unused(scene: &mut Scene, other: &mut Scene) -> Outcome {
    let queue = scene.queue().await?;
    let _consumer = scene.consume(&queue, false).await?;
    let options = QueueDeleteOptions { if_unused: true, ..Default::default() };
    refused(406, other.channel.queue_delete(queue, options).await).map(drop)
}

async fn delete_if_empty(scene: &mut Scene, _: &mut Scene) -> Outcome {
    let queue = scene.queue().await?;
    scene.send(&queue, &["x"]).await?;
    let options = QueueDeleteOptions { if_empty: true, ..Default::default() };
    refused(406, scene.channel.queue_delete(queue, options).await).map(drop)
}

async fn cancel_stops(scene: &mut Scene, _: &mut Scene) -> Outcome {
    let queue = scene.queue().await?;
    let mut consumer = scene.consume(&queue, true).await?;
    scene.send(&queue, &["1"]).await?;
    next(&mut consumer).await?;
    scene.channel.basic_cancel(consumer.tag(), BasicCancelOptions::default()).await?;
    scene.send(&queue, &["2"]).await?;
    silent(&mut consumer).await?;
    scene.holds(&queue, &["2"]).await
}

async fn cancel_notification(scene: &mut Scene, _: &mut Scene) -> Outcome {
    let queue = scene.queue().await?;
    let mut consumer = scene.consume(&queue, false).await?;
    let deleting = scene.connection.create_channel().await?;
    deleting.queue_delete(queue, QueueDeleteOptions::default()).await?;
    let end = tokio::time::timeout(PATIENCE, futures_lite::StreamExt::next(&mut consumer)).await?;
    ensure(end.is_none(), format!("{end:?} instead of a cancellation"))
}

async fn exclusive_consumer(scene: &mut Scene, other: &mut Scene) -> Outcome {
    let queue = scene.queue().await?;
    let options = BasicConsumeOptions { exclusive: true, ..Default::default() };
    let _consumer = consume(&scene.channel, &queue, options).await?;
    refused(403, other.consume(&queue, false).await).map(drop)
}

async fn properties_kept(scene: &mut Scene, _: &mut Scene) -> Outcome {
    let sent = BasicProperties::default()
        .with_content_type("text/plain".into())
        .with_content_encoding("utf-8".into())
        .with_delivery_mode(2)
        .with_priority(5)
        .with_correlation_id("c-1".into())
        .with_reply_to("answers".into())
        .with_expiration("600000".into())
        .with_message_id("m-1".into())
        .with_timestamp(1234567890)
        .with_type("greeting".into())
        .with_user_id("guest".into())
        .with_app_id("suite".into())
        .with_cluster_id("k".into());
    let queue = scene.queue().await?;
    scene.publish(&"".into(), queue.as_str(), "x", sent.clone()).await?;
    equal(&scene.get(&queue, true).await?.delivery.properties, &sent)
}

async fn headers_kept(scene: &mut Scene, _: &mut Scene) -> Outcome {
    let inner = AMQPValue::FieldTable(table([("three", AMQPValue::LongInt(3))]));
    let nested = AMQPValue::FieldTable(table([("deep", text("value"))]));
    let sent = table([
        ("text", text("grüße")),
        ("number", AMQPValue::LongLongInt(1 << 40)),
        ("small", AMQPValue::LongInt(-5)),
        ("short", AMQPValue::ShortInt(-300)),
        ("true", AMQPValue::Boolean(true)),
        ("nothing", AMQPValue::Void),
        ("double", AMQPValue::Double(1.25)),
        ("float", AMQPValue::Float(0.5)),
        ("array", AMQPValue::FieldArray(FieldArray::from(vec![AMQPValue::LongInt(1), text("two"), inner]))),
        ("table", AMQPValue::FieldTable(table([("nested", nested)]))),
        ("decimal", AMQPValue::DecimalValue(DecimalValue { scale: 2, value: 125 })),
        ("time", AMQPValue::Timestamp(1577934245)),
        ("bytes", AMQPValue::ByteArray(ByteArray::from(b"plain".as_slice()))),
    ]);
    let queue = scene.queue().await?;
    scene
        .publish(&"".into(), queue.as_str(), "x", BasicProperties::default().with_headers(sent.clone()))
        .await?;
    equal(scene.get(&queue, true).await?.delivery.properties.headers(), &Some(sent))
}

async fn empty_body(scene: &mut Scene, _: &mut Scene) -> Outcome {
    let queue = scene.queue().await?;
    scene.send(&queue, &[""]).await?;
    scene.holds(&queue, &[""]).await
}

async fn large_body(scene: &mut Scene, _: &mut Scene) -> Outcome {
    let body = "0123456789abcdef".repeat(5 << 16);
    let queue = scene.queue().await?;
    scene.send(&queue, &[body.as_str(), "after"]).await?;
    ensure(scene.get(&queue, true).await?.delivery.data == body.as_bytes(), "the body has changed")?;
    scene.holds(&queue, &["after"]).await
}

async fn expiration(scene: &mut Scene, _: &mut Scene) -> Outcome {
    let queue = scene.queue().await?;
    scene
        .publish(&"".into(), queue.as_str(), "x", BasicProperties::default().with_expiration("100".into()))
        .await?;
    scene.until_count(&queue, 0).await?;
    scene.empty(&queue).await
}

async fn message_ttl(scene: &mut Scene, _: &mut Scene) -> Outcome {
    let queue = scene.queue_with(table([("x-message-ttl", AMQPValue::LongInt(100))])).await?;
    scene.send(&queue, &["x"]).await?;
    scene.until_count(&queue, 0).await?;
    scene.empty(&queue).await
}

async fn channel_error_isolated(scene: &mut Scene, _: &mut Scene) -> Outcome {
    let (queue, broken) = (scene.queue().await?, scene.connection.create_channel().await?);
    let options = QueueDeclareOptions::default().passive();
    refused(404, broken.queue_declare("rs-missing".into(), options, FieldTable::default()).await)?;
    scene.send(&queue, &["x"]).await?;
    scene.holds(&queue, &["x"]).await
}

async fn transaction(scene: &mut Scene, _: &mut Scene) -> Outcome {
    let (queue, channel) = (scene.queue().await?, scene.connection.create_channel().await?);
    let publish = |body| {
        let options = BasicPublishOptions::default();
        channel.basic_publish("".into(), queue.clone(), options, body, persistent())
    };
    channel.tx_select().await?;
    publish(b"kept".as_slice()).await?;
    scene.empty(&queue).await?;
    channel.tx_commit().await?;
    scene.holds(&queue, &["kept"]).await?;
    publish(b"dropped".as_slice()).await?;
    channel.tx_rollback().await?;
    channel.tx_commit().await?;
    scene.empty(&queue).await
}

async fn direct_reply_to(scene: &mut Scene, server: &mut Scene) -> Outcome {
    let requests = server.queue().await?;
    let mut answers = scene.consume(&REPLY_TO.into(), true).await?;
    let request = BasicProperties::default().with_reply_to(REPLY_TO.into());
    scene.publish(&"".into(), requests.as_str(), "?", request).await?;
    let received = server.get(&requests, true).await?;
    let address = received.delivery.properties.reply_to().clone().ok_or("no reply_to")?;
    ensure(address.as_str().starts_with("amq.rabbitmq.reply-to."), address.as_str())?;
    server.send(&address, &["!"]).await?;
    equal(next(&mut answers).await?.data.as_slice(), b"!")
}

async fn wrong_password(uri: &str) -> Outcome {
    refused(403, connect(&uri.replace("guest:guest", "guest:wrong")).await).map(drop)
}

async fn missing_vhost(uri: &str) -> Outcome {
    refused(530, connect(&format!("{uri}/rs-missing")).await).map(drop)
}

/// Prints a test's line; answers whether it passed.
fn report(name: &str, outcome: Outcome) -> bool {
    match &outcome {
        Ok(()) => println!("ok {name}"),
        Err(failure) => println!("not ok {name} {}", failure.to_string().replace('\n', " ")),
    }
    outcome.is_ok()
}

/// Runs a test within the limit; one that hangs fails.
async fn limited(test: impl Future<Output = Outcome>) -> Outcome {
    tokio::time::timeout(TEST_LIMIT, test).await.unwrap_or_else(|_| Err("did not end in time".into()))
}

/// Runs the named tests in their order, each in two scenes of its own.
macro_rules! run_in_scenes {
    ($uri:expr, $passed:ident, $($test:ident)*) => { $(
        let outcome = limited(async {
            let (mut scene, mut other) = (Scene::begin($uri).await?, Scene::begin($uri).await?);
            let outcome = $test(&mut scene, &mut other).await;
            scene.end().await.and(other.end().await).and(outcome)
        });
        $passed &= report(stringify!($test), outcome.await);
    )* };
}

#[tokio::main]
async fn main() -> ExitCode {
    let Some(uri) = std::env::args().nth(1) else {
        eprintln!("usage: client-suite-rust URI");
        return ExitCode::FAILURE;
    };
    let mut passed = true;
    run_in_scenes!(&uri, passed,
        declare_server_named declare_equivalent declare_inequivalent declare_passive_missing declare_reserved_name
        exclusive_locked exclusive_gone queue_type_quorum exchange_inequivalent
        bind_direct bind_topic bind_fanout bind_headers bind_exchange unbind_stops alternate_exchange
        publish_confirmed publish_returned publish_missing_exchange
        consume_ack consume_no_ack prefetch_limits unacked_come_back reject_requeue nack_multiple ack_multiple ack_unknown_tag
        get_message get_empty purge_counts delete_if_unused delete_if_empty
        cancel_stops cancel_notification exclusive_consumer
        properties_kept headers_kept empty_body large_body expiration message_ttl
        channel_error_isolated transaction direct_reply_to);
    passed &= report("wrong_password", limited(wrong_password(&uri)).await);
    passed &= report("missing_vhost", limited(missing_vhost(&uri)).await);
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
