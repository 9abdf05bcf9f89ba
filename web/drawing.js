/** The drawing of a model: a U for U-Nets, numbered blocks for transformers. */

import { element } from "./dom.js";
import { t } from "./texts.js";

const SHARES = { 1: "1", 2: "½", 4: "¼", 8: "⅛" };

/** The drawing as an element; its buttons come from `cells` in the order in which the model runs the layers. */
export function drawModel(model, cells) {
  const isUNet = model.kind === "u-net";
  return element("div", {
    class: isUNet ? "pag-u" : "pag-columns", role: "group",
    "aria-label": t("self-attention layers of {model}", { model: model.name }),
  }, ...(isUNet ? drawU(model.columns, cells) : model.columns.map((column) => drawBlocks(column, cells))));
}

/** Layers with the same resolution share a line: encoder left, decoder right, middle below. */
function drawU(columns, cells) {
  const [encoder, middle, decoder] = columns;
  const levels = [...new Set([...encoder.layers, ...decoder.layers].map(({ level }) => level))].sort((a, b) => a - b);
  const line = (level) => levels.indexOf(level) + 2;
  const side = ({ title, layers }, column) => [
    element("div", { class: "pag-label pag-heading", style: `grid-area: 1 / ${column}` }, t(title)),
    ...grouped(layers, ({ level }) => level).map(([level, found]) => element("div", {
      class: `pag-level pag-${title}`, style: `grid-area: ${line(level)} / ${column}`, "data-title": title,
    }, ...rows(found, cells))),
  ];
  const left = side(encoder, 1);
  const below = middle.layers.length ? [element("div", {
    class: "pag-level pag-middle", style: `grid-area: ${levels.length + 2} / 1 / auto / 4`, "data-title": middle.title,
  }, ...rows(middle.layers, cells))] : [];
  const right = side(decoder, 3);
  const labels = levels.map((level) => element("div", {
    class: "pag-label", style: `grid-area: ${line(level)} / 2`, title: t("resolution relative to the latent"),
  }, SHARES[level] ?? `1/${level}`));
  return [...left, ...below, ...right, ...labels];
}

/** The single layers of a level share a row; a block with several, such as u0.0 to u0.9, gets its own row. */
function rows(layers, cells) {
  const blocks = grouped(layers, ({ name }) => name.split(".")[0]);
  const made = blocks.map(([block, found]) => {
    if (found.length === 1) return cell(found[0], cells, found[0].name);
    return element("div", { class: "pag-many" }, element("span", { class: "pag-label" }, block),
      element("div", { class: "pag-cells" }, ...found.map((layer) => cell(layer, cells, last(layer.name)))));
  });
  return blocks.every(([, found]) => found.length === 1) ? [element("div", { class: "pag-singles" }, ...made)] : made;
}

function drawBlocks({ title, layers }, cells) {
  return element("div", { class: "pag-column", "data-title": title }, element("div", { class: "pag-label" }, t(title)),
    element("div", { class: "pag-blocks" }, ...layers.map((layer) => cell(layer, cells, last(layer.name)))));
}

/** [[key, its items]], in order of first appearance. */
function grouped(items, keyOf) {
  const found = new Map();
  for (const item of items) found.set(keyOf(item), [...(found.get(keyOf(item)) ?? []), item]);
  return [...found];
}

const last = (name) => name.split(".").at(-1);

function cell(layer, cells, text) {
  const facts = [
    t("{layer}: {heads} heads", { layer: layer.name, heads: layer.heads }),
    layer.aliases?.length ? t("also {names}", { names: layer.aliases.join(", ") }) : null,
    t("alone, its extra pass runs {percent}% of the network", { percent: Math.round(100 * layer.share) }),
    t("double-click: single heads"),
  ];
  return cells.add(layer.name, text, { title: facts.filter(Boolean).join("\n") });
}
