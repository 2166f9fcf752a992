/**
 * "Control after generate" of seeds that a subgraph shows on its outside.
 *
 * In newer frontends the value of such a seed belongs to the subgraph's node, while the choice
 * (fixed, randomize, ...) stays with the widget inside, whose own callbacks then do nothing. The page
 * does this step by itself in its own queueing and offers it to nobody.
 */

import { app } from "../../scripts/app.js";

const LARGEST_STEP_COUNT = 2 ** 50; // What the page's own random seeds stay below.

/** @type {WeakSet<any>} Widgets that were queued before: "before generate" leaves the first value. */
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
 * @returns {[any, any][]} Each promoted widget whose value counts, with the widget that controls it.
 */
function promotedWidgets(node) {
  if (!node.subgraph) {
    return [];
  }
  return node.inputs.flatMap((input, index) => {
    // Frontends without `widgetId` keep the value inside, where the usual callbacks find it.
    const widget = input.widgetId && !node.isInputConnected(index) && node.getWidgetFromSlot(input);
    const control = widget && controlInside(node, input.name);
    return control ? [[widget, control]] : [];
  });
}

/**
 * @param {any} node That has a subgraph.
 * @param {string} inputName
 * @returns {any} The widget that controls what this input leads to; undefined if none does.
 */
function controlInside({ subgraph }, inputName) {
  const linkIds = subgraph.inputs.find((input) => input.name === inputName)?.linkIds ?? [];
  for (const linkId of linkIds) {
    const { inputNode, input } = subgraph.getLink(linkId)?.resolve(subgraph) ?? {};
    if (inputNode && input) {
      return inputNode.subgraph
        ? controlInside(inputNode, input.name)
        : inputNode.getWidgetFromSlot(input)?.linkedWidgets?.find((widget) => widget.afterQueued);
    }
  }
  return undefined;
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

/** @type {Record<string, (now: {value: number, min: number, max: number, step: number}) => number>} */
const NEXT = {
  increment: ({ value, step }) => value + step,
  decrement: ({ value, step }) => value - step,
  randomize: ({ min, max, step }) => {
    const count = Math.min((max - min) / step, LARGEST_STEP_COUNT);
    return min + step * Math.floor(Math.random() * count);
  },
};
