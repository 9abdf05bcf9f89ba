/** The schedule plot: the weights of CFG and PAG over the run, and the cost of the run, both from the server. */

import { Chart } from "./chart.js";
import { element, refill } from "./dom.js";
import { field } from "./graph.js";
import { message } from "./message.js";
import { newestOnly } from "./server.js";
import { t } from "./texts.js";
import { consumer, optionsOf, undoable, values, write } from "./values.js";

const FIELDS = ["layers", "steps", "scheduler", "denoise", "cfg", "cfg_start_percent", "cfg_end_percent"];
const SCALES = ["pag_scale", "scale"];
const APART = ["video_cfg", "video_pag", "video_modality", "audio_cfg", "audio_pag", "audio_modality"];
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
    this.message = element("div", { class: "pag-message" });
    this.chart = new Chart((input, value, done) => this.move(input, value, done));
    this.element = element("div", { class: "pag-view" }, this.legend, this.chart.element, this.message);
  }

  update() {
    const { node, model } = this.panel;
    const { known, unknown } = this.question(node);
    const question = { model: model?.id ?? null, ...known };
    const asked = JSON.stringify([question, unknown]);
    if (asked === this.asked) return;
    this.asked = asked;
    this.chart.setWindows(this.windows());
    this.draw(question, unknown);
  }

  /** Asks again: the server may have been down. */
  forget() {
    this.asked = null;
  }

  added() {
    this.chart.added();
  }

  removed() {
    this.chart.removed();
  }

  /**
   * What the formulas need: from this node, from the options connected to it, or the node that takes its options.
   * {known: the question, unknown: [the inputs that other nodes compute]}
   */
  question(node) {
    const sampler = node.comfyClass === OPTIONS ? consumer(node) : node;
    const given = optionsOf(node);
    const run = sampler ? values(sampler, [...FIELDS, ...SCALES, ...APART]) : { known: {}, unknown: [] };
    const { scale = run.known.pag_scale, pag_scale, ...known } = run.known;
    return { known: { ...apart(known, scale), options: given.known }, unknown: [...run.unknown, ...given.unknown] };
  }

  async draw(question, unknown) {
    const answer = await this.plot("plot", question);
    if (!answer) return;
    if (answer.isUnanswered) this.panel.askAgain();
    const isUnknown = (...names) => names.some((name) => unknown.includes(name));
    const hidesPag = isUnknown(...SCALES, "video_pag", "options", "start_percent", "end_percent", "schedule");
    const points = (answer.points ?? []).map((point) => (hidesPag ? { ...point, pag: null } : point));
    const cost = unknown.length || !answer.cost ? "" : `${answer.cost.toFixed(2)}×`;
    const note = answer.note ? t(answer.note) : "";
    this.error = answer.error;
    this.panel.resize(() => {
      this.summary.textContent = cost || (unknown.length ? "?" : "");
      this.summary.title = note;
      refill(
        this.legend,
        ...WINDOWS.map(([key, title]) => this.entry(key, title, points)),
        element("span", { class: "pag-share", title: note }, cost && `${cost} CFG`));
      refill(this.message, message("error", answer.error), message("info", unknown.length && t(
        "Unknown before the run, because other nodes compute it: {names}.", { names: unknown.join(", ") })));
    });
    this.chart.setPoints(points);
  }

  /** A curve's highest value; two, if video and audio differ. */
  entry(key, title, points) {
    const highest = (name) => Math.max(...points.map((point) => point[name] ?? NaN)); // NaN or -Infinity for none
    const both = [highest(key), highest(`audio_${key}`)].filter(Number.isFinite);
    const most = [...new Set(both.map((value) => Number(value.toFixed(2))))];
    return most.length
      ? element("span", { class: `pag-${key}`, title: most.length > 1 ? t("video / audio") : null },
        `${title} ${most.join(" / ")}`)
      : null;
  }

  /** The ranges whose ends are inputs of this node: they can be dragged. */
  windows() {
    const { node } = this.panel;
    return WINDOWS.map(([key, title, ...inputs]) => ({
      key, title, ends: inputs.map((input) => ({ input, value: number(field(node, input)) })),
    })).filter(({ ends }) => ends.every(({ value }) => value !== undefined));
  }

  /** An end of a range was moved; `done` completes one undo step. */
  move(input, value, done) {
    const held = field(this.panel.node, input);
    if (!held?.widget) return;
    if (done) undoable(() => write(held, value));
    else write(held, value);
    this.update();
  }
}

const number = (held) => (held?.widget && typeof held.value === "number" ? held.value : undefined);

/** PAG AV Guider's values: those of the video, and those of the audio where it has its own. */
function apart({ video_cfg, video_pag, video_modality, audio_cfg, audio_pag, audio_modality, ...known }, scale) {
  if (video_pag === undefined) return { ...known, scale };
  const audio = audio_cfg === undefined || audio_pag === undefined ? undefined : { cfg: audio_cfg, scale: audio_pag };
  return { ...known, cfg: video_cfg, scale: video_pag, audio, exchange: video_modality !== 1 || audio_modality !== 1 };
}
