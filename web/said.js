/**
 * Messages and results of each node's latest run: sentences, a list, images. They are kept in the browser, so that
 * they survive a reload, and removed when the node that produced them runs again.
 */

import { everyNode, nodeOf } from "./nodes.js";
import { onRun } from "./runs.js";
import { ask } from "./server.js";
import { isTwin, shownTab } from "./tabs.js";
import { upstream } from "./values.js";
import { changed } from "./watch.js";

const KEY = "pag.said"; // in localStorage: {"graph:node path": {at, messages, text, images, without}}
const MOST = 100; // nodes
const PANEL = "pag_panel"; // the widget that all nodes have that can show something
const kept = read();
const ours = new Set(); // the keys of what this page has changed; others may be open
const previews = new Map(); // the latest picture of a run that goes on; not kept
let runsSeen = 0;

/** The key of a node's messages: under its tab's path, or the path that the tab had before it was saved. */
function key(node) {
  const place = `${node.graph?.id}:${node.id} `;
  const own = place + shownTab()?.path;
  if (own in kept) return own;
  return Object.keys(kept).find((other) => other.startsWith(place) && !isTwin(other.slice(place.length))) ?? own;
}

const has = (node, name) => node.widgets?.some((widget) => widget.name === name);

/** {messages: [{kind, text, by}], text, images, preview} of a node, where there is any; `without`: its height then. */
export function saidBy(node) {
  return { messages: [], ...kept[key(node)], preview: previews.get(key(node)) };
}

/** Notes the node's height without its messages. */
export function noteHeight(node, without) {
  const said = kept[key(node)];
  if (!said || said.without === without) return;
  said.without = without;
  ours.add(key(node));
  write();
}

/** Starts listening to runs. */
export function listenToRuns() {
  onRun("execution_cached", ({ nodes = [], prompt_id }) => {
    startRun(nodes);
    recall(nodes, prompt_id);
  });
  onRun("executed", ({ node, display_node, output }) => take(nodeOf(display_node ?? node), output));
  onRun("pag.message", ({ node, kind, text }) => put(speaker(nodeOf(node)), { kind, text, by: node }));
  onRun("pag.preview", ({ node, image }) => {
    const at = nodeOf(node);
    if (at) previews.set(key(at), image);
  });
  onRun("execution_error", (error) => {
    previews.clear();
    const at = nodeOf(error.node_id);
    const ours = has(at ?? {}, PANEL) || error.traceback?.some((line) => line.includes(folder()));
    if (at && ours) put(speaker(at), { kind: "error", text: error.exception_message.trim(), by: error.node_id });
  });
  for (const end of ["execution_success", "execution_interrupted"]) onRun(end, () => previews.clear());
}

/** The name of this pack's folder, as it appears in tracebacks. */
const folder = () => decodeURIComponent(import.meta.url.split("/").at(-2));

/** A run starts: nodes that are computed again have no messages yet; cached ones keep theirs. `cached` holds the run's
 * ids of the nodes whose results it reuses. */
function startRun(cached) {
  previews.clear();
  const nodes = new Set(cached.map(nodeOf));
  for (const node of everyNode().filter((one) => has(one, PANEL))) {
    const { messages = [], ...result } = kept[key(node)] ?? {};
    const still = { ...(nodes.has(node) && result), messages: messages.filter(({ by }) => cached.includes(by)) };
    const place = key(node);
    ours.add(place);
    if (still.messages.length || still.text || still.images) kept[place] = { at: Date.now(), ...still };
    else delete kept[place];
  }
  write();
}

/** What is taken as it was may have been computed for another page: what it had to say then, the server knows. */
async function recall(cached, prompt_id) {
  const [run, tab] = [++runsSeen, shownTab()];
  if (!cached.length) return;
  const { messages = [] } = await ask("said", { prompt_id });
  if (run !== runsSeen || tab !== shownTab()) return;
  for (const { node, kind, text } of messages) {
    if (cached.includes(node)) put(speaker(nodeOf(node)), { kind, text, by: node });
  }
  changed();
}

/** A node has finished. */
function take(node, output) {
  if (!node || !has(node, PANEL)) return;
  previews.delete(key(node));
  const found = { text: output?.text?.join?.("\n"), images: output?.images };
  if (found.text || found.images?.length) keep(node, { ...kept[key(node)], ...found });
}

/** The node that shows a running node's messages: itself, or the nearest PAG node upstream, whose settings apply. */
function speaker(node) {
  return node && upstream(node, (at) => has(at, PANEL) && (at === node || has(at, "layers")));
}

function put(node, message) {
  if (!node) return;
  const { messages = [], ...rest } = kept[key(node)] ?? {};
  if (messages.some(({ text }) => text === message.text)) return; // once per run is enough
  keep(node, { ...rest, messages: [...messages, message] });
}

function keep(node, said) {
  const place = key(node);
  ours.add(place);
  kept[place] = { ...said, at: Date.now() };
  write();
}

function read() {
  try {
    return JSON.parse(localStorage.getItem(KEY)) ?? {};
  } catch {
    return {};
  }
}

function write() {
  const others = Object.entries(read()).filter(([place]) => !ours.has(place)); // of pages that are open beside this one
  const own = Object.entries(kept).filter(([place]) => ours.has(place));
  const all = [...others, ...own].sort(([, a], [, b]) => b.at - a.at);
  const newest = all.slice(0, MOST);
  for (const [place] of all.slice(MOST)) delete kept[place];
  try {
    localStorage.setItem(KEY, JSON.stringify(Object.fromEntries(newest)));
  } catch { /* full or forbidden: then only until the page is left */ }
}
