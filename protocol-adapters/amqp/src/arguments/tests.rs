//! Queue and exchange arguments: what is taken, refused, passed on.

use super::*;
use longshore_amqp_codec::TableBuilder;
use longshore_wire::LogId;

const THING: &str = "queue 'q' in vhost '/'";

fn declare(arguments: TableBuilder) -> QueueDeclare {
    QueueDeclare { durable: true, arguments: arguments.build(), ..QueueDeclare::default() }
}

fn settings(arguments: TableBuilder) -> Result<QueueSettings, String> {
    queue_settings(&declare(arguments), THING).map_err(|e| e.to_string())
}

fn existing(of: &QueueDeclare) -> QueueInfo {
    let settings = queue_settings(of, THING).unwrap();
    QueueInfo {
        name: "q".into(),
        log: LogId(1),
        durable: of.durable && !of.exclusive,
        exclusive: of.exclusive,
        auto_delete: of.auto_delete,
        arguments: of.arguments.bytes().clone(),
        spec: Some(settings.spec()),
        expires_ms: settings.expires_ms,
        single_active: settings.single_active,
        kind: settings.kind.into(),
        accessible: true,
    }
}

#[test]
fn known_arguments_are_read_whatever_their_integer_type() {
    let all = TableBuilder::new()
        .put("x-message-ttl", Value::U16(60_000))
        .put("x-expires", Value::I64(5))
        .put("x-single-active-consumer", Value::Bool(true))
        .put("x-queue-type", Value::Text(b"quorum"))
        .put("x-queue-mode", Value::Text(b"lazy"))
        .put("x-somebody-elses", Value::Void);
    let expected = QueueSettings { ttl_ms: Some(60_000), expires_ms: 5, single_active: true, kind: "quorum" };
    assert_eq!(settings(all), Ok(expected));
    assert_eq!(settings(TableBuilder::new().put("x-message-ttl", Value::I32(0))).unwrap().ttl_ms, Some(0));
    assert_eq!(settings(TableBuilder::new()).unwrap().kind, "classic");
}

#[test]
fn wrong_values_are_refused_in_rabbitmqs_words() {
    let refused = |name: &str, value: Value<'_>| settings(TableBuilder::new().put(name, value)).unwrap_err();
    let start = "PRECONDITION_FAILED - invalid arg";
    let at = "for queue 'q' in vhost '/':";
    assert_eq!(
        refused("x-message-ttl", Value::I32(-1)),
        format!("{start} 'x-message-ttl' {at} {{value_negative,-1}}")
    );
    let text = format!("{start} 'x-message-ttl' {at} \"expected integer, got longstr\"");
    assert_eq!(refused("x-message-ttl", Value::Text(b"60000")), text);
    assert_eq!(refused("x-expires", Value::I32(0)), format!("{start} 'x-expires' {at} {{value_zero,0}}"));
    assert!(refused("x-expires", Value::I64(i64::MAX)).contains("value_too_large"));
    assert!(refused("x-queue-type", Value::Text(b"heap")).contains("unsupported queue type 'heap'"));
    assert!(refused("x-single-active-consumer", Value::I32(1)).contains("unacceptable_type,signedint"));
    assert!(refused("x-queue-mode", Value::Text(b"eager")).contains("unsupported queue mode 'eager'"));
    assert!(refused("x-queue-mode", Value::I32(1)).contains("unacceptable_type,signedint"));
    assert!(refused("x-queue-version", Value::I32(3)).contains("unsupported queue version '3'"));
}

#[test]
fn arguments_that_would_change_behaviour_are_refused() {
    for name in REFUSED {
        let text = settings(TableBuilder::new().put(name, Value::I32(1))).unwrap_err();
        assert!(
            text.starts_with(&format!("PRECONDITION_FAILED - arg '{name}' for {THING} is not supported")),
            "{text}"
        );
    }
}

#[test]
fn replicated_types_must_be_durable_and_shared() {
    for kind in ["quorum", "stream"] {
        let of = |change: fn(&mut QueueDeclare)| {
            let mut declare = declare(TableBuilder::new().put("x-queue-type", Value::Text(kind.as_bytes())));
            change(&mut declare);
            queue_settings(&declare, THING).map(|_| ()).map_err(|e| e.text)
        };
        assert_eq!(of(|_| ()), Ok(()));
        assert_eq!(of(|d| d.durable = false), Err(format!("invalid property 'non-durable' for {THING}")));
        assert_eq!(
            of(|d| d.exclusive = true),
            Err(format!("invalid property 'exclusive-owner' for {THING}"))
        );
        assert_eq!(of(|d| d.auto_delete = true), Err(format!("invalid property 'auto-delete' for {THING}")));
    }
}

