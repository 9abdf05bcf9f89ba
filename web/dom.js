/** Helpers that create elements. */

/** An HTML element: element("button", { class: "x", "aria-pressed": true, onclick: f }, "text", child, ...). */
export function element(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same in SVG. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value);
  }
  put(made, ...children);
  return made;
}

/** Adds children; null is skipped. */
function put(parent, ...children) {
  parent.append(...children.filter((child) => child !== null && child !== undefined));
}

/** Replaces the children. */
export function refill(parent, ...children) {
  parent.replaceChildren();
  put(parent, ...children);
}

/** Loads a stylesheet from this folder. */
export function loadStyle(file) {
  document.head.append(element("link", { rel: "stylesheet", href: new URL(file, import.meta.url).href }));
}
