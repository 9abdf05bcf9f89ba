/** A message with an icon: an error, a warning or a remark. */

import { element, svg } from "./dom.js";

const ICONS = {
  error: "M8 1.5a6.5 6.5 0 1 0 0 13a6.5 6.5 0 0 0 0-13ZM7.2 4.5h1.6v4.6H7.2ZM7.2 10.2h1.6v1.6H7.2Z",
  warning: "M8 1.3 15.2 14.2H.8ZM7.2 5.6h1.6v4.2H7.2ZM7.2 10.7h1.6v1.6H7.2Z",
  info: "M8 1.5a6.5 6.5 0 1 0 0 13a6.5 6.5 0 0 0 0-13ZM7.2 4.3h1.6v1.6H7.2ZM7.2 7h1.6v4.6H7.2Z",
};

/** The element of a message; null without text. */
export function message(kind, text) {
  if (!text) return null;
  return element("div", { class: `pag-note pag-${kind}`, role: kind === "error" ? "alert" : "status" },
    svg("svg", { viewBox: "0 0 16 16", class: "pag-icon", "aria-hidden": true },
      svg("path", { d: ICONS[kind], "fill-rule": "evenodd" })),
    element("span", { class: "pag-words" }, text));
}
