/** The nodes of a workflow and the links into them. */

import { app } from "../../scripts/app.js";

/** The link into an input. A subgraph's node has a method of the same name for its outputs, hence the base class's. */
export function linkInto(node, index) {
  return LiteGraph.LGraphNode.prototype.getInputLink.call(node, index) ?? null;
}

export const isLinked = (node, index) => linkInto(node, index) !== null;

/** The first node on the canvas that shows this subgraph. */
export function hostOf(graph) {
  return everyNode().find((node) => node.subgraph === graph);
}

/** All nodes of the workflow, including those inside subgraphs. */
export function everyNode() {
  const graphs = [app.rootGraph, ...(app.rootGraph?.subgraphs?.values() ?? [])];
  return graphs.flatMap(({ nodes }) => nodes);
}

/** The node that a run calls "5:3": number 3 of the subgraph that node 5 of the workflow shows. */
export function nodeOf(executionId) {
  return String(executionId).split(":").reduce(
    ({ graph }, id) => {
      const node = graph?.getNodeById(id) ?? graph?.getNodeById(Number(id)) ?? null;
      return { graph: node?.subgraph ?? null, node };
    }, { graph: app.rootGraph, node: null }).node;
}
