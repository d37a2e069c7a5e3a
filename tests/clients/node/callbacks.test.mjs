// npm's `standardwebhooks` verifies what herenow's callbacks bear, unchanged.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { after, before, describe, it } from 'node:test';
import { Webhook } from 'standardwebhooks';
import { Herenow, suite, until, user } from '../herenow.mjs';

const secret = (byte) => `whsec_${Buffer.alloc(32, byte).toString('base64')}`;
const [NEW, OLD, OTHER] = [1, 2, 3].map(secret);

/** An operator's endpoint. It answers with what `status` says, 204 if nothing. */
async function receiver(t) {
  const got = [];
  const answers = [];
  const server = createServer(async (request, response) => {
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    const body = Buffer.concat(chunks).toString();
    got.push({ path: request.url, headers: request.headers, body, event: JSON.parse(body) });
    response.writeHead(answers.shift() ?? 204).end();
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  const about = (id) => got.filter(({ event }) => JSON.stringify(event.data).includes(id));
  return { got, answers, about, url: `http://127.0.0.1:${server.address().port}` };
}

describe('callbacks, verified by npm standardwebhooks', { timeout: 60_000 }, () => {
  let herenow;
  let endpoint;
  const all = suite(after);
  before(async () => {
    endpoint = await receiver(all);
    herenow = await Herenow.start(all, `
[callbacks.storage]
url = "${endpoint.url}/storage"
secrets = ["${NEW}", "${OLD}"]
[callbacks.push]
url = "${endpoint.url}/push"
secrets = ["${NEW}", "${OLD}"]
`);
  });

  const send = (message) => herenow.must('POST', '/v1/messages', { type: 'chat', ...message });

  it('storage and push are signed with each secret, so that they can be rotated', async () => {
    const [alice, bob] = [user('alice'), user('bob')];
    const sent = await send({ from: alice, to: { users: [bob] }, payload: { text: 'schön 💬' }, push: { title: 'Alice' } });
    const callbacks = await until('both callbacks', () => endpoint.about(sent.id).length === 2 && endpoint.about(sent.id));
    for (const { headers, body, path } of callbacks) {
      for (const known of [NEW, OLD]) {
        assert.deepEqual(new Webhook(known).verify(body, headers), JSON.parse(body), path);
      }
      assert.throws(() => new Webhook(OTHER).verify(body, headers), path);
      assert.throws(() => new Webhook(NEW).verify(body.replace('schön', 'schon'), headers), path);
      assert.throws(() => new Webhook(NEW).verify(body, { ...headers, 'webhook-id': 'other' }), path);
      assert.equal(headers['webhook-signature'].split(' ').length, 2);
    }
    const storage = callbacks.find(({ path }) => path === '/storage').event;
    assert.equal(storage.type, 'message.stored');
    assert.deepEqual(storage.data.recipients, [{ user: bob, cursor: sent.recipients[0].cursor }]);
    assert.deepEqual(storage.data.message.payload, { text: 'schön 💬' });
    const push = callbacks.find(({ path }) => path === '/push').event;
    assert.equal(push.type, 'message.push');
    assert.deepEqual([push.data.recipient, push.data.push, push.data.unread], [bob, { title: 'Alice' }, 1]);
  });

  it('a payload is passed on byte for byte', async () => {
    const [alice, bob] = [user('alice'), user('bob')];
    const payload = '{"n":12345678901234567890,"z":1.0e5,"a":"\\u00e9"}';
    const body = `{"from":"${alice}","to":{"users":["${bob}"]},"type":"t","push":false,"payload":${payload}}`;
    const response = await fetch(`${herenow.url}/v1/messages`, {
      method: 'POST',
      headers: { Authorization: `Bearer ${herenow.apiKey}`, 'Content-Type': 'application/json' },
      body,
    });
    const { id } = await response.json();
    const [callback] = await until('the callback', () => endpoint.about(id).length > 0 && endpoint.about(id));
    assert.ok(callback.body.includes(`"payload":${payload}`), callback.body);
    new Webhook(NEW).verify(callback.body, callback.headers);
  });

  it('nothing is pushed that was not to be pushed', async () => {
    const [alice, bob] = [user('alice'), user('bob')];
    const silent = await send({ from: alice, to: { users: [bob] }, payload: 1, push: false });
    assert.equal(await herenow.signal(alice, bob, 'for now'), 'offline');
    const { recipients } = await until('it is stored with the operator', async () => {
      const message = await herenow.must('GET', `/v1/messages/${silent.id}`);
      return message.storage.state === 'sent' && message;
    });
    assert.equal(recipients[0].push.state, 'off');
    const loud = await send({ from: alice, to: { users: [bob] }, payload: 2 });
    await until('a later one is pushed', () => endpoint.about(loud.id).length === 2);
    assert.deepEqual(endpoint.about(silent.id).map(({ path }) => path), ['/storage']);
    assert.ok(!endpoint.got.some(({ body }) => body.includes('for now')), 'an online-only message is in no callback');
  });

  it('a second attempt bears the same id and verifies as well', async (t) => {
    const failing = await receiver(t);
    failing.answers.push(500, 302);
    const other = await Herenow.start(t, `callbacks.storage.url = "${failing.url}"\ncallbacks.storage.secrets = ["${NEW}"]\n`);
    const { id } = await other.must('POST', '/v1/messages', { from: 'alice', to: { users: ['bob'] }, type: 'chat', payload: 1 });
    await until('it was tried again', () => failing.about(id).length >= 2, 20_000);
    const [first, second] = failing.about(id);
    assert.equal(first.headers['webhook-id'], second.headers['webhook-id']);
    for (const { body, headers } of [first, second]) new Webhook(NEW).verify(body, headers);
    const { storage } = await until('the failure is known', async () => {
      const message = await other.must('GET', `/v1/messages/${id}`);
      return message.storage.attempts >= 2 && message;
    });
    assert.equal(storage.state, 'failing', 'a redirect is no success');
  });
});
