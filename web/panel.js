/** The foot of a PAG node: a thin bar with a button for each view, and the one view that is open. */

import { app } from "../../scripts/app.js";
import { element, refill } from "./dom.js";
import { consumer, loader } from "./graph.js";
import { describeModel } from "./server.js";
import { t } from "./texts.js";

const OPEN = "pag_panel"; // node properties, saved with the workflow
const FAMILY = "pag_family";
const MARGIN = 6; // pixels around the panel, as the canvas lays it out
const NEW_WIDTH = 300; // enough for the widest model
const CLOSED_HEIGHT = 26;
const KEYS = new Set([" ", "Enter", "Escape", "Home", "End", "PageUp", "PageDown",
  "ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"]); // what the views use; the editor has other uses for them
let made = 0;

export class Panel {
  constructor(node, views) {
    this.node = node;
    this.model = null; // what the server says of the model that feeds the node
    this.problem = ""; // or why it says nothing
    this.views = views.map((View) => new View(this));
    this.buttons = this.views.map((view) => element("button", {
      class: "pag-tab", type: "button", "aria-expanded": false, onclick: () => this.toggle(view),
    }, element("span", { class: "pag-arrow", "aria-hidden": true }), view.title, " ", view.summary));
    this.body = element("div", { class: "pag-body" });
    this.content = element("div", { class: "pag-content" }, element("div", { class: "pag-bar" }, ...this.buttons),
      this.body);
    this.element = element("div", { class: "pag-panel" }, this.content);
    this.height = CLOSED_HEIGHT;
    this.listen();
    // A type of its own for each node: where undo makes a node anew, Nodes 2.0 would keep the old one's element.
    const widget = node.addDOMWidget("pag_panel", `PAG_PANEL_${++made}`, this.element, {
      serialize: false, // in the prompt
      margin: MARGIN,
    });
    // Of a fixed height: to one that can grow, both renderers would give room that the node's pictures need.
    widget.computeSize = (width) => [width, this.height + 2 * MARGIN];
    widget.computeLayoutSize = undefined;
    widget.serialize = false; // in the workflow
    queueMicrotask(() => {
      if (!this.restored) this.welcome();
      this.show();
    });
  }

  /** A node new from the menu shows what it has. */
  welcome() {
    this.node.properties[OPEN] = this.views[0].name;
    this.node.setSize([Math.max(this.node.size[0], NEW_WIDTH), this.node.size[1]]);
  }

  /** Called with a node that comes from a workflow, a copy or undo: closed, unless it was left open. */
  restore() {
    this.restored = true;
    this.show();
  }

  listen() {
    new ResizeObserver(() => {
      this.height = this.content.offsetHeight || this.height; // 0 while the node is out of sight
      this.redraw();
      setTimeout(() => this.redraw(), 50); // the canvas makes a node higher while it draws, and shows it next time
    }).observe(this.content);
    this.element.addEventListener("keydown", (event) => {
      if (KEYS.has(event.key) && !event.ctrlKey && !event.metaKey) event.stopPropagation();
    });
    // As the editor's own text fields do: the wheel zooms and the middle button moves the canvas.
    this.element.addEventListener("wheel", (event) => {
      if (!this.element.closest("[data-node-id]")) app.canvas.processMouseWheel(event);
    });
    this.element.addEventListener("pointerdown", (event) => event.button === 1 && app.canvas.processMouseDown(event));
    this.element.addEventListener("pointermove", (event) => event.buttons & 4 && app.canvas.processMouseMove(event));
    this.element.addEventListener("pointerup", (event) => event.button === 1 && app.canvas.processMouseUp(event));
  }

  redraw() {
    this.node.graph?.setDirtyCanvas(true, true);
  }

  get open() {
    return this.views.find(({ name }) => name === this.node.properties?.[OPEN]) ?? null;
  }

  toggle(view) {
    const height = this.node.size[1];
    const content = this.content.offsetHeight;
    if (!this.open) this.heightClosed = height;
    this.node.properties[OPEN] = this.open === view ? "" : view.name;
    this.show();
    this.look();
    this.height = this.content.offsetHeight || this.height;
    // The editor makes a node as high as it must be; only to lower it again is up to us.
    this.node.setSize([this.node.size[0], this.heightClosed ?? height + this.height - content]);
  }

  show() {
    const { open } = this;
    refill(this.body, open?.element);
    this.buttons.forEach((button, index) => button.setAttribute("aria-expanded", this.views[index] === open));
  }

  /** The family that stands in for a model nobody knows; kept with the node. */
  get family() {
    return this.node.properties?.[FAMILY] ?? "";
  }

  set family(name) {
    this.node.properties[FAMILY] = name;
    this.look();
  }

  /** Compares the graph with what is shown, and shows what has changed. */
  look() {
    if (!this.node.graph || !this.element.isConnected) return;
    this.findModel();
    for (const view of this.views) view.update();
  }

  async findModel() {
    const found = loader(this.node.inputs.some(({ type }) => type === "MODEL") ? this.node : consumer(this.node));
    const key = JSON.stringify([found, this.family]);
    if (key === this.source) return;
    this.source = key;
    let answer = found ? await describeModel({ loader: found }) : {};
    const problem = answer.error ?? (answer.id ? "" : t("No model loader is connected."));
    if (!answer.id && this.family) answer = await describeModel({ family: this.family });
    if (key !== this.source) return; // the graph has changed meanwhile
    this.model = answer.id ? answer : null;
    this.problem = problem;
    this.look();
  }

  /** Asks anew for the model; its file may be another. */
  forget() {
    this.source = null;
  }
}
