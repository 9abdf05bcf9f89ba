"""The pictures beside the example workflows and in the help pages: python -m pictures.workflows [name ...]

A workflow that needs only the shipped model is run, and its picture shows what it made. One that names other weights is
opened in the real editor, and its picture shows the graph: that takes Playwright (pip install playwright) and a
Chromium on the path. Environment as for the demo: COMFYUI_PATH, and tests/ on PYTHONPATH.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
from pathlib import Path

from harness import workflow
from harness.client import Client
from harness.editor import BARE, Editor, launch
from harness.errors import HarnessError, command
from harness.host import CACHE, ROOT
from harness.server import Server
from PIL import Image

from . import comparison as picture

WORKFLOWS = ROOT / "workflows"
HELP_IMAGES = ROOT / "web" / "docs" / "images"
HELP_WORKFLOW = "adm_unconditional_pag"
HELP = {  # name of the picture: {row: the PAG KSampler's inputs}
    "scale": {f"scale {scale}": {"pag_scale": scale} for scale in (0, 1, 3, 6, 12)},
    "layers": {"scale 0": {"pag_scale": 0}} | {
        layers: {"layers": layers} for layers in ("m0", "d2-3", "d2-3,m0,u0-2", "u2-5", "all")},
}
HELP_SHEETS = {"adm_inspect_steps": "inspect", "adm_compare_scales_and_layers": "grid"}  # workflow: help picture
WIDTH = 1500  # pixels, of a picture of a graph
MARGIN = 20
SHEET = 500  # pixels; wider than any picture of the shipped model in the examples
SHEET_SHOWN = 1100  # pixels
QUALITY = 88
# The beginning of a checkpoint's name, and the model that the layer picker shows for it.
FAMILIES = {"v1-5": "SD 1.5", "sd_xl": "SDXL", "flux": "Flux"}


def main(names: list[str]) -> None:
    paths = [WORKFLOWS / f"{name}.json" for name in names if name not in HELP] if names else sorted(
        WORKFLOWS.glob("*.json"))
    for path in paths:
        if not path.is_file():
            raise HarnessError(f"There is no workflow {path.stem} in {WORKFLOWS}.")
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pictures-", dir=CACHE) as folder:
        base = Path(folder)
        stand_ins = make_stand_ins(base, set().union(*map(foreign_weights, paths)))
        arguments = ("--extra-model-paths-config", str(stand_ins))
        with Server(Path(os.environ["COMFYUI_PATH"]), base, None, base / "server.log", arguments=arguments) as server:
            for path in paths:
                image = graph(server, path) if foreign_weights(path) else results(server.client, path)
                image.save(path.with_suffix(".jpg"), quality=QUALITY)
                if path.stem in HELP_SHEETS:
                    image.save(HELP_IMAGES / f"{HELP_SHEETS[path.stem]}.jpg", quality=QUALITY)
                print(path.with_suffix(".jpg").relative_to(ROOT))
            for name in HELP.keys() & names if names else HELP:
                help_picture(server.client, HELP[name]).save(HELP_IMAGES / f"{name}.jpg", quality=QUALITY)
                print((HELP_IMAGES / f"{name}.jpg").relative_to(ROOT))


def foreign_weights(path: Path) -> set[str]:
    """Files that the workflow says where to download; those it can't run without."""
    return {model["name"] for node in read(path)["nodes"] for model in node.get("properties", {}).get("models", [])}


def make_stand_ins(base: Path, names: set[str]) -> Path:
    """Empty files of these names, so that the editor shows a graph as it looks where they are installed."""
    folder = base / "stand-ins"
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    config = base / "stand-ins.yaml"
    folders = {kind: str(folder) for kind in ("checkpoints", "controlnet")}
    config.write_text(json.dumps({"stand_ins": folders}), encoding="utf-8")
    return config


def results(client: Client, path: Path) -> Image.Image:
    """What the workflow makes: its first labelled sheet, or a row for each node that saves images, under its title."""
    titles = {str(node["id"]): node.get("title", node["type"]) for node in read(path)["nodes"]}
    outputs = client.run(workflow.load(path, client.object_info())).outputs
    rows = [picture.Row(titles[node_id], "", fetch(client, images))
            for node_id, shown in sorted(outputs.items(), key=lambda item: int(item[0]))
            if (images := shown.get("images"))]
    sheets = [image for row in rows for image in row.images if image.width > SHEET]
    if sheets:
        sheet = sheets[0].convert("RGB")
        sheet.thumbnail((SHEET_SHOWN, SHEET_SHOWN), Image.Resampling.LANCZOS)
        return sheet
    title = path.stem.replace("_", " ")
    for word in ("adm", "cfg", "dps", "pag", "sds"):
        title = title.replace(word, word.upper())
    return picture.comparison(title[0].upper() + title[1:], "What this workflow makes.", [picture.Block("", rows)])


def help_picture(client: Client, rows: dict[str, dict]) -> Image.Image:
    """One row for each set of inputs, with the same noise."""
    prompt = workflow.load(WORKFLOWS / f"{HELP_WORKFLOW}.json", client.object_info())
    prompt = workflow.only_branch_of(prompt, "PAGKSampler")
    return picture.comparison("PAG alone, on the shipped model", "The same noise in each column.", [picture.Block("", [
        picture.Row(name, "", fetch(client, client.run(workflow.set_inputs(prompt, "PAGKSampler", **values)).images))
        for name, values in rows.items()])])


def fetch(client: Client, entries: list[dict]) -> list[Image.Image]:
    return [Image.open(io.BytesIO(client.image(entry))) for entry in entries]


def graph(server: Server, path: Path) -> Image.Image:
    """The workflow as the editor shows it, cut to the graph."""
    content = read(path)
    boxes = [group["bounding"] for group in content["groups"]]
    boxes += [(*node["pos"], *node["size"]) for node in content["nodes"]]
    left, top = (min(box[axis] for box in boxes) - MARGIN for axis in (0, 1))
    right, bottom = (max(box[axis] + box[axis + 2] for box in boxes) + MARGIN for axis in (0, 1))
    scale = WIDTH / (right - left)
    with launch() as browser:
        page = browser.new_page(viewport={"width": WIDTH, "height": round((bottom - top) * scale)})
        page.route("**/pag/model", stand_in_model)  # the stand-ins are empty
        editor = Editor(page, server)
        editor.open(BARE)
        editor.load(content)
        page.evaluate("app.extensionManager.command.execute('Workspace.ToggleFocusMode')")
        page.evaluate("app.canvas.show_info = false")
        page.wait_for_timeout(1000)
        editor.show(left, top, scale)
        page.wait_for_timeout(2000)
        return Image.open(io.BytesIO(page.screenshot())).convert("RGB")


def stand_in_model(route) -> None:
    """Answers the layer picker for a checkpoint that is not there."""
    file = route.request.post_data_json.get("loader", {}).get("file", "")
    family = next((family for name, family in FAMILIES.items() if file.startswith(name)), None)
    route.continue_(post_data={"family": family}) if family else route.continue_()


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    command(main)
