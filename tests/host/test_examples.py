"""The examples on published models: from loader to picture on small random ones, and as their generator makes them."""

from __future__ import annotations

from pathlib import Path

import folder_paths
import pytest
from examples.build import build, template_files
from examples.catalogue import EXAMPLES
from examples.graph import PREVIEW, PREVIEWS
from PIL import Image

from . import examples
from .older import newest_only

NAMES = [example.name for example in EXAMPLES]
BOTH = ("SD 1.5 ControlNet with an empty prompt", "SD 2 inpainting with an empty prompt",
        "SD x4 upscaler with an empty prompt")
OFF = dict.fromkeys(("scale", "pag_scale", "video_pag", "audio_pag"), 0.0)
TITLE = 30  # pixels, of a node
GROW = PREVIEWS | {"PAGInspect", "PAGGrid", "PAGSDSOptimizer"}


@pytest.fixture(autouse=True)
def example_picture():
    folder = Path(folder_paths.get_input_directory())
    folder.mkdir(exist_ok=True)
    Image.linear_gradient("L").convert("RGB").save(folder / "example.png")


@pytest.mark.parametrize("name", BOTH)
def test_runs_and_pag_changes_its_picture(name):
    plain, guided = examples.run(name)
    assert plain.shape == guided.shape
    assert plain.isfinite().all()
    assert (plain - guided).abs().max() > 1e-2


@pytest.mark.parametrize("name", [name for name in examples.STAGES if name not in BOTH])
def test_runs_from_loader_to_picture_and_its_scale_is_what_changes_it(name):
    pictures, plain = examples.run(name), examples.run(name, **OFF)
    assert pictures
    for picture in (*pictures, *plain):
        assert picture.ndim == 4
        assert picture.shape[-1] == 3
        assert picture.isfinite().all()
    assert (pictures[-1] - plain[-1]).abs().max() > 1e-4  # a random VAE hardly shows it; without PAG it would be 0


@newest_only
def test_the_files_are_what_the_generator_makes():
    files = template_files()
    for example in EXAMPLES:
        assert examples.content(example.name) == build(example, examples.known(), files), (
            f"{example.name} is not as tools/examples makes it: run python -m examples")


@newest_only
@pytest.mark.parametrize("name", NAMES)
def test_every_file_has_the_link_of_the_hosts_template(name):
    content = examples.content(name)
    linked = {model["name"] for node in content["nodes"] for model in node["properties"].get("models", [])}
    named = {value for node in content["nodes"] if "Note" not in node["type"] for value in node["widgets_values"]
             if isinstance(value, str) and value.endswith(".safetensors")}
    assert named
    assert named == linked


@pytest.mark.parametrize("name", sorted(path.stem for path in examples.WORKFLOWS.glob("*.json")))
def test_nodes_keep_clear_of_each_other_and_inside_their_groups_with_previews_on_too(name):
    """A sampler grows by its live preview, and keeps that size."""
    content = examples.content(name)
    boxes = {node["id"]: (*node["pos"], node["size"][0], node["size"][1] + PREVIEW * (node["type"] in GROW))
             for node in content["nodes"]}
    for number, (x, y, width, height) in boxes.items():
        for other, (left, top, across, down) in boxes.items():
            if other > number:
                assert (x + width <= left or left + across <= x or y + height <= top - TITLE
                        or top + down <= y - TITLE), f"nodes {number} and {other} overlap"
        for left, top, across, down in (group["bounding"] for group in content["groups"]):
            if left <= x < left + across and top <= y < top + down:
                assert x + width <= left + across, f"node {number} is wider than its group"
                assert y + height <= top + down, f"node {number} leaves its group"
