// The operator's page, as an operator meets it.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { after, before, describe, it } from 'node:test';
import { EventSource } from 'eventsource';
import { Herenow, suite, until, user } from '../herenow.mjs';
import { launch, open, picture } from './chromium.mjs';

const DESKTOP = { viewport: { width: 1280, height: 900 } };
const PHONE = { viewport: { width: 360, height: 780 }, deviceScaleFactor: 2, hasTouch: true, isMobile: true };
const HOSTILE = '<img src=x onerror="document.title=1">';

/** The operator's endpoint: while `refuses`, every event is given up at once. */
async function receiver(t) {
  const it = { refuses: true };
  const server = createServer(async (request, response) => {
    await request.resume();
    if (it.refuses) response.writeHead(400, { 'webhook-delivery': 'abort-message' }).end(`unknown user ${HOSTILE}`);
    else response.writeHead(204).end();
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  it.url = `http://127.0.0.1:${server.address().port}`;
  return it;
}

describe('/console', { timeout: 180_000 }, () => {
  let herenow;
  let endpoint;
  let browser;
  const all = suite(after);
  before(async () => {
    endpoint = await receiver(all);
    herenow = await Herenow.start(all, `callbacks.push.url = "${endpoint.url}/push"\n`);
    browser = await launch();
    all.after(() => browser.close());
  });

  async function visit(t, options = DESKTOP) {
    const opened = await open(browser, t, options);
    const urls = [];
    opened.page.on('request', (request) => urls.push(request.url()));
    await opened.page.goto(`${herenow.url}/console`);
    return { ...opened, urls };
  }

  async function enter(page, key = herenow.apiKey) {
    await page.getByLabel('API key').fill(key);
    await page.getByRole('button', { name: 'Sign in' }).click();
  }

  /** Signed in, at this view. */
  async function at(t, view, options) {
    const opened = await visit(t, options);
    const { page } = opened;
    await enter(page);
    await page.getByRole('link', { name: view, exact: true }).click();
    const region = page.getByRole('region').filter({ has: page.getByRole('heading') }).filter({ visible: true }).last();
    return { ...opened, region, says: (text) => region.getByRole('status').filter({ hasText: text }).waitFor() };
  }

  async function confirm(page, button, title) {
    const dialog = page.getByRole('dialog');
    await dialog.waitFor();
    assert.match(await dialog.getByRole('heading').textContent(), title);
    assert.equal(await page.evaluate(() => document.activeElement.textContent), 'Cancel', 'Enter by mistake does nothing');
    await dialog.getByRole('button', { name: button, exact: true }).click();
    await dialog.waitFor({ state: 'hidden' });
  }

  /** A device that stays, and what it was told. */
  async function device(t, name, deviceName = 'phone') {
    const token = await herenow.token(name, deviceName);
    const source = new EventSource(`${herenow.url}/v1/stream`, { fetch: (url, init) => fetch(url, { ...init, headers: { ...init.headers, Authorization: `Bearer ${token}` } }) });
    t.after(() => source.close());
    const got = { messages: [], byes: [], recalls: [] };
    source.addEventListener('message', ({ data }) => got.messages.push(JSON.parse(data)));
    source.addEventListener('recall', ({ data }) => got.recalls.push(JSON.parse(data).id));
    source.addEventListener('bye', ({ data }) => {
      got.byes.push(JSON.parse(data).reason);
      source.close();
    });
    await new Promise((resolve) => source.addEventListener('ready', resolve, { once: true }));
    return got;
  }

  /** The cells of the rows that are shown. */
  const rows = (region) => region.locator('tbody tr').evaluateAll((rows) => rows.map((row) => [...row.cells].map((cell) => cell.textContent)));

  it('tells a wrong key from a right one, and keeps it to itself', async (t) => {
    const { page, context, urls, complaints } = await visit(t);
    await page.getByText('Ready', { exact: true }).waitFor();
    await enter(page, 'hk_wrong');
    await page.getByText('The credentials are not accepted').waitFor();
    await page.getByText(/^401 invalid_credentials · request [0-9a-f-]{36}$/).waitFor();
    assert.equal(await page.getByRole('navigation').count(), 0);
    assert.equal(await page.evaluate(() => sessionStorage.length), 0);
    // What a browser says by itself of a 401.
    assert.ok(complaints.splice(0).every((text) => text.includes('401')));

    await enter(page, await herenow.token('alice', 'phone'));
    await page.getByText(/^403 forbidden/).waitFor();
    assert.ok(complaints.splice(0).every((text) => text.includes('403')));

    await enter(page, 'ключ');
    await page.getByText('This can’t be an API key').waitFor();

    await enter(page);
    await page.getByRole('heading', { name: 'Who is online' }).waitFor();
    await page.reload();
    await page.getByRole('heading', { name: 'Who is online' }).waitFor();
    assert.equal(await page.evaluate(() => localStorage.length), 0);
    assert.deepEqual(await context.cookies(), []);
    assert.ok(!urls.some((url) => url.includes(herenow.apiKey)));
    assert.ok(!(await page.content()).includes(herenow.apiKey));
    assert.equal((await context.newPage()).url(), 'about:blank');

    await page.getByRole('button', { name: 'Forget the key' }).click();
    await page.getByLabel('API key').waitFor();
    assert.equal(await page.evaluate(() => sessionStorage.length), 0);
    assert.equal(await page.getByLabel('API key').inputValue(), '');
    await page.reload();
    await page.getByLabel('API key').waitFor();
    assert.deepEqual(complaints, []);
  });

  it('asks for the key again when it is no longer accepted', async (t) => {
    const { page, region } = await at(t, 'Online');
    const refusal = { status: 401, contentType: 'application/problem+json', body: JSON.stringify({ title: 'The credentials are not accepted', status: 401, code: 'invalid_credentials', request_id: 'r-1' }) };
    await page.route('**/v1/presence/query', (route) => route.fulfill(refusal));
    await region.getByLabel('Users').fill('someone-secret');
    await region.getByRole('button', { name: 'Look up' }).click();
    await page.getByText('401 invalid_credentials · request r-1').waitFor();
    await page.getByLabel('API key').waitFor();
    assert.ok(!(await page.content()).includes('someone-secret'), 'what was shown is gone with the key');
  });

  it('shows who is online, and ends a stream', async (t) => {
    const [bob, carol] = [user('bob'), user('carol')];
    const [phone, laptop] = [await device(t, bob), await device(t, bob, HOSTILE)];
    const { page, region, says, complaints } = await at(t, 'Online');
    const title = await page.title();
    await region.getByLabel('Users').fill(`${bob}\n${carol}\n\n ${bob} \n`);
    await region.getByLabel('Users').press('Control+Enter');
    await says('1 user of 2 online, on 2 devices.');
    const found = await rows(region);
    assert.deepEqual(found.map(([user, device, state]) => [user, device, state]).sort(), [[bob, HOSTILE, 'active'], [bob, 'phone', 'active'], [carol, '', 'offline']].sort());

    await region.getByRole('row').filter({ hasText: 'phone' }).getByRole('button', { name: /^Kick “/ }).click();
    await confirm(page, 'Cancel', /^Kick “.phone.”/);
    assert.deepEqual(phone.byes, []);
    await region.getByRole('row').filter({ hasText: 'phone' }).getByRole('button', { name: /^Kick “/ }).click();
    await confirm(page, 'Kick', /^Kick “.phone.”/);
    await says(`Kicked “\u2068phone\u2069”`);
    await until('the device was told', () => phone.byes.length === 1);
    assert.deepEqual(phone.byes, ['kicked']);
    await until('one is left', async () => (await rows(region)).length === 2);

    await region.getByRole('button', { name: /^Kick “/ }).click();
    await confirm(page, 'Kick', /onerror/);
    await until('the other was told', () => laptop.byes.length === 1);
    await until('nobody is left', async () => (await rows(region)).every(([, , state]) => state === 'offline'));
    assert.equal(await page.title(), title);
    assert.deepEqual(complaints, [], 'the content security policy had nothing to block');
  });

  it('kicks all devices of a user at once', async (t) => {
    const bob = user('bob');
    const devices = [await device(t, bob, 'a'), await device(t, bob, 'b'), await device(t, bob, 'c')];
    const { page, region, says } = await at(t, 'Online');
    await region.getByLabel('Users').fill(bob);
    await region.getByRole('button', { name: 'Look up' }).click();
    await region.getByRole('button', { name: /^Kick all/ }).click();
    await confirm(page, 'Kick', /^Kick all 3 devices/);
    await says('Kicked all 3 devices');
    await until('all were told', () => devices.every(({ byes }) => byes[0] === 'kicked'));
  });

  it('says what a browser can’t ask, rather than ask for something else', async (t) => {
    const bob = user('bob');
    const dots = await device(t, bob, '..');
    const { page, region, says, urls } = await at(t, 'Online');
    await region.getByLabel('Users').fill(bob);
    await region.getByRole('button', { name: 'Look up' }).click();
    await region.getByRole('button', { name: /^Kick/ }).click();
    const before = urls.filter((url) => url.includes('/v1/users/')).length;
    await confirm(page, 'Kick', /^Kick /);
    await says('A browser can’t ask for the path');
    assert.equal(urls.filter((url) => url.includes('/v1/users/')).length, before);
    assert.deepEqual(dots.byes, []);
  });

  it('sends to who is here now, and shows what became of it', async (t) => {
    const [bob, carol] = [user('bob'), user('carol')];
    const phone = await device(t, bob);
    const { region, says, complaints } = await at(t, 'Send');
    await region.getByLabel('From').fill('operator');
    await region.getByLabel('Type').fill('notice');
    await region.getByLabel('Users, one per line').fill(`${bob}\n${carol}`);
    const payload = '{"n":12345678901234567890,"text":"<script>document.title=2</script>"}';
    await region.getByLabel('Payload').fill('{"n":');
    await region.getByRole('button', { name: 'Send' }).click();
    await says('The payload is not JSON');
    await region.getByLabel('Payload').fill(payload);
    await region.getByRole('button', { name: 'Send' }).click();
    await says('1 delivered, 1 offline.');
    assert.deepEqual(await rows(region), [[bob, 'delivered', 'phone'], [carol, 'offline', '']]);
    await until('it arrived', () => phone.messages.length === 1);
    assert.equal(phone.messages[0].payload.text, '<script>document.title=2</script>');
    assert.equal(phone.messages[0].online_only, true);
    assert.deepEqual(complaints, []);
  });

  it('shows what is wrong with a request, with the request’s id', async (t) => {
    const { region, says } = await at(t, 'Send');
    await region.getByLabel('From').fill('x'.repeat(129));
    await region.getByLabel('Type').fill('y'.repeat(65));
    await region.getByLabel('Users, one per line').fill('bob');
    await region.getByRole('button', { name: 'Send' }).click();
    await says('The request is not valid');
    await region.getByText(/^422 invalid_request · request [0-9a-f-]{36}$/).waitFor();
    assert.deepEqual(await region.locator('.report li code').allTextContents(), ['/from', '/type']);
  });

  it('sends a message whose answer was lost once, however often it is sent', async (t) => {
    const bob = user('bob');
    const phone = await device(t, bob);
    const { page, region, says } = await at(t, 'Send');
    await region.getByLabel('persisted').check();
    await region.getByLabel('From').fill('operator');
    await region.getByLabel('Type').fill('notice');
    await region.getByLabel('Users, one per line').fill(bob);
    await page.route('**/v1/messages?*', async (route) => {
      await route.fetch();
      await route.abort();
    }, { times: 1 });
    await region.getByRole('button', { name: 'Send' }).click();
    await says('It may have been done, or not');
    await region.getByRole('button', { name: 'Send' }).click();
    await says('It had been sent before');
    await region.getByLabel('Type').fill('another');
    await region.getByRole('button', { name: 'Send' }).click();
    await until('the other arrived', () => phone.messages.some(({ type }) => type === 'another'));
    assert.deepEqual(phone.messages.map(({ type }) => type), ['notice', 'another']);
  });

  it('shows what became of a persisted message, and recalls it', async (t) => {
    const [bob, carol] = [user('bob'), user('carol')];
    const phone = await device(t, bob);
    const { page, region: sending, says: sendingSays, complaints } = await at(t, 'Send');
    await sending.getByLabel('persisted').check();
    await sending.getByLabel('From').fill(HOSTILE);
    await sending.getByLabel('Type').fill(HOSTILE);
    await sending.getByLabel('Users, one per line').fill(`${bob}\n${carol}`);
    const payload = `{"n":12345678901234567890,"payload":[1.0e5,"}"],"text":${JSON.stringify(HOSTILE)}}`;
    await sending.getByLabel('Payload').fill(payload);
    await sending.getByRole('button', { name: 'Send' }).click();
    await sendingSays('2 stored.');
    await until('it arrived', () => phone.messages.length === 1);
    const { id, cursor } = phone.messages[0];
    await until('it is known that it was handed over', async () => {
      const { recipients } = await herenow.must('GET', `/v1/messages/${id}`);
      return recipients[0].delivered_to.length === 1 && recipients[1].push.state === 'dead';
    });
    await sending.getByRole('button', { name: 'See how it fares' }).click();
    const region = page.getByRole('region', { name: 'What became of a message' });
    const says = (text) => region.getByRole('status').filter({ hasText: text }).waitFor();
    await says('2 recipients.');
    const found = await rows(region);
    assert.deepEqual(found[0].slice(0, 4), [bob, cursor, 'phone', '']);
    assert.deepEqual(found[1], [carol, '1', '', '', 'dead 1 attempt']);
    await region.getByText('Payload, ').click();
    assert.equal(await region.locator('pre').textContent(), payload, 'as it was written');
    assert.equal(await region.locator('.facts img').count(), 0);

    await region.getByRole('button', { name: 'Recall' }).click();
    await confirm(page, 'Recall', new RegExp(id));
    await says(`Recalled ${id}.`);
    await until('the device was told', () => phone.recalls.length === 1);
    await region.getByLabel('Id of a persisted message').press('Enter');
    await says('There is no such thing');
    assert.ok(complaints.every((text) => text.includes('404')), complaints.join());
  });

  it('lists dead callbacks, and has them tried again', async (t) => {
    endpoint.refuses = true;
    const [bob, carol] = [user('bob'), `${HOSTILE}-${user('c')}`];
    for (const name of [bob, carol]) await herenow.store('alice', name, 1);
    const dead = () => herenow.must('GET', '/v1/callbacks?state=dead&limit=1000').then(({ callbacks }) => callbacks);
    await until('both are dead', async () => [bob, carol].every((name) => dead.found?.some(({ recipient }) => recipient === name)) || ((dead.found = await dead()), false));
    const { page, region, says, complaints } = await at(t, 'Callbacks');
    await says(/^\d+ callbacks\.$/);
    const row = (name) => region.getByRole('row').filter({ hasText: name });
    assert.equal(await region.getByRole('row').count(), (await dead()).length + 1);
    assert.match(await row(bob).textContent(), /push.*dead.*400.*unknown user <img src=x/);
    const glance = page.getByRole('region', { name: 'Callbacks in trouble' });
    await glance.getByRole('button', { name: `${(await dead()).length} push dead` }).waitFor();

    endpoint.refuses = false;
    await row(bob).getByRole('button', { name: /^Retry/ }).click();
    await says('The push callback is due now');
    await until('it was sent', async () => !(await dead()).some(({ recipient }) => recipient === bob));
    await region.getByRole('button', { name: 'List' }).click();
    await row(bob).waitFor({ state: 'detached' });
    assert.equal(await row(carol).count(), 1);

    await region.getByLabel('Endpoint').selectOption('push');
    await region.getByRole('button', { name: 'Retry all dead push callbacks' }).click();
    await confirm(page, 'Retry', /^Retry all dead push callbacks\?$/);
    await says(/^\d+ callbacks? due now/);
    await until('none is left', async () => (await dead()).length === 0);
    await glance.getByRole('button', { name: '0 push dead' }).waitFor();
    await region.getByLabel('State').selectOption('');
    assert.ok(await region.getByRole('button', { name: 'Retry all' }).isDisabled(), 'only dead and failing ones can be retried');
    assert.deepEqual(complaints, []);
  });

  it('goes on from page to page', async (t) => {
    endpoint.refuses = true;
    const group = user('crowd');
    const members = Array.from({ length: 210 }, (_, n) => `${group}-${String(n).padStart(3, '0')}`);
    await herenow.must('POST', `/v1/groups/${group}/members`, { add: members });
    await herenow.must('POST', '/v1/messages', { from: 'alice', to: { group }, type: 'chat', payload: 1 });
    const dead = async () => (await herenow.must('GET', '/v1/callbacks?state=dead&limit=1000')).callbacks.length;
    await until('all are dead', async () => (await dead()) >= 210, 30_000);
    const total = await dead();
    const { page, region, says } = await at(t, 'Callbacks');
    await says('100 callbacks, and there are more.');
    await region.getByRole('button', { name: 'Next 100' }).click();
    await says('200 callbacks, and there are more.');
    await region.getByRole('button', { name: 'Next 100' }).click();
    await says(`${total} callbacks.`);
    assert.equal(await region.getByRole('button', { name: 'Next 100' }).count(), 0);
    await page.getByRole('button', { name: '200+ push dead' }).waitFor();
    endpoint.refuses = false;
    await herenow.must('POST', '/v1/callbacks/retry', { state: 'dead' });
    await until('none is left', async () => (await dead()) === 0, 30_000);
  });

  it('shows who is in a group, and changes it', async (t) => {
    const group = user('team');
    const { page, region, says, complaints } = await at(t, 'Groups');
    await region.getByLabel('Group', { exact: true }).fill(group);
    await region.getByRole('button', { name: 'Look up' }).click();
    await says('No members: there is no such group.');
    await region.getByText('Add or remove many').click();
    const many = Array.from({ length: 205 }, (_, n) => `u${String(n).padStart(3, '0')}`);
    await region.getByLabel('Users').fill([HOSTILE, '..', ...many].join('\n'));
    await region.getByRole('button', { name: 'Add', exact: true }).click();
    await says(`207 members added, 0 removed. ${group} has 207 members.`);
    await region.getByRole('button', { name: 'Next 200' }).click();
    await until('all are shown', async () => (await rows(region)).length === 207);
    for (const name of ['..', HOSTILE]) {
      await region.getByRole('row').filter({ has: page.getByText(name, { exact: true }) }).getByRole('button').click();
      await confirm(page, 'Remove', /^Remove “/);
      await says('0 members added, 1 removed.');
    }
    await region.getByLabel('Users').fill(many.join('\n'));
    await region.getByRole('button', { name: 'Remove', exact: true }).first().click();
    await confirm(page, 'Remove', /^Remove 205 users/);
    await says('0 members added, 205 removed.');
    assert.deepEqual((await herenow.must('GET', `/v1/groups/${group}/members`)).members, []);
    assert.deepEqual(complaints, []);
  });

  it('says that herenow is away, and that it is back', async (t) => {
    const other = await Herenow.start(t);
    const { page } = await open(browser, t, DESKTOP);
    // Faster than the page asks by itself.
    await page.clock.install();
    await page.goto(`${other.url}/console`);
    await page.getByText('Ready', { exact: true }).waitFor();
    await page.getByText(new RegExp(`^127.0.0.1:${other.port} · \\d+\\.\\d+\\.\\d+`)).waitFor();
    await other.kill();
    await page.clock.runFor(6_000);
    await page.getByText('Can’t reach herenow').waitFor();
    assert.match(await page.title(), /^Can’t reach herenow/);
    await other.begin();
    await page.clock.runFor(6_000);
    await page.getByText('Ready', { exact: true }).waitFor();
    await page.route('**/readyz', (route) => route.fulfill({ status: 503, json: { ready: false, away: ['store', 'draining'] } }));
    await page.clock.runFor(6_000);
    await page.getByText('Not ready: the store is away, it is about to stop').waitFor();
    await page.route('**/readyz', (route) => route.fulfill({ status: 502, contentType: 'text/html', body: '<h1>Bad Gateway</h1>' }));
    await page.clock.runFor(6_000);
    await page.getByText('HTTP 502, and not by herenow').waitFor();
  });

  it('can be used by the keyboard alone', async (t) => {
    const { page } = await visit(t);
    await page.getByLabel('API key').waitFor();
    await page.keyboard.type(herenow.apiKey);
    await page.keyboard.press('Enter');
    await page.getByRole('navigation').waitFor();
    const reached = [];
    for (let n = 0; n < 20 && reached.at(-1) !== 'online-users'; n += 1) {
      await page.keyboard.press('Tab');
      reached.push(await page.evaluate(() => document.activeElement.id || document.activeElement.textContent.trim()));
    }
    for (const name of ['Online', 'Message', 'Callbacks', 'Groups', 'Send']) assert.ok(reached.includes(name), `${name}: ${reached}`);
    assert.equal(reached.at(-1), 'online-users');
  });

  for (const [device_, options] of Object.entries({ desktop: DESKTOP, phone: PHONE })) {
    for (const colorScheme of ['light', 'dark']) {
      it(`fits a ${device_}, ${colorScheme}`, async (t) => {
        endpoint.refuses = true;
        const shot = (page, name) => picture(page, `console-${device_}-${colorScheme}-${name}`);
        const { page, complaints } = await visit(t, { ...options, colorScheme });
        await page.getByText('Ready', { exact: true }).waitFor();
        await shot(page, 'sign-in');
        const bob = user('bob');
        await device(t, bob);
        await device(t, bob, 'laptop-with-a-rather-long-name-that-goes-on-and-on-and-on');
        const sent = await herenow.must('POST', '/v1/messages', { from: 'alice', to: { users: [bob, 'carol'] }, type: 'chat', payload: { text: 'hello' } });
        await until('it is dead', async () => (await herenow.must('GET', `/v1/messages/${sent.id}`)).recipients[1].push.state === 'dead');
        await enter(page);
        const views = {
          Online: async (region) => {
            await region.getByLabel('Users').fill(`${bob}\ncarol\n${'an-unbroken-name-'.repeat(7)}`);
            await region.getByRole('button', { name: 'Look up' }).click();
          },
          Message: async (region) => {
            await region.getByLabel('Id of').fill(sent.id);
            await region.getByRole('button', { name: 'Look up' }).click();
          },
          Callbacks: async () => {},
          Groups: async (region) => {
            await herenow.must('POST', '/v1/groups/night/members', { add: ['carol', bob] });
            await region.getByLabel('Group', { exact: true }).fill('night');
            await region.getByRole('button', { name: 'Look up' }).click();
          },
          Send: async (region) => {
            await region.getByLabel('From').fill('operator');
            await region.getByLabel('Type').fill('notice');
            await region.getByLabel('Users, one per line').fill(`${bob}\ncarol`);
            await region.getByRole('button', { name: 'Send' }).click();
          },
        };
        for (const [name, act] of Object.entries(views)) {
          await page.getByRole('link', { name, exact: true }).click();
          const region = page.locator(`#view-${name.toLowerCase()}`);
          await act(region);
          await region.locator('tbody tr').first().waitFor();
          await shot(page, name.toLowerCase());
          const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
          assert.equal(wide, 0, `${name}: nothing sticks out at the side`);
        }
        await page.getByRole('link', { name: 'Online', exact: true }).click();
        await page.getByRole('button', { name: /^Kick “/ }).first().click();
        await page.getByRole('dialog').waitFor();
        await shot(page, 'question');
        await page.keyboard.press('Escape');
        await page.getByRole('link', { name: 'Message', exact: true }).click();
        await page.getByLabel('Id of').fill('nothing');
        await page.getByLabel('Id of').press('Enter');
        await page.getByText('404 not_found').waitFor();
        await shot(page, 'trouble');
        assert.ok(complaints.every((text) => text.includes('404')), complaints.join());
      });
    }
  }
});
