"""The table of assertions by pika: `suite.py URI`. Each test is named as in ../table.txt."""

import datetime
import decimal
import sys
import time
import uuid

import pika
import pika.exceptions as errors

URI = sys.argv[1]
PERSISTENT = pika.BasicProperties(delivery_mode=2)
# How long a message that must come may take, in seconds.
PATIENCE = 10
TESTS = []


def test(function):
    TESTS.append(function)
    return function


def connect(uri=URI):
    return pika.BlockingConnection(pika.URLParameters(uri))


class Scene:
    """A connection with a channel, closed at the end; names that no other test uses."""

    def __init__(self):
        self.connection = connect()
        self.channel = self.connection.channel()
        self.queues, self.exchanges = [], []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if not self.connection.is_open:
            self.connection = connect()
        channel = self.connection.channel()
        for queue in self.queues:
            channel.queue_delete(queue)
        for exchange in self.exchanges:
            channel.exchange_delete(exchange)
        self.connection.close()

    def queue(self, **settings):
        name = "py-" + uuid.uuid4().hex
        settings.setdefault("durable", True)
        self.channel.queue_declare(name, **settings)
        self.queues.append(name)
        return name

    def exchange(self, kind, **settings):
        name = "py-" + uuid.uuid4().hex
        self.channel.exchange_declare(name, kind, **settings)
        self.exchanges.append(name)
        return name

    def send(self, queue, *bodies, properties=PERSISTENT, exchange=""):
        self.channel.confirm_delivery()
        for body in bodies:
            self.channel.basic_publish(exchange, queue, body, properties)

    def get(self, queue, auto_ack=True, channel=None, patience=PATIENCE):
        """The next message of a queue, or None if none comes in time."""
        end = time.monotonic() + patience
        while True:
            method, properties, body = (channel or self.channel).basic_get(queue, auto_ack=auto_ack)
            if method or time.monotonic() > end:
                return (method, properties, body) if method else None

    def bodies(self, queue, count):
        return [self.get(queue)[2] for _ in range(count)]

    def empty(self, queue):
        return self.get(queue, patience=0) is None

    def count(self, queue):
        return self.connection.channel().queue_declare(queue, passive=True).method.message_count

    def consume(self, queue, channel=None, **settings):
        """Starts a consumer; returns the list that its messages go to."""
        got = []
        channel = channel or self.channel
        channel.basic_consume(queue, lambda c, m, p, b: got.append((m, p, b)), **settings)
        return got

    def until(self, condition, patience=PATIENCE):
        end = time.monotonic() + patience
        while not condition():
            assert time.monotonic() < end, "it did not come in time"
            self.connection.process_data_events(time_limit=0.05)

    def idle(self, seconds=0.3):
        self.connection.process_data_events(time_limit=seconds)


def refused(code, call, *args, **kwargs):
    """The call closes its channel with this code."""
    try:
        call(*args, **kwargs)
    except errors.ChannelClosedByBroker as error:
        assert error.reply_code == code, f"{error.reply_code} {error.reply_text}, expected {code}"
        return error.reply_text
    raise AssertionError(f"was not refused with {code}")


@test
def declare_server_named():
    with Scene() as scene:
        name = scene.channel.queue_declare("", exclusive=True).method.queue
        assert name.startswith("amq.gen-"), name
        scene.send(name, b"x")
        assert scene.bodies(name, 1) == [b"x"]


@test
def declare_equivalent():
    with Scene() as scene:
        queue = scene.queue()
        scene.send(queue, b"1", b"2")
        assert scene.channel.queue_declare(queue, durable=True).method.message_count == 2


@test
def declare_inequivalent():
    with Scene() as scene:
        queue = scene.queue()
        text = refused(406, scene.channel.queue_declare, queue, durable=False)
        assert "inequivalent arg" in text, text


@test
def declare_passive_missing():
    with Scene() as scene:
        text = refused(404, scene.channel.queue_declare, "py-missing", passive=True)
        assert "no queue 'py-missing'" in text, text


@test
def declare_reserved_name():
    with Scene() as scene:
        refused(403, scene.channel.queue_declare, "amq.something", durable=True)


@test
def exclusive_locked():
    with Scene() as scene, Scene() as other:
        name = scene.channel.queue_declare("", exclusive=True).method.queue
        refused(405, other.channel.queue_declare, name, passive=True)


@test
def exclusive_gone():
    with Scene() as scene, Scene() as other:
        name = scene.channel.queue_declare("", exclusive=True).method.queue
        scene.connection.close()
        refused(404, other.channel.queue_declare, name, passive=True)


@test
def queue_type_quorum():
    with Scene() as scene:
        queue = scene.queue(arguments={"x-queue-type": "quorum"})
        scene.send(queue, b"x")
        assert scene.bodies(queue, 1) == [b"x"]


