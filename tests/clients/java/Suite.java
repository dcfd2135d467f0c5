import static com.rabbitmq.client.BuiltinExchangeType.DIRECT;
import static com.rabbitmq.client.BuiltinExchangeType.FANOUT;
import static com.rabbitmq.client.BuiltinExchangeType.HEADERS;
import static com.rabbitmq.client.BuiltinExchangeType.TOPIC;

import com.rabbitmq.client.AMQP;
import com.rabbitmq.client.AuthenticationFailureException;
import com.rabbitmq.client.Channel;
import com.rabbitmq.client.Delivery;
import com.rabbitmq.client.GetResponse;
import com.rabbitmq.client.LongString;
import com.rabbitmq.client.ShutdownSignalException;
import java.io.IOException;
import java.math.BigDecimal;
import java.util.Date;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CopyOnWriteArrayList;

/** The table of assertions by RabbitMQ's Java client: `java Suite URI`. Each test is named as in ../table.txt. */
public final class Suite {
    /** A test gets two scenes; most need only the first. */
    interface Test {
        void run(Scene scene, Scene other) throws Exception;
    }

    private static final Map<String, Test> TESTS = new LinkedHashMap<>();
    private static final String REPLY_TO = "amq.rabbitmq.reply-to";
    private static String uri;

    private static void declarations() {
        TESTS.put("declare_server_named", (scene, other) -> {
            String queue = scene.privateQueue();
            Scene.check(queue.startsWith("amq.gen-"), queue);
            scene.send(queue, "x");
            scene.holds(queue, "x");
        });
        TESTS.put("declare_equivalent", (scene, other) -> {
            String queue = scene.queue();
            scene.send(queue, "1", "2");
            Scene.equal(scene.channel.queueDeclare(queue, true, false, false, null).getMessageCount(), 2);
        });
        TESTS.put("declare_inequivalent", (scene, other) -> {
            String queue = scene.queue();
            String text = Scene.refused(scene.channel, 406, () -> scene.channel.queueDeclare(queue, false, false, false, null));
            Scene.check(text.contains("inequivalent arg"), text);
        });
        TESTS.put("declare_passive_missing", (scene, other) -> {
            String text = Scene.refused(scene.channel, 404, () -> scene.channel.queueDeclarePassive("java-missing"));
            Scene.check(text.contains("no queue 'java-missing'"), text);
        });
        TESTS.put("declare_reserved_name", (scene, other) ->
            Scene.refused(scene.channel, 403, () -> scene.channel.queueDeclare("amq.something", true, false, false, null)));
        TESTS.put("exclusive_locked", (scene, other) -> {
            String queue = scene.privateQueue();
            Scene.refused(other.channel, 405, () -> other.channel.queueDeclarePassive(queue));
        });
        TESTS.put("exclusive_gone", (scene, other) -> {
            String queue = scene.privateQueue();
            scene.connection.close();
            Scene.refused(other.channel, 404, () -> other.channel.queueDeclarePassive(queue));
        });
        TESTS.put("queue_type_quorum", (scene, other) -> {
            String queue = scene.queue(Map.of("x-queue-type", "quorum"));
            scene.send(queue, "x");
            scene.holds(queue, "x");
        });
        TESTS.put("exchange_inequivalent", (scene, other) -> {
            String exchange = scene.exchange(DIRECT);
            Scene.refused(scene.channel, 406, () -> scene.channel.exchangeDeclare(exchange, FANOUT));
        });
    }

