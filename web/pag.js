/** The PAG nodes in the editor: a layer picker on each `layers` input, a plot of the schedule. Without it they work. */

import { app } from "../../scripts/app.js";
import { loadStyle } from "./dom.js";
import { Panel } from "./panel.js";
import { Picker } from "./picker.js";
import { Plot } from "./plot.js";
import { forgetModels } from "./server.js";
import { loadTexts } from "./texts.js";

const MODULE = `custom_nodes.${decodeURIComponent(import.meta.url.split("/").at(-2))}`; // the folder of this pack
const LOOK_AGAIN = 150; // milliseconds
const panels = new Set();

/** Which views fit: our nodes are known by their pack (the editor translates categories), what they have by inputs. */
function views(node) {
  const has = (name) => node.widgets?.some((widget) => widget.name === name);
  if (node.constructor.nodeData?.python_module !== MODULE) return [];
  const scheduled = ["scale", "pag_scale", "start_percent"].some(has);
  return [has("layers") && Picker, scheduled && Plot].filter(Boolean);
}

app.registerExtension({
  name: "pag.editor",

  init: loadTexts, // before the first node is made

  setup() {
    loadStyle("pag.css");
    // The host has no one event for all the ways in which a value can change: by hand, by a link or a loader far
    // upstream, through a subgraph's promoted widget, by undo, by another extension. A look costs microseconds.
    setInterval(() => panels.forEach((panel) => panel.look()), LOOK_AGAIN);
  },

  nodeCreated(node) {
    const fitting = views(node);
    if (!fitting.length) return;
    const panel = new Panel(node, fitting);
    panels.add(panel);
    chain(node, "onAdded", () => panels.add(panel));
    chain(node, "onRemoved", () => panels.delete(panel));
    chain(node, "onConfigure", () => panel.restore());
  },

  refreshComboInNodes() {
    forgetModels();
    panels.forEach((panel) => panel.forget());
  },
});

function chain(node, name, then) {
  const before = node[name];
  node[name] = function (...given) {
    const result = before?.apply(this, given);
    then();
    return result;
  };
}
