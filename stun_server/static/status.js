/**
 * The status page: asks for a key, then shows what it opens, live.
 *
 * The key is kept in this tab's session storage, and in no address.
 */

import { Board } from "./board.js";
import { Following } from "./following.js";
import { Refused, Registry, TooManyRequests, Unavailable } from "./registry.js";
import { ago, span } from "./wording.js";

const STORED = "rendezvous-server.key";
const TICK_MS = 1000;
const RETRY_MS = 5000; // where the server does not say
const KEY = /^[ -~]+$/; // anything else fits into no header

const find = (id) => document.getElementById(id);
const TITLE = document.title;
const board = new Board(find("clusters"), (id, isOpen) => following?.show(id, isOpen));
let following = null; // null: no key is open
let lastAnswerAt = null;
let nextTryAt = null; // when the server is away, or wants to be left alone

/** Tries a key that was typed; what it opens is shown, or why it opens nothing. */
async function open(key) {
  if (!KEY.test(key)) return showEntrance("A key is made of printable ASCII characters.");
  const registry = new Registry(key);
  showTrouble("");
  find("open").disabled = true;
  try {
    while (!(await isOpened(registry))) {
      if (find("key").value.trim() !== key) return showTrouble(""); // there is another one to try
    }
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    return showEntrance(sentence(error.message));
  } finally {
    find("open").disabled = false;
  }
  sessionStorage.setItem(STORED, key);
  find("key").value = "";
  follow(registry);
}

/** Asks once; where that must be done again later, says so and waits until then. */
async function isOpened(registry) {
  try {
    await registry.clusters(new AbortController().signal);
    return true;
  } catch (error) {
    if (!(error instanceof Unavailable)) throw error;
    nextTryAt = performance.now() + (error.retryAfterMs ?? RETRY_MS);
    showTrouble(sentence(error.message));
    while (left() > 0) {
      find("key-next").textContent = nextTry();
      await new Promise((resolve) => setTimeout(resolve, Math.min(left(), TICK_MS)));
    }
    find("key-next").textContent = "";
    return false;
  }
}

function follow(registry) {
  nextTryAt = null;
  lastAnswerAt = null;
  find("headline").textContent = "Asking the server";
  find("freshness").textContent = "";
  find("freshness").dataset.state = "unknown";
  find("entrance").hidden = true;
  find("notice").hidden = true;
  find("board").hidden = false;
  find("forget").hidden = false;
  const isThis = (run) => (...given) => following === started && run(...given);
  const started = new Following(registry, {
    clusters: isThis((summaries) => {
      lastAnswerAt = performance.now();
      board.showClusters(summaries);
    }),
    cluster: isThis((id, answer) => {
      lastAnswerAt = performance.now();
      board.showCluster(id, answer);
      showHeadline();
    }),
    audit: isThis((id, events) => board.showEvents(id, events)),
    away: isThis(showAway),
    back: isThis(showBack),
    refused: isThis((error) => forget(sentence(error.message))),
  });
  following = started;
  if (!document.hidden) following.resume();
}

/** Ends what is shown, and knows the key no more. */
function forget(text = "") {
  sessionStorage.removeItem(STORED);
  following?.pause();
  following = null;
  board.clear();
  showEntrance(text);
}

function showEntrance(text) {
  document.title = TITLE;
  find("board").hidden = true;
  find("forget").hidden = true;
  find("entrance").hidden = false;
  showTrouble(text);
  find("key").focus();
}

function showTrouble(text) {
  find("key-trouble").textContent = text;
  find("key-next").textContent = "";
  find("key").setAttribute("aria-invalid", String(text !== ""));
}

function showHeadline() {
  const headline = find("headline");
  const text = board.headline;
  if (headline.textContent !== text) headline.textContent = text;
  document.title = `${text} – ${TITLE}`;
}

function showAway(error, retryMs) {
  nextTryAt = performance.now() + retryMs;
  const isBusy = error instanceof TooManyRequests;
  find("notice-text").textContent = sentence(error.message);
  find("try-now").hidden = isBusy; // it asked to be left alone
  find("notice").hidden = false;
  find("board").classList.add("is-stale");
  document.title = `Not connected – ${TITLE}`;
  tick();
}

function showBack() {
  lastAnswerAt = performance.now();
  nextTryAt = null;
  find("notice").hidden = true;
  find("board").classList.remove("is-stale");
  showHeadline();
  tick();
}

function tick() {
  if (following === null) return;
  board.tick();
  const isLive = nextTryAt === null;
  if (!isLive) find("notice-next").textContent = nextTry();
  if (lastAnswerAt === null) return;
  const freshness = isLive ? "Live" : `As of ${ago(performance.now() - lastAnswerAt)}`;
  if (find("freshness").textContent !== freshness) find("freshness").textContent = freshness;
  find("freshness").dataset.state = isLive ? "live" : "none";
}

function nextTry() {
  return left() < 1000 ? "Trying again now." : `Trying again in ${span(left())}.`;
}

function left() {
  return nextTryAt - performance.now();
}

function sentence(text) {
  return /[.!?]$/.test(text) ? text : `${text}.`;
}

find("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  open(find("key").value.trim());
});
find("forget").addEventListener("click", () => forget());
find("try-now").addEventListener("click", () => following?.wake());
document.addEventListener("visibilitychange", () => {
  if (document.hidden) following?.pause();
  else following?.resume();
});
setInterval(() => document.hidden || tick(), TICK_MS);

const stored = sessionStorage.getItem(STORED);
if (stored) follow(new Registry(stored));
else showEntrance("");
