/** A group of toggle buttons: one tab stop, arrow keys move, Space toggles, with Shift a range. */

import { element } from "./dom.js";

/**
 * toggle(names, on)    these cells are to be on or off
 * open(name, clicked)  optional: double click, whose first half has toggled the cell, or Enter
 * isOn(name)           whether a cell is on, before the toggle
 */
export class Cells {
  constructor({ toggle, open, isOn }) {
    Object.assign(this, { toggle, open, isOn });
    this.buttons = new Map(); // name -> button, in the order in which a range runs
    this.anchor = null; // where a range begins
  }

  /** A button for a cell. Clear the map before adding new cells. */
  add(name, text, attributes) {
    const button = element("button", {
      type: "button", class: "pag-cell", "data-cell": name, "aria-pressed": false,
      tabindex: this.buttons.size ? -1 : 0, ...attributes,
      onclick: (event) => this.click(name, event),
      ondblclick: () => this.open?.(name, true),
      onkeydown: (event) => this.key(name, event),
      onfocus: () => this.makeTabStop(button),
    }, text);
    this.buttons.set(name, button);
    return button;
  }

  click(name, event) {
    if (this.open && event.detail > 1) return; // the second half of a double click
    const on = event.shiftKey && this.anchor !== null ? this.isOn(this.anchor) : !this.isOn(name);
    const names = event.shiftKey && this.anchor !== null ? this.between(this.anchor, name) : [name];
    if (!event.shiftKey) this.anchor = name;
    this.toggle(names, on);
  }

  between(first, last) {
    const names = [...this.buttons.keys()];
    const ends = [names.indexOf(first), names.indexOf(last)].sort((a, b) => a - b);
    return names.slice(ends[0], ends[1] + 1);
  }

  key(name, event) {
    if (event.key === "Enter" && this.open) {
      event.preventDefault(); // no click
      this.open(name, false);
    } else if (event.key.startsWith("Arrow") || event.key === "Home" || event.key === "End") {
      event.preventDefault();
      this.neighbour(this.buttons.get(name), event.key)?.focus();
    }
  }

  /** The visually nearest button in that direction; distance along it counts less than distance across. */
  neighbour(from, key) {
    const all = [...this.buttons.values()];
    if (key === "Home") return all[0];
    if (key === "End") return all.at(-1);
    const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key];
    const centre = (button) => {
      const box = button.getBoundingClientRect();
      return [box.x + box.width / 2, box.y + box.height / 2];
    };
    const [x, y] = centre(from);
    let best = null;
    let least = Infinity;
    for (const button of all) {
      const [bx, by] = centre(button);
      const ahead = (bx - x) * dx + (by - y) * dy;
      const astray = Math.abs((bx - x) * dy) + Math.abs((by - y) * dx);
      if (ahead > 1 && ahead + 3 * astray < least) [best, least] = [button, ahead + 3 * astray];
    }
    return best;
  }

  makeTabStop(chosen) {
    for (const button of this.buttons.values()) button.tabIndex = button === chosen ? 0 : -1;
  }
}
