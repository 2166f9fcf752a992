/**
 * Failures of cluster jobs that the page itself would keep quiet about.
 *
 * Newer frontends show an error only once they know which workflow it belongs to. They learn that
 * when they queue a prompt, which they did not do here, or from the server's list of jobs, which
 * older servers do not have.
 */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { markNodes, nameOf } from "./graph.mjs";
import { showTrouble } from "./notices.mjs";

const PATIENCE_MS = 2000; // The page asks for the list of jobs right after a job has ended.
const KEPT_COUNT = 500;
const WARNING_EVENT = "cluster.warning"; // Of comfyui/host.py.

/**
 * @typedef {object} Failure What ComfyUI tells of a failed prompt.
 * @property {string} prompt_id
 * @property {string} node_id
 * @property {string} node_type
 * @property {string} exception_message
 */

/** @type {Set<string>} Prompt ids of cluster jobs. */
const jobs = new Set();

/** @type {Map<string, Failure>} The last ones: a job may fail before it is known to be one. */
const failures = new Map();

/** @param {string} promptId Of a cluster job: its failure, past or future, is to be seen. */
export function expectJob(promptId) {
  jobs.add(promptId);
  forgetOldest(jobs);
  reportLater(promptId);
}

/** Starts to listen; once, when the page is set up. */
export function watchFailures() {
  api.addEventListener("execution_error", keepFailure);
  api.addEventListener(WARNING_EVENT, showWarning);
}

/** @param {CustomEvent<{ text: string }>} event What went wrong, without failing a job. */
function showWarning({ detail: { text } }) {
  showTrouble("warn", "ComfyUI Cluster", text);
}

/** @param {CustomEvent<Failure>} event */
function keepFailure({ detail: failure }) {
  failures.set(failure.prompt_id, failure);
  forgetOldest(failures);
  reportLater(failure.prompt_id);
}

/** @param {Set<string> | Map<string, Failure>} known */
function forgetOldest(known) {
  const [oldest] = known.keys();
  if (known.size > KEPT_COUNT) {
    known.delete(oldest);
  }
}

/** @param {string} promptId */
function reportLater(promptId) {
  const failure = failures.get(promptId);
  // Older frontends show every error themselves, and have no such property.
  if (failure && jobs.has(promptId) && "lastExecutionError" in app.extensionManager) {
    setTimeout(() => reportUnlessShown(failure), PATIENCE_MS);
  }
}

/** @param {Failure} failure */
function reportUnlessShown(failure) {
  if (app.extensionManager.lastExecutionError?.prompt_id !== failure.prompt_id) {
    const { node_type: type, node_id: id, exception_message: message } = failure;
    showTrouble("error", "The cluster job failed", `${nameOf(id, type)}: ${message.trim()}`);
    markNodes([id]);
  }
}