    private static void routing() {
        TESTS.put("bind_direct", (scene, other) -> {
            String exchange = scene.exchange(DIRECT);
            String queue = scene.queue();
            scene.channel.queueBind(queue, exchange, "yes");
            scene.sendTo(exchange, "yes", "1");
            scene.sendTo(exchange, "no", "2");
            scene.sendTo(exchange, "yes", "3");
            scene.holds(queue, "1", "3");
        });
        TESTS.put("bind_topic", (scene, other) -> {
            String exchange = scene.exchange(TOPIC);
            String star = scene.queue();
            String hash = scene.queue();
            scene.channel.queueBind(star, exchange, "a.*.c");
            scene.channel.queueBind(hash, exchange, "a.#");
            for (String key : List.of("a.b.c", "a", "a.b.b.c", "b.a")) {
                scene.sendTo(exchange, key, key);
            }
            scene.holds(star, "a.b.c");
            scene.holds(hash, "a.b.c", "a", "a.b.b.c");
        });
        TESTS.put("bind_fanout", (scene, other) -> {
            String exchange = scene.exchange(FANOUT);
            List<String> queues = List.of(scene.queue(), scene.queue(), scene.queue());
            for (String queue : queues) {
                scene.channel.queueBind(queue, exchange, "");
            }
            scene.sendTo(exchange, "any", "x");
            for (String queue : queues) {
                scene.holds(queue, "x");
            }
        });
        TESTS.put("bind_headers", (scene, other) -> {
            String exchange = scene.exchange(HEADERS);
            String all = scene.queue();
            String any = scene.queue();
            scene.channel.queueBind(all, exchange, "", Map.of("x-match", "all", "a", 1, "b", "two"));
            scene.channel.queueBind(any, exchange, "", Map.of("x-match", "any", "a", 1, "b", "two"));
            scene.publish(exchange, "", "both", headers(Map.of("a", 1, "b", "two")));
            scene.publish(exchange, "", "one", headers(Map.of("a", 1)));
            scene.publish(exchange, "", "none", headers(Map.of("c", 1)));
            scene.holds(all, "both");
            scene.holds(any, "both", "one");
        });
        TESTS.put("bind_exchange", (scene, other) -> {
            String outer = scene.exchange(TOPIC);
            String inner = scene.exchange(FANOUT);
            String queue = scene.queue();
            scene.channel.exchangeBind(inner, outer, "k.#");
            scene.channel.queueBind(queue, inner, "");
            scene.sendTo(outer, "k.1", "1");
            scene.sendTo(outer, "other", "2");
            scene.holds(queue, "1");
        });
        TESTS.put("unbind_stops", (scene, other) -> {
            String exchange = scene.exchange(DIRECT);
            String queue = scene.queue();
            scene.channel.queueBind(queue, exchange, "k");
            scene.sendTo(exchange, "k", "1");
            scene.channel.queueUnbind(queue, exchange, "k");
            scene.sendTo(exchange, "k", "2");
            scene.holds(queue, "1");
        });
        TESTS.put("alternate_exchange", (scene, other) -> {
            String alternate = scene.exchange(FANOUT);
            String queue = scene.queue();
            String exchange = scene.exchange(DIRECT, Map.of("alternate-exchange", alternate));
            scene.channel.queueBind(queue, alternate, "");
            scene.sendTo(exchange, "nowhere", "x");
            scene.holds(queue, "x");
        });
    }

    private static void publishing() {
        TESTS.put("publish_confirmed", (scene, other) -> {
            String queue = scene.queue();
            String[] bodies = Scene.numbers(1000);
            scene.send(queue, bodies);
            Scene.equal(scene.count(queue), 1000L);
            scene.holds(queue, bodies);
        });
        TESTS.put("publish_returned", (scene, other) -> {
            List<String> events = new CopyOnWriteArrayList<>();
            scene.channel.addReturnListener(returned -> events.add(returned.getReplyCode() + Scene.text(returned.getBody())));
            scene.channel.addConfirmListener((tag, multiple) -> events.add("ack"), (tag, multiple) -> events.add("nack"));
            scene.channel.basicPublish("", "java-missing", true, null, Scene.bytes("x"));
            Scene.until(() -> events.size() == 2);
            Scene.equal(events, List.of("312x", "ack"));
        });
        TESTS.put("publish_missing_exchange", (scene, other) ->
            Scene.refused(scene.channel, 404, () -> scene.channel.basicPublish("java-missing", "k", null, Scene.bytes("x"))));
    }

