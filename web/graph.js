/** What feeds an input and what its value is, following links through nodes that only pass values on. */

import { hostOf, isLinked, linkInto } from "./nodes.js";
import { follow } from "./watch.js";

const SUBGRAPH_INPUT = -10; // the id that links inside a subgraph have as their origin at its boundary
const MUTED = 2;
const BYPASSED = 4;
const MAX_HOPS = 200; // against loops
const SWITCH = /switch|selector|if.?else|ternary|mux/i;
const PASSES = /reroute|pass.?through|^junction/i;
const CONSTANT = /primitive|const|literal|value|^(easy |impact|cr |simple)?(int|float|number|string|text|seed|bool)/i;
const GETS = /\bget|get_?node/i;
const TYPES = { INT: "number", FLOAT: "number", STRING: "string", BOOLEAN: "boolean" };

/**
 * What feeds a node's input: {node, slot}, an output that computes it; {node, widget}, a value on a subgraph's edge or
 * a Primitive; {unsure: node}, where a switch decides while it runs; null where nothing arrives.
 */
export function source(node, index, hops = 0, type = node.inputs[index]?.type) {
  follow(node);
  const link = linkInto(node, index);
  return link && hops < MAX_HOPS ? behind(node.graph, link, type, hops + 1) : null;
}

function behind(graph, link, type, hops) {
  follow(graph);
  if (Number(link.origin_id) === SUBGRAPH_INPUT) return outside(graph, link.origin_slot, type, hops);
  const node = graph.getNodeById(link.origin_id);
  return node ? output(node, link.origin_slot, type, hops) : null;
}

/** What is at a subgraph's boundary: a link outside, or a widget of the subgraph's node. */
function outside(graph, slot, type, hops) {
  const host = hostOf(graph);
  const outer = host?.inputs[slot];
  if (!outer) return null;
  if (isLinked(host, slot)) return source(host, slot, hops, type);
  const widget = host.widgets?.find(({ name }) => name === (outer.widget?.name ?? outer.name));
  follow(widget);
  return widget ? { node: host, widget } : null;
}

/** What comes out of an output. */
function output(node, slot, type, hops) {
  follow(node);
  if (node.mode === MUTED) return null;
  if (node.mode === BYPASSED) {
    const fits = (input) => input && LiteGraph.isValidConnection(input.type, type);
    const same = fits(node.inputs[slot]) ? slot : node.inputs.findIndex(fits);
    return same < 0 ? null : source(node, same, hops, type);
  }
  if (node.isSubgraphNode?.()) {
    const link = node.subgraph.outputs[slot]?.getLinks?.()[0] ?? null;
    return link && hops < MAX_HOPS ? behind(node.subgraph, link, type, hops + 1) : null;
  }
  if (node.isVirtualNode) return virtual(node, slot, type, hops);
  if (!isSwitch(node)) return { node, slot };
  const way = wayOf(node, slot);
  return way === null ? null : way === undefined ? { unsure: node } : source(node, way, hops, type);
}

/** Nodes that exist only in the editor: reroutes, Primitives, pairs of Set and Get nodes. */
function virtual(node, slot, type, hops) {
  const widget = node.widgets?.find(({ name }) => name === "value") ?? node.widgets?.[0];
  follow(widget);
  if (widget && isConstant(node)) return { node, widget };
  const setter = widget && setterOf(node, widget.value);
  if (setter) return source(setter, 0, hops, type);
  if (!node.inputs?.length && GETS.test(node.type)) return null; // asked, it would complain each time that none sets it
  const resolved = node.resolveVirtualOutput?.(slot);
  if (resolved && resolved.node !== node) return output(resolved.node, resolved.slot, type, hops + 1);
  const link = node.getInputLink?.(slot) ?? null;
  return link && hops < MAX_HOPS ? behind(node.graph, link, type, hops + 1) : null;
}