@test
def exchange_inequivalent():
    with Scene() as scene:
        exchange = scene.exchange("direct")
        refused(406, scene.channel.exchange_declare, exchange, "fanout")


@test
def bind_direct():
    with Scene() as scene:
        exchange, queue = scene.exchange("direct"), scene.queue()
        scene.channel.queue_bind(queue, exchange, "yes")
        scene.send("yes", b"1", exchange=exchange)
        scene.send("no", b"2", exchange=exchange)
        scene.send("yes", b"3", exchange=exchange)
        assert scene.bodies(queue, 2) == [b"1", b"3"] and scene.empty(queue)


@test
def bind_topic():
    with Scene() as scene:
        exchange, star, hash_ = scene.exchange("topic"), scene.queue(), scene.queue()
        scene.channel.queue_bind(star, exchange, "a.*.c")
        scene.channel.queue_bind(hash_, exchange, "a.#")
        for key in ["a.b.c", "a", "a.b.b.c", "b.a"]:
            scene.send(key, key.encode(), exchange=exchange)
        assert scene.bodies(star, 1) == [b"a.b.c"] and scene.empty(star)
        assert scene.bodies(hash_, 3) == [b"a.b.c", b"a", b"a.b.b.c"] and scene.empty(hash_)


@test
def bind_fanout():
    with Scene() as scene:
        exchange, queues = scene.exchange("fanout"), [scene.queue() for _ in range(3)]
        for queue in queues:
            scene.channel.queue_bind(queue, exchange)
        scene.send("any", b"x", exchange=exchange)
        for queue in queues:
            assert scene.bodies(queue, 1) == [b"x"] and scene.empty(queue)


@test
def bind_headers():
    with Scene() as scene:
        exchange, all_, any_ = scene.exchange("headers"), scene.queue(), scene.queue()
        scene.channel.queue_bind(all_, exchange, arguments={"x-match": "all", "a": 1, "b": "two"})
        scene.channel.queue_bind(any_, exchange, arguments={"x-match": "any", "a": 1, "b": "two"})
        for body, headers in [(b"both", {"a": 1, "b": "two"}), (b"one", {"a": 1}), (b"none", {"c": 1})]:
            scene.send("", body, exchange=exchange, properties=pika.BasicProperties(headers=headers))
        assert scene.bodies(all_, 1) == [b"both"] and scene.empty(all_)
        assert scene.bodies(any_, 2) == [b"both", b"one"] and scene.empty(any_)


@test
def bind_exchange():
    with Scene() as scene:
        outer, inner, queue = scene.exchange("topic"), scene.exchange("fanout"), scene.queue()
        scene.channel.exchange_bind(inner, outer, "k.#")
        scene.channel.queue_bind(queue, inner)
        scene.send("k.1", b"1", exchange=outer)
        scene.send("other", b"2", exchange=outer)
        assert scene.bodies(queue, 1) == [b"1"] and scene.empty(queue)


@test
def unbind_stops():
    with Scene() as scene:
        exchange, queue = scene.exchange("direct"), scene.queue()
        scene.channel.queue_bind(queue, exchange, "k")
        scene.send("k", b"1", exchange=exchange)
        scene.channel.queue_unbind(queue, exchange, "k")
        scene.send("k", b"2", exchange=exchange)
        assert scene.bodies(queue, 1) == [b"1"] and scene.empty(queue)


@test
def alternate_exchange():
    with Scene() as scene:
        alternate, queue = scene.exchange("fanout"), scene.queue()
        exchange = scene.exchange("direct", arguments={"alternate-exchange": alternate})
        scene.channel.queue_bind(queue, alternate)
        scene.send("nowhere", b"x", exchange=exchange)
        assert scene.bodies(queue, 1) == [b"x"]


@test
def publish_confirmed():
    with Scene() as scene:
        queue = scene.queue()
        bodies = [b"%d" % n for n in range(1000)]
        scene.send(queue, *bodies)
        assert scene.count(queue) == 1000
        assert scene.bodies(queue, 1000) == bodies


@test
def publish_returned():
    with Scene() as scene:
        scene.channel.confirm_delivery()
        try:
            scene.channel.basic_publish("", "py-missing", b"x", mandatory=True)
        except errors.UnroutableError as error:
            (returned,) = error.messages
            assert returned.method.reply_code == 312 and returned.body == b"x", returned
        else:
            raise AssertionError("was not returned")


@test
def publish_missing_exchange():
    with Scene() as scene:
        scene.channel.confirm_delivery()
        refused(404, scene.channel.basic_publish, "py-missing", "k", b"x")


