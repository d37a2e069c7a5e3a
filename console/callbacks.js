// Callbacks that are not done: how many are in trouble, which, and having them tried again.

import { View, confirmed, counted, make, name, state, table, timeOfDay, when } from './parts.js';

const PAGE = 100;
// A glance reads at most so many of each state, however many there are.
const GLANCE = 200;
const GLANCE_EVERY_MS = 15_000;
const ENDPOINTS = ['storage', 'push'];
const STATES = ['dead', 'failing'];

export function callbacks(session, openMessage) {
  const view = new View('callbacks', session);
  const [stateField, endpointField] = view.root.querySelectorAll('select');
  const retryAll = view.find('.retry-all');

  const query = (more) => {
    const asked = { state: stateField.value, endpoint: endpointField.value, limit: PAGE, ...more };
    return new URLSearchParams(Object.entries(asked).filter(([, value]) => value !== ''));
  };

  // The end of an id is what tells it from others.
  const short = (id) => `…${id.slice(-12)}`;
  const columns = [
    ['Since', ({ created_at: created }) => when(created)],
    ['Endpoint', ({ endpoint }) => endpoint],
    ['State', ({ state: word }) => state(word)],
    ['For', ({ recipient }) => (recipient === undefined ? null : name(recipient))],
    ['Attempts', ({ attempts }) => String(attempts)],
    ['Next attempt', ({ next_attempt_at: next }) => (next === undefined ? null : when(next))],
    ['Last error', ({ last_error: error }) => (error ? make('span', { class: 'error' }, [error.status, error.detail].filter(Boolean).join(' ')) : null)],
    ['Message', ({ message }) => make('button', { type: 'button', class: 'link code', title: message, 'aria-label': `Message ${message}`, click: () => openMessage(message) }, short(message))],
    ['Webhook-id', ({ id }) => make('span', { class: 'code' }, id)],
    ['', (row) => (row.state === 'waiting' ? null : make('button', { type: 'button', 'aria-label': `Retry ${row.id}`, click: ({ target }) => retry(row, target) }, 'Retry'))],
  ];

  let shown = null;
  let count = 0;

  function tell(next) {
    const more = next === undefined ? '.' : ', and there are more.';
    view.report.say(count === 0 ? 'None.' : `${counted(count, 'callback')}${more}`);
    shown.querySelector('.next')?.remove();
    if (next !== undefined) shown.append(make('button', { type: 'button', class: 'next', click: () => view.run((ask) => goOn(ask, next)) }, `Next ${PAGE}`));
  }

  let add = null;

  async function list(ask) {
    const { json } = await ask('GET', `/v1/callbacks?${query()}`);
    const made = table('Callbacks that are not done', columns, json.callbacks);
    add = made.add;
    count = json.callbacks.length;
    shown = make('div', {}, ...(count > 0 ? [made.element] : []));
    view.result.replaceChildren(shown);
    tell(json.next);
  }

  async function goOn(ask, after) {
    const { json } = await ask('GET', `/v1/callbacks?${query({ after })}`);
    count += json.callbacks.length;
    add(json.callbacks);
    tell(json.next);
  }

  async function retry({ id, endpoint }, button) {
    if (button.hasAttribute('aria-disabled')) return;
    const done = await view.change((ask) => ask('POST', `/v1/callbacks/${id}/retry`));
    if (!done) return;
    // It stays in its line, so that the others stay where they are.
    button.setAttribute('aria-disabled', 'true');
    button.textContent = 'Retried';
    view.report.say(`The ${endpoint} callback is due now, its attempts counted anew. List again to see how it fares.`);
    glance();
  }

  const nameOfAll = () => `all ${stateField.value} ${endpointField.value ? `${endpointField.value} callbacks` : 'callbacks'}`;

  function choose() {
    const retriable = ['dead', 'failing'].includes(stateField.value);
    retryAll.textContent = retriable ? `Retry ${nameOfAll()}` : 'Retry all';
    retryAll.disabled = !retriable;
  }

  retryAll.addEventListener('click', async () => {
    const [what, asked] = [nameOfAll(), { state: stateField.value, endpoint: endpointField.value || undefined }];
    if (!(await confirmed(`Retry ${what}?`, 'Each is due at once, with its attempts counted anew. An endpoint that is down is asked slowly, whatever their number.', 'Retry'))) return;
    let retried = 0;
    const done = await view.change(async (ask) => {
      const { json } = await ask('POST', '/v1/callbacks/retry', { body: JSON.stringify(asked) });
      retried = json.count;
    });
    if (!done) return;
    await view.run(list);
    view.report.say(`${counted(retried, 'callback')} due now, attempts counted anew.`);
    glance();
  });
  for (const field of [stateField, endpointField]) {
    field.addEventListener('change', () => {
      choose();
      view.run(list);
    });
  }
  view.on(view.form, () => {
    view.run(list);
    glance();
  });

  // ------------------------------------------------------------------------------------------ at a glance

  const place = document.getElementById('glance');
  const cells = STATES.flatMap((word) =>
    ENDPOINTS.map((endpoint) => {
      const number = make('b', {}, '·');
      const open = () => {
        [stateField.value, endpointField.value] = [word, endpoint];
        choose();
        location.hash = 'callbacks';
        view.run(list);
      };
      const button = make('button', { type: 'button', click: open }, number, ` ${endpoint} ${word}`);
      place.append(make('li', {}, button));
      return { word, endpoint, number, button };
    }),
  );
  const asOf = document.getElementById('as-of');

  let glances = 0;
  async function glance() {
    const turn = (glances += 1);
    try {
      const pages = await Promise.all(STATES.map((word) => session.ask('GET', `/v1/callbacks?state=${word}&limit=${GLANCE}`)));
      if (turn !== glances) return;
      for (const { word, endpoint, number, button } of cells) {
        const { json } = pages[STATES.indexOf(word)];
        const n = json.callbacks.filter((each) => each.endpoint === endpoint).length;
        number.textContent = `${n}${json.next === undefined ? '' : '+'}`;
        button.dataset.kind = n > 0 || json.next !== undefined ? word : 'none';
      }
      place.dataset.fresh = 'yes';
      asOf.textContent = `as of ${timeOfDay(new Date())}`;
    } catch {
      // What is shown is old now; the health beside it says why.
      if (turn === glances) place.dataset.fresh = 'no';
    }
  }
  const again = setInterval(() => document.visibilityState === 'visible' && glance(), GLANCE_EVERY_MS);
  session.signal.addEventListener('abort', () => clearInterval(again));

  choose();
  glance();
  return {
    open() {
      if (shown === null) view.run(list);
    },
  };
}
