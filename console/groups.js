// Who is in a group, and changing that.

import { segment } from './api.js';
import { View, confirmed, counted, lines, make, name, quoted, table } from './parts.js';

const PAGE = 200;

export function groups(session) {
  const view = new View('groups', session);
  const [field, users] = [view.find('#groups-name'), view.find('#groups-users')];
  // The group that is shown, whatever stands in the field by now.
  let group = null;
  let count = 0;
  let add = null;
  let shown = null;

  const path = (of) => `/v1/groups/${segment(of)}/members`;

  function tell({ next, more }) {
    view.report.say(count === 0 ? 'No members: there is no such group.' : `${counted(count, 'member')} of `, ...(count === 0 ? [] : [name(group), more ? ', and there are more.' : '.']));
    shown.querySelector('.next')?.remove();
    if (more) shown.append(make('button', { type: 'button', class: 'next', click: () => view.run((ask) => goOn(ask, next)) }, `Next ${PAGE}`));
  }

  async function list(ask) {
    const { json } = await ask('GET', `${path(group)}?limit=${PAGE}`);
    const columns = [
      ['Member', (user) => name(user)],
      ['', (user) => make('button', { type: 'button', 'aria-label': `Remove ${quoted(user)}`, click: () => remove([user]) }, 'Remove')],
    ];
    const made = table('Members', columns, json.members);
    add = made.add;
    count = json.members.length;
    shown = make('div', { class: 'narrow' }, ...(count > 0 ? [made.element] : []));
    view.result.replaceChildren(shown);
    tell(json);
  }

  async function goOn(ask, after) {
    const { json } = await ask('GET', `${path(group)}?${new URLSearchParams({ limit: PAGE, after })}`);
    count += json.members.length;
    add(json.members);
    tell(json);
  }

  async function change(of, body) {
    let counts = null;
    const done = await view.change(async (ask) => {
      // In a body any name will do, in a path not.
      ({ json: counts } = await ask('POST', path(of), { body: JSON.stringify(body) }));
    });
    if (!done) return false;
    group = of;
    await view.run(list);
    view.report.say(`${counted(counts.added, 'member')} added, ${counts.removed} removed. `, name(of), ` has ${counted(counts.members, 'member')}.`);
    return true;
  }

  async function remove(members, of = group) {
    const what = members.length === 1 ? quoted(members[0]) : counted(members.length, 'user');
    if (!(await confirmed(`Remove ${what} from ${quoted(of)}?`, 'Messages to the group don’t reach them any more. Those that were sent before stay in their inboxes.', 'Remove'))) return false;
    const done = await change(of, { remove: members });
    if (done) view.find('h2').focus({ preventScroll: true });
    return done;
  }

  view.on(view.find('.look-up'), () => {
    group = field.value.trim();
    view.result.replaceChildren();
    view.run(list);
  });
  view.on(view.find('.change-many'), async (button) => {
    if (!field.reportValidity()) return;
    const [of, named] = [field.value.trim(), lines(users)];
    const done = button?.value === 'remove' ? await remove(named, of) : await change(of, { add: named });
    if (done) users.value = '';
  });
  return { open() {} };
}
