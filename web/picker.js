/** The layer picker: a drawing of the model in which the perturbed self-attention layers are lit. */

import { Cells } from "./cells.js";
import { drawModel } from "./drawing.js";
import { element, refill } from "./dom.js";
import { field } from "./graph.js";
import { message } from "./message.js";
import { ask, newestOnly } from "./server.js";
import { t } from "./texts.js";
import { optionsOf, undoable, write } from "./values.js";

export class Picker {
  name = "layers";
  title = t("Layers");

  constructor(panel) {
    this.panel = panel;
    this.select = newestOnly();
    this.selected = {}; // {layer: null for all heads, or a list of them}
    this.opened = null; // the layer whose heads are shown
    this.whole = null; // what is done to the whole blocks that hold the layers, which then have no heads to choose
    this.cells = new Cells({
      toggle: (names, on) => this.toggleLayers(names, on),
      open: (name, clicked) => this.openHeads(name, clicked),
      isOn: (name) => name in this.selected,
    });
    this.heads = new Cells({
      toggle: (heads, on) => this.toggleHeads(heads, on),
      isOn: (head) => this.headsOf(this.opened).includes(head),
    });
    this.summary = element("span", { class: "pag-summary" });
    this.head = element("div", { class: "pag-row pag-head" });
    this.share = element("span", { class: "pag-share" });
    this.presets = element("div", { class: "pag-presets", role: "group", "aria-label": t("Presets") });
    this.drawing = element("div", { class: "pag-drawing" });
    this.strip = element("div", { class: "pag-heads", "data-layer": "" });
    this.message = element("div", { class: "pag-message" });
    this.element = element("div", { class: "pag-view" }, this.head, this.presets, this.drawing, this.strip,
      this.message);
    this.strip.addEventListener("keydown", (event) => event.key === "Escape" && this.closeHeads());
  }

  /** Follows the graph: the model, and the text of the input. */
  update() {
    const { model, problem } = this.panel;
    if (model !== this.model || problem !== this.problem) {
      [this.model, this.problem, this.text] = [model, problem, null]; // read the text anew
      this.opened = null;
      this.change(() => {
        this.drawHead();
        this.drawModel();
      });
    }
    const { value, unknown } = field(this.panel.node, "layers") ?? {};
    const text = unknown ? undefined : value;
    const options = optionsOf(this.panel.node).known;
    const how = JSON.stringify(options);
    if (text === this.text && how === this.how) return;
    [this.text, this.how, this.options] = [text, how, options];
    this.read(text);
  }

  /** Reads the text again. */
  forget() {
    [this.problem, this.text] = [null, null];
  }

  /** Draws. The first drawing does not resize the node: it was saved with space for it. */
  change(draw) {
    if (this.isDrawn) this.panel.resize(draw);
    else draw();
    this.isDrawn ||= Boolean(this.model);
  }

  get layers() {
    return this.model?.columns.flatMap((column) => column.layers) ?? [];
  }

  headsOf(name) {
    const count = this.layers.find((layer) => layer.name === name)?.heads ?? 0;
    const all = Array.from({ length: count }, (_, head) => head);
    return name in this.selected ? this.selected[name] ?? all : [];
  }

  // From the text to the picture.

  async read(layers) {
    this.say(typeof layers === "string" ? "" : t("layers comes from another node, so the picker cannot show it."));
    if (!this.model || typeof layers !== "string") return this.show({});
    const answer = await this.select("select", { model: this.model.id, layers, options: this.options });
    if (!answer) return;
    this.take(answer);
    if (answer.isUnanswered) this.panel.askAgain();
  }

  take(answer) {
    this.say(answer.error ?? "", "error");
    if (!answer.error) this.drawWhole(answer.whole);
    if (answer.selected) this.show(answer.selected, answer.share);
    else this.show({});
  }

  // From the picture to the text.

  toggleLayers(names, on) {
    const selected = { ...this.selected };
    for (const name of names) {
      if (on) selected[name] = null;
      else delete selected[name];
    }
    this.choose(selected);
  }

  toggleHeads(heads, on) {
    const chosen = new Set(this.headsOf(this.opened));
    for (const head of heads) chosen[on ? "add" : "delete"](head);
    const selected = { ...this.selected, [this.opened]: [...chosen].sort((a, b) => a - b) };
    if (!chosen.size) delete selected[this.opened];
    this.choose(selected);
  }

  async choose(selected) {
    if (!field(this.panel.node, "layers")?.widget) return; // computed elsewhere
    const before = this.selected;
    this.beforeClick = before;
    this.show(selected);
    const answer = await this.select("select", { model: this.model.id, selected, options: this.options });
    if (!answer) return;
    if (answer.text === undefined && Object.keys(selected).length) { // no such selection: nothing has changed
      this.show(before);
      this.say(answer.error, "error");
      return;
    }
    this.enter(answer.text ?? "");
    this.take(answer);
  }

  /** Writes a text to the input, as one undo step; false if another node computes it. */
  enter(text) {
    const held = field(this.panel.node, "layers");
    if (!held?.widget) return false;
    this.text = text;
    undoable(() => write(held, text));
    return true;
  }