@test
def consume_ack():
    with Scene() as scene:
        queue = scene.queue()
        bodies = [b"%d" % n for n in range(100)]
        scene.send(queue, *bodies)
        got = scene.consume(queue)
        scene.until(lambda: len(got) == 100)
        assert [body for _, _, body in got] == bodies
        for method, _, _ in got:
            scene.channel.basic_ack(method.delivery_tag)
        scene.channel.close()
        scene.channel = scene.connection.channel()
        assert scene.count(queue) == 0


@test
def consume_no_ack():
    with Scene() as scene:
        queue = scene.queue()
        scene.send(queue, *[b"x"] * 20)
        got = scene.consume(queue, auto_ack=True)
        scene.until(lambda: len(got) == 20)
        scene.channel.close()
        scene.channel = scene.connection.channel()
        scene.until(lambda: scene.count(queue) == 0)


@test
def prefetch_limits():
    with Scene() as scene:
        queue = scene.queue()
        scene.send(queue, *[b"%d" % n for n in range(30)])
        scene.channel.basic_qos(prefetch_count=10)
        got = scene.consume(queue)
        scene.until(lambda: len(got) >= 10)
        scene.idle()
        assert len(got) == 10, len(got)
        scene.channel.basic_ack(got[0][0].delivery_tag)
        scene.until(lambda: len(got) >= 11)
        scene.idle()
        assert len(got) == 11, len(got)


@test
def unacked_come_back():
    with Scene() as scene:
        queue = scene.queue()
        scene.send(queue, b"1", b"2", b"3")
        first = scene.connection.channel()
        got = scene.consume(queue, channel=first)
        scene.until(lambda: len(got) == 3)
        assert not any(method.redelivered for method, _, _ in got)
        first.close()
        again = [scene.get(queue) for _ in range(3)]
        assert [body for _, _, body in again] == [b"1", b"2", b"3"]
        assert all(method.redelivered for method, _, _ in again)


@test
def reject_requeue():
    with Scene() as scene:
        queue = scene.queue()
        scene.send(queue, b"x")
        method, _, _ = scene.get(queue, auto_ack=False)
        scene.channel.basic_reject(method.delivery_tag, requeue=True)
        method, _, body = scene.get(queue)
        assert method.redelivered and body == b"x"


@test
def nack_multiple():
    with Scene() as scene:
        queue = scene.queue()
        scene.send(queue, b"1", b"2", b"3")
        taken = [scene.get(queue, auto_ack=False) for _ in range(3)]
        scene.channel.basic_nack(taken[-1][0].delivery_tag, multiple=True, requeue=True)
        assert scene.bodies(queue, 3) == [b"1", b"2", b"3"]


@test
def ack_multiple():
    with Scene() as scene:
        queue = scene.queue()
        scene.send(queue, b"1", b"2", b"3")
        taken = [scene.get(queue, auto_ack=False) for _ in range(3)]
        scene.channel.basic_ack(taken[1][0].delivery_tag, multiple=True)
        scene.channel.close()
        scene.channel = scene.connection.channel()
        assert scene.bodies(queue, 1) == [b"3"] and scene.empty(queue)


@test
def ack_unknown_tag():
    with Scene() as scene:
        queue = scene.queue()
        scene.channel.basic_ack(99)
        text = refused(406, scene.channel.basic_get, queue)
        assert "unknown delivery tag 99" in text, text


@test
def get_message():
    with Scene() as scene:
        queue = scene.queue()
        scene.send(queue, b"1", b"2", b"3")
        method, _, body = scene.get(queue)
        assert body == b"1" and method.message_count == 2, method


@test
def get_empty():
    with Scene() as scene:
        queue = scene.queue()
        assert scene.channel.basic_get(queue) == (None, None, None)


@test
def purge_counts():
    with Scene() as scene:
        queue = scene.queue()
        scene.send(queue, *[b"x"] * 7)
        assert scene.channel.queue_purge(queue).method.message_count == 7
        assert scene.empty(queue)


@test
def delete_if_unused():
    with Scene() as scene, Scene() as other:
        queue = scene.queue()
        scene.consume(queue)
        refused(406, other.channel.queue_delete, queue, if_unused=True)


@test
def delete_if_empty():
    with Scene() as scene:
        queue = scene.queue()
        scene.send(queue, b"x")
        refused(406, scene.channel.queue_delete, queue, if_empty=True)


@test
def cancel_stops():
    with Scene() as scene:
        queue = scene.queue()
        got = []
        tag = scene.channel.basic_consume(queue, lambda c, m, p, b: got.append(b), auto_ack=True)
        scene.send(queue, b"1")
        scene.until(lambda: got == [b"1"])
        scene.channel.basic_cancel(tag)
        scene.send(queue, b"2")
        scene.idle()
        assert got == [b"1"] and scene.bodies(queue, 1) == [b"2"]


