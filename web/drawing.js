/** The drawing of a model: a U for U-Nets, columns of cells for transformers. */

import { element } from "./dom.js";
import { t } from "./texts.js";

/** The drawing as an element; its buttons come from `cells` in the order in which the model runs the layers. */
export function drawModel(model, cells) {
  const columns = model.columns.map(({ title, layers }) => column(title, layers, cells, model.kind === "u-net"));
  return element("div", {
    class: model.kind === "u-net" ? "pag-u" : "pag-columns", role: "group",
    "aria-label": t("self-attention layers of {model}", { model: model.name }),
  }, ...columns);
}

function column(title, layers, cells, inRows) {
  return element("div", { class: "pag-column", "data-title": title },
    element("div", { class: "pag-label" }, t(title)),
    inRows
      ? element("div", { class: "pag-rows" }, ...rows(layers).map((row) => rowOf(row, cells)))
      : element("div", { class: "pag-cells" }, ...layers.map((layer) => cell(layer, cells, last(layer.name)))));
}

/** The layers of one block of the network, such as u0.0 to u0.9, stand in one row. */
function rows(layers) {
  const found = new Map();
  for (const layer of layers) {
    const block = layer.name.split(".")[0];
    found.set(block, [...(found.get(block) ?? []), layer]);
  }
  return [...found];
}

function rowOf([block, layers], cells) {
  if (layers.length === 1) return element("div", { class: "pag-cells" }, cell(layers[0], cells, layers[0].name));
  return element("div", { class: "pag-cells pag-many" }, element("span", { class: "pag-label" }, block),
    ...layers.map((layer) => cell(layer, cells, last(layer.name))));
}

const last = (name) => name.split(".").at(-1);

function cell(layer, cells, text) {
  const facts = [
    t("{layer}: {heads} heads", { layer: layer.name, heads: layer.heads }),
    layer.aliases?.length ? t("also {names}", { names: layer.aliases.join(", ") }) : null,
    t("alone, the extra pass runs {percent} % of the network", { percent: Math.round(100 * layer.share) }),
    t("double click: single heads"),
  ];
  return cells.add(layer.name, text, { title: facts.filter(Boolean).join("\n") });
}
