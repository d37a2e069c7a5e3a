// The HTTP API as this page asks it. The key travels in a header only, never in a URL.

const ANSWER_WITHIN_MS = 20_000;

/** herenow said no: in `problem` the document that says why (RFC 9457). */
export class Refused extends Error {
  constructor(problem, requestId, retryAfter) {
    super(problem.title);
    Object.assign(this, { problem, requestId, retryAfter });
  }
}

/** No answer, or none of herenow's. What was asked for may have been done or not. */
export class NoAnswer extends Error {}

/** Something on this page that can't be asked for as it stands. */
export class Unfit extends Error {}

/** A name as a part of a path. Browsers take `.` and `..` for steps in the tree, however they are written. */
export function segment(name) {
  if (name === '.' || name === '..') throw new Unfit(`A browser can’t ask for the path of something named “${name}”: use another client.`);
  return encodeURIComponent(name);
}

/**
 * Asks once, until one of `signals` says stop. `body` is JSON text; statuses in `accept` are no failure. Gives the JSON of the answer, its
 * text and its headers.
 */
export async function ask(method, path, { key, body, headers = {}, signals = [], within = ANSWER_WITHIN_MS, accept = [] } = {}) {
  const over = new AbortController();
  const stop = () => over.abort();
  let isLate = false;
  const late = setTimeout(() => {
    isLate = true;
    stop();
  }, within);
  for (const signal of signals) {
    if (signal.aborted) stop();
    signal.addEventListener('abort', stop, { signal: over.signal });
  }
  let response;
  let text;
  try {
    response = await fetch(path, {
      method,
      headers: {
        ...(key === undefined ? {} : { Authorization: `Bearer ${key}` }),
        ...(body === undefined ? {} : { 'Content-Type': 'application/json' }),
        ...headers,
      },
      body,
      signal: over.signal,
      cache: 'no-store',
      credentials: 'same-origin',
      redirect: 'error',
    });
    text = await response.text();
  } catch (cause) {
    throw new NoAnswer(isLate ? `no answer within ${within / 1000} s` : 'the connection failed', { cause });
  } finally {
    clearTimeout(late);
    stop();
  }
  let json = null;
  let isJson = true;
  try {
    if (text !== '') json = JSON.parse(text);
  } catch {
    isJson = false;
  }
  const { status, ok } = response;
  if ((ok && isJson) || accept.includes(status)) return { status, json, text, headers: response.headers };
  // A proxy in between answers in words of its own.
  if (!isJson || typeof json?.title !== 'string') throw new NoAnswer(`HTTP ${status}, and not by herenow`);
  throw new Refused(json, json.request_id ?? response.headers.get('x-request-id'), response.headers.get('retry-after'));
}

/** What stands for a member of a JSON object, as it was written: parsing rounds large numbers. */
export function sourceOf(text, member) {
  const tokens = /"[^"\\]*(?:\\.[^"\\]*)*"|[{}[\],:]/g;
  let depth = 0;
  let last = null;
  let start = null;
  for (let found; (found = tokens.exec(text)) !== null; ) {
    const [token] = found;
    const closes = token === '}' || token === ']';
    if (depth === 1 && start !== null && (token === ',' || closes)) return text.slice(start, found.index).trim();
    if (token === '{' || token === '[') depth += 1;
    else if (closes) depth -= 1;
    else if (depth === 1 && token === ':' && start === null && last === JSON.stringify(member)) start = tokens.lastIndex;
    last = token;
  }
  return null;
}
