/** PAG Options' presets: choosing one fills the other inputs, and changing one of these returns to "custom". */

import { app } from "../../scripts/app.js";
import { undoable, write } from "./values.js";
import { ask } from "./server.js";

const CUSTOM = "custom";

app.registerExtension({
  name: "pag.presets",

  nodeCreated(node) {
    if (node.comfyClass !== "PAGOptions") return;
    const preset = node.widgets?.find((widget) => widget.name === "preset");
    if (!preset) return;
    let filling = false;

    /** Widgets call back when a hand changes them, not while a workflow is loaded. */
    function afterChange(widget, then) {
      const before = widget.callback;
      widget.callback = function (...given) {
        const result = before?.apply(this, given);
        then();
        return result;
      };
    }

    afterChange(preset, async () => {
      const chosen = preset.value;
      if (filling || chosen === CUSTOM) return;
      const { presets } = await ask("presets", {});
      const values = presets?.[chosen];
      if (!values || preset.value !== chosen) return;
      filling = true;
      try {
        undoable(() => {
          for (const widget of node.widgets) {
            if (widget.name in values && widget.value !== values[widget.name]) write({ widget, node }, values[widget.name]);
          }
        });
      } finally {
        filling = false;
      }
    });
    for (const widget of node.widgets) {
      if (widget === preset) continue;
      afterChange(widget, () => {
        if (!filling && preset.value !== CUSTOM) preset.value = CUSTOM;
      });
    }
  },
});
