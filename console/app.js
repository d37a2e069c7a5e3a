// The operator's page: who may see it, how the node is, and which view is shown. It uses the public HTTP API alone.

import { NoAnswer, Refused, Unfit, ask } from './api.js';
import { callbacks } from './callbacks.js';
import { groups } from './groups.js';
import { message } from './message.js';
import { online } from './online.js';
import { Report, timeOfDay } from './parts.js';
import { send } from './send.js';

// Gone when the tab is closed.
const SAVED = 'herenow-console-key';
const READY_EVERY_MS = 5_000;
const READY_EVERY_MS_UNSEEN = 30_000;
const READY_WITHIN_MS = 6_000;

const main = document.getElementById('main');
const forget = document.getElementById('forget');

/** What is away, in words. */
const AWAY = { draining: 'it is about to stop', presence: 'presence is away', store: 'the store is away' };

// ---------------------------------------------------------------------------------------------- health

const health = document.getElementById('health');
let version = null;
let since = null;
let pending = 0;

function tell(word, text, detail) {
  if (health.dataset.state !== word) since = timeOfDay(new Date());
  health.dataset.state = word;
  // Set only when it differs, else it would be read out each time.
  const shown = health.querySelector('.state');
  if (shown.textContent !== text) shown.textContent = text;
  health.querySelector('.detail').textContent = `${detail}${word === 'ready' ? '' : ` · since ${since}`}`;
  document.title = word === 'ready' ? 'herenow console' : `${text} · herenow console`;
}

async function look() {
  clearTimeout(pending);
  const asked = performance.now();
  try {
    const { status, json } = await ask('GET', '/readyz', { within: READY_WITHIN_MS, accept: [503] });
    if (typeof json?.ready !== 'boolean') throw new NoAnswer(`HTTP ${status}, and not by herenow`);
    const took = Math.round(performance.now() - asked);
    // Behind a load balancer another node may answer next time, and after an outage a newer one.
    if (health.dataset.state !== 'ready') version = null;
    version ??= (await ask('GET', '/openapi.json')).json.info.version;
    const detail = `${location.host} · ${version} · ${timeOfDay(new Date())} · ${took} ms`;
    if (json.ready) tell('ready', 'Ready', detail);
    else tell('away', `Not ready: ${json.away.map((what) => AWAY[what] ?? what).join(', ')}`, detail);
  } catch (error) {
    tell('unreachable', 'Can’t reach herenow', `${location.host} · ${error.message}`);
  }
  clearTimeout(pending);
  pending = setTimeout(look, document.visibilityState === 'visible' ? READY_EVERY_MS : READY_EVERY_MS_UNSEEN);
}
document.addEventListener('visibilitychange', () => document.visibilityState === 'visible' && look());

// ---------------------------------------------------------------------------------------------- the key

const template = (id) => document.getElementById(id).content.cloneNode(true);

/** The time during which a key is there. All that was shown with it goes with it. */
class Session {
  #key;
  #over = new AbortController();
  signal = this.#over.signal;

  constructor(key) {
    this.#key = key;
  }

  get isOver() {
    return this.signal.aborted;
  }

  async ask(method, path, options = {}) {
    try {
      return await ask(method, path, { ...options, key: this.#key, signals: [this.signal, ...(options.signals ?? [])] });
    } catch (error) {
      if (error instanceof Refused && error.problem.status === 401 && !this.isOver) signOut(error);
      throw error;
    }
  }

  end() {
    this.#over.abort();
    this.#key = undefined;
  }
}

let session = null;

function signOut(why) {
  session?.end();
  session = null;
  sessionStorage.removeItem(SAVED);
  forget.hidden = true;
  document.getElementById('confirm').close('no');
  main.replaceChildren(template('signed-out'));
  const form = main.querySelector('form');
  const [field, report] = [form.querySelector('input'), new Report(form.querySelector('.report'))];
  if (why) report.fail(why);
  field.focus();
  form.addEventListener('submit', async (event) => {
    event.preventDefault();
    if (form.hasAttribute('aria-busy')) return;
    form.setAttribute('aria-busy', 'true');
    const key = field.value.trim();
    try {
      // A header takes nothing else, and the browser would not say what is wrong.
      if (!/^[\x21-\x7e]+$/.test(key)) throw new Unfit('This can’t be an API key: it has characters that no header takes.');
      await check(key);
      sessionStorage.setItem(SAVED, key);
      signIn(key);
    } catch (error) {
      report.fail(error);
      field.select();
    } finally {
      form.removeAttribute('aria-busy');
    }
  });
}

/** Fails unless the key is accepted. That something else is away says nothing against it. */
async function check(key) {
  try {
    await ask('GET', '/v1/callbacks?state=dead&limit=1', { key });
  } catch (error) {
    if (!(error instanceof Refused) || error.problem.status < 500) throw error;
  }
}

function signIn(key) {
  session = new Session(key);
  main.replaceChildren(template('signed-in'));
  forget.hidden = false;
  const openMessage = (id) => {
    location.hash = 'message';
    views.message.look(id);
  };
  const views = {
    online: online(session),
    message: message(session),
    callbacks: callbacks(session, openMessage),
    groups: groups(session),
    send: send(session, openMessage),
  };
  const show = () => {
    const wanted = location.hash.slice(1);
    const name = Object.hasOwn(views, wanted) ? wanted : 'online';
    for (const each of Object.keys(views)) document.getElementById(`view-${each}`).hidden = each !== name;
    for (const link of main.querySelectorAll('nav a')) {
      if (link.hash === `#${name}`) link.setAttribute('aria-current', 'page');
      else link.removeAttribute('aria-current');
    }
    views[name].open();
  };
  addEventListener('hashchange', show, { signal: session.signal });
  show();
}

forget.addEventListener('click', () => signOut());

look();
const saved = sessionStorage.getItem(SAVED);
if (saved) signIn(saved);
else signOut();