  // What is shown.

  drawHead() {
    const { panel, model, problem } = this;
    const about = model && t("{model}; auto is {layers} ({source})", {
      model: model.name, layers: model.auto, source: model.source,
    });
    refill(this.head, ...(model && !problem
      ? [element("span", { class: "pag-name", title: about }, model.name)]
      : [message("info", problem), familyChooser(panel)]), this.share);
    refill(this.presets, ...(model?.presets ?? []).map(({ title, layers, about }) => element("button", {
      type: "button", class: "pag-preset", title: about ? `${layers}\n${t(about)}` : layers, "data-layers": layers,
      onclick: () => this.enter(layers) && this.read(layers),
    }, t(title))));
  }

  drawModel() {
    this.cells.buttons.clear();
    this.cells.anchor = null;
    refill(this.drawing, this.model ? drawModel(this.model, this.cells) : null);
  }

  /** Blocks look different from layers. */
  drawWhole(whole) {
    this.whole = whole;
    this.drawing.dataset.whole = whole ?? "";
    if (whole) this.opened = null;
  }

  show(selected, share) {
    this.selected = selected;
    for (const layer of this.layers) this.showLayer(layer);
    for (const preset of this.presets.children) {
      preset.setAttribute("aria-pressed", preset.dataset.layers === this.text);
    }
    const count = Object.keys(selected).length;
    this.summary.textContent = this.model ? `${count}/${this.layers.length}` : "";
    if (!count) this.share.textContent = "";
    else if (share !== undefined) {
      this.share.textContent = t("extra pass {percent}%", { percent: Math.round(100 * share) });
    }
    this.share.title = t("How much of the network PAG's extra pass runs. Everything before the first selected " +
      "layer is shared with the normal pass.");
    if (!this.layers.some(({ name }) => name === this.opened)) this.opened = null;
    this.drawHeads();
  }

  /** Lights a cell if its state has changed: of sixty cells one click changes one. */
  showLayer(layer) {
    const button = this.cells.buttons.get(layer.name);
    const heads = this.headsOf(layer.name).length;
    const part = heads > 0 && heads < layer.heads;
    const state = `${heads} ${this.whole ?? ""}`;
    if (button.dataset.state === state) return;
    button.dataset.state = state;
    button.setAttribute("aria-pressed", part ? "mixed" : heads > 0);
    if (part) button.style.setProperty("--part", heads / layer.heads);
    const values = { layer: layer.name, heads: layer.heads, part: heads };
    const about = part ? t("{layer}: {part} of {heads} heads", values) : t("{layer}: {heads} heads", values);
    const whole = { skip_block: t("{layer}: its block is skipped", values),
      shuffle: t("{layer}: tokens are shuffled before its block", values) };
    button.setAttribute("aria-label", heads ? whole[this.whole] ?? about : about);
  }

  openHeads(name, clicked) {
    if (clicked) this.choose(this.beforeClick);
    if (this.whole) return;
    this.opened = name;
    this.drawHeads();
    this.heads.buttons.get(0)?.focus();
  }

  closeHeads() {
    const name = this.opened;
    this.opened = null;
    this.drawHeads();
    this.cells.buttons.get(name)?.focus();
  }

  drawHeads() {
    const layer = this.layers.find(({ name }) => name === this.opened);
    if (this.strip.dataset.layer !== (layer?.name ?? "")) this.change(() => this.drawStrip(layer));
    const on = this.headsOf(this.opened);
    this.heads.buttons.forEach((button, head) => button.setAttribute("aria-pressed", on.includes(head)));
  }

  drawStrip(layer) {
    this.strip.dataset.layer = layer?.name ?? "";
    this.heads.buttons.clear();
    this.heads.anchor = null;
    const cells = layer ? Array.from({ length: layer.heads }, (_, head) => this.heads.add(head, `${head}`, {
      "aria-label": t("head {head} of {layer}", { head, layer: layer.name }),
    })) : [];
    const title = layer && t("{layer} heads", { layer: layer.name });
    refill(this.strip, ...(layer ? [
      element("span", { class: "pag-label" }, title),
      element("div", { class: "pag-cells", role: "group", "aria-label": title }, ...cells),
      element("button", { type: "button", class: "pag-close", "aria-label": t("close heads"), title: "Escape",
        onclick: () => this.closeHeads() }, "×"),
    ] : []));
  }

  say(text, kind = "info") {
    const now = `${kind} ${text}`;
    if (now === this.said) return;
    this.said = now;
    this.error = kind === "error" ? text : "";
    this.change(() => refill(this.message, message(kind, text)));
  }
}

/** A list of families to choose from, for an unknown model. */
function familyChooser(panel) {
  const list = element("select", { "aria-label": t("model family"), onchange: () => { panel.family = list.value; } },
    element("option", { value: "" }, t("choose a family")));
  ask("families").then(({ families = [], isUnanswered }) => {
    if (isUnanswered) panel.askAgain();
    list.append(...families.map((name) => element("option", { value: name }, name)));
    list.value = panel.family;
  });
  return list;
}
