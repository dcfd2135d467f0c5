// The table of assertions by amqplib: `suite.mjs URI`. Each test is named as in ../table.txt.

import { createRequire } from 'node:module';
import path from 'node:path';
import { Scene, URI, assert, connect, idle, numbers, open, refused, until } from './scene.mjs';

// amqplib has no call for transactions; its channels can send any method of its own definitions.
const require = createRequire(import.meta.url);
const methods = require(path.join(path.dirname(require.resolve('amqplib')), 'lib/defs'));

const bodiesOf = (messages) => messages.map((message) => message.content.toString());

const tests = {
  async declare_server_named(scene) {
    const queue = await scene.privateQueue();
    assert(queue.startsWith('amq.gen-'), queue);
    await scene.send(queue, 'x');
    await scene.holds(queue, 'x');
  },

  async declare_equivalent(scene) {
    const queue = await scene.queue();
    await scene.send(queue, '1', '2');
    assert.equal((await scene.channel.assertQueue(queue, { durable: true })).messageCount, 2);
  },

  async declare_inequivalent(scene) {
    const queue = await scene.queue();
    const text = await refused(scene.channel, 406, () => scene.channel.assertQueue(queue, { durable: false }));
    assert.match(text, /inequivalent arg/);
  },

  async declare_passive_missing(scene) {
    const text = await refused(scene.channel, 404, () => scene.channel.checkQueue('js-missing'));
    assert.match(text, /no queue 'js-missing'/);
  },

  async declare_reserved_name(scene) {
    await refused(scene.channel, 403, () => scene.channel.assertQueue('amq.something', { durable: true }));
  },

  async exclusive_locked(scene, other) {
    const queue = await scene.privateQueue();
    await refused(other.channel, 405, () => other.channel.checkQueue(queue));
  },

  async exclusive_gone(scene, other) {
    const queue = await scene.privateQueue();
    await scene.close();
    await refused(other.channel, 404, () => other.channel.checkQueue(queue));
  },

  async queue_type_quorum(scene) {
    const queue = await scene.queue({ arguments: { 'x-queue-type': 'quorum' } });
    await scene.send(queue, 'x');
    await scene.holds(queue, 'x');
  },

  async exchange_inequivalent(scene) {
    const exchange = await scene.exchange('direct');
    await refused(scene.channel, 406, () => scene.channel.assertExchange(exchange, 'fanout', { durable: false }));
  },

  async bind_direct(scene) {
    const [exchange, queue] = [await scene.exchange('direct'), await scene.queue()];
    await scene.channel.bindQueue(queue, exchange, 'yes');
    await scene.sendTo(exchange, 'yes', '1');
    await scene.sendTo(exchange, 'no', '2');
    await scene.sendTo(exchange, 'yes', '3');
    await scene.holds(queue, '1', '3');
  },

  async bind_topic(scene) {
    const [exchange, star, hash] = [await scene.exchange('topic'), await scene.queue(), await scene.queue()];
    await scene.channel.bindQueue(star, exchange, 'a.*.c');
    await scene.channel.bindQueue(hash, exchange, 'a.#');
    for (const key of ['a.b.c', 'a', 'a.b.b.c', 'b.a']) await scene.sendTo(exchange, key, key);
    await scene.holds(star, 'a.b.c');
    await scene.holds(hash, 'a.b.c', 'a', 'a.b.b.c');
  },

  async bind_fanout(scene) {
    const exchange = await scene.exchange('fanout');
    const queues = [await scene.queue(), await scene.queue(), await scene.queue()];
    for (const queue of queues) await scene.channel.bindQueue(queue, exchange, '');
    await scene.sendTo(exchange, 'any', 'x');
    for (const queue of queues) await scene.holds(queue, 'x');
  },

  async bind_headers(scene) {
    const [exchange, all, any] = [await scene.exchange('headers'), await scene.queue(), await scene.queue()];
    await scene.channel.bindQueue(all, exchange, '', { 'x-match': 'all', a: 1, b: 'two' });
    await scene.channel.bindQueue(any, exchange, '', { 'x-match': 'any', a: 1, b: 'two' });
    await scene.publish(exchange, '', 'both', { headers: { a: 1, b: 'two' } });
    await scene.publish(exchange, '', 'one', { headers: { a: 1 } });
    await scene.publish(exchange, '', 'none', { headers: { c: 1 } });
    await scene.holds(all, 'both');
    await scene.holds(any, 'both', 'one');
  },

  async bind_exchange(scene) {
    const [outer, inner, queue] = [await scene.exchange('topic'), await scene.exchange('fanout'), await scene.queue()];
    await scene.channel.bindExchange(inner, outer, 'k.#');
    await scene.channel.bindQueue(queue, inner, '');
    await scene.sendTo(outer, 'k.1', '1');
    await scene.sendTo(outer, 'other', '2');
    await scene.holds(queue, '1');
  },

  async unbind_stops(scene) {
    const [exchange, queue] = [await scene.exchange('direct'), await scene.queue()];
    await scene.channel.bindQueue(queue, exchange, 'k');
    await scene.sendTo(exchange, 'k', '1');
    await scene.channel.unbindQueue(queue, exchange, 'k');
    await scene.sendTo(exchange, 'k', '2');
    await scene.holds(queue, '1');
  },

  async alternate_exchange(scene) {
    const [alternate, queue] = [await scene.exchange('fanout'), await scene.queue()];
    const exchange = await scene.exchange('direct', { alternateExchange: alternate });
    await scene.channel.bindQueue(queue, alternate, '');
    await scene.sendTo(exchange, 'nowhere', 'x');
    await scene.holds(queue, 'x');
  },

  async publish_confirmed(scene) {
    const [queue, bodies] = [await scene.queue(), numbers(1000)];
    await scene.send(queue, ...bodies);
    assert.equal(await scene.count(queue), 1000);
    await scene.holds(queue, ...bodies);
  },

  async publish_returned(scene) {
    const events = [];
    scene.channel.on('return', (message) => events.push(message));
    scene.channel.publish('', 'js-missing', Buffer.from('x'), { mandatory: true }, (error) => events.push(error));
    await until(() => events.length === 2);
    const [returned, refusal] = events;
    assert.equal(returned?.fields?.replyCode, 312);
    assert.deepEqual([returned.content.toString(), refusal], ['x', null]);
  },

  async publish_missing_exchange(scene) {
    await refused(scene.channel, 404, () => scene.channel.publish('js-missing', 'k', Buffer.from('x')));
  },

  async consume_ack(scene) {
    const [queue, bodies] = [await scene.queue(), numbers(100)];
    await scene.send(queue, ...bodies);
    const got = await scene.consume(queue);
    await until(() => got.length === 100);
    assert.deepEqual(bodiesOf(got), bodies);
    for (const message of got) scene.channel.ack(message);
    await scene.reopen();
    assert.equal(await scene.count(queue), 0);
  },

  async consume_no_ack(scene) {
    const queue = await scene.queue();
    await scene.send(queue, ...numbers(20));
    const got = await scene.consume(queue, { noAck: true });
    await until(() => got.length === 20);
    await scene.reopen();
    await until(async () => (await scene.count(queue)) === 0);
  },

  async prefetch_limits(scene) {
    const queue = await scene.queue();
    await scene.send(queue, ...numbers(30));
    await scene.channel.prefetch(10);
    const got = await scene.consume(queue);
    await until(() => got.length >= 10);
    await idle();
    assert.equal(got.length, 10);
    scene.channel.ack(got[0]);
    await until(() => got.length >= 11);
    await idle();
    assert.equal(got.length, 11);
  },

  async unacked_come_back(scene) {
    const queue = await scene.queue();
    await scene.send(queue, '1', '2', '3');
    const first = await open(scene.connection);
    const got = await scene.consume(queue, {}, first);
    await until(() => got.length === 3);
    assert(!got.some((message) => message.fields.redelivered));
    await first.close();
    for (const body of ['1', '2', '3']) {
      const message = await scene.get(queue);
      assert.deepEqual([message.content.toString(), message.fields.redelivered], [body, true]);
    }
  },

  async reject_requeue(scene) {
    const queue = await scene.queue();
    await scene.send(queue, 'x');
    scene.channel.reject(await scene.take(queue), true);
    const message = await scene.get(queue);
    assert.deepEqual([message.content.toString(), message.fields.redelivered], ['x', true]);
  },

  async nack_multiple(scene) {
    const queue = await scene.queue();
    await scene.send(queue, '1', '2', '3');
    const taken = [await scene.take(queue), await scene.take(queue), await scene.take(queue)];
    scene.channel.nack(taken[2], true, true);
    await scene.holds(queue, '1', '2', '3');
  },

  async ack_multiple(scene) {
    const queue = await scene.queue();
    await scene.send(queue, '1', '2', '3');
    const taken = [await scene.take(queue), await scene.take(queue), await scene.take(queue)];
    scene.channel.ack(taken[1], true);
    await scene.reopen();
    await scene.holds(queue, '3');
  },

  async ack_unknown_tag(scene) {
    const text = await refused(scene.channel, 406, () => scene.channel.ack({ fields: { deliveryTag: 99 } }));
    assert.match(text, /unknown delivery tag 99/);
  },

  async get_message(scene) {
    const queue = await scene.queue();
    await scene.send(queue, '1', '2', '3');
    const message = await scene.get(queue);
    assert.deepEqual([message.content.toString(), message.fields.messageCount], ['1', 2]);
  },

  async get_empty(scene) {
    assert.equal(await scene.channel.get(await scene.queue()), false);
  },

  async purge_counts(scene) {
    const queue = await scene.queue();
    await scene.send(queue, ...numbers(7));
    assert.equal((await scene.channel.purgeQueue(queue)).messageCount, 7);
    await scene.empty(queue);
  },

  async delete_if_unused(scene, other) {
    const queue = await scene.queue();
    await scene.consume(queue);
    await refused(other.channel, 406, () => other.channel.deleteQueue(queue, { ifUnused: true }));
  },

  async delete_if_empty(scene) {
    const queue = await scene.queue();
    await scene.send(queue, 'x');
    await refused(scene.channel, 406, () => scene.channel.deleteQueue(queue, { ifEmpty: true }));
  },

  async cancel_stops(scene) {
    const queue = await scene.queue();
    const got = await scene.consume(queue, { consumerTag: 'tag', noAck: true });
    await scene.send(queue, '1');
    await until(() => got.length === 1);
    await scene.channel.cancel('tag');
    await scene.send(queue, '2');
    await idle();
    assert.deepEqual(bodiesOf(got), ['1']);
    await scene.holds(queue, '2');
  },

  async cancel_notification(scene) {
    const queue = await scene.queue();
    const got = await scene.consume(queue);
    await (await open(scene.connection)).deleteQueue(queue);
    await until(() => got.length === 1);
    assert.deepEqual(got, [null]);
  },

  async exclusive_consumer(scene, other) {
    const queue = await scene.queue();
    await scene.consume(queue, { exclusive: true });
    await refused(other.channel, 403, () => other.consume(queue));
  },

  async properties_kept(scene) {
    const sent = {
      contentType: 'text/plain', contentEncoding: 'utf-8', deliveryMode: 2, priority: 5, correlationId: 'c-1',
      replyTo: 'answers', expiration: '600000', messageId: 'm-1', timestamp: 1234567890, type: 'greeting',
      userId: 'guest', appId: 'suite',
    };
    const queue = await scene.queue();
    await scene.publish('', queue, 'x', sent);
    const { properties } = await scene.get(queue);
    assert.deepEqual({ ...properties }, { ...sent, headers: properties.headers, clusterId: undefined });
  },

  async headers_kept(scene) {
    const sent = {
      text: 'grüße', number: 2 ** 40, small: -5, true: true, nothing: null, double: 1.25,
      array: [1, 'two', { three: 3 }], table: { nested: { deep: 'value' } },
      decimal: { '!': 'decimal', value: { places: 2, digits: 125 } },
      time: { '!': 'timestamp', value: 1577934245 }, bytes: Buffer.from('plain'),
    };
    const queue = await scene.queue();
    await scene.publish('', queue, 'x', { headers: sent });
    assert.deepEqual({ ...(await scene.get(queue)).properties.headers }, sent);
  },

  async empty_body(scene) {
    const queue = await scene.queue();
    await scene.send(queue, '');
    await scene.holds(queue, '');
  },

  async large_body(scene) {
    const body = Buffer.alloc(5 << 20, '0123456789abcdef');
    const queue = await scene.queue();
    await scene.send(queue, body, 'after');
    assert(body.equals((await scene.get(queue)).content), 'the body has changed');
    await scene.holds(queue, 'after');
  },

  async expiration(scene) {
    const queue = await scene.queue();
    await scene.publish('', queue, 'x', { expiration: '100' });
    await until(async () => (await scene.count(queue)) === 0);
    await scene.empty(queue);
  },

  async message_ttl(scene) {
    const queue = await scene.queue({ messageTtl: 100 });
    await scene.send(queue, 'x');
    await until(async () => (await scene.count(queue)) === 0);
    await scene.empty(queue);
  },

  async channel_error_isolated(scene) {
    const [queue, broken] = [await scene.queue(), await open(scene.connection)];
    await refused(broken, 404, () => broken.checkQueue('js-missing'));
    await scene.send(queue, 'x');
    await scene.holds(queue, 'x');
  },

  async transaction(scene) {
    const [queue, channel] = [await scene.queue(), await open(scene.connection, 'createChannel')];
    const commit = () => channel.rpc(methods.TxCommit, {}, methods.TxCommitOk);
    await channel.rpc(methods.TxSelect, {}, methods.TxSelectOk);
    channel.sendToQueue(queue, Buffer.from('kept'));
    await scene.empty(queue);
    await commit();
    await scene.holds(queue, 'kept');
    channel.sendToQueue(queue, Buffer.from('dropped'));
    await channel.rpc(methods.TxRollback, {}, methods.TxRollbackOk);
    await commit();
    await scene.empty(queue);
  },

  async direct_reply_to(scene, server) {
    const requests = await server.queue();
    const answers = await scene.consume('amq.rabbitmq.reply-to', { noAck: true });
    await scene.publish('', requests, '?', { replyTo: 'amq.rabbitmq.reply-to' });
    const { replyTo } = (await server.get(requests)).properties;
    assert.match(replyTo, /^amq\.rabbitmq\.reply-to\./);
    await server.send(replyTo, '!');
    await until(() => answers.length === 1);
    assert.deepEqual(bodiesOf(answers), ['!']);
  },

  async wrong_password() {
    await assert.rejects(connect(URI.replace('guest:guest', 'guest:wrong')), /403/);
  },

  async missing_vhost() {
    // The client does not tell the code, only that the broker closed the connection instead of opening it.
    await assert.rejects(connect(`${URI}/js-missing`), /530|got <ConnectionClose/);
  },
};

// A test that hangs ends the suite: the client has no deadline for its calls.
const TEST_LIMIT_MS = 60_000;

for (const [name, test] of Object.entries(tests)) {
  const limit = setTimeout(() => {
    console.log('not ok', name, 'did not end in time; the tests after it were not run');
    process.exit(1);
  }, TEST_LIMIT_MS);
  const scenes = [await Scene.begin(), await Scene.begin()];
  try {
    await test(...scenes);
    console.log('ok', name);
  } catch (error) {
    process.exitCode = 1;
    console.log('not ok', name, String(error.message).replaceAll('\n', ' ').slice(0, 300));
  }
  for (const scene of scenes) await scene.end();
  clearTimeout(limit);
}
