//! Who may do what, by AMQP reply code as RabbitMQ gives it; and users that are deleted or restricted.

use anyhow::{Context, Result, ensure};
use lapin::options::*;
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Connection, ExchangeKind};
use longshore_tests::system::admin::admin;
use longshore_tests::system::client::{connect_as, connect_once, persistent, reply_code};
use longshore_tests::system::cluster::Dev;
use longshore_tests::system::{run, until};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(120);
/// A deleted or restricted user's connections are closed by then.
const CLOSED_WITHIN: Duration = Duration::from_secs(1);
/// 403 ACCESS_REFUSED, 404 NOT_FOUND, 530 NOT_ALLOWED; 0: it works.
const OK: u16 = 0;

/// What is tried, on a queue `q`, an exchange `x` and names that go again.
const OPERATIONS: [&str; 14] = [
    "queue.declare",
    "queue.declare passive",
    "queue.delete",
    "exchange.declare",
    "exchange.declare passive",
    "exchange.delete",
    "queue.bind",
    "queue.unbind",
    "exchange.bind",
    "basic.publish",
    "basic.publish default exchange",
    "basic.get",
    "basic.consume",
    "queue.purge",
];

/// Name, rights (configure, write, read), and the code of each operation in the order of `OPERATIONS`.
const USERS: [(&str, [&str; 3], [u16; 14]); 4] = [
    ("owner", [".*", ".*", ".*"], [OK; 14]),
    ("reader", ["^$", "^$", ".*"], [403, OK, 403, 403, OK, 403, 403, 403, 403, 403, 403, OK, OK, OK]),
    ("writer", ["^$", ".*", "^$"], [403, OK, 403, 403, OK, 403, 403, 403, 403, OK, OK, 403, 403, 403]),
    ("nobody", ["^$", "^$", "^$"], [403, OK, 403, 403, OK, 403, 403, 403, 403, 403, 403, 403, 403, 403]),
];

fn name(text: &str) -> ShortString {
    text.into()
}

async fn publish(channel: &Channel, exchange: &str, key: &str) -> lapin::Result<()> {
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let sent =
        channel.basic_publish(name(exchange), name(key), Default::default(), b"text", persistent()).await?;
    sent.await.map(drop)
}

async fn attempt(channel: &Channel, operation: &str) -> lapin::Result<()> {
    let table = FieldTable::default;
    let passive_queue = QueueDeclareOptions { passive: true, durable: true, ..Default::default() };
    let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
    let passive_exchange = ExchangeDeclareOptions { passive: true, ..durable };
    let topic = ExchangeKind::Topic;
    match operation {
        "queue.declare" => {
            channel.queue_declare(name("new"), QueueDeclareOptions::durable(), table()).await.map(drop)
        }
        "queue.declare passive" => channel.queue_declare(name("q"), passive_queue, table()).await.map(drop),
        "queue.delete" => channel.queue_delete(name("new"), Default::default()).await.map(drop),
        "exchange.declare" => channel.exchange_declare(name("new.x"), topic, durable, table()).await,
        "exchange.declare passive" => {
            channel.exchange_declare(name("x"), topic, passive_exchange, table()).await
        }
        "exchange.delete" => channel.exchange_delete(name("new.x"), Default::default()).await,
        "queue.bind" => {
            channel.queue_bind(name("q"), name("x"), name("k"), Default::default(), table()).await
        }
        "queue.unbind" => channel.queue_unbind(name("q"), name("x"), name("k"), table()).await,
        "exchange.bind" => {
            channel.exchange_bind(name("amq.fanout"), name("x"), name("k"), Default::default(), table()).await
        }
        "basic.publish" => publish(channel, "x", "nowhere").await,
        "basic.publish default exchange" => publish(channel, "", "q").await,
        "basic.get" => channel.basic_get(name("q"), BasicGetOptions { no_ack: true }).await.map(drop),
        "basic.consume" => {
            channel.basic_consume(name("q"), name("c"), Default::default(), table()).await.map(drop)
        }
        _ => channel.queue_purge(name("q"), Default::default()).await.map(drop),
    }
}

/// The code of an operation on a channel of its own.
async fn code_of(connection: &Connection, operation: &str) -> Result<u16> {
    let channel = connection.create_channel().await?;
    match attempt(&channel, operation).await {
        Ok(()) => {
            channel.close(200, "done".into()).await?;
            Ok(OK)
        }
        Err(error) => reply_code(&error).with_context(|| format!("{operation}: {error}")),
    }
}

async fn add_user(dev: &Dev, user: &str, vhost: &str, rights: [&str; 3]) -> Result<()> {
    admin(&dev.management(), &["add-user", user, "secret"]).await?;
    let [configure, write, read] = rights;
    admin(&dev.management(), &["set-permissions", user, configure, write, read, "--vhost", vhost]).await?;
    Ok(())
}