#[test]
fn declarations_are_compared_as_rabbitmq_does() {
    let first = declare(TableBuilder::new().put("x-message-ttl", Value::I32(10)).put("other", Value::I8(1)));
    let info = existing(&first);
    let check = |again: &QueueDeclare| {
        let settings = queue_settings(again, THING).unwrap();
        check_queue(again, &settings, &info, "/", THING).map_err(|e| e.to_string())
    };
    let equal = declare(TableBuilder::new().put("x-message-ttl", Value::I64(10)));
    assert_eq!(check(&equal), Ok(()));
    assert_eq!(
        check(&QueueDeclare { durable: false, ..equal.clone() }).unwrap_err(),
        "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'q' in vhost '/': received 'false' but current is 'true'"
    );
    assert_eq!(
        check(&declare(TableBuilder::new())).unwrap_err(),
        "PRECONDITION_FAILED - inequivalent arg 'x-message-ttl' for queue 'q' in vhost '/': received none but current \
         is the value '10' of type 'signedint'"
    );
    assert_eq!(
        check(&declare(TableBuilder::new().put("x-message-ttl", Value::I32(11)))).unwrap_err(),
        "PRECONDITION_FAILED - inequivalent arg 'x-message-ttl' for queue 'q' in vhost '/': received '11' but current \
         is '10'"
    );
    assert!(
        check(&declare(
            TableBuilder::new().put("x-message-ttl", Value::I8(10)).put("x-queue-mode", Value::Text(b"lazy"))
        ))
        .unwrap_err()
        .contains("'x-queue-mode'")
    );
    let typed =
        TableBuilder::new().put("x-message-ttl", Value::I32(10)).put("x-queue-type", Value::Text(b"quorum"));
    assert!(check(&declare(typed)).unwrap_err().contains("'x-queue-type'"));
    assert!(check(&QueueDeclare { exclusive: true, ..equal }).unwrap_err().starts_with("RESOURCE_LOCKED - "));
}

#[test]
fn another_connections_queue_is_locked() {
    let declare = QueueDeclare { exclusive: true, ..declare(TableBuilder::new()) };
    let info = QueueInfo { accessible: false, ..existing(&declare) };
    let settings = queue_settings(&declare, THING).unwrap();
    assert_eq!(check_queue(&declare, &settings, &info, "/", THING).unwrap_err().code.code(), 405);
}

#[test]
fn exchanges_are_compared() {
    let thing = "exchange 'x' in vhost '/'";
    let declare = |kind: &'static str, arguments: TableBuilder| {
        let kind = longshore_amqp_codec::ShortStr::from_static(kind);
        exchange(
            &ExchangeDeclare { kind, arguments: arguments.build(), ..Default::default() },
            "x".into(),
            thing,
        )
    };
    let direct = declare("direct", TableBuilder::new()).unwrap();
    assert_eq!(check_exchange(&direct, &direct, thing), Ok(()));
    let fanout = declare("fanout", TableBuilder::new()).unwrap();
    assert_eq!(
        check_exchange(&fanout, &direct, thing).unwrap_err().to_string(),
        "PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'x' in vhost '/': received 'fanout' but current is 'direct'"
    );
    let alternate =
        declare("direct", TableBuilder::new().put("alternate-exchange", Value::Text(b"ae"))).unwrap();
    assert_eq!(alternate.alternate.as_deref(), Some("ae"));
    assert!(
        check_exchange(&direct, &alternate, thing)
            .unwrap_err()
            .text
            .contains("received none but current is the value 'ae'")
    );
    assert_eq!(declare("x-delayed-message", TableBuilder::new()).unwrap_err().code.code(), 503);
}

#[test]
fn stream_offsets() {
    let start = |value: Value<'_>| {
        let table =
            Table::parse(TableBuilder::new().put("x-stream-offset", value).build().bytes().clone()).unwrap();
        stream_start(&table, 10_000_000).map_err(|e| e.code.code())
    };
    assert_eq!(stream_start(&Table::default(), 0), Ok(StartAt::Next));
    assert_eq!(start(Value::Text(b"first")), Ok(StartAt::First));
    assert_eq!(start(Value::I32(5)), Ok(StartAt::Offset(5)));
    assert_eq!(start(Value::Timestamp(7)), Ok(StartAt::TimeMs(7_000)));
    assert_eq!(start(Value::Text(b"2h")), Ok(StartAt::TimeMs(2_800_000)));
    for wrong in [Value::Text(b"soon"), Value::Text(b""), Value::I32(-1), Value::Text("5é".as_bytes())] {
        assert_eq!(start(wrong), Err(406));
    }
    assert_eq!(consumer_priority(&TableBuilder::new().put("x-priority", Value::I8(-3)).build()), Ok(-3));
    assert!(consumer_priority(&TableBuilder::new().put("x-priority", Value::Text(b"1")).build()).is_err());
}
