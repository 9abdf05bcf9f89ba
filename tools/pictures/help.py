"""Draws the pictures of the layer picker and the schedule plot in the help pages: python -m pictures.help

Environment as for the demo (COMFYUI_PATH, and tools/ on PYTHONPATH), plus Playwright and a Chromium on PATH.
"""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path

from harness.editor import BARE, VUE, Editor, launch
from harness.errors import command
from harness.host import CACHE, ROOT
from harness.server import Server
from PIL import Image

from .workflows import HELP_IMAGES

QUALITY = 72
GAP = 30
SD15, SDXL, FLUX = "v1-5-pruned-emaonly.safetensors", "sd_xl_base_1.0.safetensors", "flux1-dev.safetensors"
FAMILIES = {SD15: "SD 1.5", SDXL: "SDXL", FLUX: "Flux"}  # what the layer picker shows for files that are not there
ADM = "adm-emoji-64.safetensors"
# {picture: [(node, the checkpoint that feeds it, the view that is open, {input: value})]}
PICTURES = {
    "picker": [("PAGModelPatch", SD15, "layers", {"layers": "m0,u0-2"}),
               ("PAGModelPatch", SDXL, "layers", {"layers": "m0.0-3"}),
               ("PAGModelPatch", FLUX, "layers", {"layers": "single.9-18"})],
    "schedule": [("PAGOptions", SD15, "schedule", {"start_percent": 0.4, "schedule": "cosine_up"}),
                 ("PAGKSampler", SD15, "schedule", {"cfg_end_percent": 0.6})],
    "heads": [("PAGGuider", ADM, "layers", {"layers": "m0:h0+2,u2-3"})],
}
MAKE = """nodes => {
  app.graph.clear();
  let x = 0, before = null;
  return nodes.map(([type, file, view, values]) => {
    const add = (type, x, y) => {
      const made = LiteGraph.createNode(type);
      made.pos = [x, y];
      app.graph.add(made);
      return made;
    };
    const node = add(type, x, 0);
    x += 300 + GAP;
    if (type !== "PAGOptions") {
      const loader = add(file.startsWith("adm") ? "PAGADMLoader" : "CheckpointLoaderSimple", x - 400, -4000);
      loader.widgets[0].value = file;
      loader.connect(0, node, 0);
    }
    for (const [name, value] of Object.entries(values)) node.widgets.find(w => w.name === name).value = value;
    if (before?.type === "PAGOptions") before.connect(0, node, node.inputs.findIndex(i => i.name === "options"));
    before = node;
    return [node.id, view];
  });
}""".replace("GAP", str(GAP))


def main(names: list[str]) -> None:
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pictures-", dir=CACHE) as folder:
        base = Path(folder)
        with Server(Path(os.environ["COMFYUI_PATH"]), base, None, base / "server.log") as server, launch() as browser:
            page = browser.new_page(viewport={"width": 1100, "height": 800}, device_scale_factor=1.25)
            page.route("**/pag/model", stand_in_model)
            editor = Editor(page, server)
            editor.open({**BARE, VUE: True, "Comfy.NodeBadge.NodeSourceBadgeMode": "None"})
            page.evaluate("app.extensionManager.command.execute('Workspace.ToggleFocusMode')")
            for name in names or PICTURES:
                path = HELP_IMAGES / f"{name}.jpg"
                shoot(editor, name).save(path, quality=QUALITY, optimize=True)
                print(path.relative_to(ROOT), f"{path.stat().st_size // 1024} KB")


def shoot(editor: Editor, name: str) -> Image.Image:
    page = editor.page
    page.evaluate("app.canvas.show_info = false")
    made = page.evaluate(MAKE, PICTURES[name])
    editor.show(-GAP, -GAP - 30, 1)
    page.wait_for_timeout(1500)
    for node, view in made:
        tab = page.locator(f"[data-node-id='{node}'] .pag-tab", has_text=view.capitalize())
        if tab.get_attribute("aria-expanded") != "true":
            tab.click()
        if view == "layers":
            page.locator(f"[data-node-id='{node}'] .pag-cell").first.wait_for()
    page.wait_for_timeout(1500)
    if name == "heads":
        page.locator(".pag-drawing [data-cell='m0']").focus()
        page.keyboard.press("Enter")
        page.wait_for_timeout(500)
    page.mouse.click(1090, 790)
    page.wait_for_timeout(500)
    boxes = [page.locator(f"[data-node-id='{node}']").bounding_box() for node, _ in made]
    right, bottom = (max(box[axis] + box[size] for box in boxes) for axis, size in (("x", "width"), ("y", "height")))
    left, top = (min(box[axis] for box in boxes) for axis in ("x", "y"))
    clip = {"x": left - 12, "y": top - 12, "width": right - left + 24, "height": bottom - top + 24}
    return Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")


def stand_in_model(route) -> None:
    """Answers the layer picker for a checkpoint that is not there."""
    family = FAMILIES.get(route.request.post_data_json.get("loader", {}).get("file"))
    route.continue_(post_data={"family": family}) if family else route.continue_()


if __name__ == "__main__":
    command(main)
