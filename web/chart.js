/** Curves over the run, and handles at the ends of ranges: by mouse, or with the arrow keys. */

import { element, refill, svg } from "./dom.js";
import { t } from "./texts.js";

const HEIGHT = 104; // pixels
const EDGE = { left: 20, right: 8, top: 12, bottom: 26 };
const STEP = 0.01; // of the run; with Shift, or the page keys, ten times that
const CURVES = ["cfg", "pag", "audio_cfg", "audio_pag"]; // audio_*: if the audio is guided separately

export class Chart {
  /** moved(input, value, done): a handle is moved; done is false while it is still held. */
  constructor(moved) {
    this.moved = moved;
    this.points = [];
    this.windows = [];
    this.handles = new Map();
    this.curves = svg("g");
    this.grips = svg("g");
    this.image = svg("svg", { height: HEIGHT, class: "pag-chart", role: "group", "aria-label": t("Schedule") },
      this.curves, this.grips);
    this.element = element("div", { class: "pag-chart-box" }, this.image);
    this.width = 260;
    this.observer = new ResizeObserver(([{ contentRect: { width } }]) => {
      if (!width || width === this.width) return;
      this.width = width;
      this.draw();
      this.place();
    });
  }

  added() {
    this.observer.observe(this.element);
  }

  removed() {
    this.observer.disconnect();
  }

  /** points: [{percent, cfg, pag, audio_cfg, audio_pag, runs_uncond, runs_perturbed}], one for each step. */
  setPoints(points) {
    this.points = points;
    this.draw();
    this.place();
  }

  /** windows: [{key, title, ends: [{input, value}, {input, value}]}] */
  setWindows(windows) {
    this.windows = windows;
    const inputs = new Set(windows.flatMap(({ ends }) => ends.map(({ input }) => input)));
    for (const [input, handle] of this.handles) {
      if (inputs.has(input)) continue;
      handle.remove();
      this.handles.delete(input);
    }
    for (const window of windows) {
      window.ends.forEach(({ input }, index) => {
        if (!this.handles.has(input)) this.handles.set(input, this.makeHandle(window, input, index));
      });
    }
    this.place();
  }

  x(percent) {
    return EDGE.left + percent * (this.width - EDGE.left - EDGE.right);
  }

  y(weight) {
    return HEIGHT - EDGE.bottom - (weight / this.top) * (HEIGHT - EDGE.top - EDGE.bottom);
  }

  draw() {
    const weights = this.points.flatMap((point) => CURVES.map((key) => point[key] ?? 0));
    this.top = Math.max(1, ...weights);
    const base = HEIGHT - EDGE.bottom;
    const label = (x, y, text, anchor) => svg("text", { x, y, "text-anchor": anchor, class: "pag-axis" }, text);
    const line = (y) => svg("line", { x1: EDGE.left, x2: this.x(1), y1: y, y2: y, class: "pag-grid" });
    refill(
      this.curves,
      line(base), line(this.y(this.top)),
      label(EDGE.left - 4, base + 3, "0", "end"),
      label(EDGE.left - 4, this.y(this.top) + 3, `${Number(this.top.toFixed(1))}`, "end"),
      label(this.x(0), HEIGHT - 3, t("noise"), "start"), label(this.x(1), HEIGHT - 3, t("picture"), "end"),
      ...CURVES.map((key) => this.curve(key)),
      ...this.passes("runs_uncond", "cfg", base + 4), ...this.passes("runs_perturbed", "pag", base + 9),
    );
  }

  /** Where the step with this index starts and ends, in pixels: halfway to its neighbors. */
  span(index) {
    const at = (step) => this.points[step].percent;
    const last = this.points.length - 1;
    const usual = (at(last) - at(0)) / (last || 1);
    const before = index ? at(index) - at(index - 1) : usual;
    const after = index < last ? at(index + 1) - at(index) : usual;
    return [at(index) - before / 2, at(index) + after / 2]
      .map((percent) => this.x(Math.min(1, Math.max(0, percent))));
  }