    private static void consuming() {
        TESTS.put("consume_ack", (scene, other) -> {
            String queue = scene.queue();
            scene.send(queue, Scene.numbers(100));
            List<Delivery> got = scene.consume(queue, false);
            Scene.until(() -> got.size() == 100);
            Scene.equal(Scene.bodiesOf(got), List.of(Scene.numbers(100)));
            for (Delivery message : got) {
                scene.channel.basicAck(message.getEnvelope().getDeliveryTag(), false);
            }
            scene.reopen();
            Scene.equal(scene.count(queue), 0L);
        });
        TESTS.put("consume_no_ack", (scene, other) -> {
            String queue = scene.queue();
            scene.send(queue, Scene.numbers(20));
            List<Delivery> got = scene.consume(queue, true);
            Scene.until(() -> got.size() == 20);
            scene.reopen();
            Scene.until(() -> scene.count(queue) == 0);
        });
        TESTS.put("prefetch_limits", (scene, other) -> {
            String queue = scene.queue();
            scene.send(queue, Scene.numbers(30));
            scene.channel.basicQos(10);
            List<Delivery> got = scene.consume(queue, false);
            Scene.until(() -> got.size() >= 10);
            Scene.idle();
            Scene.equal(got.size(), 10);
            scene.channel.basicAck(got.get(0).getEnvelope().getDeliveryTag(), false);
            Scene.until(() -> got.size() >= 11);
            Scene.idle();
            Scene.equal(got.size(), 11);
        });
        TESTS.put("unacked_come_back", (scene, other) -> {
            String queue = scene.queue();
            scene.send(queue, "1", "2", "3");
            Channel first = scene.open();
            List<Delivery> got = Scene.consume(first, queue, false, "", List.of());
            Scene.until(() -> got.size() == 3);
            Scene.check(got.stream().noneMatch(message -> message.getEnvelope().isRedeliver()), "marked redelivered at first");
            first.close();
            for (String body : List.of("1", "2", "3")) {
                redelivered(scene.get(queue), body);
            }
        });
        TESTS.put("reject_requeue", (scene, other) -> {
            String queue = scene.queue();
            scene.send(queue, "x");
            scene.channel.basicReject(scene.take(queue), true);
            redelivered(scene.get(queue), "x");
        });
        TESTS.put("nack_multiple", (scene, other) -> {
            String queue = scene.queue();
            scene.send(queue, "1", "2", "3");
            List<Long> taken = List.of(scene.take(queue), scene.take(queue), scene.take(queue));
            scene.channel.basicNack(taken.get(2), true, true);
            scene.holds(queue, "1", "2", "3");
        });
        TESTS.put("ack_multiple", (scene, other) -> {
            String queue = scene.queue();
            scene.send(queue, "1", "2", "3");
            List<Long> taken = List.of(scene.take(queue), scene.take(queue), scene.take(queue));
            scene.channel.basicAck(taken.get(1), true);
            scene.reopen();
            scene.holds(queue, "3");
        });
        TESTS.put("ack_unknown_tag", (scene, other) -> {
            String text = Scene.refused(scene.channel, 406, () -> scene.channel.basicAck(99, false));
            Scene.check(text.contains("unknown delivery tag 99"), text);
        });
    }

