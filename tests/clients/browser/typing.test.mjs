// The example page, as a person meets it.

import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { Herenow, suite, until } from '../herenow.mjs';
import { launch, open, picture } from './chromium.mjs';

const DESKTOP = { viewport: { width: 1280, height: 900 } };
const PHONE = { viewport: { width: 375, height: 812 }, deviceScaleFactor: 2, hasTouch: true, isMobile: true };

describe('/examples/typing', { timeout: 120_000 }, () => {
  let herenow;
  let browser;
  const all = suite(after);
  before(async () => {
    herenow = await Herenow.start(all);
    browser = await launch();
    all.after(() => browser.close());
  });

  /** One side of the page, by what a person sees of it. */
  function side(page, name, other) {
    const region = page.getByRole('region', { name, exact: true });
    return {
      region,
      input: page.getByLabel(`Message from ${name} to ${other}`),
      typing: region.getByText(`${other} is typing…`),
      receipt: region.locator('.receipt'),
      online: region.getByText(/^Online · /),
      offline: region.getByText(/^Offline · /),
      toggle: (label) => region.getByRole('button', { name: `${label}: ${name}` }),
      texts: () => region.locator('.messages .text').allTextContents(),
      shows: (text) => region.locator('.messages li:not(.unsent)').filter({ hasText: text }).waitFor(),
    };
  }

  async function visit(t, options = DESKTOP) {
    const opened = await open(browser, t, options);
    await opened.page.goto(`${herenow.url}/examples/typing`);
    const alice = side(opened.page, 'Alice', 'Bob');
    const bob = side(opened.page, 'Bob', 'Alice');
    await alice.online.waitFor();
    await bob.online.waitFor();
    return { ...opened, alice, bob };
  }

  it('shows that someone types, and that they stopped, without being told so', async (t) => {
    const { page, alice, bob, complaints } = await visit(t);
    const signals = [];
    page.on('request', (request) => {
      if (request.url().endsWith('/examples/typing/messages')) signals.push(request.postDataJSON());
    });
    await alice.input.pressSequentially('Hello Bob');
    await bob.typing.waitFor();
    await until('the receipt', async () => (await alice.receipt.textContent()) === 'Typing signal: delivered to Bob’s phone');
    assert.equal(await alice.typing.count(), 0, 'not on the own side');
    await bob.typing.waitFor({ state: 'detached' });
    assert.equal(signals.length, 1, 'nine keys in a moment are one signal, and the end needs none');
    assert.deepEqual([signals[0].online_only, signals[0].type], [true, 'typing']);
    assert.ok(!JSON.stringify(signals[0]).includes('Hello'), 'a signal carries no text');
    assert.deepEqual(await bob.texts(), []);
    assert.deepEqual(complaints, []);
  });

  it('shows messages on both sides in the same order', async (t) => {
    const { page, alice, bob, complaints } = await visit(t);
    await alice.input.pressSequentially('one');
    await bob.typing.waitFor();
    await alice.input.press('Enter');
    await bob.shows('one');
    assert.equal(await bob.typing.count(), 0, 'the message ends the typing');
    // Both at the same time, faster than any answer comes: no hands could do it.
    await page.evaluate(() => {
      for (const n of [1, 2, 3]) {
        for (const who of ['alice', 'bob']) {
          const input = document.getElementById(`${who}-text`);
          input.value = who[0] + n;
          input.form.requestSubmit();
        }
      }
    });
    for (const person of [alice, bob]) for (const text of ['a1', 'a2', 'a3', 'b1', 'b2', 'b3']) await person.shows(text);
    const texts = await alice.texts();
    assert.deepEqual(await bob.texts(), texts);
    assert.equal(texts.length, 7);
    for (const who of ['a', 'b']) assert.deepEqual(texts.filter((text) => text.startsWith(who)), [1, 2, 3].map((n) => who + n));
    assert.match(await alice.receipt.textContent(), /^Message: stored for Bob, cursor \d+$/);
    assert.deepEqual(complaints, []);
  });

  it('lets the signal vanish and the message wait while someone is away', async (t) => {
    const { page, alice, bob, complaints } = await visit(t);
    await alice.input.fill('before');
    await alice.input.press('Enter');
    await bob.shows('before');
    await bob.toggle('Go offline').click();
    await bob.offline.waitFor();
    assert.ok(await bob.input.isDisabled());
    // The server learns of it by the closed connection, a moment later.
    await until('the signal finds nobody', async () => {
      await alice.input.fill('');
      await alice.input.pressSequentially('x');
      return (await alice.receipt.textContent()) === 'Typing signal: Bob is offline, so it is gone';
    });
    for (const text of ['first', 'second']) {
      await alice.input.fill(text);
      await alice.input.press('Enter');
      await alice.shows(text);
    }
    await page.getByText('2 waiting for Bob').waitFor();
    assert.deepEqual(await bob.texts(), ['before']);
    await bob.toggle('Come back').click();
    await bob.shows('second');
    assert.deepEqual(await bob.texts(), ['before', 'first', 'second']);
    assert.equal(await bob.typing.count(), 0, 'the signal was not kept');
    assert.equal(await page.getByText('2 waiting for Bob').count(), 0);
    await page.getByText(/^Bob is back: the stream goes on after \d+\.$/).waitFor();
    assert.deepEqual(complaints, []);
  });

  it('finds its conversation again after a reload, and begins another when asked', async (t) => {
    const { page, alice, bob, complaints } = await visit(t);
    await alice.input.fill('remember me');
    await alice.input.press('Enter');
    await bob.shows('remember me');
    await page.reload();
    await alice.shows('remember me');
    await bob.shows('remember me');
    await page.getByRole('button', { name: 'Start a new conversation' }).click();
    await page.getByText('Nothing yet. Type below: Bob sees at once that you do.').waitFor();
    await bob.online.waitFor();
    assert.deepEqual(await alice.texts(), []);
    assert.deepEqual(complaints, []);
  });

  it('steps aside for another window with the same devices, and comes back when asked', async (t) => {
    const { context, page, alice, complaints } = await visit(t);
    const room = await page.evaluate(() => sessionStorage.getItem('herenow-room'));
    const second = await context.newPage();
    await second.addInitScript((room) => sessionStorage.setItem('herenow-room', room), room);
    await second.goto(`${herenow.url}/examples/typing`);
    await side(second, 'Alice', 'Bob').online.waitFor();
    await alice.region.getByText('Another window took over Alice’s laptop, so this one stepped aside.').waitFor();
    await alice.region.getByRole('button', { name: 'Use it here' }).click();
    await alice.online.waitFor();
    await side(second, 'Alice', 'Bob').region.getByText(/stepped aside/).waitFor();
    assert.ok(await alice.online.isVisible(), 'they do not fight');
    assert.deepEqual(complaints, []);
  });

  it('comes back by itself when the server was restarted', async (t) => {
    const { alice, bob } = await visit(t);
    await alice.input.fill('before');
    await alice.input.press('Enter');
    await bob.shows('before');
    await herenow.stop();
    await bob.region.getByText(/^Connecting… · /).waitFor();
    await herenow.begin();
    await alice.online.waitFor({ timeout: 20_000 });
    await bob.online.waitFor({ timeout: 20_000 });
    await alice.input.fill('after');
    await alice.input.press('Enter');
    await bob.shows('after');
    assert.deepEqual(await bob.texts(), ['before', 'after']);
  });

  it('gets a new token when the old one is refused', async (t) => {
    const { page, bob } = await visit(t);
    const sessions = [];
    page.on('request', (request) => request.url().endsWith('/examples/typing/session') && sessions.push(request.postDataJSON().device));
    const refusal = { status: 401, contentType: 'application/problem+json', body: '{"title":"The credentials are not valid"}' };
    await page.route('**/v1/tickets', (route) => route.fulfill(refusal), { times: 1 });
    await bob.toggle('Go offline').click();
    await bob.offline.waitFor();
    await bob.toggle('Come back').click();
    await bob.online.waitFor();
    assert.deepEqual(sessions, ['phone']);
  });

  it('offers to send again what could not be sent, and it arrives once', async (t) => {
    const { page, alice, bob } = await visit(t);
    // The answer is lost on its way back: the message is stored, and the page can't know it.
    await page.route('**/examples/typing/messages', async (route) => {
      await route.fetch();
      await route.abort();
    }, { times: 1 });
    await page.evaluate(() => {
      document.getElementById('alice-text').value = 'twice?';
      document.getElementById('alice-text').form.requestSubmit();
    });
    await bob.shows('twice?');
    await alice.shows('twice?');
    await until('the receipt', async () => (await alice.receipt.textContent()) === 'Message: stored for Bob; only the answer was lost');
    await alice.input.fill('next');
    await alice.input.press('Enter');
    await bob.shows('next');
    assert.deepEqual(await bob.texts(), ['twice?', 'next']);
    assert.deepEqual(await alice.texts(), ['twice?', 'next'], 'the stream told the page that it had arrived');

    await page.route('**/examples/typing/messages', (route) => route.abort(), { times: 1 });
    await page.evaluate(() => {
      document.getElementById('alice-text').value = 'again';
      document.getElementById('alice-text').form.requestSubmit();
    });
    await alice.region.getByRole('button', { name: 'Not sent. Try again' }).click();
    await bob.shows('again');
    await alice.shows('again');
    assert.deepEqual(await bob.texts(), ['twice?', 'next', 'again']);
  });

  it('shows text as text', async (t) => {
    const { page, alice, bob, complaints } = await visit(t);
    const text = '<img src=x onerror="document.title=1"><script>document.title=2</script>';
    const title = await page.title();
    await alice.input.fill(text);
    await alice.input.press('Enter');
    await bob.shows('onerror');
    assert.deepEqual(await bob.texts(), [text]);
    assert.equal(await page.title(), title);
    assert.deepEqual(complaints, [], 'the content security policy had nothing to block');
  });

  it('can be used by the keyboard alone', async (t) => {
    const { page, bob } = await visit(t);
    const reached = [];
    for (let n = 0; n < 12; n += 1) {
      await page.keyboard.press('Tab');
      reached.push(await page.evaluate(() => document.activeElement.getAttribute('aria-label') ?? (document.activeElement.labels?.[0] ?? document.activeElement).textContent));
      if (reached.at(-1) === 'Message from Alice to Bob') break;
    }
    assert.equal(reached[0], 'Go offline: Alice');
    assert.equal(reached.at(-1), 'Message from Alice to Bob');
    await page.keyboard.type('no mouse');
    await page.keyboard.press('Enter');
    await bob.shows('no mouse');
    assert.equal(await page.evaluate(() => document.activeElement.id), 'alice-text', 'the focus stays where one writes');
  });

  for (const [device, options] of Object.entries({ desktop: DESKTOP, phone: PHONE })) {
    for (const colorScheme of ['light', 'dark']) {
      it(`fits a ${device}, ${colorScheme}`, async (t) => {
        const { page, alice, bob, complaints } = await visit(t, { ...options, colorScheme });
        await picture(page, `typing-${device}-${colorScheme}-empty`);
        await alice.input.fill('Are you around for lunch?');
        await alice.input.press('Enter');
        await bob.shows('lunch');
        await bob.input.fill('Yes! In ten minutes, at the usual place? Anunbrokenwordthatislongerthananyphoneiswideandgoesonandon');
        await bob.input.press('Enter');
        await alice.shows('usual place');
        await alice.input.pressSequentially('Perfect');
        await bob.typing.waitFor();
        await picture(page, `typing-${device}-${colorScheme}-typing`);
        await bob.toggle('Go offline').click();
        await bob.offline.waitFor();
        await alice.input.press('Enter');
        await page.getByText(/^1 waiting/).waitFor();
        await picture(page, `typing-${device}-${colorScheme}-away`);
        await page.locator('summary').click();
        const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
        assert.equal(wide, 0, 'nothing sticks out at the side');
        const [first, second] = [await alice.region.boundingBox(), await bob.region.boundingBox()];
        if (device === 'phone') assert.ok(second.y >= first.y + first.height && first.x === second.x, 'one above the other');
        else assert.ok(second.x >= first.x + first.width && first.y === second.y, 'side by side');
        assert.deepEqual(complaints, []);
      });
    }
  }

  it('keeps still for who asked for it', async (t) => {
    const { page, alice, bob } = await visit(t, { ...DESKTOP, reducedMotion: 'reduce' });
    await alice.input.pressSequentially('hi');
    await bob.typing.waitFor();
    assert.equal(await page.evaluate(() => document.getAnimations().filter(({ playState }) => playState === 'running').length), 0);
  });
});