/** The node that sets what another one gets by its name: in the same graph, or in one around it. */
function setterOf(node, name) {
  if (node.inputs?.length) return null;
  for (let { graph } = node; graph; graph = hostOf(graph)?.graph) {
    follow(graph);
    const found = graph.nodes.find((other) => other !== node && other.isVirtualNode && other.inputs?.length
      && other.widgets?.[0]?.value === name);
    if (found) return found;
  }
  return null;
}

const isConstant = (node) => /primitive/i.test(node.type);

/** Whether a node passes one of its inputs on unchanged. A "selector" may also choose from its own list. */
function isSwitch(node) {
  const takes = (input) => !input.widget;
  return (SWITCH.test(node.type) || PASSES.test(node.type)) && Boolean(node.inputs?.some(takes));
}

/** The index of the input that a switch hands on; null where nothing is linked there, undefined where it cannot be
 * told before the run. */
function wayOf(node, slot) {
  const wanted = node.outputs[slot]?.type;
  const ways = node.inputs.map((input, index) => ({ name: input.name, index, type: input.type, widget: input.widget }))
    .filter(({ type, widget }) => !widget && (type === wanted || !/^(BOOLEAN|INT|FLOAT|STRING|COMBO)$/.test(type)));
  const linked = ways.filter(({ index }) => isLinked(node, index));
  const names = [...new Set([...node.inputs.filter((input) => !ways.some(({ name }) => name === input.name)),
    ...(node.widgets ?? [])].map(({ name }) => name))].filter((name) => !/^control_/.test(name));
  const selectors = names.map((name) => field(node, name)).filter(Boolean);
  if (!selectors.length) return linked.find(({ index }) => source(node, index))?.index ?? null; // the first there is
  for (const { unknown, value } of selectors) {
    const chosen = unknown ? undefined : ways.find(({ name }) => answersTo(name, value));
    if (chosen) return isLinked(node, chosen.index) ? chosen.index : null;
  }
  return linked.length === 1 ? linked[0].index : undefined;
}

/** Whether a switch's input is the one that its selector's value names. */
function answersTo(name, value) {
  if (typeof value === "boolean") return (value ? /true|yes|then|_on$|^on$/i : /false|no$|else|_off$|^off$/i).test(name);
  const number = /(\d+)$/.exec(name)?.[1];
  return name === value || (number !== undefined && Number(number) === Number(value));
}

/**
 * {value, widget, node} of an input, with the widget that holds its value wherever that stands; {unknown: true} where
 * another node computes it; undefined where the node has no such input.
 */
export function field(node, name, hops = 0) {
  const index = node.inputs?.findIndex((slot) => (slot.widget?.name ?? slot.name) === name) ?? -1;
  if (index >= 0 && isLinked(node, index)) {
    const from = hops < 20 ? source(node, index) : null;
    return (from && (from.widget ? held(from.node, from.widget) : constant(from, hops + 1))) ?? { unknown: true };
  }
  const widget = node.widgets?.find((one) => one.name === name);
  return widget && held(node, widget);
}

function held(node, widget) {
  follow(node);
  follow(widget);
  return { value: plain(widget.value), widget, node };
}

/** Some packs store {content, image} in a list of files. */
const plain = (value) => (value && typeof value === "object" && "content" in value ? value.content : value);

/** The value of a node that only holds one value. */
function constant({ node, slot }, hops) {
  if (!node) return null;
  const widgets = node.widgets?.filter(({ name, type }) => !/^control_|^type$/.test(name) && type !== "button") ?? [];
  const [only] = widgets;
  const type = node.outputs[slot]?.type;
  const fits = widgets.length === 1 && (only.name === "value" || CONSTANT.test(node.type));
  const others = node.inputs?.some((input, index) => !input.widget && isLinked(node, index));
  if (!fits || others || (type in TYPES && typeof plain(only.value) !== TYPES[type])) return null;
  return field(node, only.name, hops);
}
