// npm's `eventsource`, which knows nothing of herenow, as a device.

import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { EventSource } from 'eventsource';
import { Herenow, suite, until, user } from '../herenow.mjs';

/** A device that notes what it hears. `requests` are the `Last-Event-ID`s it asked with. */
async function listen(t, herenow, name, device = 'phone', query = '') {
  const token = await herenow.token(name, device);
  const heard = { ready: [], messages: [], bye: [], requests: [] };
  const source = new EventSource(`${herenow.url}/v1/stream${query}`, {
    fetch: (url, init) => {
      heard.requests.push(new Headers(init.headers).get('Last-Event-ID'));
      return fetch(url, { ...init, headers: { ...init.headers, Authorization: `Bearer ${token}` } });
    },
  });
  t.after(() => source.close());
  source.addEventListener('ready', (event) => heard.ready.push(JSON.parse(event.data)));
  source.addEventListener('bye', (event) => heard.bye.push(JSON.parse(event.data).reason));
  source.addEventListener('message', (event) => heard.messages.push({ ...JSON.parse(event.data), lastEventId: event.lastEventId, raw: event.data }));
  heard.payloads = () => heard.messages.map(({ payload }) => payload);
  heard.source = source;
  await until('ready', () => heard.ready.length === 1);
  return heard;
}

describe('a stream, read by npm eventsource', { timeout: 60_000 }, () => {
  let herenow;
  const all = suite(after);
  before(async () => {
    herenow = await Herenow.start(all);
  });

  it('says who it is, and delivers both kinds of message', async (t) => {
    const [alice, bob] = [user('alice'), user('bob')];
    const heard = await listen(t, herenow, bob);
    assert.equal(heard.ready[0].user, bob);
    assert.equal(heard.ready[0].device, 'phone');
    assert.equal(await herenow.signal(alice, bob, { typing: true }), 'delivered');
    const cursor = await herenow.store(alice, bob, { text: 'hello' });
    assert.equal(await herenow.signal(alice, bob, { typing: false }), 'delivered');
    await until('three messages', () => heard.messages.length === 3);
    const [typing, hello, stopped] = heard.messages;
    assert.deepEqual([typing.online_only, typing.cursor, typing.lastEventId], [true, undefined, '']);
    assert.deepEqual([hello.online_only, hello.cursor, hello.lastEventId], [false, cursor, cursor]);
    // Without an `id:` line a browser repeats the last one here, this library says nothing.
    assert.equal(stopped.lastEventId, '', 'an online-only message has no id of its own');
    assert.deepEqual([hello.from, hello.to, hello.type], [alice, { users: [bob] }, 'chat']);
  });

  it('relays a payload byte for byte, line ends included', async (t) => {
    const [alice, bob] = [user('alice'), user('bob')];
    const heard = await listen(t, herenow, bob);
    const payload = '{"n":12345678901234567890, "z":1.0e5,\n\t"a":"\\u00e9 é 💬",\r\n"a":null}';
    const body = `{"from":"${alice}","to":{"users":["${bob}"]},"type":"t","online_only":true,"payload":${payload}}`;
    const response = await fetch(`${herenow.url}/v1/messages`, {
      method: 'POST',
      headers: { Authorization: `Bearer ${herenow.apiKey}`, 'Content-Type': 'application/json' },
      body,
    });
    assert.equal(response.status, 200, await response.text());
    await until('the message', () => heard.messages.length === 1);
    // SSE knows one line end only, so a CRLF between two JSON tokens arrives as LF.
    assert.ok(heard.messages[0].raw.includes(`"payload":${payload.replace('\r\n', '\n')},`), heard.messages[0].raw);
  });

  it('comes back by Last-Event-ID after it was closed, without loss or repeat', async (t) => {
    const [alice, bob] = [user('alice'), user('bob')];
    const heard = await listen(t, herenow, bob);
    await herenow.store(alice, bob, 1);
    const second = await herenow.store(alice, bob, 2);
    await until('two messages', () => heard.messages.length === 2);
    // It comes after what is persisted, and must not move where the stream goes on.
    assert.equal(await herenow.signal(alice, bob, 'for now'), 'delivered');
    await until('the signal', () => heard.messages.length === 3);

    assert.equal((await herenow.ask('DELETE', `/v1/users/${bob}/devices/phone`)).status, 204);
    await until('bye', () => heard.bye.length === 1);
    assert.deepEqual(heard.bye, ['kicked']);
    await herenow.online(bob, false);
    assert.equal(await herenow.signal(alice, bob, 'lost'), 'offline');
    await herenow.store(alice, bob, 3);
    await herenow.store(alice, bob, 4);

    await until('it is back with all', () => heard.messages.length === 5);
    assert.equal(heard.ready[1].resumed_after, second);
    assert.deepEqual(heard.requests, [null, second]);
    assert.deepEqual(heard.payloads(), [1, 2, 'for now', 3, 4]);
    assert.equal(await herenow.signal(alice, bob, 'again'), 'delivered');
    await until('the last one', () => heard.messages.length === 6);
  });

  it('tells a device that another stream replaced it', async (t) => {
    const bob = user('bob');
    const first = await listen(t, herenow, bob);
    first.source.addEventListener('bye', () => first.source.close());
    await listen(t, herenow, bob);
    await until('bye', () => first.bye.length === 1);
    assert.deepEqual(first.bye, ['replaced']);
  });

  it('starts where it is asked to', async (t) => {
    const [alice, bob] = [user('alice'), user('bob')];
    const first = await herenow.store(alice, bob, 1);
    await herenow.store(alice, bob, 2);
    const after = await listen(t, herenow, bob, 'after', `?after=${first}`);
    const earliest = await listen(t, herenow, bob, 'earliest', '?after=earliest');
    const now = await listen(t, herenow, bob, 'now', '?after=now');
    await herenow.store(alice, bob, 3);
    await until('all have the newest', () => [after, earliest, now].every(({ messages }) => messages.at(-1)?.payload === 3));
    assert.deepEqual([earliest, after, now].map((heard) => heard.payloads()), [[1, 2, 3], [2, 3], [3]]);
  });
});

for (const [how, end] of [['is restarted', 'stop'], ['is killed', 'kill']]) {
  it(`a stream goes on when herenow ${how}`, { timeout: 60_000 }, async (t) => {
    const herenow = await Herenow.start(t);
    const [alice, bob] = [user('alice'), user('bob')];
    const heard = await listen(t, herenow, bob);
    const first = await herenow.store(alice, bob, 1);
    await until('the first message', () => heard.messages.length === 1);
    assert.equal(await herenow.signal(alice, bob, 'for now'), 'delivered');
    await until('the signal', () => heard.messages.length === 2);
    await herenow[end]();
    await herenow.begin();
    await herenow.store(alice, bob, 2);
    await until('it is back with all', () => heard.messages.length === 3, 20_000);
    assert.equal(heard.ready.at(-1).resumed_after, first);
    assert.deepEqual(heard.payloads(), [1, 'for now', 2]);
    // Once, or again if it came back while the old process still drained.
    if (end === 'stop') assert.deepEqual([...new Set(heard.bye)], ['draining']);
  });
}
