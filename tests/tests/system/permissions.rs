//! Who may do what, by AMQP reply code as RabbitMQ gives it; and users that are deleted or restricted.

use anyhow::{Context, Result, ensure};
use lapin::options::*;
use lapin::types::{AMQPValue, FieldTable, ShortString};
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
/// Where replies come without a queue of their own.
const REPLIES: &str = "amq.rabbitmq.reply-to";
/// A key that nothing is bound to.
const REPLIES_KEY: &str = "nowhere";

/// What is tried, on a queue `q`, an exchange `x`, a full queue, a used exchange and names that go again; and the code that it gets from
/// a user who may do everything (owner), may only read, may only write, may do nothing, and may do everything in another
/// virtual host, where none of the names exist. As RabbitMQ: passive declares need no right, 403 comes before 404, and to delete or
/// unbind what is not there is no error.
const OPERATIONS: [(&str, [u16; 5]); 25] = [
    ("queue.declare", [OK, 403, 403, 403, OK]),
    ("queue.declare passive", [OK, OK, OK, OK, 404]),
    ("queue.declare with an a name by the server", [OK, 403, 403, 403, OK]),
    ("queue.delete", [OK, 403, 403, 403, OK]),
    ("queue.delete of the owner's", [406, 403, 403, 403, OK]),
    ("exchange.declare", [OK, 403, 403, 403, OK]),
    ("exchange.declare passive", [OK, OK, OK, OK, 404]),
    ("exchange.declare with an alternate exchange", [OK, 403, 403, 403, OK]),
    ("exchange.delete", [OK, 403, 403, 403, OK]),
    ("exchange.delete of the owner's", [406, 403, 403, 403, OK]),
    ("queue.bind", [OK, 403, 403, 403, 404]),
    ("queue.unbind", [OK, 403, 403, 403, OK]),
    ("exchange.bind", [OK, 403, 403, 403, 404]),
    ("exchange.unbind", [OK, 403, 403, 403, OK]),
    ("basic.publish", [OK, 403, OK, 403, 404]),
    ("basic.publish default exchange", [OK, 403, OK, 403, OK]),
    ("basic.publish to a name that is missing", [404, 403, 404, 403, 404]),
    ("basic.get", [OK, OK, 403, 403, 404]),
    ("basic.get from a name that is missing", [404, 404, 403, 403, 404]),
    ("basic.consume", [OK, OK, 403, 403, 404]),
    ("basic.consume direct replies", [OK, OK, OK, OK, OK]),
    ("basic.publish with a reply queue", [OK, 403, OK, 403, OK]),
    ("queue.purge", [OK, OK, 403, 403, 404]),
    ("queue.declare of another kind", [406, 403, 403, 403, OK]),
    ("queue.delete again", [OK, 403, 403, 403, OK]),
];

