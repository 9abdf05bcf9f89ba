/** Values of a node, and the nodes around it. */

import { app } from "../../scripts/app.js";
import { field, source } from "./graph.js";
import { everyNode } from "./nodes.js";

const OPTIONS = "PAGOptions";

/** {known: {name: value}, unknown: [name]} of the inputs among `names` that the node has. */
export function values(node, names) {
  const found = { known: {}, unknown: [] };
  for (const name of names) {
    const { value, unknown } = field(node, name) ?? {};
    if (unknown) found.unknown.push(name);
    else if (value !== undefined) found.known[name] = value;
  }
  return found;
}

/** The same for the PAG Options that a node has, or is; `unknown` is ["options"] if another node makes them. */
export function optionsOf(node) {
  const options = node.comfyClass === OPTIONS ? node : feeding(node, "options");
  if (options?.comfyClass === OPTIONS) {
    return values(options, options.inputs.filter(({ widget }) => widget).map(({ name }) => name));
  }
  return { known: {}, unknown: options ? ["options"] : [] };
}

/** Writes to a widget as if the user had. */
export function write({ widget, node }, value) {
  widget.value = value;
  widget.callback?.(value, app.canvas, node);
  node.graph?.setDirtyCanvas(true, true);
}

/** Makes `change` a single undo step. */
export function undoable(change) {
  app.canvas.emitBeforeChange();
  try {
    change();
  } finally {
    app.canvas.emitAfterChange();
  }
}

/** The index of a node's input by its name; -1 if there is none. */
export const indexOf = (node, name) => node.inputs?.findIndex((input) => input.name === name) ?? -1;

/** The node that feeds an input with an output, or null. */
export function feeding(node, name) {
  const index = indexOf(node, name);
  return index < 0 ? null : source(node, index)?.node ?? null;
}

/** The first node that receives this node's output, directly or through others; or null. */
export function consumer(node) {
  const type = node.outputs?.[0]?.type;
  return everyNode().find((other) => other !== node && !other.isVirtualNode && !other.subgraph
    && other.inputs?.some((input, index) => input.type === type && source(other, index)?.node === node)) ?? null;
}

/** The nearest node upstream, itself included, for which `test` holds; or null. */
export function upstream(node, test) {
  const seen = new Set([node]);
  for (const at of seen) {
    if (test(at)) return at;
    at.inputs?.forEach((_, index) => {
      const from = source(at, index);
      if (from?.node) seen.add(from.node);
      if (from?.unsure) seen.add(from.unsure);
    });
  }
  return null;
}
