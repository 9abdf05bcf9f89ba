/** What the graph says: where an input's value comes from, and which loader feeds a node. */

import { app } from "../../scripts/app.js";

const SUBGRAPH_INPUT = -10; // the id that links inside a subgraph have as their origin at its boundary
const MUTED = 2;
const BYPASSED = 4;
const LOADER_INPUTS = ["ckpt_name", "unet_name"];
const MAX_HOPS = 200; // against loops

/**
 * What feeds an input, seen through reroutes, bypassed nodes and the boundaries of subgraphs.
 * {node, widget}: the widget is there where a widget's value, not an output, is what arrives. Null where nothing does.
 */
function origin(node, input, hops = 0, type = input?.type) {
  const link = input?.link == null ? null : node.graph?.getLink(input.link);
  return link && hops < MAX_HOPS ? behind(node.graph, link, type, hops + 1) : null;
}

function behind(graph, link, type, hops) {
  if (Number(link.origin_id) === SUBGRAPH_INPUT) { // some versions have it as text
    const host = hostOf(graph);
    const outer = host?.inputs[link.origin_slot];
    if (!outer) return null;
    if (outer.link != null) return origin(host, outer, hops, type);
    const widget = host.widgets?.find(({ name }) => name === outer.name);
    return widget ? { node: host, widget } : null;
  }
  const node = graph.getNodeById(link.origin_id);
  if (!node || node.mode === MUTED) return null;
  const slot = link.origin_slot;
  if (node.mode === BYPASSED) {
    const same = node.inputs[slot]?.type === type ? node.inputs[slot] : null;
    return origin(node, same ?? node.inputs.find((input) => input.type === type), hops, type);
  }
  if (node.isSubgraphNode?.()) {
    const inner = node.subgraph.outputs[slot]?.linkIds?.[0];
    const innerLink = inner == null ? null : node.subgraph.getLink(inner);
    return innerLink && hops < MAX_HOPS ? behind(node.subgraph, innerLink, type, hops + 1) : null;
  }
  if (node.isVirtualNode && node.inputs?.length) return origin(node, node.inputs[slot] ?? node.inputs[0], hops, type);
  return { node, widget: node.widgets?.find(({ name }) => name === "value") };
}

/** The first node on the canvas that shows this subgraph. */
function hostOf(graph) {
  const graphs = [app.rootGraph, ...(app.rootGraph?.subgraphs?.values() ?? [])];
  return graphs.flatMap(({ nodes }) => nodes).find((node) => node.subgraph === graph);
}

/** The widget that holds an input's value: the node's own, or where it is linked, the one it comes from, if any. */
export function field(node, name) {
  const input = node.inputs?.find((slot) => slot.link != null && (slot.widget?.name ?? slot.name) === name);
  return input ? origin(node, input)?.widget : node.widgets?.find((widget) => widget.name === name);
}

/** {name: value} of the inputs among `names` that the node has and whose value is known. */
export function values(node, names) {
  const found = names.map((name) => [name, field(node, name)?.value]).filter(([, value]) => value !== undefined);
  return Object.fromEntries(found);
}

/** Writes to a widget as a user's hand would. */
export function write(widget, node, value) {
  widget.value = value;
  widget.callback?.(value, app.canvas, node);
  node.graph?.setDirtyCanvas(true, true);
}

/** Makes what `change` does one step of undo. */
export function undoable(change) {
  app.canvas.emitBeforeChange();
  try {
    change();
  } finally {
    app.canvas.emitAfterChange();
  }
}

/** The node that feeds an input with an output, or null. */
export function feeding(node, name) {
  return origin(node, node.inputs?.find((input) => input.name === name))?.node ?? null;
}

/** The first node that takes this node's output, or null. */
export function consumer(node) {
  const link = node.graph?.getLink(node.outputs?.[0]?.links?.[0]);
  return link ? node.graph.getNodeById(link.target_id) : null;
}

/** The loader upstream of the model input, past LoRAs and other nodes that take and give a model, or null. */
export function loader(node) {
  let at = node && feeding(node, "model");
  for (let hops = 0; at && hops < MAX_HOPS; hops++) {
    for (const input of LOADER_INPUTS) {
      const file = field(at, input)?.value;
      if (typeof file === "string") return { node: at.comfyClass, input, file };
    }
    const model = at.inputs?.find(({ type, link }) => type === "MODEL" && link != null);
    at = model ? feeding(at, model.name) : null;
  }
  return null;
}
