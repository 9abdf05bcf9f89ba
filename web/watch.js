/** When to look at the graph again: after user input, editor events, and changes of what is followed. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const SOON = 30; // milliseconds: what happens together is looked at once
const WHILE_DRAWING = 200; // the canvas draws many times while it is moved
const HANDS = ["pointerup", "keyup", "input", "change", "drop"];
const EVENTS = ["graphChanged", "reconnected", "execution_start", "execution_success"];
const HOOKS = ["onConnectionsChange", "onWidgetChanged", "onModeChange"];
const followed = new WeakSet();
let look = () => {};
let timer = null;
let due = Infinity;

/** Something may have changed. */
export function changed(within = SOON) {
  const at = performance.now() + within;
  if (at >= due) return;
  clearTimeout(timer);
  due = at;
  timer = setTimeout(() => {
    due = Infinity;
    look();
  }, within);
}

/** Starts listening; called once, when the editor is ready. `then` is called soon after anything may have changed. */
export function listen(then) {
  look = then;
  for (const name of HANDS) document.addEventListener(name, () => changed(), { capture: true, passive: true });
  for (const name of EVENTS) api.addEventListener(name, () => changed());
  app.canvas.canvas.addEventListener("litegraph:set-graph", () => changed());
  chain(app.canvas, "onDrawForeground", () => changed(WHILE_DRAWING));
}

/** Reports the next change of a node, a widget or a graph. */
export function follow(thing) {
  if (!thing) return;
  if (thing.nodes && thing.onTrigger !== undefined) followGraph(thing);
  if (followed.has(thing)) return;
  followed.add(thing);
  if (thing.nodes) return;
  const isWidget = "value" in thing && !("widgets" in thing);
  for (const name of isWidget ? ["callback"] : HOOKS) chain(thing, name, () => changed());
}

/** The editor replaces this whenever another graph is shown, so it is chained again. */
function followGraph(graph) {
  if (!graph.onTrigger || followed.has(graph.onTrigger)) return;
  chain(graph, "onTrigger", () => changed());
  followed.add(graph.onTrigger);
}

/** Calls `then` after a method of an object, with the same arguments. */
export function chain(object, name, then) {
  const before = object[name];
  object[name] = function (...given) {
    const result = before?.apply(this, given);
    then.apply(this, given);
    return result;
  };
}
