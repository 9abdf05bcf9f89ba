"""Every example workflow loads in the editor; those on the shipped model run and give a picture."""

import io
from pathlib import Path

import pytest
from harness import workflow
from PIL import Image

FILES = sorted((Path(__file__).resolve().parents[2] / "workflows").glob("*.json"))
examples = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


@examples
def test_example_is_valid(path, object_info):
    prompt = workflow.load(path, object_info)
    lacking = workflow.missing_files(prompt, object_info)  # a user's own checkpoints
    problems = [problem for problem in workflow.problems(prompt, object_info)
                if not any(repr(name) in problem for name in lacking)]
    assert not problems


@examples
def test_example_has_its_picture(path):
    with Image.open(path.with_suffix(".jpg")) as picture:
        assert min(picture.size) >= 64


@examples
def test_example_runs(path, client, object_info):
    prompt = workflow.load(path, object_info)
    lacking = workflow.missing_files(prompt, object_info)
    if lacking:
        pytest.skip(f"needs {', '.join(lacking)}")
    for node in prompt.values():
        node["inputs"] |= {name: 2 for name in ("steps", "batch_size") if name in node["inputs"]}
    images = client.run(prompt, timeout=120).images
    assert images
    for entry in images:
        with Image.open(io.BytesIO(client.image(entry))) as picture:
            darkest, brightest = picture.convert("L").getextrema()
            assert darkest < brightest
