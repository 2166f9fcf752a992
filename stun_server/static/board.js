/**
 * Draws clusters, their instances and events.
 *
 * What the server tells came from the network: it is only ever set as text. Elements are kept and
 * changed where they differ, so that a selection, an open detail or the focus survives.
 */

import { ago, counted, endpoint, sumOf, until } from "./wording.js";

const OPEN_AT_FIRST = 3; // of many clusters
// A later answer may say half a second more or less of the same heartbeat; a clock that stood
// still (a laptop that slept) says much more.
const AGE_TOLERANCE_MS = 1500;

export class Board {
  #place;
  #onShown;
  #clusters = new Map(); // id -> ClusterView

  /** `onShown(id, isOpen)`: a cluster's instances came on screen, or went. */
  constructor(place, onShown) {
    this.#place = place;
    this.#onShown = onShown;
  }

  clear() {
    this.#clusters.clear();
    this.#place.replaceChildren();
  }

  /** Which clusters there are. */
  showClusters(summaries) {
    const ids = summaries.map((each) => each.cluster_id);
    for (const [id, view] of this.#clusters) {
      if (!ids.includes(id)) {
        view.element.remove();
        this.#clusters.delete(id);
      }
    }
    const isMany = ids.length > OPEN_AT_FIRST;
    for (const [index, summary] of summaries.entries()) {
      const id = summary.cluster_id;
      let view = this.#clusters.get(id);
      if (view === undefined) {
        view = new ClusterView(id, this.#onShown);
        this.#clusters.set(id, view);
        view.element.open = !isMany || index < OPEN_AT_FIRST;
      }
      put(this.#place, view.element, index);
      view.showSummary(summary);
      this.#onShown(id, view.element.open);
    }
  }

  showCluster(id, answer) {
    this.#clusters.get(id)?.showInstances(answer);
  }

  showEvents(id, events) {
    this.#clusters.get(id)?.showEvents(events);
  }

  /** Times go on between two answers. */
  tick() {
    for (const view of this.#clusters.values()) view.tick();
  }

  /** All of it in a few words. */
  get headline() {
    const views = [...this.#clusters.values()];
    if (views.length === 1) return views[0].sum;
    const count = views.reduce((sum, view) => sum + view.count, 0);
    const late = views.reduce((sum, view) => sum + view.lateCount, 0);
    const all = `${counted(views.length, "cluster")}, ${counted(count, "instance")}`;
    return late ? `${all}, ${late} late` : all;
  }
}

class ClusterView {
  #parts;
  #rows = new Map(); // instance id -> InstanceRow
  #instances = null; // null: only counted so far
  #count = 0;

  constructor(id, onShown) {
    [this.element, this.#parts] = fromTemplate("cluster-template");
    setText(this.#parts.id, id);
    setText(this.#parts["empty-id"], id);
    setText(this.#parts["empty-server"], new URL(".", document.baseURI).href.replace(/\/$/, ""));
    this.#parts.table.setAttribute("aria-label", `Instances of ${id}`);
    this.#parts["events-region"].setAttribute("aria-label", `Recent events of ${id}`);
    this.element.addEventListener("toggle", () => onShown(id, this.element.open));
  }

  get count() {
    return this.#count;
  }

  get lateCount() {
    return (this.#instances ?? []).filter((each) => each.state !== "live").length;
  }

  get sum() {
    if (this.#instances !== null) return sumOf(this.#instances);
    return counted(this.#count, "instance");
  }

  showSummary({ instances, revision }) {
    if (this.#instances !== null && this.element.open) return; // it knows better
    this.#instances = null;
    this.#count = instances;
    setText(this.#parts.revision, String(revision));
    this.#showSum();
  }

  showInstances({ body, ageMs }) {
    const isFirst = this.#instances === null;
    this.#instances = body.instances;
    this.#count = body.instances.length;
    setText(this.#parts.revision, String(body.revision));
    this.#showSum();
    const ids = new Set(body.instances.map((each) => each.instance_id));
    for (const [id, row] of this.#rows) {
      if (!ids.has(id)) {
        row.element.remove();
        this.#rows.delete(id);
      }
    }
    for (const [index, instance] of body.instances.entries()) {
      let row = this.#rows.get(instance.instance_id);
      if (row === undefined) {
        row = new InstanceRow();
        row.element.classList.toggle("is-new", !isFirst);
        this.#rows.set(instance.instance_id, row);
      }
      put(this.#parts.rows, row.element, index);
      row.show(instance, ageMs);
    }
  }

  #showSum() {
    const isEmpty = this.#count === 0;
    setText(this.#parts.sum, this.sum);
    const state = isEmpty ? "none" : this.lateCount ? "late" : this.#instances ? "live" : "none";
    this.#parts["summary-state"].dataset.state = state;
    this.#parts.empty.hidden = !isEmpty;
    this.#parts.table.hidden = isEmpty;
  }

  showEvents(events) {
    const rows = events.map((event) => {
      const [row, parts] = fromTemplate("event-template");
      const at = new Date(event.at);
      parts.at.dateTime = event.at;
      parts.at.title = at.toLocaleString();
      setText(parts.at, whenOf(at));
      setText(parts.event, event.event);
      parts.event.dataset.event = event.event;
      setText(parts.instance, event.instance_id);
      setText(parts.detail, event.detail);
      setText(parts.source, event.source || "the server");
      row.title = [
        event.request_id && `request ${event.request_id}`,
        event.key_fingerprint && `key ${event.key_fingerprint}`,
      ]
        .filter(Boolean)
        .join(", ");
      return row;
    });
    this.#parts.events.replaceChildren(...rows);
    this.#parts["events-box"].hidden = rows.length === 0;
  }

  tick() {
    for (const row of this.#rows.values()) row.tick();
  }
}

class InstanceRow {
  #parts;
  #lastPing = "";
  #seenAt = 0;
  #expiresAt = 0;

  constructor() {
    [this.element, this.#parts] = fromTemplate("instance-template");
  }

  show(instance, ageMs) {
    const parts = this.#parts;
    setText(parts.id, instance.instance_id);
    setText(parts.role, instance.role.toLowerCase());
    setText(parts.state, instance.state);
    parts.state.dataset.state = instance.state;
    setText(parts.endpoint, endpoint(instance.address, instance.port));
    setText(parts.generation, String(instance.generation));
    setText(parts.run, instance.boot_id);
    parts.run.title = instance.boot_id;
    parts.seen.dateTime = instance.last_ping;
    parts.seen.title = `Registered ${new Date(instance.registered_at).toLocaleString()}`;
    this.#showCandidates(instance.candidates);
    const seenAt = performance.now() - ageMs(instance.last_ping);
    const isOther = instance.last_ping !== this.#lastPing;
    if (isOther || Math.abs(seenAt - this.#seenAt) > AGE_TOLERANCE_MS) this.#seenAt = seenAt;
    this.#lastPing = instance.last_ping;
    this.#expiresAt = performance.now() + instance.expires_in_s * 1000;
    this.tick();
  }

  #showCandidates(candidates) {
    const lines = candidates.map(
      (each) => `${endpoint(each.address, each.port)} ${each.type}, priority ${each.priority}`,
    );
    this.#parts.candidates.hidden = lines.length === 0;
    setText(this.#parts["candidate-count"], counted(lines.length, "candidate"));
    const list = this.#parts["candidate-list"];
    if (lines.join("\n") === [...list.children].map((each) => each.textContent).join("\n")) return;
    list.replaceChildren(
      ...lines.map((line) => {
        const item = document.createElement("li");
        item.textContent = line;
        return item;
      }),
    );
  }

  tick() {
    const now = performance.now();
    setText(this.#parts.seen, ago(now - this.#seenAt));
    setText(this.#parts.expires, until(this.#expiresAt - now));
  }
}

/** A copy of a template's element, and those in it by their `data-is`. */
function fromTemplate(id) {
  const element = document.getElementById(id).content.firstElementChild.cloneNode(true);
  const parts = {};
  for (const each of element.querySelectorAll("[data-is]")) parts[each.dataset.is] = each;
  return [element, parts];
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Puts `element` at a place among the children; moves nothing that is there already. */
function put(parent, element, index) {
  if (parent.children[index] !== element) parent.insertBefore(element, parent.children[index] ?? null);
}

/** The time today, else the day too. */
function whenOf(at) {
  const isToday = at.toDateString() === new Date().toDateString();
  const time = at.toLocaleTimeString();
  return isToday ? time : `${at.toLocaleDateString(undefined, { month: "short", day: "numeric" })} ${time}`;
}
