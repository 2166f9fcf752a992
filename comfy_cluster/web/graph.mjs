/** The nodes of the workflow on screen: their callbacks around queueing, and marking them. */

import { app } from "../../scripts/app.js";
import { controlPromoted } from "./promoted.mjs";

/**
 * The top of the workflow, also while a subgraph is open.
 * @returns {any} an LGraph
 */
function rootGraph() {
  return app.rootGraph ?? app.graph;
}

/**
 * Every node once, those of subgraphs too. Two uses of one subgraph share their inner nodes.
 * @returns {Set<any>} LGraphNodes
 */
function allNodes() {
  const found = new Set();
  const graphs = [rootGraph()];
  for (const graph of graphs) {
    for (const node of graph.nodes) {
      found.add(node);
      if (node.subgraph && !graphs.includes(node.subgraph)) {
        graphs.push(node.subgraph);
      }
    }
  }
  return found;
}

/**
 * Calls what widgets want to have called around queueing: "control after generate" is one of them.
 * @param {"beforeQueued" | "afterQueued"} moment
 */
export function callWidgets(moment) {
  for (const node of allNodes()) {
    for (const widget of node.widgets ?? []) {
      widget[moment]?.({ isPartialExecution: false });
    }
    controlPromoted(node, moment);
  }
}

/**
 * The nodes that an id of the prompt leads through: the subgraph nodes around it, then itself.
 * @param {string} id Such as "7", or "12:7" for node 7 in the subgraph of node 12.
 * @returns {any[]} LGraphNodes; fewer than the id has parts if the node is not in the workflow.
 */
function nodesOnPath(id) {
  const found = [];
  let graph = rootGraph();
  for (const part of id.split(":")) {
    const node = graph?.getNodeById(part);
    if (!node) {
      break;
    }
    found.push(node);
    graph = node.subgraph;
  }
  return found;
}

/**
 * What messages call a node: by its title, as the user knows it.
 * @param {string} id
 * @param {string} type Stands in for the title of a node that is not in the workflow.
 * @returns {string}
 */
export function nameOf(id, type) {
  const path = nodesOnPath(id);
  const node = path.length === id.split(":").length ? path[path.length - 1] : undefined;
  return `${node?.title || type} (${id})`;
}

/** @type {Set<any>} LGraphNodes that carry our mark; those that the page has marked are its own. */
const marked = new Set();

/**
 * Marks nodes, and the subgraphs around them, as wrong. The frontend does not let extensions add
 * to its own list of errors, so this takes what each kind of canvas shows: the classic one draws
 * `has_errors` in red, Nodes 2.0 (which ignores it in newer frontends) outlines selected nodes.
 * @param {string[]} ids
 */
export function markNodes(ids) {
  const nodes = ids.flatMap(nodesOnPath);
  for (const node of nodes.filter((each) => !each.has_errors)) {
    node.has_errors = true;
    marked.add(node);
  }
  const onScreen = nodes.filter((node) => node.graph === app.canvas.graph);
  if (onScreen.length) {
    app.canvas.selectItems(onScreen);
  }
  redraw();
}

/** Takes the marks off again. */
export function unmarkNodes() {
  for (const node of marked) {
    node.has_errors = false;
  }
  marked.clear();
  redraw();
}

/** Shows on the canvas what was changed in the nodes. */
export function redraw() {
  app.canvas.setDirty(true, true);
}
