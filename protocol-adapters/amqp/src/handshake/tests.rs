//! Logins and tune.

use super::*;
use longshore_amqp_codec::ShortStr;

fn start_ok(mechanism: &'static str, response: &'static [u8]) -> ConnectionStartOk {
    ConnectionStartOk {
        mechanism: ShortStr::from_static(mechanism),
        response: Bytes::from_static(response),
        ..ConnectionStartOk::default()
    }
}

#[test]
fn both_mechanisms_give_user_and_password() {
    let expected = Some(("joe".to_owned(), Bytes::from_static(b"s3\xffcret")));
    assert_eq!(credentials(&start_ok("PLAIN", b"\0joe\0s3\xffcret")), expected);
    assert_eq!(credentials(&start_ok("PLAIN", b"other\0joe\0s3\xffcret")), expected);
    let table = b"\x05LOGINS\x00\x00\x00\x03joe\x08PASSWORDS\x00\x00\x00\x08s3\xffcret\0";
    assert_eq!(credentials(&start_ok("AMQPLAIN", &table[..table.len() - 1])), None, "the length says 8");
    let table = b"\x05LOGINS\x00\x00\x00\x03joe\x08PASSWORDS\x00\x00\x00\x07s3\xffcret";
    assert_eq!(credentials(&start_ok("AMQPLAIN", table)), expected);
    for response in [&b""[..], b"\0joe", b"joe"] {
        let response =
            ConnectionStartOk { response: Bytes::copy_from_slice(response), ..start_ok("PLAIN", b"") };
        assert_eq!(credentials(&response), None);
    }
    assert_eq!(
        credentials(&start_ok("PLAIN", b"\0joe\0a\0b")),
        Some(("joe".to_owned(), Bytes::from_static(b"a\0b")))
    );
}

#[test]
fn limits_can_be_lowered_and_not_raised() {
    let config = AmqpConfig::default();
    let tune = |channel_max, frame_max, heartbeat| {
        agree(&config, &ConnectionTuneOk { channel_max, frame_max, heartbeat }).map_err(|e| e.to_string())
    };
    let agreed = Agreed { channel_max: 10, frame_bytes_max: 4_096, heartbeat_seconds: 0 };
    assert_eq!(tune(10, 4_096, 0), Ok(agreed));
    let text =
        "NOT_ALLOWED - negotiated frame_max = 131073 is higher than the maximum allowed value (131072)";
    assert_eq!(tune(10, 131_073, 0).unwrap_err(), text);
    let text = "NOT_ALLOWED - negotiated frame_max = 4095 is lower than the minimum allowed value (4096)";
    assert_eq!(tune(10, 4_095, 0).unwrap_err(), text);
    assert!(tune(10, 0, 0).is_err() && tune(0, 4_096, 0).is_err() && tune(2_048, 4_096, 0).is_err());
    assert_eq!(tune(2_047, 131_072, 600).unwrap().heartbeat_seconds, 600);
}

#[test]
fn start_names_what_holds() {
    let Method::ConnectionStart(start) = start(&AmqpConfig::default()) else { panic!() };
    let properties = Table::parse(start.server_properties.bytes().clone()).unwrap();
    assert_eq!(properties.get("product").and_then(|v| v.as_str()), Some("Longshore"));
    let Some(Value::Table(held)) = properties.get("capabilities") else { panic!() };
    assert_eq!(held.iter().filter(|(_, value)| *value == Value::Bool(true)).count(), CAPABILITIES.len());
}

#[test]
fn capabilities_of_a_client_are_read() {
    let held = TableBuilder::new().put("connection.blocked", Value::Bool(true)).put("x", Value::Void).build();
    let properties =
        TableBuilder::new().put_table("capabilities", &held).put("product", Value::Text(b"pika")).build();
    let read = capabilities(&properties);
    assert!(read.connection_blocked && !read.consumer_cancel_notify && !read.authentication_failure_close);
    assert_eq!(client_name(&properties), "pika");
    assert!(!capabilities(&Table::default()).connection_blocked);
}
