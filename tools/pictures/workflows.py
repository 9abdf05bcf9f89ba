"""Draws the pictures of the example workflows and the help pages: python -m pictures.workflows [name ...]

A workflow that needs only the shipped model is run, and its picture shows the results without and with PAG. Workflows
for other weights get a diagram. Environment as for the demo: COMFYUI_PATH, and tools/ on PYTHONPATH.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path

from examples.catalogue import EXAMPLES
from harness import workflow
from harness.client import Client
from harness.errors import HarnessError, command
from harness.host import CACHE, ROOT
from harness.server import Server
from PIL import Image

from . import card as cards
from . import comparison as picture

WORKFLOWS = ROOT / "workflows"
HELP_IMAGES = ROOT / "web" / "docs" / "images"
HELP_WORKFLOW = "Example model without a label"
HELP_PICTURES = 5  # a row
HELP = {  # name of the picture: {row: the PAG KSampler's inputs}
    "scale": {f"scale {scale}": {"pag_scale": scale} for scale in (0, 1, 2, 4, 8)},
    "layers": {"scale 0": {"pag_scale": 0}} | {
        layers: {"layers": layers} for layers in ("m0", "u1", "d0-1", "u2-3", "all")},
}
HELP_SHEETS = {  # workflow: help picture
    "Example model in PAG Inspect": "inspect", "Example model in PAG Grid": "grid",
    "Example model in PAG Head Search": "head_search"}
SHEET = 500  # pixels; wider than any picture of the shipped model in the examples
SHEET_SHOWN = 1100  # pixels
THUMBNAIL = 800  # pixels
QUALITY = 88
SCALE_AND_LAYERS = {"PAGKSampler": (4, 5), "PAGAVGuider": (1, -1), "PAGModelPatch": (0, 1)}  # where their values stand
# {workflow on a published model: (the model, what it does with it, the layers that it perturbs, of so many)}
CARDS = {example.name: (example.model, example.name.removeprefix(example.model).strip(), example.layers, example.blocks)
         for example in EXAMPLES} | {
    "SD 1.5 with PAG KSampler": ("SD 1.5", "text to image with CFG and PAG", (6,), 16),
    "SD 1.5 with PAG Model Patch": ("SD 1.5", "PAG under the KSampler that you know", (6,), 16),
    "SD 1.5 ControlNet with an empty prompt": ("SD 1.5", "a ControlNet and no prompt", (6,), 16),
    "SD 2 inpainting with an empty prompt": ("SD 2", "a hole filled without a prompt", (7,), 16),
    "SD x4 upscaler with an empty prompt": ("SD x4 upscaler", "four times larger without a prompt", (5,), 6),
    "SDXL with PAG KSampler": ("SDXL", "text to image with CFG and PAG", (4,), 11),
}


def main(names: list[str]) -> None:
    paths = [WORKFLOWS / f"{name}.json" for name in names if name not in HELP] if names else sorted(
        WORKFLOWS.glob("*.json"))
    for path in paths:
        if not path.is_file():
            raise HarnessError(f"No workflow named {path.stem} in {WORKFLOWS}.")
    drawn = [path for path in paths if foreign_weights(path)]
    for path in drawn:
        save(card(path), path)
    if drawn and set(paths) == set(drawn) and names:
        return
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pictures-", dir=CACHE) as folder:
        base = Path(folder)
        with Server(Path(os.environ["COMFYUI_PATH"]), base, None, base / "server.log") as server:
            for path in paths:
                if path not in drawn:
                    image = results(server.client, path)
                    save(image, path)
                    if path.stem in HELP_SHEETS:
                        image.save(HELP_IMAGES / f"{HELP_SHEETS[path.stem]}.jpg", quality=QUALITY)
            for name in HELP.keys() & names if names else HELP:
                help_picture(server.client, HELP[name]).save(HELP_IMAGES / f"{name}.jpg", quality=QUALITY)
                print((HELP_IMAGES / f"{name}.jpg").relative_to(ROOT))


def save(image: Image.Image, path: Path) -> None:
    """Beside the workflow, at the size that the editor's list of templates has room for."""
    image = image.copy()
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    image.save(path.with_suffix(".jpg"), quality=QUALITY, optimize=True)
    print(path.with_suffix(".jpg").relative_to(ROOT))


