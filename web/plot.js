/** The schedule plot: what CFG and PAG weigh over the run, from the server, and what the run costs. */

import { Chart } from "./chart.js";
import { element, refill } from "./dom.js";
import { consumer, feeding, field, undoable, values, write } from "./graph.js";
import { newestOnly } from "./server.js";
import { t } from "./texts.js";

const FIELDS = ["layers", "steps", "scheduler", "denoise", "cfg", "cfg_start_percent", "cfg_end_percent"];
const SCALES = ["pag_scale", "scale"];
const OPTIONS = "PAGOptions";
const WINDOWS = [ // curve, title, the inputs at its ends
  ["cfg", "CFG", "cfg_start_percent", "cfg_end_percent"],
  ["pag", "PAG", "start_percent", "end_percent"],
];

export class Plot {
  name = "schedule";
  title = t("Schedule");

  constructor(panel) {
    this.panel = panel;
    this.plot = newestOnly();
    this.summary = element("span", { class: "pag-summary" });
    this.legend = element("div", { class: "pag-row pag-legend" });
    this.message = element("div", { class: "pag-message", role: "status" });
    this.chart = new Chart((input, value, done) => this.move(input, value, done));
    this.element = element("div", { class: "pag-view" }, this.legend, this.chart.element, this.message);
  }

  update() {
    const { node, model } = this.panel;
    const question = { model: model?.id ?? null, ...this.question(node) };
    const asked = JSON.stringify(question);
    if (asked === this.asked) return;
    this.asked = asked;
    this.chart.setWindows(this.windows());
    this.draw(question);
  }

  /** What the formulas need: from this node, from the options connected to it, or the node that takes its options. */
  question(node) {
    const isOptions = node.comfyClass === OPTIONS;
    const sampler = isOptions ? consumer(node) : node;
    const options = isOptions ? node : feeding(node, "options");
    const [scale] = sampler ? Object.values(values(sampler, SCALES)) : [];
    return {
      ...(sampler ? values(sampler, FIELDS) : {}), scale,
      options: options?.comfyClass === OPTIONS ? values(options, widgetInputs(options)) : {},
    };
  }

  async draw(question) {
    const answer = await this.plot("plot", question);
    if (!answer) return;
    this.message.textContent = answer.error ?? "";
    this.summary.textContent = answer.cost ? `${answer.cost.toFixed(2)}×` : "";
    this.summary.title = answer.note ? t(answer.note) : "";
    refill(
      this.legend,
      ...WINDOWS.map(([key, title]) => this.entry(key, title, answer.points ?? [])),
      element("span", { class: "pag-share", title: this.summary.title },
        answer.cost ? `${answer.cost.toFixed(2)}× CFG` : ""));
    this.chart.setPoints(answer.points ?? []);
  }

  entry(key, title, points) {
    const most = Math.max(...points.map((point) => point[key] ?? NaN)); // -Infinity or NaN where there is none
    return Number.isFinite(most)
      ? element("span", { class: `pag-${key}` }, `${title} ${Number(most.toFixed(2))}`)
      : null;
  }

  /** The ranges whose ends stand on this node: they can be dragged. */
  windows() {
    const { node } = this.panel;
    return WINDOWS.map(([key, title, ...inputs]) => ({
      key, title, ends: inputs.map((input) => ({ input, value: field(node, input)?.value })),
    })).filter(({ ends }) => ends.every(({ value }) => value !== undefined));
  }

  /** An end of a range is moved; `done` ends one step of undo. */
  move(input, value, done) {
    const { node } = this.panel;
    const widget = field(node, input);
    if (!widget) return;
    if (done) undoable(() => write(widget, node, value));
    else write(widget, node, value);
    this.update();
  }
}

const widgetInputs = (node) => node.inputs.filter(({ widget }) => widget).map(({ name }) => name);
