/** PAG Options' presets: choosing one fills in the other inputs; changing any of them returns to "custom". */

import { app } from "../../scripts/app.js";
import { ask } from "./server.js";
import { t } from "./texts.js";
import { undoable, write } from "./values.js";
import { chain } from "./watch.js";

const CUSTOM = "custom";
let presets = null; // {name: {input: value}}, there before anyone chooses, so that choosing is one step of undo

/** The error, where there is no answer. */
async function load() {
  const answer = await ask("presets", {});
  presets = answer.presets ?? null;
  return answer.error;
}

app.registerExtension({
  name: "pag.presets",

  setup() {
    load();
  },

  nodeCreated(node) {
    if (node.comfyClass !== "PAGOptions") return;
    const preset = node.widgets?.find((widget) => widget.name === "preset");
    if (!preset) return;
    const others = node.widgets.filter((widget) => widget !== preset);
    let isFilling = false;

    function fill() {
      const values = presets?.[preset.value] ?? {};
      isFilling = true;
      try {
        undoable(() => {
          for (const widget of others) {
            const value = values[widget.name];
            if (value !== undefined && widget.value !== value) write({ widget, node }, value);
          }
        });
      } finally {
        isFilling = false;
      }
    }

    function refuse(error) {
      preset.value = CUSTOM;
      app.extensionManager.toast.add({ severity: "error", summary: t("Presets"), detail: error, life: 8000 });
    }

    // Widgets call back when a hand changes them, not while a workflow is loaded.
    chain(preset, "callback", async () => {
      if (preset.value === CUSTOM) return;
      const error = presets ? null : await load();
      if (presets) fill();
      else refuse(error);
    });
    for (const widget of others) {
      chain(widget, "callback", () => {
        if (!isFilling) preset.value = CUSTOM;
      });
    }
  },
});