def foreign_weights(path: Path) -> set[str]:
    """Files that the workflow says where to download; those it can't run without."""
    return {model["name"] for node in read(path)["nodes"] for model in node.get("properties", {}).get("models", [])}


def results(client: Client, path: Path) -> Image.Image:
    """What the workflow makes, under its title: its first labelled sheet, or a row for each node that saves images; a
    single row gets one without PAG above it."""
    titles = {str(node["id"]): node.get("title", node["type"]) for node in read(path)["nodes"]}
    prompt = workflow.load(path, client.object_info())
    rows, about = saved(client, prompt, titles), "What this workflow makes."
    sheets = [image for row in rows for image in row.images if image.width > SHEET]
    if sheets:
        sheet = sheets[0].convert("RGB")
        sheet.thumbnail((SHEET_SHOWN, SHEET_SHOWN), Image.Resampling.LANCZOS)
        return sheet
    guided = {node["class_type"] for node in prompt.values() if "pag_scale" in node["inputs"]}
    if len(rows) == 1 and guided:
        for kind in guided:
            prompt = workflow.set_inputs(prompt, kind, pag_scale=0)
        (before,), (after,) = saved(client, prompt, titles), rows
        about = "Each column starts from the same noise."
        rows = [replace(before, name="Without PAG"), replace(after, name="With PAG")]
    return picture.comparison(path.stem, about, [picture.Block("", rows)])


def saved(client: Client, prompt: dict, titles: dict[str, str]) -> list[picture.Row]:
    """A row for each node that saves images."""
    outputs = client.run(prompt).outputs
    return [picture.Row(titles[node_id], "", fetch(client, images))
            for node_id, shown in sorted(outputs.items(), key=lambda item: int(item[0]))
            if (images := shown.get("images"))]


def help_picture(client: Client, rows: dict[str, dict]) -> Image.Image:
    """One row for each set of inputs, with the same noise."""
    prompt = workflow.load(WORKFLOWS / f"{HELP_WORKFLOW}.json", client.object_info())
    prompt = workflow.only_branch_of(prompt, "PAGKSampler")
    prompt = workflow.set_inputs(prompt, "EmptyLatentImage", batch_size=HELP_PICTURES)
    return picture.comparison("PAG alone, on the shipped model", "The same noise in each column.", [picture.Block("", [
        picture.Row(name, "", fetch(client, client.run(workflow.set_inputs(prompt, "PAGKSampler", **values)).images))
        for name, values in rows.items()])])


def fetch(client: Client, entries: list[dict]) -> list[Image.Image]:
    return [Image.open(io.BytesIO(client.image(entry))) for entry in entries]


def card(path: Path) -> Image.Image:
    """A drawing for a workflow whose model is not at hand."""
    model, title, layers, blocks = CARDS[path.stem]
    nodes = read(path)["nodes"]
    kinds = {node["type"] for node in nodes}
    values = {node["type"]: node["widgets_values"] for node in nodes}  # of the last of a kind, which has PAG on
    kind = next(kind for kind in SCALE_AND_LAYERS if kind in kinds)
    scale, selection = (values[kind][index] for index in SCALE_AND_LAYERS[kind])
    sampler = {"PAGKSampler": ("PAG KSampler",), "PAGAVGuider": ("PAG AV Guider",)}.get(kind) or (
        "PAG Model Patch", "Guider" if "SamplerCustomAdvanced" in kinds else "KSampler")
    chain = ("Model", *sampler, "Video" if "SaveVideo" in kinds else "Picture")
    return cards.draw(cards.Card(model, title, chain, layers, blocks,
                                 f"layers {selection}, scale {scale:g}; {blocks} blocks in all"))


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    command(main)
