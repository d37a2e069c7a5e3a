// Chromium's own EventSource, as a web page would use it without any library.

import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { Herenow, suite, until, user } from '../herenow.mjs';
import { launch, open } from './chromium.mjs';

describe("Chromium's EventSource", { timeout: 90_000 }, () => {
  let herenow;
  let browser;
  const all = suite(after);
  before(async () => {
    herenow = await Herenow.start(all);
    browser = await launch();
    all.after(() => browser.close());
  });

  /** A page of the server's own origin that notes what a stream of this user says. */
  async function listen(t, name) {
    const { page } = await open(browser, t);
    // Any page of the same origin that runs no script of its own.
    await page.goto(`${herenow.url}/healthz`);
    await page.evaluate((token) => {
      window.heard = { ready: [], messages: [], bye: [], errors: [] };
      window.source = new EventSource(`/v1/stream?access_token=${token}`);
      const on = (event, handle) => window.source.addEventListener(event, handle);
      on('ready', (event) => window.heard.ready.push(JSON.parse(event.data)));
      on('bye', (event) => window.heard.bye.push(JSON.parse(event.data).reason));
      on('message', (event) => window.heard.messages.push([JSON.parse(event.data).payload, event.lastEventId]));
      on('error', () => window.heard.errors.push(window.source.readyState));
    }, await herenow.token(name, 'browser'));
    const heard = () => page.evaluate(() => window.heard);
    await until('ready', async () => (await heard()).ready.length === 1);
    return { page, heard };
  }

  it('reconnects by itself and goes on where it was', async (t) => {
    const [alice, bob] = [user('alice'), user('bob')];
    const { heard } = await listen(t, bob);
    const first = await herenow.store(alice, bob, 1);
    assert.equal(await herenow.signal(alice, bob, 'for now'), 'delivered');
    await until('both messages', async () => (await heard()).messages.length === 2);

    assert.equal((await herenow.ask('DELETE', `/v1/users/${bob}/devices/browser`)).status, 204);
    await herenow.online(bob, false);
    const second = await herenow.store(alice, bob, 2);
    const { ready, messages, bye, errors } = await until('it is back', async () => {
      const now = await heard();
      return now.messages.length === 3 && now;
    });
    assert.deepEqual(messages, [[1, first], ['for now', first], [2, second]], 'an online-only message leaves the resume point alone');
    assert.equal(ready[1].resumed_after, first);
    assert.deepEqual(bye, ['kicked']);
    assert.deepEqual(errors, [0], 'it reconnected, rather than giving up');
  });

  for (const [how, end] of [['restarted', 'stop'], ['killed', 'kill']]) {
    it(`survives that the server is ${how}`, async (t) => {
      const [alice, bob] = [user('alice'), user('bob')];
      const { heard } = await listen(t, bob);
      const first = await herenow.store(alice, bob, 1);
      await until('the first', async () => (await heard()).messages.length === 1);
      await herenow[end]();
      await herenow.begin();
      const second = await herenow.store(alice, bob, 2);
      const { messages } = await until('it is back', async () => {
        const now = await heard();
        return now.messages.length === 2 && now;
      }, 20_000);
      assert.deepEqual(messages, [[1, first], [2, second]]);
    });
  }

  it('opens a stream by a ticket, which is good once', async (t) => {
    const [alice, bob] = [user('alice'), user('bob')];
    const { page } = await open(browser, t);
    await page.goto(`${herenow.url}/healthz`);
    const { ticket } = await herenow.must('POST', '/v1/tickets', undefined, { credential: await herenow.token(bob, 'browser') });
    const open_ = () =>
      page.evaluate(
        (ticket) =>
          new Promise((resolve) => {
            const source = new EventSource(`/v1/stream?ticket=${ticket}`);
            source.addEventListener('ready', () => resolve('ready'));
            source.addEventListener('error', () => resolve(source.readyState === 2 ? 'refused' : 'again'));
          }),
        ticket,
      );
    assert.equal(await open_(), 'ready');
    assert.equal(await herenow.signal(alice, bob, 1), 'delivered');
    assert.equal(await open_(), 'refused');
    assert.equal(await herenow.signal(alice, bob, 1), 'delivered', 'the refused one left the open one alone');
  });
});