@test
def cancel_notification():
    with Scene() as scene:
        queue = scene.queue()
        cancelled = []
        scene.channel.add_on_cancel_callback(cancelled.append)
        scene.consume(queue)
        scene.connection.channel().queue_delete(queue)
        scene.until(lambda: cancelled)


@test
def exclusive_consumer():
    with Scene() as scene, Scene() as other:
        queue = scene.queue()
        scene.consume(queue, exclusive=True)
        refused(403, other.consume, queue)


@test
def properties_kept():
    sent = pika.BasicProperties(
        content_type="text/plain", content_encoding="utf-8", delivery_mode=2, priority=5, correlation_id="c-1",
        reply_to="answers", expiration="600000", message_id="m-1", timestamp=1234567890, type="greeting",
        user_id="guest", app_id="suite", cluster_id="k")
    with Scene() as scene:
        queue = scene.queue()
        scene.send(queue, b"x", properties=sent)
        _, got, _ = scene.get(queue)
        assert got == sent, got


@test
def headers_kept():
    sent = {
        "text": "grüße", "number": 2**40, "small": -5, "true": True, "nothing": None, "array": [1, "two", {"three": 3}],
        "table": {"nested": {"deep": "value"}}, "decimal": decimal.Decimal("1.25"),
        "time": datetime.datetime(2020, 1, 2, 3, 4, 5), "bytes": "plain",
    }
    with Scene() as scene:
        queue = scene.queue()
        scene.send(queue, b"x", properties=pika.BasicProperties(headers=sent))
        _, got, _ = scene.get(queue)
        assert got.headers == sent, got.headers


@test
def empty_body():
    with Scene() as scene:
        queue = scene.queue()
        scene.send(queue, b"")
        assert scene.bodies(queue, 1) == [b""]


@test
def large_body():
    body = bytes(range(256)) * (5 << 12)
    with Scene() as scene:
        queue = scene.queue()
        scene.send(queue, body, b"after")
        assert scene.bodies(queue, 2) == [body, b"after"]


@test
def expiration():
    with Scene() as scene:
        queue = scene.queue()
        scene.send(queue, b"x", properties=pika.BasicProperties(expiration="100"))
        scene.until(lambda: scene.count(queue) == 0)
        assert scene.empty(queue)


@test
def message_ttl():
    with Scene() as scene:
        queue = scene.queue(arguments={"x-message-ttl": 100})
        scene.send(queue, b"x")
        scene.until(lambda: scene.count(queue) == 0)
        assert scene.empty(queue)


@test
def channel_error_isolated():
    with Scene() as scene:
        queue, broken = scene.queue(), scene.connection.channel()
        refused(404, broken.queue_declare, "py-missing", passive=True)
        scene.send(queue, b"x")
        assert scene.bodies(queue, 1) == [b"x"]


@test
def transaction():
    with Scene() as scene:
        queue, channel = scene.queue(), scene.connection.channel()
        channel.tx_select()
        channel.basic_publish("", queue, b"kept", PERSISTENT)
        assert scene.empty(queue)
        channel.tx_commit()
        assert scene.bodies(queue, 1) == [b"kept"]
        channel.basic_publish("", queue, b"dropped", PERSISTENT)
        channel.tx_rollback()
        channel.tx_commit()
        assert scene.empty(queue)


@test
def direct_reply_to():
    with Scene() as scene, Scene() as server:
        requests = server.queue()
        answers = scene.consume("amq.rabbitmq.reply-to", auto_ack=True)
        scene.channel.basic_publish("", requests, b"?", pika.BasicProperties(reply_to="amq.rabbitmq.reply-to"))
        _, properties, _ = server.get(requests)
        assert properties.reply_to.startswith("amq.rabbitmq.reply-to."), properties.reply_to
        server.channel.basic_publish("", properties.reply_to, b"!")
        scene.until(lambda: answers)
        assert answers[0][2] == b"!"


@test
def wrong_password():
    try:
        connect(URI.replace("guest:guest", "guest:wrong"))
    except errors.ProbableAuthenticationError as error:
        assert "403" in str(error), error
    else:
        raise AssertionError("was let in")


@test
def missing_vhost():
    try:
        connect(URI + "/py-missing")
    except (errors.ConnectionClosedByBroker, errors.ProbableAccessDeniedError) as error:
        assert "530" in str(error), error
    else:
        raise AssertionError("was let in")


def main():
    failed = 0
    for function in TESTS:
        try:
            function()
            print("ok", function.__name__, flush=True)
        except Exception as error:  # a test that fails is reported, whatever it met
            failed += 1
            print("not ok", function.__name__, type(error).__name__, str(error)[:300], flush=True)
    sys.exit(1 if failed else 0)


main()
