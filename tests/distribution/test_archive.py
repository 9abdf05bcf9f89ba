"""The registry's archive: it validates, holds what belongs in it, and works unpacked into a ComfyUI."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from harness import workflow
from harness.server import PACK_NAME, Server

from .conftest import git

DEVELOPERS_ONLY = {".ci", ".github", "tests", "tools", "noxfile.py", "CONTRIBUTING.md", ".gitignore", ".comfyignore",
                   ".pre-commit-config.yaml"}
README_ONLY = ("web/docs/images/evaluation/", "web/docs/images/demo.jpg")
LARGEST = 18e6  # bytes


@pytest.fixture(scope="module")
def archive(repository, tool) -> Path:
    tool("comfy", "--skip-prompt", "node", "pack", cwd=repository)
    return repository / "node.zip"


def test_the_registry_would_take_it(repository, tool):
    printed = tool("comfy", "--skip-prompt", "node", "validate", cwd=repository)
    assert "All validation checks passed" in printed
    assert "Warning" not in printed


def test_it_holds_what_users_need_and_no_more(archive, repository):
    with zipfile.ZipFile(archive) as packed:
        names = set(packed.namelist())
    assert {name.partition("/")[0] for name in names}.isdisjoint(DEVELOPERS_ONLY)
    tracked = git("ls-files", cwd=repository).splitlines()
    assert names == {name for name in tracked
                     if name.partition("/")[0] not in DEVELOPERS_ONLY and not name.startswith(README_ONLY)}
    with zipfile.ZipFile(archive) as packed:
        # Some __init__.py are empty, and the English help stands in for other languages under a second name.
        contents = [packed.read(name) for name in names
                    if not name.endswith(".py") and Path(name).parent != Path("web/docs")]
    assert len(set(contents)) == len(contents), "a file is packed twice"
    assert "models/adm-emoji-64.safetensors" in names
    assert archive.stat().st_size < LARGEST


def test_unpacked_it_runs_the_examples(archive, comfyui, tmp_path):
    pack = tmp_path / "unpacked"
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(pack)
    base = tmp_path / "base"
    base.mkdir()
    with Server(comfyui, base, log=base / "server.log", pack=pack) as server:
        info = server.client.object_info()
        prompt = workflow.load(pack / "workflows" / "Example model with CFG and PAG.json", info)
        images = server.client.run(workflow.set_inputs(prompt, "PAGKSampler", steps=2)).images
    assert images
    assert (base / "custom_nodes" / PACK_NAME).resolve() == pack.resolve()
