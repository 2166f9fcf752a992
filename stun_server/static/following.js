/**
 * Keeps what the page shows true: asks, waits for changes, tries again when the server is away.
 *
 * How it works: one loop asks for everything every few seconds, since heartbeats change no revision.
 * Beside it, each cluster on screen has a request that waits for its next revision, so changes show
 * at once. Only the loop decides whether the server is there: a proxy may cut a request that waits,
 * and that is no trouble. Nothing runs while nobody can see the page.
 */

import { Refused, Unavailable } from "./registry.js";

const REFRESH_MS = 3000;
const LIST_MS = 15_000; // between two looks for other clusters of the key
const AUDIT_MS = 15_000; // an event that changes nothing, such as a conflict, shows that late
const AUDIT_COUNT = 20;
const FIRST_RETRY_MS = 1000;
const LONGEST_RETRY_MS = 15_000;
// A browser has six connections to one server; some must be left for what does not wait.
const LARGEST_WAITING = 3;
const SHORTEST_WAIT_MS = 1000; // an answer that comes sooner, without news: nobody may wait now

export class Following {
  #registry;
  #on;
  #run = null; // the AbortController of what runs; null: paused
  #wakeUp = () => {};
  #clusters = new Map(); // id -> {isOpen, epoch, revision, auditAt, auditOf, isWaiting}
  #listAt = -Infinity;
  #failures = 0;

  /**
   * `on`: {clusters(summaries), cluster(id, answer), audit(id, events), away(error, retryMs),
   * back(), refused(error)}
   */
  constructor(registry, on) {
    this.#registry = registry;
    this.#on = on;
  }

  resume() {
    if (this.#run !== null) return;
    this.#run = new AbortController();
    this.#keepFresh(this.#run.signal);
  }

  pause() {
    this.#run?.abort();
    this.#run = null;
  }

  /** Asks again without waiting any longer. */
  wake() {
    this.#wakeUp();
  }

  /** Whether a cluster's instances are on screen; others are only counted. */
  show(id, isOpen) {
    const cluster = this.#clusters.get(id);
    if (cluster === undefined || cluster.isOpen === isOpen) return;
    cluster.isOpen = isOpen;
    if (isOpen) this.wake();
  }

  async #keepFresh(signal) {
    while (!signal.aborted) {
      let pauseMs = REFRESH_MS;
      try {
        await this.#refresh(signal);
        this.#failures = 0;
        this.#on.back();
      } catch (error) {
        if (signal.aborted) return;
        if (error instanceof Refused) return this.#on.refused(error);
        if (!(error instanceof Unavailable)) throw error;
        pauseMs = this.#retryMs(error);
        this.#listAt = -Infinity; // a server that was away may be another one
        this.#on.away(error, pauseMs);
      }
      await this.#sleep(pauseMs, signal);
    }
  }

  async #refresh(signal) {
    if (performance.now() - this.#listAt >= LIST_MS) await this.#list(signal);
    const shown = [...this.#clusters].filter(([, cluster]) => cluster.isOpen);
    for (const [id, cluster] of shown) {
      try {
        this.#take(id, await this.#registry.cluster(id, signal));
        await this.#refreshAudit(id, cluster, signal);
      } catch (error) {
        if (!(error instanceof Refused)) throw error;
        return await this.#list(signal); // this key opens it no more: what does it open?
      }
    }
    for (const [id, cluster] of shown.slice(0, LARGEST_WAITING)) {
      if (!cluster.isWaiting) this.#waitForChanges(id, cluster, signal);
    }
  }

  async #list(signal) {
    const summaries = await this.#registry.clusters(signal);
    this.#listAt = performance.now();
    const ids = new Set(summaries.map((each) => each.cluster_id));
    for (const id of this.#clusters.keys()) {
      if (!ids.has(id)) this.#clusters.delete(id);
    }
    for (const id of ids) {
      if (!this.#clusters.has(id)) this.#clusters.set(id, { isOpen: false, revision: -1 });
    }
    this.#on.clusters(summaries);
  }

  async #refreshAudit(id, cluster, signal) {
    const isOld = performance.now() - (cluster.auditAt ?? -Infinity) >= AUDIT_MS;
    if (cluster.auditOf === cluster.revision && !isOld) return;
    const revision = cluster.revision;
    const events = await this.#registry.audit(id, AUDIT_COUNT, signal);
    cluster.auditAt = performance.now();
    cluster.auditOf = revision;
    this.#on.audit(id, events);
  }

  /** Shows an answer, unless a later one has been shown already. */
  #take(id, answer) {
    const cluster = this.#clusters.get(id);
    if (cluster === undefined) return;
    const { epoch, revision } = answer.body;
    if (epoch === cluster.epoch && revision < cluster.revision) return;
    Object.assign(cluster, { epoch, revision });
    this.#on.cluster(id, answer);
  }

  async #waitForChanges(id, cluster, signal) {
    cluster.isWaiting = true;
    let askedAt = performance.now();
    const isSoon = () => performance.now() - askedAt < SHORTEST_WAIT_MS;
    try {
      while (!signal.aborted && cluster.isOpen && this.#clusters.get(id) === cluster) {
        askedAt = performance.now();
        const answer = await this.#registry.change(id, cluster.revision, signal);
        if (answer !== null) {
          this.#take(id, answer);
          await this.#refreshAudit(id, cluster, signal);
        } else if (isSoon()) {
          return;
        }
      }
    } catch (error) {
      if (signal.aborted) return;
      if (!(error instanceof Refused || error instanceof Unavailable)) throw error;
      if (this.#failures === 0 && !isSoon()) this.wake(); // the loop finds out what it means
    } finally {
      cluster.isWaiting = false; // the loop's next round waits again
    }
  }

  #retryMs(error) {
    const growing = Math.min(FIRST_RETRY_MS * 2 ** this.#failures, LONGEST_RETRY_MS);
    this.#failures += 1;
    const spread = growing * (0.8 + 0.4 * Math.random()); // not all pages in the same moment
    return Math.max(spread, error.retryAfterMs ?? 0);
  }

  #sleep(ms, signal) {
    return new Promise((resolve) => {
      const end = () => {
        clearTimeout(timer);
        signal.removeEventListener("abort", end);
        resolve();
      };
      const timer = setTimeout(end, ms);
      this.#wakeUp = end;
      signal.addEventListener("abort", end);
    });
  }
}
