/** The bottom of a PAG node: a button for each view, the open view, and the messages of the latest run. */

import { app } from "../../scripts/app.js";
import { element, refill } from "./dom.js";
import { loaderOf } from "./models.js";
import { Result } from "./result.js";
import { describeModel } from "./server.js";
import { t } from "./texts.js";
import { consumer } from "./values.js";
import { changed } from "./watch.js";

const OPEN = "pag_panel"; // node properties, saved with the workflow
const FAMILY = "pag_family";
const NEW_WIDTH = 300; // enough for the widest model
const CLOSED_HEIGHT = 32;
// Milliseconds between two questions to a server that does not answer.
const FIRST_WAIT = 1_000;
const LONGEST_WAIT = 30_000;
// What the views use, and what would delete the node: the editor has other uses for them.
const KEYS = new Set([" ", "Enter", "Escape", "Home", "End", "PageUp", "PageDown", "Delete", "Backspace",
  "ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"]);
let made = 0;

export class Panel {
  constructor(node, views) {
    this.node = node;
    this.model = null; // what the server says of the model that feeds the node
    this.problem = ""; // or why it says nothing
    this.views = views.map((View) => new View(this));
    this.result = new Result(this);
    this.buttons = this.views.map((view) => element("button", {
      class: "pag-tab", type: "button", "aria-expanded": false, onclick: () => this.toggle(view),
    }, element("span", { class: "pag-arrow", "aria-hidden": true }), element("span", { class: "pag-title" }, view.title),
    view.summary));
    this.body = element("div", { class: "pag-body" });
    this.content = element("div", { class: "pag-content" },
      views.length ? element("div", { class: "pag-bar" }, ...this.buttons) : null, this.body, this.result.element);
    this.element = element("div", { class: "pag-panel" }, this.content);
    this.height = views.length ? CLOSED_HEIGHT : 0;
    this.observer = new ResizeObserver(() => this.measure());
    this.listen();
    const height = () => this.height;
    // A type of its own for each node: where undo makes a node anew, Nodes 2.0 would keep the old one's element.
    const widget = node.addDOMWidget("pag_panel", `PAG_PANEL_${++made}`, this.element, {
      serialize: false, // in the prompt
      hideInPanel: true, // an element can be in one place only
      margin: 0,
      getMinHeight: height, getMaxHeight: height, getHeight: height,
    });
    widget.label = "PAG";
    widget.serialize = false; // in the workflow
    queueMicrotask(() => {
      if (!this.isRestored) this.welcome();
      this.show();
    });
  }

  /** A new node opens its first view. */
  welcome() {
    if (!this.views.length) return;
    this.node.properties[OPEN] = this.views[0].name;
    // In Nodes 2.0 this height is the least, and made for the advanced inputs too, which are not shown.
    const height = LiteGraph.vueNodesMode ? 0 : this.node.size[1];
    this.node.setSize([Math.max(this.node.size[0], NEW_WIDTH), height]);
  }

  /** Called for a node from a workflow, a copy or undo: closed, unless it was left open. */
  restore() {
    this.isRestored = true;
    this.show();
  }

  added() {
    this.observer.observe(this.content);
    for (const view of this.views) view.added?.();
    changed();
  }

  removed() {
    this.observer.disconnect();
    this.stopWaiting();
    for (const view of this.views) view.removed?.();
  }

  listen() {
    this.element.addEventListener("keydown", (event) => {
      if (KEYS.has(event.key) && !event.ctrlKey && !event.metaKey) event.stopPropagation();
    });
    // As on the rest of a node: the wheel zooms, the middle button moves the canvas, the right one takes the node and
    // opens its menu.
    const inCanvas = () => !this.element.closest("[data-node-id]");
    this.element.addEventListener("wheel", (event) => {
      const list = event.target.closest(".pag-list");
      if (inCanvas() && !(list && list.scrollHeight > list.clientHeight)) app.canvas.processMouseWheel(event);
    });
    this.element.addEventListener("contextmenu", (event) => inCanvas() && event.preventDefault());
    const isOurs = ({ button }) => button !== 1 && !(button === 2 && inCanvas());
    this.element.addEventListener("pointerdown", (event) => isOurs(event) || app.canvas.processMouseDown(event));
    this.element.addEventListener("pointermove", (event) => event.buttons & 4 && app.canvas.processMouseMove(event));
    this.element.addEventListener("pointerup", (event) => isOurs(event) || app.canvas.processMouseUp(event));
  }

