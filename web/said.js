/**
 * Messages and results of each node's latest run: sentences, a list, images. They belong to the tab of the workflow, and
 * are removed when the node that produced them runs again.
 */

import { everyNode, nodeOf } from "./nodes.js";
import { onRun } from "./runs.js";
import { ask } from "./server.js";
import { keepStates, shownTab, stateOf } from "./tabs.js";
import { upstream } from "./values.js";
import { changed } from "./watch.js";

const PANEL = "pag_panel"; // the widget that all nodes have that can show something
let runsSeen = 0;

const here = () => stateOf(shownTab());
const placeOf = (node) => `${node.graph?.id}:${node.id}`;

const has = (node, name) => node.widgets?.some((widget) => widget.name === name);

/** {messages: [{kind, text, by}], text, images, preview} of a node, where there is any; `without`: its height then. */
export function saidBy(node) {
  const { said, previews } = here();
  return { messages: [], ...said[placeOf(node)], preview: previews[placeOf(node)] };
}

/** Notes the node's height without its messages. */
export function noteHeight(node, without) {
  const kept = here().said[placeOf(node)];
  if (!kept || kept.without === without) return;
  kept.without = without;
  keepStates();
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
    if (at) here().previews[placeOf(at)] = image;
  });
  onRun("execution_error", (error) => {
    here().previews = {};
    const at = nodeOf(error.node_id);
    const ours = has(at ?? {}, PANEL) || error.traceback?.some((line) => line.includes(folder()));
    if (at && ours) put(speaker(at), { kind: "error", text: error.exception_message.trim(), by: error.node_id });
  });
  for (const end of ["execution_success", "execution_interrupted"]) onRun(end, () => { here().previews = {}; });
}

/** The name of this pack's folder, as it appears in tracebacks. */
const folder = () => decodeURIComponent(import.meta.url.split("/").at(-2));

/** A run starts: nodes that are computed again have no messages yet; cached ones keep theirs. `cached` holds the run's
 * ids of the nodes whose results it reuses. */
function startRun(cached) {
  const nodes = new Set(cached.map(nodeOf));
  const state = here();
  const kept = {};
  for (const node of everyNode().filter((one) => has(one, PANEL))) {
    const { messages = [], ...result } = state.said[placeOf(node)] ?? {};
    const still = { ...(nodes.has(node) && result), messages: messages.filter(({ by }) => cached.includes(by)) };
    if (still.messages.length || still.text || still.images) kept[placeOf(node)] = still;
  }
  Object.assign(state, { said: kept, previews: {} });
  keepStates();
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
  delete here().previews[placeOf(node)];
  const found = { text: output?.text?.join?.("\n"), images: output?.images };
  if (found.text || found.images?.length) keep(node, { ...here().said[placeOf(node)], ...found });
}

/** The node that shows a running node's messages: itself, or the nearest PAG node upstream, whose settings apply. */
function speaker(node) {
  return node && upstream(node, (at) => has(at, PANEL) && (at === node || has(at, "layers")));
}

function put(node, message) {
  if (!node) return;
  const { messages = [], ...rest } = here().said[placeOf(node)] ?? {};
  if (messages.some(({ text }) => text === message.text)) return; // once per run is enough
  keep(node, { ...rest, messages: [...messages, message] });
}

function keep(node, said) {
  here().said[placeOf(node)] = said;
  keepStates();
}