/// The error of a connection that must be refused: its code and text.
async fn refusal(address: &str, user: &str, password: &str, vhost: &str) -> Result<(u16, String)> {
    match connect_as(address, user, password, vhost).await {
        Ok(_) => anyhow::bail!("{user} got into {vhost}"),
        Err(error) => {
            let error: lapin::Error = error.downcast()?;
            Ok((reply_code(&error).with_context(|| format!("{error}"))?, error.to_string()))
        }
    }
}

#[test]
fn security_every_operation_by_every_user() -> Result<()> {
    run("permissions", LIMIT, async |dir| {
        let dev = Dev::start(dir).await?;
        let guest = connect_once(&dev.amqp()).await?;
        let channel = guest.create_channel().await?;
        channel.queue_declare(name("q"), QueueDeclareOptions::durable(), FieldTable::default()).await?;
        let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
        channel.exchange_declare(name("x"), ExchangeKind::Topic, durable, FieldTable::default()).await?;
        for (user, rights, codes) in USERS {
            add_user(&dev, user, "/", rights).await?;
            let connection = connect_as(&dev.amqp(), user, "secret", "%2f").await?;
            for (operation, code) in OPERATIONS.iter().zip(codes) {
                let given = code_of(&connection, operation).await?;
                ensure!(given == code, "{operation} by {user}: {given} instead of {code}");
            }
            ensure!(connection.status().connected(), "an error of a channel closed the connection of {user}");
        }
        Ok(())
    })
}

#[test]
fn security_other_virtual_hosts_cannot_be_told_from_missing_ones() -> Result<()> {
    run("vhosts", LIMIT, async |dir| {
        let dev = Dev::start(dir).await?;
        admin(&dev.management(), &["add-vhost", "other"]).await?;
        admin(&dev.management(), &["add-vhost", "third"]).await?;
        add_user(&dev, "stranger", "other", [".*"; 3]).await?;
        let guest = connect_once(&dev.amqp()).await?;
        let channel = guest.create_channel().await?;
        channel.queue_declare(name("q"), QueueDeclareOptions::durable(), FieldTable::default()).await?;

        let (code, foreign) = refusal(&dev.amqp(), "stranger", "secret", "third").await?;
        let (missing_code, missing) = refusal(&dev.amqp(), "stranger", "secret", "missing").await?;
        ensure!(code == 530 && missing_code == 530, "{code} and {missing_code} instead of 530");
        ensure!(foreign.replace("third", "missing") == missing, "'{foreign}' differs from '{missing}'");
        ensure!(refusal(&dev.amqp(), "stranger", "secret", "%2f").await?.0 == 530, "got into /");

        // Within its own virtual host the other one's names do not exist.
        let connection = connect_as(&dev.amqp(), "stranger", "secret", "other").await?;
        let given = code_of(&connection, "queue.declare passive").await?;
        ensure!(given == 404, "a queue of another virtual host: {given} instead of 404");
        // Its rights end there: the same name is a queue of its own.
        ensure!(code_of(&connection, "queue.declare").await? == OK, "its own virtual host is closed to it");
        Ok(())
    })
}

#[test]
fn security_wrong_passwords_are_refused_alike() -> Result<()> {
    run("passwords", LIMIT, async |dir| {
        let dev = Dev::start(dir).await?;
        add_user(&dev, "real", "/", [".*"; 3]).await?;
        let (code, wrong) = refusal(&dev.amqp(), "real", "wrong", "%2f").await?;
        let (unknown_code, unknown) = refusal(&dev.amqp(), "unknown", "wrong", "%2f").await?;
        ensure!(code == 403 && unknown_code == 403, "{code} and {unknown_code} instead of 403");
        ensure!(wrong == unknown, "'{wrong}' tells that the user exists; an unknown one gets '{unknown}'");
        let refused = admin(&dev.management(), &["users", "--user", "real", "--password", "secret"]).await;
        ensure!(refused.is_err(), "a user that is no administrator may administer");
        Ok(())
    })
}

#[test]
fn security_deleted_and_restricted_users_lose_their_connections() -> Result<()> {
    run("revoked", LIMIT, async |dir| {
        let dev = Dev::start(dir).await?;
        let changes: [(&str, &[&str]); 3] = [
            ("deleted", &["delete-user", "deleted"]),
            ("restricted", &["set-permissions", "restricted", ".*", ".*", "^$"]),
            ("cleared", &["clear-permissions", "cleared"]),
        ];
        for (user, change) in changes {
            add_user(&dev, user, "/", [".*"; 3]).await?;
            let connection = connect_as(&dev.amqp(), user, "secret", "%2f").await?;
            let channel = connection.create_channel().await?;
            channel.queue_declare(name("q"), QueueDeclareOptions::durable(), FieldTable::default()).await?;
            admin(&dev.management(), change).await?;
            let changed = Instant::now();
            until(&format!("the connection of {user} to end"), Duration::from_secs(10), async || {
                Ok((!connection.status().connected()).then_some(()))
            })
            .await?;
            println!("{user}: closed {:?} after the command", changed.elapsed());
            ensure!(changed.elapsed() <= CLOSED_WITHIN, "{user}: closed after {:?}", changed.elapsed());
        }
        Ok(())
    })
}
