import com.rabbitmq.client.AMQP;
import com.rabbitmq.client.BuiltinExchangeType;
import com.rabbitmq.client.CancelCallback;
import com.rabbitmq.client.Channel;
import com.rabbitmq.client.Connection;
import com.rabbitmq.client.ConnectionFactory;
import com.rabbitmq.client.Delivery;
import com.rabbitmq.client.GetResponse;
import com.rabbitmq.client.MessageProperties;
import com.rabbitmq.client.ShutdownSignalException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.UUID;
import java.util.concurrent.Callable;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.TimeUnit;
import java.util.stream.IntStream;

/** A connection with a channel in confirm mode, and names that no other test uses; closing removes all of it. */
final class Scene implements AutoCloseable {
    /** How long something that must come may take. */
    static final long PATIENCE_MS = 10_000;
    /** How long we look for what must not come. */
    static final long IDLE_MS = 300;

    /** What a test does with a channel; any exception may come out of it. */
    interface Call {
        void run() throws Exception;
    }

    private final String uri;
    private final List<String> queues = new ArrayList<>();
    private final List<String> exchanges = new ArrayList<>();
    Connection connection;
    Channel channel;

    Scene(String uri) throws Exception {
        this.uri = uri;
        connection = connect(uri);
        channel = open();
    }

    static Connection connect(String uri) throws Exception {
        ConnectionFactory factory = new ConnectionFactory();
        factory.setUri(uri);
        factory.setAutomaticRecoveryEnabled(false);
        factory.setChannelRpcTimeout((int) PATIENCE_MS);
        return factory.newConnection();
    }

    Channel open() throws Exception {
        Channel opened = connection.createChannel();
        opened.confirmSelect();
        return opened;
    }

    /** Closes the channel, which returns what it has not acked, and opens another. */
    void reopen() throws Exception {
        channel.close();
        channel = open();
    }

    @Override
    public void close() throws Exception {
        if (!connection.isOpen()) {
            connection = connect(uri);
        }
        Channel cleaner = open();
        for (String queue : queues) {
            cleaner.queueDelete(queue);
        }
        for (String exchange : exchanges) {
            cleaner.exchangeDelete(exchange);
        }
        connection.close();
    }

    private static String unique() {
        return "java-" + UUID.randomUUID();
    }

    String queue() throws Exception {
        return queue(Map.of());
    }

    String queue(Map<String, Object> arguments) throws Exception {
        String name = unique();
        channel.queueDeclare(name, true, false, false, arguments);
        queues.add(name);
        return name;
    }

    String privateQueue() throws Exception {
        return channel.queueDeclare("", false, true, false, null).getQueue();
    }

    String exchange(BuiltinExchangeType type) throws Exception {
        return exchange(type, Map.of());
    }

    String exchange(BuiltinExchangeType type, Map<String, Object> arguments) throws Exception {
        String name = unique();
        channel.exchangeDeclare(name, type, false, false, arguments);
        exchanges.add(name);
        return name;
    }

    /** Publishes persistent messages to a queue and waits for their confirms. */
    void send(String queue, String... bodies) throws Exception {
        sendTo("", queue, bodies);
    }

    void sendTo(String exchange, String key, String... bodies) throws Exception {
        for (String body : bodies) {
            channel.basicPublish(exchange, key, MessageProperties.MINIMAL_PERSISTENT_BASIC, bytes(body));
        }
        channel.waitForConfirmsOrDie(PATIENCE_MS);
    }

    void publish(String exchange, String key, String body, AMQP.BasicProperties properties) throws Exception {
        channel.basicPublish(exchange, key, properties, bytes(body));
        channel.waitForConfirmsOrDie(PATIENCE_MS);
    }

    /** The next message of a queue, waited for. */
    GetResponse get(String queue) throws Exception {
        return until(() -> channel.basicGet(queue, true));
    }

    /** The delivery tag of the next message of a queue, which stays unacked. */
    long take(String queue) throws Exception {
        return until(() -> channel.basicGet(queue, false)).getEnvelope().getDeliveryTag();
    }

    List<String> bodies(String queue, int count) throws Exception {
        List<String> bodies = new ArrayList<>();
        while (bodies.size() < count) {
            bodies.add(text(get(queue).getBody()));
        }
        return bodies;
    }

    void empty(String queue) throws Exception {
        check(channel.basicGet(queue, true) == null, queue + " is not empty");
    }

    /** The queue holds these messages and no others. */
    void holds(String queue, String... bodies) throws Exception {
        equal(bodies(queue, bodies.length), List.of(bodies));
        empty(queue);
    }

    long count(String queue) throws Exception {
        return channel.messageCount(queue);
    }

    List<Delivery> consume(String queue, boolean autoAck) throws Exception {
        return consume(channel, queue, autoAck, "", new CopyOnWriteArrayList<>());
    }

    /** Starts a consumer; answers the list that its messages go to. The list `cancelled` takes its tag if the broker cancels it. */
    static List<Delivery> consume(Channel channel, String queue, boolean autoAck, String tag, List<String> cancelled) throws Exception {
        List<Delivery> got = new CopyOnWriteArrayList<>();
        CancelCallback onCancel = cancelled::add;
        channel.basicConsume(queue, autoAck, tag, (consumer, message) -> got.add(message), onCancel);
        return got;
    }

    /** Waits until the condition gives something other than null and false; answers it. */
    static <T> T until(Callable<T> condition) throws Exception {
        long end = System.nanoTime() + TimeUnit.MILLISECONDS.toNanos(PATIENCE_MS);
        while (true) {
            T value = condition.call();
            if (value != null && !Boolean.FALSE.equals(value)) {
                return value;
            }
            check(System.nanoTime() < end, "it did not come in time");
            Thread.sleep(5);
        }
    }

    static void idle() throws InterruptedException {
        Thread.sleep(IDLE_MS);
    }

    /** The call closes the channel with this code; answers the text. */
    static String refused(Channel channel, int code, Call call) throws Exception {
        CompletableFuture<ShutdownSignalException> closed = new CompletableFuture<>();
        channel.addShutdownListener(closed::complete);
        try {
            call.run();
        } catch (Exception error) {
            // The same error, or only that the channel is closed: what it was closed with is read below.
            check(!(error instanceof RuntimeException) || !channel.isOpen(), String.valueOf(error));
        }
        AMQP.Channel.Close close = (AMQP.Channel.Close) closed.get(PATIENCE_MS, TimeUnit.MILLISECONDS).getReason();
        equal(close.getReplyCode(), code);
        return close.getReplyText();
    }

    static void check(boolean holds, String message) {
        if (!holds) {
            throw new AssertionError(message);
        }
    }

    static void equal(Object got, Object wanted) {
        check(Objects.equals(got, wanted), "got " + got + ", expected " + wanted);
    }

    static byte[] bytes(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }

    static String text(byte[] bytes) {
        return new String(bytes, StandardCharsets.UTF_8);
    }

    static List<String> bodiesOf(List<Delivery> messages) {
        return messages.stream().map(message -> text(message.getBody())).toList();
    }

    static String[] numbers(int count) {
        return IntStream.range(0, count).mapToObj(String::valueOf).toArray(String[]::new);
    }
}