/// Name, virtual host, rights (configure, write, read): the columns of [`OPERATIONS`].
const USERS: [(&str, &str, [&str; 3]); 5] = [
    ("owner", "/", [".*", ".*", ".*"]),
    ("reader", "/", ["^$", "^$", ".*"]),
    ("writer", "/", ["^$", ".*", "^$"]),
    ("nobody", "/", ["^$", "^$", "^$"]),
    ("stranger", "elsewhere", [".*", ".*", ".*"]),
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

async fn attempt_queue(channel: &Channel, operation: &str) -> lapin::Result<()> {
    let table = FieldTable::default;
    let durable = QueueDeclareOptions::durable();
    let passive = QueueDeclareOptions { passive: true, ..durable };
    let unused = QueueDeleteOptions { if_unused: false, if_empty: true, ..Default::default() };
    match operation {
        "queue.declare" => channel.queue_declare(name("new"), durable, table()).await.map(drop),
        "queue.declare passive" => channel.queue_declare(name("q"), passive, table()).await.map(drop),
        "queue.declare with an a name by the server" => {
            channel.queue_declare(name(""), QueueDeclareOptions::exclusive(), table()).await.map(drop)
        }
        "queue.declare of another kind" => {
            let other = QueueDeclareOptions { auto_delete: true, ..durable };
            channel.queue_declare(name("q"), other, table()).await.map(drop)
        }
        "queue.delete" | "queue.delete again" => {
            channel.queue_delete(name("new"), Default::default()).await.map(drop)
        }
        "queue.delete of the owner's" => channel.queue_delete(name("full"), unused).await.map(drop),
        "queue.bind" => {
            channel.queue_bind(name("q"), name("x"), name("k"), Default::default(), table()).await
        }
        "queue.unbind" => channel.queue_unbind(name("q"), name("x"), name("k"), table()).await,
        _ => channel.queue_purge(name("q"), Default::default()).await.map(drop),
    }
}

async fn attempt_exchange(channel: &Channel, operation: &str) -> lapin::Result<()> {
    let table = FieldTable::default;
    let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
    let passive = ExchangeDeclareOptions { passive: true, ..durable };
    let topic = ExchangeKind::Topic;
    let (fanout, x, key) = (name("amq.fanout"), name("x"), name("k"));
    match operation {
        "exchange.declare" => channel.exchange_declare(name("new.x"), topic, durable, table()).await,
        "exchange.declare passive" => channel.exchange_declare(x, topic, passive, table()).await,
        "exchange.declare with an alternate exchange" => {
            let mut alternate = table();
            alternate.insert("alternate-exchange".into(), AMQPValue::LongString("x".into()));
            channel.exchange_declare(name("new.alternate"), topic, durable, alternate).await
        }
        "exchange.delete" => channel.exchange_delete(name("new.x"), Default::default()).await,
        "exchange.delete of the owner's" => {
            let unused = ExchangeDeleteOptions { if_unused: true, ..Default::default() };
            channel.exchange_delete(name("used"), unused).await
        }
        "exchange.bind" => channel.exchange_bind(fanout, x, key, Default::default(), table()).await,
        _ => channel.exchange_unbind(fanout, x, key, Default::default(), table()).await,
    }
}

async fn attempt(channel: &Channel, operation: &str) -> lapin::Result<()> {
    let table = FieldTable::default;
    let no_ack = BasicConsumeOptions { no_ack: true, ..Default::default() };
    let get = BasicGetOptions { no_ack: true };
    match operation {
        "basic.publish" => publish(channel, "x", "nowhere").await,
        "basic.publish default exchange" => publish(channel, "", "q").await,
        "basic.publish to a name that is missing" => publish(channel, "missing", "q").await,
        "basic.publish with a reply queue" => {
            channel.basic_consume(name(REPLIES), name("r"), no_ack, table()).await?;
            publish(channel, "", REPLIES_KEY).await
        }
        "basic.get" => channel.basic_get(name("q"), get).await.map(drop),
        "basic.get from a name that is missing" => channel.basic_get(name("missing"), get).await.map(drop),
        "basic.consume" => {
            channel.basic_consume(name("q"), name("c"), Default::default(), table()).await.map(drop)
        }
        "basic.consume direct replies" => {
            channel.basic_consume(name(REPLIES), name("r"), no_ack, table()).await.map(drop)
        }
        exchange if exchange.starts_with("exchange.") => attempt_exchange(channel, exchange).await,
        queue => attempt_queue(channel, queue).await,
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
        admin(&dev.management(), &["add-vhost", "elsewhere"]).await?;
        let guest = connect_once(&dev.amqp()).await?;
        let channel = guest.create_channel().await?;
        for queue in ["q", "full"] {
            channel.queue_declare(name(queue), QueueDeclareOptions::durable(), FieldTable::default()).await?;
        }
        publish(&channel, "", "full").await?;
        let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
        for exchange in ["x", "used"] {
            let (topic, table) = (ExchangeKind::Topic, FieldTable::default());
            channel.exchange_declare(name(exchange), topic, durable, table).await?;
        }
        let table = FieldTable::default();
        channel.queue_bind(name("q"), name("used"), name("k"), Default::default(), table).await?;
        let mut wrong = Vec::new();
        for (at, (user, vhost, rights)) in USERS.into_iter().enumerate() {
            add_user(&dev, user, vhost, rights).await?;
            let connection = connect_as(&dev.amqp(), user, "secret", &vhost.replace('/', "%2f")).await?;
            for (operation, codes) in OPERATIONS {
                let (given, code) = (code_of(&connection, operation).await?, codes[at]);
                if given != code {
                    wrong.push(format!("{operation} by {user}: {given} instead of {code}"));
                }
            }
            ensure!(connection.status().connected(), "an error of a channel closed the connection of {user}");
        }
        ensure!(wrong.is_empty(), "{wrong:#?}");
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

        // A new password leaves an administrator what it is, unless that is asked for.
        let steps: [(&[&str], bool); 3] = [
            (&["add-user", "boss", "first", "--administrator"], true),
            (&["add-user", "boss", "second"], true),
            (&["add-user", "boss", "third", "--administrator=false"], false),
        ];
        for (step, expected) in steps {
            admin(&dev.management(), step).await?;
            let users = admin(&dev.management(), &["users"]).await?;
            let boss = users.as_array().into_iter().flatten().find(|user| user["name"] == "boss");
            ensure!(boss.is_some_and(|boss| boss["administrator"] == expected), "after {step:?}: {users}");
        }
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