  curve(key) {
    const corners = this.points.map((point, index) => {
      const [from, to] = this.span(index);
      return `${from},${this.y(point[key] ?? 0)} H${to}`;
    });
    if (this.points.every((point) => (point[key] ?? null) === null)) return null;
    const path = `M${corners.join(" L")}`;
    if (key.startsWith("audio_")) {
      return svg("path", { d: path, class: `pag-${key.slice("audio_".length)} pag-line pag-audio` });
    }
    return svg("g", { class: `pag-${key}` },
      svg("path", { d: `${path} V${this.y(0)} H${this.span(0)[0]} Z`, class: "pag-area" }),
      svg("path", { d: path, class: "pag-line" }));
  }

  /** A mark below each step that computes an additional prediction. */
  passes(runs, key, y) {
    return this.points.map((point, index) => {
      if (!point[runs] || (point[key] ?? null) === null) return null;
      const [x, to] = this.span(index);
      const width = to - x;
      return svg("rect", { x, y, height: 3, width: Math.max(1, width - (width > 3)), class: `pag-${key} pag-pass` });
    });
  }

  makeHandle(window, input, index) {
    const slider = svg("g", {
      class: `pag-handle pag-${window.key}`, tabindex: 0, role: "slider", "data-input": input,
      "aria-label": index ? t("{curve} ends", { curve: window.title }) : t("{curve} starts", { curve: window.title }),
      "aria-valuemin": 0, "aria-valuemax": 1,
    }, svg("title", {}, input), svg("line", { y1: EDGE.top - 2, y2: HEIGHT - EDGE.bottom }),
      svg("rect", { class: "pag-reach", x: -7, width: 14, y: 0, height: HEIGHT - EDGE.bottom }),
      svg("path", { class: "pag-grip", d: index ? "M1,1 H-8 V11 H1 Z" : "M-1,1 H8 V11 H-1 Z" }));
    slider.addEventListener("keydown", (event) => this.key(input, event));
    slider.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      slider.setPointerCapture(event.pointerId);
      slider.focus();
    });
    slider.addEventListener("pointermove", (event) => {
      if (!slider.hasPointerCapture(event.pointerId)) return;
      const box = this.image.getBoundingClientRect(); // the editor may have zoomed it
      const x = ((event.clientX - box.left) / box.width) * this.width;
      this.move(input, (x - EDGE.left) / (this.width - EDGE.left - EDGE.right), false, STEP);
    });
    this.grips.append(slider);
    return slider;
  }

  key(input, event) {
    const large = event.shiftKey ? 10 : 1;
    const by = { ArrowLeft: -large, ArrowDown: -large, ArrowRight: large, ArrowUp: large, PageDown: -10, PageUp: 10,
      Home: -100, End: 100 }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    this.move(input, this.end(input).value + by * STEP, true);
  }

  end(input) {
    return this.windows.flatMap(({ ends }) => ends).find((end) => end.input === input);
  }

  /** Keeps the range's ends in order, and on whole hundredths; `gap` is what a drag leaves between them, so that each
   * can be taken again. */
  move(input, value, done, gap = 0) {
    const [start, end] = this.windows.find(({ ends }) => ends.some((one) => one.input === input)).ends;
    const [low, high] = input === start.input ? [0, Math.max(0, end.value - gap)]
      : [Math.min(1, start.value + gap), 1];
    const moved = Math.round(Math.min(high, Math.max(low, value)) / STEP) * STEP;
    const rounded = Number(moved.toFixed(2));
    if (rounded !== this.end(input).value) this.moved(input, rounded, done);
  }

  place() {
    for (const { ends } of this.windows) {
      for (const { input, value } of ends) {
        const handle = this.handles.get(input);
        handle.setAttribute("transform", `translate(${this.x(value)})`);
        handle.setAttribute("aria-valuenow", value);
        handle.setAttribute("aria-valuetext", t("{percent}% of the run", { percent: Math.round(value * 100) }));
      }
    }
  }
}
