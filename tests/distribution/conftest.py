"""What users install: the registry's archive, and a clone made by ComfyUI-Manager. Run by nox -s package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = Path(sys.executable).parent  # comfy-cli and ComfyUI-Manager are in the dependency group `package`


@pytest.fixture(scope="session")
def tool() -> Callable[..., str]:
    """(name, arguments, cwd, variables) -> what the tool printed; AssertionError when it fails."""
    def call(name: str, *arguments: str, cwd: Path, **variables: str) -> str:
        done = subprocess.run([TOOLS / name, *arguments], cwd=cwd, text=True, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              env={**os.environ, "DO_NOT_TRACK": "1", "COLUMNS": "200", **variables})
        assert done.returncode == 0, done.stdout
        return done.stdout
    if not (TOOLS / "comfy").exists():
        pytest.skip("needs comfy-cli and ComfyUI-Manager: use nox -s package")
    return call


def git(*arguments: str, cwd: Path) -> str:
    return subprocess.run(["git", "-c", "user.name=test", "-c", "user.email=test@localhost", *arguments], cwd=cwd,
                          check=True, text=True, capture_output=True).stdout


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository of this pack as it is now, with changes that are not committed yet."""
    folder = tmp_path_factory.mktemp("origin") / "perturbed-attention-guidance"
    files = git("ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
    for name in files:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    git("init", "--quiet", cwd=folder)
    git("add", "--all", cwd=folder)
    git("commit", "--quiet", "--message", "as it is", cwd=folder)
    return folder