  measure() {
    const height = this.content.offsetHeight;
    if (!this.element.isConnected || (!height && this.content.childElementCount > 2)) return; // out of sight
    changed(); // it may have come into sight
    if (height === this.height) return;
    this.height = height;
    this.redraw();
    setTimeout(() => this.redraw(), 50); // the canvas makes a node higher while it draws, and shows it next time
  }

  redraw() {
    this.node.graph?.setDirtyCanvas(true, true);
  }

  /** The free space at the bottom of the node. */
  get room() {
    return this.element.closest("[data-node-id]") ? this.element.offsetHeight - this.content.offsetHeight
      : this.node.size[1] - this.node.computeSize()[1];
  }

  /** Changes what is shown and adjusts the node's height by the difference, or to `fit(height, more)`. */
  resize(change, fit = (height, more) => height + more) {
    const before = this.content.offsetHeight;
    change();
    const after = this.content.offsetHeight;
    if (!before || !after || before === after) return;
    this.height = after;
    this.node.setSize([this.node.size[0], fit(this.node.size[1], after - before)]);
    this.redraw();
  }

  get open() {
    return this.views.find(({ name }) => name === this.node.properties?.[OPEN]) ?? null;
  }

  toggle(view) {
    this.node.properties[OPEN] = this.open === view ? "" : view.name;
    this.resize(() => this.show());
    this.look();
  }

  show() {
    const { open } = this;
    refill(this.body, open?.element);
    this.buttons.forEach((button, index) => button.setAttribute("aria-expanded", this.views[index] === open));
  }

  /** The family chosen by hand for an unknown model; saved with the node. */
  get family() {
    return this.node.properties?.[FAMILY] ?? "";
  }

  set family(name) {
    this.node.properties[FAMILY] = name;
    this.look();
  }

  /** Compares the graph with what is shown, and updates what has changed. */
  look() {
    if (!this.node.graph || !this.element.isConnected) return;
    if (this.views.length) this.findModel();
    for (const view of this.views) view.update();
    this.result.update();
  }

  async findModel() {
    const found = loaderOf(this.node.inputs.some(({ type }) => type === "MODEL") ? this.node : consumer(this.node));
    const key = JSON.stringify([found, this.family]);
    if (key === this.source) return;
    this.source = key;
    let answer = found?.loader ? await describeModel({ loader: found.loader }) : {};
    const problem = answer.error ?? (answer.id ? "" : withoutFile(found));
    if (!answer.id && this.family) answer = await describeModel({ family: this.family });
    if (key !== this.source) return; // the graph has changed meanwhile
    if (answer.isUnanswered) this.askAgain();
    this.model = answer.id ? answer : null;
    this.problem = problem;
    this.look();
  }

  /** Asks for everything again: files may have changed, or the server may have been down. */
  forget() {
    this.source = null;
    for (const view of this.views) view.forget?.();
  }

  /** Called after a question without an answer. */
  askAgain() {
    if (this.timer) return;
    const now = performance.now();
    this.wait = now - this.unanswered < 2 * LONGEST_WAIT ? Math.min(LONGEST_WAIT, 2 * this.wait) : FIRST_WAIT;
    this.unanswered = now;
    this.timer = setTimeout(() => this.answered(), this.wait);
  }

  /** The server may answer now what it has not. */
  answered() {
    if (!this.timer) return;
    this.stopWaiting();
    this.forget();
    this.look();
  }

  stopWaiting() {
    clearTimeout(this.timer);
    this.timer = null;
  }
}

/** Why the model file is unknown. */
function withoutFile(found) {
  if (found?.unknown) return t("Which model arrives here is decided during the run. Choose its family by hand.");
  if (found?.other) {
    return t("{node} does not name a model file that can be inspected. Choose the model's family by hand.", {
      node: found.other,
    });
  }
  return t("No model loader is connected.");
}
