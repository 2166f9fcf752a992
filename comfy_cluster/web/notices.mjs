/** The messages that the page shows in its corner. */

import { app } from "../../scripts/app.js";

const SUCCESS_LIFE_MS = 4000;

/**
 * Tells that all went well; goes away by itself.
 * @param {string} summary
 * @param {string} detail
 */
export function showSuccess(summary, detail) {
  app.extensionManager.toast.add({ severity: "success", summary, detail, life: SUCCESS_LIFE_MS });
}

/**
 * Tells what went wrong; stays until the user closes it, since it says what to do.
 * @param {"warn" | "error"} severity
 * @param {string} summary
 * @param {string} detail
 */
export function showTrouble(severity, summary, detail) {
  app.extensionManager.toast.add({ severity, summary, detail });
}
