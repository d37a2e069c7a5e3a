// Two people on one page. Each side is a device of its own: it has its own token, its own stream and its own resume point, and knows of
// the other only what the relay tells it. Content is only ever shown as text.

const PEOPLE = [
  { key: 'alice', name: 'Alice', device: 'laptop' },
  { key: 'bob', name: 'Bob', device: 'phone' },
];

const TYPING_EVERY_MS = 2000;
// Nobody says "stopped": without a new signal the old one is simply no longer true. A little longer than the gap between two signals.
const TYPING_SHOWN_MS = 3500;
const ANSWER_WITHIN_MS = 10_000;
const LOG_LINES = 40;

const started = Date.now();

// ---------------------------------------------------------------------------------------------- the relay, as a client sees it

/** The answer was an error: `status`, and in `message` what the problem document says. */
class Refused extends Error {
  constructor(status, problem) {
    super(problem.detail ?? problem.title ?? `HTTP ${status}`);
    this.status = status;
  }
}

async function post(url, body, headers = {}) {
  const response = await fetch(url, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json', ...headers },
    body: JSON.stringify(body),
    signal: AbortSignal.timeout(ANSWER_WITHIN_MS),
  });
  const answer = response.status === 204 ? {} : await response.json().catch(() => ({}));
  if (!response.ok) throw new Refused(response.status, answer);
  return answer;
}

/** Sends through the page's backend, which alone has the API key. The key makes it safe to try again: it is never stored twice. */
function send(message, idempotencyKey) {
  return post('/examples/typing/messages', message, idempotencyKey ? { 'Idempotency-Key': idempotencyKey } : {});
}

/** One device: keeps a stream open while it is wanted, and takes it up again where it broke off. */
class Device {
  cursor = 'earliest';
  #user;
  #device;
  #on;
  #token = null;
  #source = null;
  #retry = 0;
  #failures = 0;
  // Raised whenever the device changes its mind, so that an answer that comes too late is known as such.
  #turn = 0;
  #acked = null;
  #acking = false;

  constructor(user, device, on) {
    this.#user = user;
    this.#device = device;
    this.#on = on;
  }

  connect() {
    this.#stop();
    this.#on.state('connecting');
    this.#open(this.#turn);
  }

  disconnect(state = 'offline') {
    this.#stop();
    this.#on.state(state);
  }

