/** The bottom of the panel: messages and results of the node's latest run. */

import { api } from "../../scripts/api.js";
import { element, refill } from "./dom.js";
import { message } from "./message.js";
import { noteHeight, saidBy } from "./said.js";
import { t, translated } from "./texts.js";

const SMALL = 160; // pixels; below, each is shown as a square

export class Result {
  constructor(panel) {
    this.panel = panel;
    this.element = element("div", { class: "pag-result" });
  }

  update() {
    const { node } = this.panel;
    const { without, ...said } = saidBy(node);
    const above = this.panel.open?.error; // what the open view says already
    said.messages = said.messages.map((one) => ({ ...one, text: translated(one.text) }))
      .filter(({ text }) => text !== above);
    const now = JSON.stringify(said);
    if (now === this.asked) return;
    // What was there when the node came from a workflow is part of the height that was saved with it, unless the
    // editor had kept the workflow as it was before the run.
    const isSaved = this.asked === undefined && Math.abs(node.size[1] - without) > 1;
    this.without ??= without;
    this.asked = now;
    this.show(said, (fill) => (isSaved ? fill() : this.grow(fill)));
  }

  /** Uses free space below first, if the editor does not need it; an emptied node returns to its former height. */
  grow(fill) {
    const { node } = this.panel;
    if (!this.element.childElementCount) this.without = node.size[1];
    const room = node.hideOutputImages ? Math.max(0, this.panel.room) : 0;
    this.panel.resize(fill, (height, more) => (
      more > 0 ? height + Math.max(0, more - room) : Math.max(height + more, Math.min(height, this.without ?? 0))));
    noteHeight(node, this.without);
  }

  /** Shows the result once its images have loaded, so that the node changes its height only once. */
  async show(said, how) {
    const asked = this.asked;
    const pictures = await Promise.all(said.preview ? [picture(said.preview, t("live preview"))] : this.sheets(said));
    if (asked !== this.asked) return; // something newer is on its way
    const found = pictures.filter(Boolean);
    how(() => refill(
      this.element,
      ...said.messages.map(({ kind, text }) => message(kind, text)),
      said.text ? list(said.text) : null,
      found.length ? element("div", { class: "pag-sheets" }, ...(said.preview ? found : found.map((image) => (
        element("a", { href: image.src, target: "_blank", class: "pag-sheet" }, image))))) : null));
    // The editor's own menu opens, saves and copies what stands here.
    const { node } = this.panel;
    if (node.hideOutputImages) [node.imgs, node.imageIndex] = found.length ? [found, 0] : [undefined, null];
  }

  sheets({ images = [] }) {
    return images.map((image) => picture(api.apiURL(`/view?${new URLSearchParams(image)}`), t("result")));
  }
}

/** Text in columns; the sentences above it, before an empty line, are wrapped. */
function list(text) {
  const end = Math.max(0, text.indexOf("\n\n"));
  return element("pre", { class: "pag-list", tabindex: 0, "data-capture-wheel": true },
    end ? element("span", { class: "pag-about" }, text.slice(0, end)) : null, text.slice(end && end + 1));
}

/** A loaded image; null if the server has deleted it. */
async function picture(address, alt) {
  const image = element("img", { src: address, alt, draggable: false });
  try {
    await image.decode();
  } catch {
    return null;
  }
  if (image.naturalWidth < SMALL) image.classList.add("pag-small");
  return image;
}
