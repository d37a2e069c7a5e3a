// What became of a persisted message, and recalling it.

import { segment, sourceOf } from './api.js';
import { View, code, confirmed, counted, facts, make, name, names, state, table, when } from './parts.js';

const progress = ({ state: word, attempts }) => [state(word), ...(attempts > 0 ? [make('span', { class: 'quiet' }, ` ${counted(attempts, 'attempt')}`)] : [])];

export function message(session) {
  const view = new View('message', session);
  const field = view.find('input');

  async function show(ask) {
    const id = field.value.trim();
    const { json, text } = await ask('GET', `/v1/messages/${segment(id)}`);
    const payload = sourceOf(text, 'payload') ?? JSON.stringify(json.payload);
    const columns = [
      ['Recipient', ({ user }) => name(user)],
      ['Cursor', ({ cursor }) => cursor],
      ['Handed to', ({ delivered_to: devices }) => names(devices)],
      ['Acknowledged by', ({ acked_by: devices }) => names(devices)],
      ['Push', ({ push }) => progress(push)],
    ];
    view.result.replaceChildren(
      facts([
        ['Id', code(json.id)],
        ['From', name(json.from)],
        ['To', json.to.group === undefined ? counted(json.to.users.length, 'user') : make('span', {}, 'the group ', name(json.to.group))],
        ['Type', name(json.type)],
        ['Sent', when(json.sent_at)],
        ['Kept until', when(json.expires_at)],
        ['Storage callback', make('span', {}, ...progress(json.storage))],
      ]),
      make('details', {}, make('summary', {}, `Payload, ${counted(new TextEncoder().encode(payload).length, 'byte')}`), make('pre', { tabindex: '0' }, payload)),
      table('Recipients', columns, json.recipients).element,
      make('div', { class: 'buttons' }, make('button', { type: 'button', class: 'grave', click: () => recall(json.id, json.recipients.length) }, 'Recall')),
    );
    view.report.say(`${counted(json.recipients.length, 'recipient')}.`);
  }

  async function recall(id, recipients) {
    const text = `It goes from the inboxes of ${counted(recipients, 'recipient')} and is not pushed any more; devices that have it are told to take it back. It can’t be undone.`;
    if (!(await confirmed(`Recall ${id}?`, text, 'Recall'))) return;
    const done = await view.change((ask) => ask('DELETE', `/v1/messages/${segment(id)}`));
    if (!done) return;
    view.result.replaceChildren();
    view.report.say('Recalled ', code(id), '.');
    view.find('h2').focus({ preventScroll: true });
  }

  const look = () => {
    view.result.replaceChildren();
    return view.run(show);
  };
  view.on(view.form, look);
  return {
    open() {},
    async look(id) {
      field.value = id;
      await look();
      view.find('h2').focus({ preventScroll: true });
    },
  };
}