  /** Tells the relay that all up to here was shown. Only the newest matters, so one request runs at a time. */
  async ack(cursor) {
    this.#acked = cursor;
    if (this.#acking) return;
    this.#acking = true;
    try {
      let told = null;
      while (told !== this.#acked) {
        told = this.#acked;
        await this.#ask('/v1/ack', { cursor: told });
      }
    } catch {
      // The next ack says it again.
    } finally {
      this.#acking = false;
    }
  }

  #stop() {
    this.#turn += 1;
    clearTimeout(this.#retry);
    this.#source?.close();
    this.#source = null;
  }

  async #open(turn) {
    let ticket;
    try {
      ({ ticket } = await this.#ask('/v1/tickets', {}));
    } catch {
      if (turn === this.#turn) this.#again();
      return;
    }
    if (turn !== this.#turn) return;
    const source = new EventSource(`/v1/stream?${new URLSearchParams({ ticket, after: this.cursor })}`);
    this.#source = source;
    const hear = (name, handle) =>
      source.addEventListener(name, (event) => {
        if (source === this.#source) handle(event.data ? JSON.parse(event.data) : null);
      });
    hear('ready', (ready) => {
      this.#failures = 0;
      this.#on.state('online', ready);
    });
    hear('message', (message) => {
      if (!message.online_only) this.cursor = message.cursor;
      this.#on.message(message);
    });
    hear('gap', (gap) => {
      this.cursor = gap.resumed_after;
      this.#on.gap(gap);
    });
    hear('recall', (recall) => this.#on.recall(recall));
    hear('bye', ({ reason }) => {
      // Coming back by itself would push out the window that replaced this one, and that one would do the same.
      if (reason === 'replaced' || reason === 'kicked') this.disconnect(reason);
      else this.#again();
    });
    // A ticket opens one stream only, so the browser's own reconnecting can't work.
    hear('error', () => this.#again());
  }

  #again() {
    this.#stop();
    this.#on.state('connecting');
    const wait = Math.min(250 * 2 ** this.#failures, 8000) * (0.5 + Math.random() / 2);
    this.#failures += 1;
    const turn = this.#turn;
    this.#retry = setTimeout(() => this.#open(turn), wait);
  }

  /** Asks as this device. Its token is short-lived: one that was refused is renewed once. */
  async #ask(url, body) {
    const fresh = this.#token === null;
    this.#token ??= (await post('/examples/typing/session', { user: this.#user, device: this.#device })).token;
    try {
      return await post(url, body, { Authorization: `Bearer ${this.#token}` });
    } catch (error) {
      if (error.status !== 401) throw error;
      this.#token = null;
      if (fresh) throw error;
      return this.#ask(url, body);
    }
  }
}

// ---------------------------------------------------------------------------------------------- what is on the page

const byId = (id) => document.getElementById(id);

function element(tag, className, text = '') {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function mark(kind) {
  const made = element('span', `mark ${kind}`);
  made.setAttribute('aria-hidden', 'true');
  return made;
}

/** Screen readers say again what is set again, so the same text is left alone. */
function say(where, kind, text) {
  if (where.textContent === text && where.dataset.kind === kind) return;
  where.dataset.kind = kind;
  where.replaceChildren(mark(kind), element('span', '', text));
}

const clock = new Intl.DateTimeFormat(undefined, { hour: '2-digit', minute: '2-digit' });
const clockWithSeconds = new Intl.DateTimeFormat(undefined, { hour: '2-digit', minute: '2-digit', second: '2-digit', hourCycle: 'h23' });

/** Newest first; what repeats is counted rather than listed. */
const log = {
  list: byId('log'),
  last: { text: '', count: 0 },
  add(kind, text, who = '') {
    const now = clockWithSeconds.format(new Date());
    if (this.last.text === text) {
      this.last.count += 1;
      this.list.querySelector('time').textContent = now;
      this.list.querySelector('.count').textContent = `×${this.last.count}`;
      return;
    }
    this.last = { text, count: 1 };
    const line = element('li', who);
    line.append(element('time', '', now), mark(kind), element('span', 'text', text), element('span', 'count'));
    this.list.prepend(line);
    while (this.list.children.length > LOG_LINES) this.list.lastElementChild.remove();
  },
};

/** The line between the two: what is under way runs along it. It shows nothing that isn't also said in words. */
const wire = {
  track: byId('track'),
  still: matchMedia('(prefers-reduced-motion: reduce)'),
  sideBySide: matchMedia('(min-width: 60rem)'),
  ends: { alice: 0, relay: 50, bob: 100 },

  async run(kind, who, from, to, keyframe = {}) {
    if (this.still.matches || document.hidden) return;
    const dot = element('span', `mark ${kind} signal ${who}`);
    const axis = this.sideBySide.matches ? 'left' : 'top';
    const place = (end, more) => ({ [axis]: `${this.ends[end]}%`, ...more });
    this.track.append(dot);
    try {
      await dot.animate([place(from), place(to, keyframe)], { duration: 420, easing: 'ease-in-out' }).finished;
    } finally {
      dot.remove();
    }
  },
  out: (kind, who) => wire.run(kind, who, who, 'relay'),
  on: (kind, who, to) => wire.run(kind, who, 'relay', to),
  lost: (kind, who) => wire.run(kind, who, 'relay', 'relay', { opacity: 0, scale: 2.4 }),
};

/** What was sent from this page and did not arrive yet: by key, when its way to the relay is over. */
const flights = new Map();

/** Messages that are stored and were not yet shown to whom they are for. */
const waiting = {
  label: byId('waiting'),
  show() {
    const away = people.filter((person) => person.awaited.size > 0 && person.state !== 'online');
    this.label.replaceChildren(...away.flatMap(({ awaited, name }) => [`${awaited.size} waiting`, element('span', 'for', ` for ${name}`)]));
  },
};

class Person {
  other;
  state = 'offline';
  // By key: whether this person was away when it was stored.
  awaited = new Map();
  #device;
  #part;
  #shown = new Map();
  #unsent = new Map();
  #typingSent = -Infinity;
  #typingRuns = false;
  #typingEnds = 0;
  #otherSpokeAt = 0;
  #queue = Promise.resolve();
  #toldHistory = false;
  #everReady = false;

  constructor({ key, name, device }, room) {
    this.key = key;
    this.name = name;
    this.deviceName = device;
    this.user = `${key}-${room}`;
    this.room = room;
    this.#device = new Device(this.user, device, {
      state: (state, ready) => this.#onState(state, ready),
      message: (message) => this.#onMessage(message),
      gap: () => log.add('wire', `${this.name}’s oldest messages are no longer kept.`),
      recall: ({ id }) => this.#onRecall(id),
    });
  }

  /** Builds this side, and goes online. */
  begin(other) {
    this.other = other;
    const section = byId('person').content.cloneNode(true).firstElementChild;
    const find = (selector) => section.querySelector(selector);
    this.#part = {
      section,
      presence: find('.presence'),
      button: find('.switch'),
      scroll: find('.scroll'),
      empty: find('.empty'),
      messages: find('.messages'),
      typing: find('.typing'),
      away: find('.away'),
      awayText: find('.away p'),
      useHere: find('.away button'),
      form: find('.composer'),
      input: find('input'),
      send: find('.composer button'),
      receipt: find('.receipt'),
    };
    const part = this.#part;
    section.classList.add(this.key);
    section.setAttribute('aria-labelledby', `${this.key}-name`);
    find('h2').id = `${this.key}-name`;
    find('h2').textContent = this.name;
    find('.avatar').textContent = this.name[0];
    part.scroll.setAttribute('aria-label', `Messages on ${this.name}’s ${this.deviceName}`);
    part.empty.textContent = `Nothing yet. Type below: ${other.name} sees at once that you do.`;
    find('label').htmlFor = part.input.id = `${this.key}-text`;
    find('label').textContent = `Message from ${this.name} to ${other.name}`;
    part.input.placeholder = `Write as ${this.name}…`;
    say(part.receipt, 'none', 'Nothing sent yet.');
    part.button.addEventListener('click', () => this.#toggle());
    part.useHere.addEventListener('click', () => this.#device.connect());
    part.input.addEventListener('input', () => this.#onInput());
    part.form.addEventListener('submit', (event) => {
      event.preventDefault();
      this.#submit();
    });
    byId('stage').append(section);
    this.#device.connect();
  }

  leave() {
    this.#device.disconnect();
  }

  comeBack() {
    this.#device.connect();
  }

  // ------------------------------------------------------------------------------------------ being here

  #toggle() {
    if (this.state === 'online' || this.state === 'connecting') this.#device.disconnect();
    else this.#device.connect();
  }

  #onState(state, ready) {
    const before = this.state;
    this.state = state;
    const { section, presence, button, away, awayText, useHere, input, send } = this.#part;
    section.dataset.state = state;
    const words = { online: 'Online', connecting: 'Connecting…', offline: 'Offline', replaced: 'Elsewhere', kicked: 'Disconnected' };
    const presenceText = `${words[state]} · ${this.deviceName}`;
    if (presence.textContent !== presenceText) presence.textContent = presenceText;
    button.textContent = state === 'online' || state === 'connecting' ? 'Go offline' : 'Come back';
    button.setAttribute('aria-label', `${button.textContent}: ${this.name}`);
    const gone = {
      offline: `${this.name} is away. Messages wait; typing signals don’t.`,
      replaced: `Another window took over ${this.name}’s ${this.deviceName}, so this one stepped aside.`,
      kicked: `The operator closed this stream.`,
    }[state];
    away.hidden = !gone;
    awayText.textContent = gone ?? '';
    useHere.hidden = state !== 'replaced';
    button.hidden = state === 'replaced';
    input.disabled = send.disabled = Boolean(gone);
    if (state !== 'online') this.#typingGone();
    if (state === 'online') {
      if (before !== 'online') this.#logReady(ready);
    } else if (gone && before !== state) {
      log.add('wire', { offline: `${this.name} went offline.`, replaced: gone, kicked: `${this.name}’s stream was closed.` }[state]);
    }
    waiting.show();
  }

  #logReady(ready) {
    const resumed = this.#everReady && Number(ready.resumed_after) !== 0;
    log.add('wire', resumed ? `${this.name} is back: the stream goes on after ${ready.resumed_after}.` : `${this.name}’s ${this.deviceName} is online.`);
    this.#everReady = true;
  }

  // ------------------------------------------------------------------------------------------ typing: for now

  async #onInput() {
    const now = performance.now();
    const quiet = now - this.#typingSent < TYPING_EVERY_MS;
    if (this.#part.input.value.trim() === '' || quiet || this.#typingRuns) return;
    this.#typingSent = now;
    this.#typingRuns = true;
    const start = wire.out('now', this.key);
    try {
      const answer = await send({
        from: this.user,
        to: { users: [this.other.user] },
        type: 'typing',
        payload: { conversation: this.room },
        online_only: true,
        ttl_ms: 3000,
        collapse_key: `typing:${this.room}:${this.key}`,
      });
      this.#typingRuns = false;
      this.#onSignalOutcome(answer.recipients[0], start);
    } catch (error) {
      this.#typingRuns = false;
      say(this.#part.receipt, 'failed', `Typing signal not sent: ${error.message}`);
    }
  }

  async #onSignalOutcome({ outcome, devices }, start) {
    const to = this.other.name;
    const device = devices?.[0] ?? 'device';
    const [receipt, story] = {
      delivered: [`Typing signal: delivered to ${to}’s ${device}`, `${this.name}’s typing signal reached ${to}’s ${device}.`],
      offline: [`Typing signal: ${to} is offline, so it is gone`, `${this.name}’s typing signal found nobody: ${to} is offline. It was dropped, not kept.`],
      expired: ['Typing signal: expired in a slow queue', `${this.name}’s typing signal waited too long and was dropped.`],
      superseded: ['Typing signal: a newer one took its place', `${this.name}’s typing signal gave way to a newer one.`],
      unconfirmed: ['Typing signal: not known in time', `Whether ${this.name}’s typing signal arrived was not known in time.`],
    }[outcome];
    say(this.#part.receipt, outcome === 'delivered' ? 'now' : 'lost', receipt);
    log.add(outcome === 'delivered' ? 'now' : 'lost', story, this.key);
    await start;
    if (outcome === 'delivered') wire.on('now', this.key, this.other.key);
    else wire.lost('now', this.key);
  }

  #typingSeen(sentAt) {
    // Sent before the message that ended it: it tells nothing any more.
    if (sentAt <= this.#otherSpokeAt) return;
    clearTimeout(this.#typingEnds);
    this.#typingEnds = setTimeout(() => this.#typingGone(), TYPING_SHOWN_MS);
    const { typing } = this.#part;
    if (typing.hasChildNodes()) return;
    const dots = element('span', 'dots');
    dots.setAttribute('aria-hidden', 'true');
    dots.append(element('i', ''), element('i', ''), element('i', ''));
    typing.append(dots, element('span', '', `${this.other.name} is typing…`));
  }

  #typingGone() {
    clearTimeout(this.#typingEnds);
    this.#part.typing.replaceChildren();
  }

  // ------------------------------------------------------------------------------------------ messages: kept

  #submit() {
    const { input } = this.#part;
    const text = input.value.trim();
    if (text === '' || input.disabled) return;
    input.value = '';
    this.#typingSent = -Infinity;
    const key = crypto.randomUUID();
    const line = this.#line(text, new Date(), true);
    line.classList.add('unsent');
    this.#unsent.set(key, line);
    this.#part.messages.append(line);
    this.#toEnd();
    this.#enqueue(key, text);
  }

  /** One after the other, so that they are stored in the order in which they were written. */
  #enqueue(key, text) {
    this.#queue = this.#queue.then(() => this.#deliver(key, text));
  }

  async #deliver(key, text) {
    flights.set(key, wire.out('kept', this.key));
    try {
      const answer = await send(
        {
          from: this.user,
          // To the sender too: what is on this side's screen comes from its own stream, in the order of the store, after a reload as well.
          to: { users: [this.other.user, this.user] },
          type: 'chat',
          payload: { conversation: this.room, text, key },
        },
        key,
      );
      const { cursor } = answer.recipients.find(({ user }) => user === this.other.user);
      const away = this.other.state !== 'online';
      say(this.#part.receipt, 'kept', `Message: stored for ${this.other.name}, cursor ${cursor}`);
      log.add('kept', `${this.name}’s message is stored for ${this.other.name} as ${cursor}.${away ? ` It waits until ${this.other.name} is back.` : ''}`, this.key);
      this.other.expect(key, away);
    } catch (error) {
      if (this.#shown.has(key)) {
        this.#sayStoredUnanswered();
      } else {
        say(this.#part.receipt, 'failed', `Message not sent: ${error.message}`);
        this.#offerRetry(key, text);
      }
    }
  }

  /** The answer was lost, but the stream brought the message itself. */
  #sayStoredUnanswered() {
    say(this.#part.receipt, 'kept', `Message: stored for ${this.other.name}; only the answer was lost`);
  }

  #offerRetry(key, text) {
    const line = this.#unsent.get(key);
    if (!line) return;
    const again = element('button', 'plain', 'Not sent. Try again');
    again.type = 'button';
    again.addEventListener('click', () => {
      again.remove();
      say(this.#part.receipt, 'none', 'Trying again…');
      this.#enqueue(key, text);
    });
    line.append(again);
  }

  /** A message for this person is stored. It may have been quicker than the answer that says so. */
  expect(key, away) {
    if (!this.#shown.has(key)) this.awaited.set(key, away);
    waiting.show();
  }

  #onMessage(message) {
    const sentAt = Date.parse(message.sent_at);
    const mine = message.from === this.user;
    if (message.type === 'typing' && !mine) this.#typingSeen(sentAt);
    if (message.type === 'chat') this.#onChat(message, mine, sentAt);
    if (!message.online_only) this.#device.ack(message.cursor);
  }

  #onChat({ id, payload, cursor }, mine, sentAt) {
    const key = String(payload?.key ?? id);
    if (!mine) {
      this.#otherSpokeAt = Math.max(this.#otherSpokeAt, sentAt);
      this.#typingGone();
    }
    // The order is the stream's: what was only written so far stays below what is stored.
    this.#unsent.get(key)?.remove();
    this.#unsent.delete(key);
    if (mine && this.#part.receipt.dataset.kind === 'failed') this.#sayStoredUnanswered();
    const line = this.#line(String(payload?.text ?? ''), new Date(sentAt), mine);
    line.dataset.id = id;
    this.#part.messages.insertBefore(line, this.#unsent.values().next().value ?? null);
    this.#shown.set(key, line);
    this.#part.empty.hidden = true;
    this.#toEnd();
    const flight = flights.get(key);
    if (flight && !mine) {
      flights.delete(key);
      flight.then(() => wire.on('kept', this.other.key, this.key));
      if (this.awaited.get(key)) log.add('kept', `${this.name}’s ${this.deviceName} got message ${cursor}, which had waited.`, this.other.key);
      this.awaited.delete(key);
    } else if (!mine && sentAt < started) {
      if (!this.#toldHistory) log.add('kept', `${this.name}’s earlier messages came from the store.`);
      this.#toldHistory = true;
    }
    waiting.show();
  }

  #onRecall(id) {
    const line = this.#part.messages.querySelector(`[data-id="${CSS.escape(id)}"]`);
    line?.classList.add('recalled');
    line?.querySelector('.text').replaceChildren('This message was recalled.');
  }

  #line(text, at, mine) {
    const line = element('li', mine ? 'mine' : 'theirs');
    const body = element('span', 'body');
    const when = element('time', '', clock.format(at));
    when.dateTime = at.toISOString();
    body.append(element('span', 'unseen', `${mine ? this.name : this.other.name}: `), element('span', 'text', text), when);
    line.append(body);
    return line;
  }

  #toEnd() {
    this.#part.empty.hidden = true;
    this.#part.scroll.scrollTop = this.#part.scroll.scrollHeight;
  }
}

// ---------------------------------------------------------------------------------------------- beginning

/** Every tab has users of its own, so that two tabs don't take each other's devices; a reload finds its conversation again. */
function room() {
  const kept = sessionStorage.getItem('herenow-room');
  if (kept) return kept;
  const made = Array.from(crypto.getRandomValues(new Uint8Array(4)), (byte) => byte.toString(16).padStart(2, '0')).join('');
  sessionStorage.setItem('herenow-room', made);
  return made;
}

const here = room();
const people = PEOPLE.map((person) => new Person(person, here));
const [alice, bob] = people;
alice.begin(bob);
bob.begin(alice);

byId('restart').addEventListener('click', () => {
  sessionStorage.removeItem('herenow-room');
  location.reload();
});

// A page that the browser keeps for the way back must hold no stream, and needs new ones when it is shown again.
let left = [];
addEventListener('pagehide', () => {
  left = people.filter(({ state }) => state === 'online' || state === 'connecting');
  left.forEach((person) => person.leave());
});
addEventListener('pageshow', ({ persisted }) => {
  if (persisted) left.forEach((person) => person.comeBack());
});
