"""Every example workflow loads in the editor; those on the shipped model run and give a picture."""

import io
import json
from pathlib import Path

import pytest
from harness import workflow
from harness.errors import HarnessError
from harness.host import NEWEST
from PIL import Image

FILES = sorted((Path(__file__).resolve().parents[2] / "workflows").glob("*.json"))
examples = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


@pytest.fixture(scope="session")
def older(server) -> str | None:
    """The version of a ComfyUI that is older than the examples' models; None for the newest that the tests know."""
    version = json.loads(server.client.get("/system_stats"))["system"]["comfyui_version"]
    numbers = [[int(number) for number in name.split(".")[:3]] for name in (version, NEWEST)]
    return version if numbers[0] < numbers[1] else None


def load(path: Path, object_info: dict, older: str | None) -> workflow.Prompt:
    try:
        return workflow.load(path, object_info)
    except HarnessError as error:
        if older:
            pytest.skip(f"not in ComfyUI {older} yet: {error}")
        raise


@examples
def test_example_is_valid(path, object_info, older):
    prompt = load(path, object_info, older)
    lacking = workflow.missing_files(prompt, object_info)  # a user's own checkpoints
    problems = [problem for problem in workflow.problems(prompt, object_info)
                if not any(repr(name) in problem for name in lacking)]
    if problems and older and lacking:
        pytest.skip(f"not in ComfyUI {older} yet: {problems}")
    assert not problems


@examples
def test_example_has_its_picture(path):
    with Image.open(path.with_suffix(".jpg")) as picture:
        assert min(picture.size) >= 64


@examples
def test_example_runs(path, client, object_info, older):
    prompt = load(path, object_info, older)
    lacking = workflow.missing_files(prompt, object_info)
    if lacking:
        pytest.skip(f"needs {', '.join(lacking)}")
    quick = {"steps": 2, "batch_size": 2, "width": 32, "height": 32}
    for node in prompt.values():
        node["inputs"] |= {name: value for name, value in quick.items() if name in node["inputs"]}
    images = client.run(prompt, timeout=120).images
    assert images
    for entry in images:
        with Image.open(io.BytesIO(client.image(entry))) as picture:
            darkest, brightest = picture.convert("L").getextrema()
            assert darkest < brightest
