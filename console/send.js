// Sending a message, and what became of it at each recipient.

import { NoAnswer, Unfit } from './api.js';
import { View, code, counted, lines, make, name, names, state, table } from './parts.js';

/** `crypto.randomUUID` is only there over TLS and on this machine. */
const random = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, '0')).join('');

export function send(session, openMessage) {
  const view = new View('send', session);
  const { form } = view;
  const field = (id) => view.find(`#send-${id}`);
  // The same message with the same key is never sent twice, so one whose answer was lost can be sent again.
  let key = null;

  const chosen = (name) => form.querySelector(`[name="${name}"]:checked`).value;

  function choose() {
    const shown = new Set([chosen('kind'), chosen('to')]);
    if (shown.has('persisted') && shown.has('users')) shown.add('sync');
    for (const part of form.querySelectorAll('[data-for]')) {
      part.hidden = !shown.has(part.dataset.for);
      for (const control of part.querySelectorAll('input, select, textarea')) control.disabled = part.hidden;
    }
  }

  /** The message as JSON text, with the payload as it was written. */
  function message() {
    const payload = field('payload').value.trim();
    try {
      JSON.parse(payload);
    } catch (error) {
      field('payload').focus();
      throw new Unfit(`The payload is not JSON: ${error.message}`);
    }
    const given = {
      from: field('from').value.trim(),
      to: chosen('to') === 'users' ? { users: lines(field('users')) } : { group: field('group').value.trim() },
      type: field('type').value.trim(),
      ttl_ms: field('ttl').value === '' ? undefined : field('ttl').valueAsNumber,
    };
    const kind =
      chosen('kind') === 'online'
        ? { online_only: true, deliver_to: field('deliver').value, collapse_key: field('collapse').value || undefined }
        : { push: field('push').value === 'no' ? false : undefined, sync_sender: field('sync').disabled || !field('sync').checked ? undefined : true };
    return `${JSON.stringify({ ...given, ...kind }).slice(0, -1)},"payload":${payload}}`;
  }

  function show({ json, headers }) {
    const rows = json.recipients ?? [];
    const columns = json.online_only
      ? [
          ['Recipient', ({ user }) => name(user)],
          ['Outcome', ({ outcome }) => state(outcome)],
          ['Devices', ({ devices }) => names(devices)],
        ]
      : [
          ['Recipient', ({ user }) => name(user)],
          ['Outcome', ({ outcome }) => state(outcome)],
          ['Cursor', ({ cursor }) => cursor],
        ];
    const summary = json.summary ?? { stored: rows.length };
    const words = Object.entries(summary).filter(([, n]) => n > 0).map(([word, n]) => `${n.toLocaleString('en')} ${word}`);
    const earlier = headers.get('idempotent-replayed') === 'true' ? ' It had been sent before; this is the answer of then.' : '';
    const look = json.online_only ? [] : [' ', make('button', { type: 'button', class: 'link', click: () => openMessage(json.id) }, 'See how it fares')];
    view.report.say(words.join(', ') || 'No recipients', '. ', code(json.id), earlier, ...look);
    view.result.replaceChildren(...(rows.length > 0 ? [table(counted(rows.length, 'recipient'), columns, rows).element] : []));
  }

  form.addEventListener('input', () => {
    key = null;
    choose();
  });
  view.on(form, async () => {
    key ??= random();
    view.report.say('Sending…');
    view.result.replaceChildren();
    let lost = false;
    await view.change(async (ask) => {
      try {
        show(await ask('POST', '/v1/messages?recipients=true', { body: message(), headers: { 'Idempotency-Key': key } }));
      } catch (error) {
        lost = error instanceof NoAnswer;
        throw error;
      }
    });
    if (!lost) key = null;
  });
  choose();
  return { open() {} };
}
