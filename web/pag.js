/** The PAG nodes in the editor: a layer picker for each `layers` input, a plot of the schedule, and the messages of a
 * run. The nodes work without it. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { loadStyle } from "./dom.js";
import { everyNode } from "./nodes.js";
import { followPalette } from "./palette.js";
import { Panel } from "./panel.js";
import { Picker } from "./picker.js";
import { Plot } from "./plot.js";
import { catchUp, followRuns } from "./runs.js";
import { listenToRuns } from "./said.js";
import { forgetModels } from "./server.js";
import { followHands, followTabs, shownTab } from "./tabs.js";
import { loadTexts, t } from "./texts.js";
import { chain, changed, listen } from "./watch.js";

const MODULE = `custom_nodes.${decodeURIComponent(import.meta.url.split("/").at(-2))}`; // the folder of this pack
// How the editor's search box ranks a node that it finds: less comes first. Ours are used by too few to have a rank.
const STARTS_WITH = 1;
const SHORTEST = "pag".length;
const WAIT = 100; // milliseconds
const panels = new Set();
let otherModule; // of a second copy of this pack, if the nodes are that one's

/** Which views fit what a node has. */
function views(node) {
  const has = (name) => node.widgets?.some((widget) => widget.name === name);
  const scheduled = ["scale", "pag_scale", "video_pag", "start_percent"].some(has);
  return [has("layers") && Picker, scheduled && Plot].filter(Boolean);
}

app.registerExtension({
  name: "pag.editor",

  init: loadTexts, // before the first node is made

  /** A search for "pag" finds PAG Model Patch first, as if it had the shortest name. */
  addCustomNodeDefs(defs) {
    const patch = defs.PAGModelPatch;
    if (patch?.python_module !== MODULE) {
      otherModule = patch?.python_module;
      return;
    }
    patch.postProcessSearchScores = ([kind, place, length, ...rest]) => (
      [kind, 0, place, kind === STARTS_WITH ? Math.min(length, SHORTEST) : length, ...rest]);
  },

  setup() {
    if (otherModule) tellOfCopy();
    loadStyle("pag.css");
    followPalette();
    followHands();
    followRuns();
    listenToRuns();
    listen(() => {
      if (!shownTab()) return changed(WAIT); // the editor brings back the graph, and then its tab
      followTabs();
      catchUp();
      panels.forEach((panel) => panel.look());
    });
    api.addEventListener("reconnected", () => panels.forEach((panel) => panel.answered()));
  },

  nodeCreated(node) {
    const { nodeData } = node.constructor;
    if (nodeData?.python_module !== MODULE) return; // known by their pack, for the editor translates categories
    const fitting = views(node);
    if (!fitting.length && !nodeData.output_node) return;
    if (nodeData.output_node) showResultsHere(node);
    const panel = new Panel(node, fitting);
    chain(node, "onAdded", () => {
      panels.add(panel);
      panel.added();
    });
    chain(node, "onRemoved", () => remove(panel));
    chain(node, "onConfigure", () => panel.restore());
  },

  afterConfigureGraph() {
    const nodes = new Set(everyNode());
    // Not every version of the editor tells the nodes inside subgraphs that their workflow is gone.
    [...panels].filter(({ node }) => !nodes.has(node)).forEach(remove);
    changed();
  },

  refreshComboInNodes() {
    forgetModels();
    panels.forEach((panel) => panel.forget());
    changed();
  },
});

function tellOfCopy() {
  const [here, there] = [MODULE, otherModule].map((module) => module.split(".").slice(1).join("."));
  app.extensionManager.toast.add({ severity: "warn", summary: "Perturbed-Attention Guidance (PAG)", detail: t(
    "It is installed twice, in custom_nodes/{here} and in custom_nodes/{there}, so its nodes have no layer picker. " +
    "Remove one of the folders and restart ComfyUI.", { here, there }) });
}

function remove(panel) {
  panels.delete(panel);
  panel.removed();
}

/** The panel shows a node's images, so the editor must not: one line for Nodes 2.0, one for the canvas. */
function showResultsHere(node) {
  node.hideOutputImages = true;
  node.onDrawBackground = () => {};
}
