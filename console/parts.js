// What all views are made of. Text from elsewhere becomes text nodes and attributes of elements made here, never markup.

import { NoAnswer, Refused, Unfit } from './api.js';

/** An element. Strings among the children are shown as text. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === 'function') element.addEventListener(name, value);
    else if (value !== undefined && value !== false) element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children);
  return element;
}

/** A name that somebody chose: its characters stay among themselves, whichever direction they write in. */
export const name = (text) => make('bdi', { class: 'name' }, text);

export const names = (list) => list.flatMap((text, n) => (n === 0 ? [name(text)] : [', ', name(text)]));

/** A name within a sentence: U+2068 and U+2069 isolate it. */
export const quoted = (text) => `“\u2068${text}\u2069”`;

export const code = (text) => make('code', {}, text);

export const counted = (n, one, many = `${one}s`) => `${n.toLocaleString('en')} ${n === 1 ? one : many}`;

/** The names in a field with one per line. */
export const lines = (field) => [...new Set(field.value.split('\n').map((line) => line.trim()).filter((line) => line !== ''))];

const clock = new Intl.DateTimeFormat('en-GB', { hour: '2-digit', minute: '2-digit', second: '2-digit' });
const day = new Intl.DateTimeFormat('en-GB', { day: '2-digit', month: 'short' });
const SPANS = [['d', 86_400], ['h', 3_600], ['min', 60], ['s', 1]];

export const timeOfDay = (date) => clock.format(date);

/** A time as the clock on the wall shows it, and how far it is from now. */
export function when(text) {
  const date = new Date(text);
  const seconds = Math.round((date - Date.now()) / 1000);
  const [unit, length] = SPANS.find(([, length]) => Math.abs(seconds) >= length) ?? ['s', 1];
  const span = `${Math.floor(Math.abs(seconds) / length)} ${unit}`;
  const isToday = date.toDateString() === new Date().toDateString();
  return make('time', { datetime: text, title: text }, isToday ? clock.format(date) : `${day.format(date)} ${clock.format(date)}`, make('span', { class: 'quiet' }, seconds > 0 ? ` in ${span}` : ` ${span} ago`));
}

/** A word for a state, with a colour beside it. */
export const state = (word) => make('span', { class: 'word', 'data-word': word }, word.replaceAll('_', ' '));

const ROWS_AT_ONCE = 200;

/**
 * A table. `columns` are pairs of a title and what makes a cell's content of a row; on a narrow screen each cell bears its title.
 * Many rows are shown bit by bit. `add` brings more.
 */
export function table(caption, columns, rows) {
  // The roles are said outright, since a narrow screen's layout would take them from the elements.
  const body = make('tbody', { role: 'rowgroup' });
  const head = columns.map(([title]) => make('th', { role: 'columnheader', scope: 'col' }, title === '' ? make('span', { class: 'unseen' }, 'Actions') : title));
  const more = make('button', { type: 'button', class: 'more', click: () => show() });
  let waiting = [];
  const show = () => {
    const next = waiting.splice(0, ROWS_AT_ONCE);
    body.append(
      ...next.map((row) =>
        make('tr', { role: 'row' }, ...columns.map(([title, cell]) => make('td', { role: 'cell', 'data-title': title }, make('div', {}, ...[cell(row)].flat().filter((part) => part !== null))))),
      ),
    );
    more.hidden = waiting.length === 0;
    more.textContent = `Show ${Math.min(waiting.length, ROWS_AT_ONCE)} more of ${waiting.length.toLocaleString('en')}`;
  };
  const add = (rows) => {
    waiting = waiting.concat(rows);
    show();
  };
  const element = make('div', { class: 'table' }, make('table', { role: 'table' }, make('caption', { class: 'unseen' }, caption), make('thead', { role: 'rowgroup' }, make('tr', { role: 'row' }, ...head)), body), more);
  add(rows);
  return { element, add };
}

/** Facts about one thing, as pairs of a word and a value. */
export const facts = (pairs) => make('dl', { class: 'facts' }, ...pairs.map(([word, value]) => make('div', {}, make('dt', {}, word), make('dd', {}, value))));

