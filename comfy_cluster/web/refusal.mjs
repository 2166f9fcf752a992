/** What ComfyUI answers when it does not queue a workflow, as one kind of error. */

/**
 * @typedef {object} InputError One thing that is wrong with a node, as ComfyUI tells it.
 * @property {string} message
 * @property {string} [details]
 *
 * @typedef {Record<string, {class_type: string, errors: InputError[]}>} NodeErrors By node id.
 */

/** The workflow was not queued; `message` and `details` are for the user. */
export class Refusal extends Error {
  /**
   * @param {string} message
   * @param {string} [details]
   * @param {NodeErrors} [nodeErrors]
   */
  constructor(message, details = "", nodeErrors = {}) {
    super(message);
    this.name = "Refusal";
    this.details = details;
    this.nodeErrors = nodeErrors;
  }

  /**
   * From an answer that is not 200. Its body is anything: a proxy or another part of ComfyUI may
   * have written it.
   * @param {Response} response
   * @param {any} body Parsed JSON; null if it was none.
   */
  static from(response, body) {
    const error = body?.error;
    if (typeof error === "string") {
      return new Refusal(error);
    }
    const message = error?.message || `ComfyUI answered ${response.status} ${response.statusText}`;
    return new Refusal(message, error?.details ?? "", body?.node_errors ?? {});
  }
}
