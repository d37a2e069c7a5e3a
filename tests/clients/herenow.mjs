// A real herenow process for a test: its own port, its own directory, its own credentials. Nothing here waits without a limit.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

const BINARY = process.env.HERENOW_BIN ?? fileURLToPath(new URL('../../target/debug/herenow', import.meta.url));

/** What `condition` gives once it is truthy. Errors count as "not yet" until the time is over, and are then told. */
export async function until(what, condition, withinMs = 10_000) {
  const end = performance.now() + withinMs;
  let error;
  for (;;) {
    try {
      const found = await condition();
      if (found) return found;
      error = undefined;
    } catch (caught) {
      error = caught;
    }
    if (performance.now() > end) throw new Error(`not within ${withinMs} ms: ${what}`, { cause: error });
    await pause(20);
  }
}

export async function freePort() {
  const probe = createServer().listen(0, '127.0.0.1');
  await once(probe, 'listening');
  const { port } = probe.address();
  probe.close();
  await once(probe, 'close');
  return port;
}

/** For a suite what `t` is for a test: `after` of node:test is given, and runs what was registered, the last first. */
export function suite(after) {
  const registered = [];
  after(async () => {
    for (const clean of registered.reverse()) await clean();
  });
  return { after: (clean) => registered.push(clean) };
}

/** A user nobody else in this run has, so that tests can share a process. */
let users = 0;
export const user = (name) => `${name}-${process.pid}-${(users += 1)}`;

export class Herenow {
  #process;
  #errors = '';

  constructor(directory, port) {
    this.directory = directory;
    this.port = port;
    this.url = `http://127.0.0.1:${port}`;
  }

  /** Starts one with this in its configuration file, stopped and removed when the test (or suite) `t` ends. */
  static async start(t, toml = '') {
    const directory = await mkdtemp(join(tmpdir(), 'herenow-test-'));
    const herenow = new Herenow(directory, await freePort());
    const fixed = `data_dir = "${directory}/data"\nserver.listen = "127.0.0.1:${herenow.port}"\nserver.admin_listen = ""\nserver.drain_s = 1\n`;
    await writeFile(join(directory, 'herenow.toml'), fixed + toml);
    t.after(async () => {
      await herenow.kill();
      await rm(directory, { recursive: true, force: true });
    });
    await herenow.begin();
    return herenow;
  }

  /** Starts the process, again if it was ended, and waits until it is ready. */
  async begin() {
    const env = { PATH: process.env.PATH, RUST_BACKTRACE: '1' };
    const child = spawn(BINARY, ['serve'], { cwd: this.directory, env, stdio: ['ignore', 'ignore', 'pipe'] });
    this.#process = child;
    child.stderr.setEncoding('utf8').on('data', (text) => (this.#errors += text));
    child.on('error', (error) => (this.#errors += error));
    await until('herenow is ready', async () => {
      if (child.exitCode !== null) return true;
      return (await fetch(`${this.url}/readyz`)).ok;
    }, 20_000).catch((error) => {
      throw new Error(`${error.message}\n${this.#errors}`);
    });
    if (child.exitCode !== null) throw new Error(`herenow ended with ${child.exitCode}:\n${this.#errors}`);
    const credentials = await readFile(join(this.directory, 'data/credentials.toml'), 'utf8');
    this.apiKey = /^api_key = "(.+)"$/m.exec(credentials)[1];
  }

  /** As an operator ends it. */
  async stop() {
    const exit = this.#ended();
    this.#process.kill('SIGTERM');
    const code = await exit;
    if (code !== 0) throw new Error(`herenow ended with ${code}:\n${this.#errors}`);
  }

  /** As a power cut ends it. */
  async kill() {
    if (this.#process.exitCode !== null || this.#process.signalCode !== null) return;
    const exit = this.#ended();
    this.#process.kill('SIGKILL');
    await exit;
  }

  async #ended() {
    const [code] = await once(this.#process, 'exit', { signal: AbortSignal.timeout(20_000) });
    return code;
  }

  /** A request with a credential, the API key if none is given. */
  async ask(method, path, body, { credential = this.apiKey, headers = {} } = {}) {
    const response = await fetch(this.url + path, {
      method,
      headers: { Authorization: `Bearer ${credential}`, ...(body === undefined ? {} : { 'Content-Type': 'application/json' }), ...headers },
      body: body === undefined ? undefined : JSON.stringify(body),
      signal: AbortSignal.timeout(10_000),
    });
    const text = await response.text();
    return { status: response.status, headers: response.headers, json: text === '' ? null : JSON.parse(text) };
  }

  /** A request that must succeed: its JSON. */
  async must(method, path, body, options) {
    const { status, json } = await this.ask(method, path, body, options);
    if (status >= 300) throw new Error(`${method} ${path}: ${status} ${JSON.stringify(json)}`);
    return json;
  }

  async token(user, device) {
    return (await this.must('POST', '/v1/tokens', { user, device })).token;
  }

  /** The cursor of a persisted message for its only recipient. */
  async store(from, to, payload, more = {}) {
    const stored = await this.must('POST', '/v1/messages', { from, to: { users: [to] }, type: 'chat', payload, ...more });
    return stored.recipients[0].cursor;
  }

  /** What became of an online-only message for its only recipient. */
  async signal(from, to, payload) {
    const sent = await this.must('POST', '/v1/messages', { from, to: { users: [to] }, type: 'typing', payload, online_only: true });
    return sent.recipients[0].outcome;
  }

  online(user, wanted = true) {
    return until(`${user} is ${wanted ? 'online' : 'offline'}`, async () => {
      const { online } = await this.must('GET', `/v1/users/${encodeURIComponent(user)}/presence`);
      return online === wanted;
    });
  }
}