    private static void queues() {
        TESTS.put("get_message", (scene, other) -> {
            String queue = scene.queue();
            scene.send(queue, "1", "2", "3");
            GetResponse message = scene.get(queue);
            Scene.equal(Scene.text(message.getBody()), "1");
            Scene.equal(message.getMessageCount(), 2);
        });
        TESTS.put("get_empty", (scene, other) -> scene.empty(scene.queue()));
        TESTS.put("purge_counts", (scene, other) -> {
            String queue = scene.queue();
            scene.send(queue, Scene.numbers(7));
            Scene.equal(scene.channel.queuePurge(queue).getMessageCount(), 7);
            scene.empty(queue);
        });
        TESTS.put("delete_if_unused", (scene, other) -> {
            String queue = scene.queue();
            scene.consume(queue, false);
            Scene.refused(other.channel, 406, () -> other.channel.queueDelete(queue, true, false));
        });
        TESTS.put("delete_if_empty", (scene, other) -> {
            String queue = scene.queue();
            scene.send(queue, "x");
            Scene.refused(scene.channel, 406, () -> scene.channel.queueDelete(queue, false, true));
        });
        TESTS.put("cancel_stops", (scene, other) -> {
            String queue = scene.queue();
            List<Delivery> got = Scene.consume(scene.channel, queue, true, "tag", List.of());
            scene.send(queue, "1");
            Scene.until(() -> got.size() == 1);
            scene.channel.basicCancel("tag");
            scene.send(queue, "2");
            Scene.idle();
            Scene.equal(Scene.bodiesOf(got), List.of("1"));
            scene.holds(queue, "2");
        });
        TESTS.put("cancel_notification", (scene, other) -> {
            String queue = scene.queue();
            List<String> cancelled = new CopyOnWriteArrayList<>();
            Scene.consume(scene.channel, queue, false, "tag", cancelled);
            scene.open().queueDelete(queue);
            Scene.until(() -> cancelled.equals(List.of("tag")));
        });
        TESTS.put("exclusive_consumer", (scene, other) -> {
            String queue = scene.queue();
            scene.channel.basicConsume(queue, false, "", false, true, null, (tag, message) -> { }, tag -> { });
            Scene.refused(other.channel, 403, () -> other.consume(queue, false));
        });
    }

    private static void messages() {
        TESTS.put("properties_kept", (scene, other) -> {
            AMQP.BasicProperties sent = new AMQP.BasicProperties.Builder()
                .contentType("text/plain").contentEncoding("utf-8").deliveryMode(2).priority(5).correlationId("c-1")
                .replyTo("answers").expiration("600000").messageId("m-1").timestamp(new Date(1234567890_000L))
                .type("greeting").userId("guest").appId("suite").clusterId("k").build();
            String queue = scene.queue();
            scene.publish("", queue, "x", sent);
            Scene.equal(scene.get(queue).getProps(), sent);
        });
        TESTS.put("headers_kept", (scene, other) -> {
            Map<String, Object> sent = new HashMap<>(Map.of(
                "text", "grüße", "number", 1L << 40, "small", -5, "true", true, "double", 1.25,
                "array", List.of(1, "two", Map.of("three", 3)), "table", Map.of("nested", Map.of("deep", "value")),
                "decimal", new BigDecimal("1.25"), "time", new Date(1577934245_000L)));
            sent.put("nothing", null);
            String queue = scene.queue();
            scene.publish("", queue, "x", headers(sent));
            Scene.equal(plain(scene.get(queue).getProps().getHeaders()), sent);
        });
        TESTS.put("empty_body", (scene, other) -> {
            String queue = scene.queue();
            scene.send(queue, "");
            scene.holds(queue, "");
        });
        TESTS.put("large_body", (scene, other) -> {
            String body = "0123456789abcdef".repeat(5 << 16);
            String queue = scene.queue();
            scene.send(queue, body, "after");
            Scene.check(Scene.text(scene.get(queue).getBody()).equals(body), "the body has changed");
            scene.holds(queue, "after");
        });
        TESTS.put("expiration", (scene, other) -> {
            String queue = scene.queue();
            scene.publish("", queue, "x", new AMQP.BasicProperties.Builder().expiration("100").build());
            Scene.until(() -> scene.count(queue) == 0);
            scene.empty(queue);
        });
        TESTS.put("message_ttl", (scene, other) -> {
            String queue = scene.queue(Map.of("x-message-ttl", 100));
            scene.send(queue, "x");
            Scene.until(() -> scene.count(queue) == 0);
            scene.empty(queue);
        });
    }

