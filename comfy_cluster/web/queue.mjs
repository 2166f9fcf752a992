/**
 * "Queue Cluster": sends the workflow on screen to the leader, which runs it on every instance.
 *
 * The request is our own and not `app.queuePrompt` with another address, because that always goes
 * to /prompt unless `api.queuePrompt` is patched for everybody. So what the page does around a
 * normal run is done here, with what is open to extensions: the batch count, the widgets' callbacks
 * (seeds change), the event that a prompt was queued. Progress, previews and results need nothing:
 * ComfyUI sends them to the page whose client id is in the request.
 */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { expectJob } from "./failures.mjs";
import { callWidgets, markNodes, nameOf, redraw, unmarkNodes } from "./graph.mjs";
import { showSuccess, showTrouble } from "./notices.mjs";
import { Refusal } from "./refusal.mjs";

/**
 * @typedef {object} Queued The leader's answer.
 * @property {string} job_id
 * @property {string} prompt_id
 * @property {number} number Place in the queue.
 * @property {import("./refusal.mjs").NodeErrors} [node_errors] Outputs that are left out.
 */

/** @type {Promise<void>} The presses of the button so far, one after the other. */
let earlier = Promise.resolve();

/**
 * Queues the workflow as often as the batch count says, and tells the user how it went. Pressed
 * again before it is done, it waits for its turn, so that each job gets a seed of its own.
 * @returns {Promise<void>} Done when the user has been told.
 */
export function queueCluster() {
  earlier = earlier.then(queueBatch, queueBatch);
  return earlier;
}

async function queueBatch() {
  unmarkNodes();
  /** @type {Queued[]} */
  const queued = [];
  try {
    for (let left = batchCount(); left > 0; left--) {
      queued.push(await queueOnce());
    }
  } catch (error) {
    showRefusal(error);
  }
  if (queued.length) {
    showQueued(queued);
  }
}

/** @returns {number} How often the user wants a run. */
function batchCount() {
  return app.extensionManager.queueSettings?.batchCount ?? 1;
}

/** @returns {Promise<Queued>} */
async function queueOnce() {
  callWidgets("beforeQueued");
  const answer = await send(await app.graphToPrompt());
  callWidgets("afterQueued");
  redraw();
  return answer;
}

/**
 * @param {{output: object, workflow: object}} prompt In API form, and as it is saved.
 * @returns {Promise<Queued>} Fails with Refusal.
 */
async function send({ output, workflow }) {
  const response = await post({
    prompt: output,
    client_id: api.clientId ?? "",
    extra_data: { ...previewMethod(), extra_pnginfo: { workflow } },
  });
  const body = await response.json().catch(() => null);
  if (!response.ok || !body) {
    throw Refusal.from(response, body);
  }
  expectJob(body.prompt_id);
  return body;
}

/**
 * @param {object} body
 * @returns {Promise<Response>} Fails with Refusal if there is no answer.
 */
async function post(body) {
  try {
    return await api.fetchApi("/cluster/queue", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
  } catch (error) {
    throw new Refusal("ComfyUI does not answer", String(error));
  }
}

/** @returns {object} The user's choice of previews, on frontends that have one. */
function previewMethod() {
  const { settings, get } = app.extensionManager.setting;
  const id = "Comfy.Execution.PreviewMethod";
  const method = id in settings ? get(id) : "default";
  return method && method !== "default" ? { preview_method: method } : {};
}

/** @param {Queued[]} queued At least one. */
function showQueued(queued) {
  const { job_id: job, number } = queued[queued.length - 1];
  const what = queued.length > 1 ? `${queued.length} jobs` : `Job ${String(job).split(":").pop().slice(0, 8)}`;
  // The page notes the new seeds for "undo" when it hears this, and other packs listen too.
  api.dispatchCustomEvent("promptQueued", { number, batchCount: queued.length });
  showSuccess("Queued on the cluster", what);
  const errors = Object.assign({}, ...queued.map((answer) => answer.node_errors));
  if (Object.keys(errors).length) {
    showTrouble("warn", "Some outputs are left out", linesOf(errors).join("\n"));
    markNodes(Object.keys(errors));
  }
}

/** @param {any} error Of `queueOnce`. */
function showRefusal(error) {
  const { message, details = "", nodeErrors = {} } = error;
  // What ComfyUI has as details then is the same once more.
  const lines = linesOf(nodeErrors);
  lines.unshift(sentence(message, lines.length ? "" : details));
  showTrouble("error", "Not queued on the cluster", lines.join("\n"));
  markNodes(Object.keys(nodeErrors));
}

/**
 * @param {import("./refusal.mjs").NodeErrors} nodeErrors
 * @returns {string[]} One line for each thing that is wrong.
 */
function linesOf(nodeErrors) {
  return Object.entries(nodeErrors).flatMap(([id, { class_type: type, errors }]) =>
    errors.map((error) => `${nameOf(id, type)}: ${sentence(error.message, error.details)}`),
  );
}

/**
 * @param {string} message
 * @param {string} [details]
 * @returns {string}
 */
function sentence(message, details) {
  return details ? `${message}: ${details}` : message;
}
