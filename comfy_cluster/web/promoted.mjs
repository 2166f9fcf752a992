/**
 * "Control after generate" of seeds that a subgraph shows on its outside.
 *
 * In newer frontends the value of such a seed belongs to the subgraph's node, while the choice
 * (fixed, randomize, ...) stays with the widget inside, whose own callbacks then do nothing. The
 * page does this step by itself in its own queueing and offers it to nobody.
 */

import { app } from "../../scripts/app.js";

const LARGEST_STEP_COUNT = 2 ** 50; // What the page's own random seeds stay below.

/** @type {WeakSet<any>} Widgets that were queued: "before generate" leaves their first value. */
const queuedBefore = new WeakSet();

/**
 * Gives the promoted widgets of a node their next values, if now is the time for that.
 * @param {any} node LGraphNode
 * @param {"beforeQueued" | "afterQueued"} moment
 */
export function controlPromoted(node, moment) {
  for (const [widget, control] of promotedWidgets(node)) {
    if (moment === momentOfControl() && (moment === "afterQueued" || queuedBefore.has(widget))) {
      setNext(widget, control.value);
    }
    queuedBefore.add(widget);
  }
}

/** @returns {"beforeQueued" | "afterQueued"} When values change, as the user has set it. */
function momentOfControl() {
  const isBefore = app.extensionManager.setting.get("Comfy.WidgetControlMode") === "before";
  return isBefore ? "beforeQueued" : "afterQueued";
}

/**
 * @param {any} node
 * @returns {[any, any][]} Each promoted widget whose value counts, and the one that controls it.
 */
function promotedWidgets(node) {
  if (!node.subgraph) {
    return [];
  }
  /** @type {[any, any][]} */
  const found = [];
  for (const [index, input] of node.inputs.entries()) {
    // Older frontends know no `widgetId`: they keep the value inside, for the usual callbacks.
    if (input.widgetId && !node.isInputConnected(index)) {
      const widget = node.getWidgetFromSlot(input);
      const control = controlInside(node, input.name);
      if (widget && control) {
        found.push([widget, control]);
      }
    }
  }
  return found;
}

/**
 * @param {any} node That has a subgraph.
 * @param {string} inputName
 * @returns {any} The widget that controls what this input leads to; undefined if none does.
 */
function controlInside({ subgraph }, inputName) {
  const shown = subgraph.inputs.find((/** @type {any} */ each) => each.name === inputName);
  for (const linkId of shown?.linkIds ?? []) {
    const { inputNode, input } = subgraph.getLink(linkId)?.resolve(subgraph) ?? {};
    if (inputNode && input) {
      const isDeeper = Boolean(inputNode.subgraph);
      return isDeeper ? controlInside(inputNode, input.name) : controlOf(inputNode, input);
    }
  }
  return undefined;
}

/**
 * @param {any} node
 * @param {any} input Of that node.
 * @returns {any} The widget that controls this input's one.
 */
function controlOf(node, input) {
  const linked = node.getWidgetFromSlot(input)?.linkedWidgets ?? [];
  return linked.find((/** @type {any} */ each) => each.afterQueued);
}

/**
 * @param {any} widget Of a number; others are left alone.
 * @param {string} mode Of its control.
 */
function setNext(widget, mode) {
  if (typeof widget.value === "number" && mode in NEXT) {
    const { min = 0, max = LARGEST_STEP_COUNT, step2: step = 1 } = widget.options;
    const value = NEXT[mode]({ value: widget.value, min, max, step });
    widget.value = Math.min(Math.max(value, min), max);
    widget.callback?.(widget.value);
  }
}

/** @type {Record<string, (now: Record<"value" | "min" | "max" | "step", number>) => number>} */
const NEXT = {
  increment: ({ value, step }) => value + step,
  decrement: ({ value, step }) => value - step,
  randomize: ({ min, max, step }) => {
    const count = Math.min((max - min) / step, LARGEST_STEP_COUNT);
    return min + step * Math.floor(Math.random() * count);
  },
};
