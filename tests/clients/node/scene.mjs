// The helpers of the suite: a scene for each test, waiting until something holds, and refusals.

import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import amqp from 'amqplib';

export const URI = process.argv[2];
// How long something that must come may take, and how long we look for what must not come, in milliseconds.
const PATIENCE_MS = 10_000;
const IDLE_MS = 300;

const unique = () => `js-${randomUUID()}`;
export const numbers = (count) => Array.from({ length: count }, (_, n) => String(n));
export const idle = () => sleep(IDLE_MS);

/** Waits until the condition, which may be a promise, gives something true; answers it. */
export async function until(condition) {
  const end = Date.now() + PATIENCE_MS;
  for (;;) {
    const value = await condition();
    if (value) return value;
    assert(Date.now() < end, 'it did not come in time');
    await sleep(5);
  }
}

export async function connect(uri = URI) {
  const connection = await amqp.connect(uri);
  connection.on('error', () => {}); // else an error event would end the process
  return connection;
}

/** Opens a channel whose closing by the broker is kept in `channel.refusal`. */
export async function open(connection, create = 'createConfirmChannel') {
  const channel = await connection[create]();
  channel.on('error', (error) => {
    channel.refusal = error;
  });
  return channel;
}

/** The call closes the channel with this code; answers the text. */
export async function refused(channel, code, call) {
  // The call's own error is the same one, or only says that the channel is closed.
  await Promise.resolve(call()).catch(() => {});
  const error = await until(() => channel.refusal);
  assert.equal(error.code, code, error.message);
  return error.message;
}

/** A connection with a channel in confirm mode; names that no other test uses. `end` removes all of it. */
export class Scene {
  queues = [];
  exchanges = [];

  static async begin() {
    const scene = new Scene();
    scene.connection = await connect();
    scene.channel = await open(scene.connection);
    return scene;
  }

  async end() {
    if (this.closed) this.connection = await connect();
    const channel = await open(this.connection);
    for (const queue of this.queues) await channel.deleteQueue(queue);
    for (const exchange of this.exchanges) await channel.deleteExchange(exchange);
    await this.connection.close();
  }

  async close() {
    this.closed = true;
    await this.connection.close();
  }

  /** Closes the channel, which returns what it has not acked, and opens another. */
  async reopen() {
    await this.channel.close();
    this.channel = await open(this.connection);
  }

  async queue(settings = {}) {
    const { queue } = await this.channel.assertQueue(unique(), { durable: true, ...settings });
    this.queues.push(queue);
    return queue;
  }

  async privateQueue() {
    return (await this.channel.assertQueue('', { durable: false, exclusive: true })).queue;
  }

  async exchange(kind, settings = {}) {
    const { exchange } = await this.channel.assertExchange(unique(), kind, { durable: false, ...settings });
    this.exchanges.push(exchange);
    return exchange;
  }

  /** Publishes persistent messages to a queue and waits for their confirms. */
  send(queue, ...bodies) {
    return this.sendTo('', queue, ...bodies);
  }

  async sendTo(exchange, key, ...bodies) {
    for (const body of bodies) this.channel.publish(exchange, key, Buffer.from(body), { persistent: true });
    await this.channel.waitForConfirms();
  }

  async publish(exchange, key, body, options) {
    this.channel.publish(exchange, key, Buffer.from(body), options);
    await this.channel.waitForConfirms();
  }

  /** The next message of a queue, waited for. */
  get(queue, options = { noAck: true }) {
    return until(() => this.channel.get(queue, options));
  }

  take(queue) {
    return this.get(queue, { noAck: false });
  }

  async bodies(queue, count) {
    const bodies = [];
    while (bodies.length < count) bodies.push((await this.get(queue)).content.toString());
    return bodies;
  }

  async empty(queue) {
    assert.equal(await this.channel.get(queue, { noAck: true }), false);
  }

  /** The queue holds these messages and no others. */
  async holds(queue, ...bodies) {
    assert.deepEqual(await this.bodies(queue, bodies.length), bodies);
    await this.empty(queue);
  }

  async count(queue) {
    const channel = await open(this.connection);
    const { messageCount } = await channel.checkQueue(queue);
    await channel.close();
    return messageCount;
  }

  /** Starts a consumer; answers the list that its messages go to (null when the broker cancels it). */
  async consume(queue, options = {}, channel = this.channel) {
    const got = [];
    await channel.consume(queue, (message) => got.push(message), options);
    return got;
  }
}

export { assert };