/** Asks before something is done that can't be undone. */
export function confirmed(title, text, button) {
  const dialog = document.getElementById('confirm');
  dialog.querySelector('h2').textContent = title;
  dialog.querySelector('p').textContent = text;
  dialog.querySelector('[value="yes"]').textContent = button;
  dialog.returnValue = 'no';
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener('close', () => resolve(dialog.returnValue === 'yes'), { once: true });
  });
}

/** What went wrong, for a person. `changes`: whether it might have been done all the same. */
export function trouble(error, changes) {
  if (error instanceof Refused) {
    const { problem, requestId, retryAfter } = error;
    const flaws = (problem.errors ?? []).map(({ pointer, detail }) => make('li', {}, code(pointer), ` ${detail}`));
    const facts = [`${problem.status} ${problem.code}`, requestId && `request ${requestId}`, retryAfter && `try again in ${retryAfter} s`];
    return [
      make('p', {}, make('b', {}, problem.title), problem.detail ? `: ${problem.detail}` : ''),
      // A single flaw is the detail already.
      ...(flaws.length > 1 ? [make('ul', {}, ...flaws)] : []),
      make('p', { class: 'quiet code' }, facts.filter(Boolean).join(' · ')),
    ];
  }
  if (error instanceof NoAnswer) {
    const rest = changes ? ' It may have been done, or not: look before you do it again.' : '';
    return [make('p', {}, make('b', {}, 'Can’t reach herenow'), `: ${error.message}.${rest}`)];
  }
  if (error instanceof Unfit) return [make('p', {}, error.message)];
  return [make('p', {}, make('b', {}, 'This page has a fault'), `: ${error.message}`)];
}

/** Where a form tells what came of it. */
export class Report {
  #element;

  constructor(element) {
    this.#element = element;
  }

  say(...children) {
    delete this.#element.dataset.kind;
    this.#element.replaceChildren(make('p', {}, ...children));
  }

  fail(error, changes = false) {
    this.#element.dataset.kind = 'trouble';
    this.#element.replaceChildren(...trouble(error, changes));
  }
}

/** A view: its form, its report, its result, and one thing at a time that it is busy with. */
export class View {
  #session;
  #now = null;

  constructor(name, session) {
    this.root = document.getElementById(`view-${name}`);
    this.form = this.root.querySelector('form');
    this.report = new Report(this.root.querySelector('.report'));
    this.result = this.root.querySelector('.result');
    this.#session = session;
    this.root.addEventListener('keydown', (event) => {
      if (event.key === 'Enter' && (event.ctrlKey || event.metaKey) && event.target.matches('textarea')) event.target.form.requestSubmit();
    });
  }

  find(selector) {
    return this.root.querySelector(selector);
  }

  /** Does `act` when a form is sent, rather than what a browser would do. */
  on(form, act) {
    form.addEventListener('submit', (event) => {
      event.preventDefault();
      act(event.submitter);
    });
  }

  /** Reads: a later one takes the place of an earlier one. Resolves to whether it went well. */
  run(act) {
    return this.#do(act, false);
  }

  /** Changes something: nothing else is begun meanwhile, since its outcome would be lost. */
  change(act) {
    return this.#do(act, true);
  }

  async #do(act, changes) {
    if (this.#now?.changes) {
      this.report.say('The one before is still under way.');
      return false;
    }
    this.#now?.stop.abort();
    const now = { changes, stop: new AbortController() };
    this.#now = now;
    this.root.setAttribute('aria-busy', 'true');
    const ask = async (method, path, options) => {
      const answer = await this.#session.ask(method, path, { ...options, signals: [now.stop.signal] });
      if (this.#now !== now) throw new Superseded();
      return answer;
    };
    try {
      await act(ask);
      return true;
    } catch (error) {
      if (this.#now === now && !this.#session.isOver) this.report.fail(error, changes);
      return false;
    } finally {
      if (this.#now === now) {
        this.#now = null;
        this.root.removeAttribute('aria-busy');
      }
    }
  }
}

class Superseded extends Error {}
