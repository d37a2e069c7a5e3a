// Who is online, and ending streams.

import { segment } from './api.js';
import { View, confirmed, counted, lines, make, name, quoted, state, table, when } from './parts.js';

export function online(session) {
  const view = new View('online', session);
  const users = view.find('textarea');
  // Those of the last look, so that what a kick has changed can be shown without looking at the field.
  let looked = [];

  async function show(ask) {
    const { json } = await ask('POST', '/v1/presence/query', { body: JSON.stringify({ users: looked }) });
    // The user and how many devices it has, with one device or none.
    const rows = json.users.flatMap((user) => (user.devices.length > 0 ? user.devices.map((device) => ({ user, device })) : [{ user }]));
    const columns = [
      ['User', ({ user }) => name(user.user)],
      ['Device', ({ device }) => (device ? name(device.device) : null)],
      ['State', ({ device }) => state(device?.state ?? 'offline')],
      ['Connected', ({ device }) => (device ? when(device.connected_at) : null)],
      ['Last active', ({ device }) => (device ? when(device.last_active_at) : null)],
      ['Node', ({ device }) => (device ? make('span', { class: 'code' }, device.node) : null)],
      ['', ({ user, device }) => (device ? kickButtons(user, device) : null)],
    ];
    view.result.replaceChildren(table('Devices', columns, rows).element);
    const here = json.users.filter((user) => user.online).length;
    return `${counted(here, 'user')} of ${json.users.length.toLocaleString('en')} online, on ${counted(rows.filter(({ device }) => device).length, 'device')}.`;
  }

  function kickButtons({ user, devices }, { device }) {
    const one = make('button', { type: 'button', 'aria-label': `Kick ${quoted(device)} of ${quoted(user)}`, click: () => kick(user, [device]) }, 'Kick');
    if (devices.length < 2 || devices[0].device !== device) return one;
    const all = make('button', { type: 'button', 'aria-label': `Kick all devices of ${quoted(user)}`, click: () => kick(user, devices.map((each) => each.device)) }, 'Kick all');
    return [one, ' ', all];
  }

  async function kick(user, devices) {
    const what = devices.length === 1 ? `${quoted(devices[0])} of ${quoted(user)}` : `all ${devices.length} devices of ${quoted(user)}`;
    if (!(await confirmed(`Kick ${what}?`, 'Its stream ends and is told that it was kicked. It can open another one: to keep it away, refuse it a token.', 'Kick'))) return;
    const done = await view.change(async (ask) => {
      for (const device of devices) {
        await ask('DELETE', `/v1/users/${segment(user)}/devices/${segment(device)}`, { accept: devices.length > 1 ? [404] : [] });
      }
    });
    if (!done) return;
    view.report.say(`Kicked ${what}.`);
    await view.run(show);
    view.find('h2').focus({ preventScroll: true });
  }

  view.on(view.form, () =>
    view.run(async (ask) => {
      looked = lines(users);
      view.report.say(await show(ask));
    }),
  );
  return { open() {} };
}