    private static void channelsAndConnections() {
        TESTS.put("channel_error_isolated", (scene, other) -> {
            String queue = scene.queue();
            Channel broken = scene.open();
            Scene.refused(broken, 404, () -> broken.queueDeclarePassive("java-missing"));
            scene.send(queue, "x");
            scene.holds(queue, "x");
        });
        TESTS.put("transaction", (scene, other) -> {
            String queue = scene.queue();
            Channel channel = scene.connection.createChannel();
            channel.txSelect();
            channel.basicPublish("", queue, null, Scene.bytes("kept"));
            scene.empty(queue);
            channel.txCommit();
            scene.holds(queue, "kept");
            channel.basicPublish("", queue, null, Scene.bytes("dropped"));
            channel.txRollback();
            channel.txCommit();
            scene.empty(queue);
        });
        TESTS.put("direct_reply_to", (scene, server) -> {
            String requests = server.queue();
            List<Delivery> answers = scene.consume(REPLY_TO, true);
            scene.publish("", requests, "?", new AMQP.BasicProperties.Builder().replyTo(REPLY_TO).build());
            String address = server.get(requests).getProps().getReplyTo();
            Scene.check(address.startsWith(REPLY_TO + "."), address);
            server.send(address, "!");
            Scene.until(() -> answers.size() == 1);
            Scene.equal(Scene.bodiesOf(answers), List.of("!"));
        });
        TESTS.put("wrong_password", (scene, other) -> {
            try {
                Scene.connect(uri.replace("guest:guest", "guest:wrong")).close();
            } catch (AuthenticationFailureException error) {
                Scene.check(error.getMessage().contains("ACCESS_REFUSED"), error.getMessage());
                return;
            }
            throw new AssertionError("was let in");
        });
        TESTS.put("missing_vhost", (scene, other) -> {
            try {
                Scene.connect(uri + "/java-missing").close();
            } catch (IOException error) {
                ShutdownSignalException cause = (ShutdownSignalException) error.getCause();
                Scene.equal(((AMQP.Connection.Close) cause.getReason()).getReplyCode(), 530);
                return;
            }
            throw new AssertionError("was let in");
        });
    }

    private static AMQP.BasicProperties headers(Map<String, Object> headers) {
        return new AMQP.BasicProperties.Builder().headers(headers).build();
    }

    private static void redelivered(GetResponse message, String body) {
        Scene.equal(Scene.text(message.getBody()), body);
        Scene.check(message.getEnvelope().isRedeliver(), "not marked redelivered");
    }

    /** A header as it was given: the client answers texts as LongString. */
    private static Object plain(Object header) {
        if (header instanceof LongString) {
            return header.toString();
        }
        if (header instanceof List<?> list) {
            return list.stream().map(Suite::plain).toList();
        }
        if (header instanceof Map<?, ?> table) {
            Map<Object, Object> plain = new HashMap<>();
            table.forEach((key, value) -> plain.put(key, plain(value)));
            return plain;
        }
        return header;
    }

    /** Runs a test in scenes of its own and prints its line; answers whether it passed. */
    private static boolean report(String name, Test test) {
        try (Scene scene = new Scene(uri); Scene other = new Scene(uri)) {
            test.run(scene, other);
        } catch (Exception | AssertionError error) {
            System.out.println("not ok " + name + " " + error.toString().replace('\n', ' '));
            return false;
        }
        System.out.println("ok " + name);
        return true;
    }

    public static void main(String[] arguments) {
        uri = arguments[0];
        declarations();
        routing();
        publishing();
        consuming();
        queues();
        messages();
        channelsAndConnections();
        int failed = 0;
        for (Map.Entry<String, Test> test : TESTS.entrySet()) {
            failed += report(test.getKey(), test.getValue()) ? 0 : 1;
        }
        System.exit(failed == 0 ? 0 : 1);
    }
}
