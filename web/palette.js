/** Colors readable in every palette of the editor: its own, lightened or darkened as needed. */

import { element } from "./dom.js";

const TEXT = 4.5; // contrast, as WCAG 2 asks of text
const SURFACES = { ".pag-panel": ["--comfy-input-bg", "#222"],
  "[data-node-id] .pag-panel": ["--component-node-widget-background", "var(--comfy-input-bg, #222)"] };
const KINDS = { error: [224, 72, 72], warning: [217, 156, 31], info: [74, 134, 216] };

/** Writes the colours, and again whenever the editor's palette changes. */
export function followPalette() {
  const sheet = element("style", { id: "pag-palette" });
  document.head.append(sheet);
  const paint = () => {
    const rules = Object.entries(SURFACES).map(([selector, surface]) => rule(selector, ...surface));
    if (sheet.textContent !== rules.join("\n")) sheet.textContent = rules.join("\n");
  };
  const observer = new MutationObserver(() => requestAnimationFrame(paint));
  for (const root of [document.documentElement, document.body]) {
    observer.observe(root, { attributes: true, attributeFilter: ["style", "class"] });
  }
  paint();
}

function rule(selector, name, otherwise) {
  const field = resolved(`var(${name}, ${otherwise})`);
  const given = resolved("var(--input-text, #ddd)");
  const raised = mixed(field, given, 0.1);
  const tints = Object.entries(KINDS).map(([kind, colour]) => [kind, mixed(field, colour, 0.16)]);
  const text = readable(given, [field, raised, ...tints.map(([, tint]) => tint)]);
  const colours = {
    field, raised, text, faint: readable(mixed(text, field, 0.3), [field, raised]),
    border: mixed(field, text, 0.3), ...Object.fromEntries(tints.map(([kind, tint]) => [`${kind}-tint`, tint])),
  };
  return `${selector} { ${Object.entries(colours).map(([key, value]) => `--pag-${key}: rgb(${value})`).join("; ")} }`;
}

/** A colour as the browser shows it: [red, green, blue] of 0 to 255. */
function resolved(colour) {
  const probe = element("span", { style: `color: ${colour}; transition: none` });
  document.body.append(probe);
  const context = element("canvas", { width: 1, height: 1 }).getContext("2d", { willReadFrequently: true });
  context.fillStyle = getComputedStyle(probe).color;
  probe.remove();
  context.fillRect(0, 0, 1, 1);
  return [...context.getImageData(0, 0, 1, 1).data.slice(0, 3)];
}

const mixed = (one, other, share) => one.map((value, index) => Math.round(value + share * (other[index] - value)));

function luminance(colour) {
  const [r, g, b] = colour.map((value) => value / 255)
    .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

export function contrast(one, other) {
  const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}

/** The colour, moved towards white or black until it can be read on all of these. */
function readable(colour, backgrounds) {
  const least = (one) => Math.min(...backgrounds.map((background) => contrast(one, background)));
  const end = least([255, 255, 255]) > least([0, 0, 0]) ? [255, 255, 255] : [0, 0, 0];
  for (let share = 0; share < 1; share += 0.05) {
    const moved = mixed(colour, end, share);
    if (least(moved) >= TEXT + 0.1) return moved;
  }
  return end;
}
