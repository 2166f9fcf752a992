/**
 * The server's API as the status page asks it.
 *
 * The key is kept here and sent in a header; it is in no URL.
 */

const KEY_HEADER = "X-Cluster-Key";
const ANSWER_TIMEOUT_MS = 10_000;
export const LONGEST_WAIT_S = 25;

/** The server said no; the text is its own. */
export class Refused extends Error {}

/** No answer, or none that is of use now; `retryAfterMs` is what the server asked for, or null. */
export class Unavailable extends Error {
  constructor(text, retryAfterMs = null) {
    super(text);
    this.retryAfterMs = retryAfterMs;
  }
}

/** This source has sent too many wrong keys: wait `retryAfterMs`. */
export class TooManyRequests extends Unavailable {}

export class Registry {
  #key;

  constructor(key) {
    this.#key = key;
  }

  /** The clusters that the key opens, in short. */
  async clusters(signal) {
    return (await this.#ask("v1/clusters", signal)).body.clusters;
  }

  /** One cluster: `{body, ageMs}`, `ageMs` telling how long ago a moment of the answer was. */
  async cluster(id, signal) {
    return this.#ask(`v1/clusters/${encodeURIComponent(id)}`, signal);
  }

  /** The same when it is another revision than this one; null: none came. */
  async change(id, since, signal) {
    const path = `v1/clusters/${encodeURIComponent(id)}?since=${since}&wait=${LONGEST_WAIT_S}`;
    return this.#ask(path, signal, LONGEST_WAIT_S * 1000);
  }

  /** The last events of a cluster, the newest first. */
  async audit(id, limit, signal) {
    const path = `v1/clusters/${encodeURIComponent(id)}/audit?limit=${limit}`;
    return (await this.#ask(path, signal)).body.events;
  }

  async #ask(path, signal, waitMs = 0) {
    const timeout = AbortSignal.timeout(ANSWER_TIMEOUT_MS + waitMs);
    let answer, body;
    try {
      answer = await fetch(new URL(path, document.baseURI), {
        headers: { [KEY_HEADER]: this.#key, Accept: "application/json" },
        // Else the browser would answer from its cache, with times that are over.
        cache: "no-store",
        signal: AbortSignal.any([signal, timeout]),
      });
      body = answer.status === 304 ? null : await answer.json();
    } catch (error) {
      signal.throwIfAborted();
      if (answer !== undefined && error instanceof SyntaxError) {
        throw new Unavailable(`What answers is not this server (HTTP ${answer.status})`);
      }
      throw new Unavailable("The server does not answer");
    }
    if (answer.ok) return { body, ageMs: ageAt(answer) };
    if (answer.status === 304) return null;
    throw failure(answer, body);
  }
}

function failure(answer, body) {
  const text = body?.error ?? `HTTP ${answer.status}`;
  const seconds = Number.parseFloat(answer.headers.get("Retry-After") ?? "");
  const retryAfterMs = Number.isFinite(seconds) ? seconds * 1000 : null;
  if (answer.status === 429) return new TooManyRequests(text, retryAfterMs);
  if (answer.status >= 500) return new Unavailable(text, retryAfterMs);
  return new Refused(text);
}

/** Tells how long before this answer a moment was, by the server's own clock. */
function ageAt(answer) {
  const date = Date.parse(answer.headers.get("Date") ?? "");
  // The header has whole seconds, so half of one is the best guess.
  const now = Number.isFinite(date) ? date + 500 : Date.now();
  return (moment) => Math.max(0, now - Date.parse(moment));
}
