"""A version of the editor other than the one of this ComfyUI, downloaded once into an ignored folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from .host import ROOT, run, uv

PACKAGE = "comfyui-frontend-package"
FOLDER = ROOT / ".host" / "frontends"
NEWEST = "newest"  # whatever the package index has today


def arguments(version: str | None) -> tuple[str, ...]:
    """The host's options for a version of the editor, "newest" or a folder that holds its index.html; none for None."""
    if not version:
        return ()
    given = Path(version)
    return ("--front-end-root", str(given if (given / "index.html").is_file() else fetched(version)))


def fetched(version: str) -> Path:
    """The folder with the index.html of this version, installed if it is not there yet."""
    target = FOLDER / version
    static = target / "comfyui_frontend_package" / "static"
    if version == NEWEST or not (static / "index.html").is_file():
        shutil.rmtree(target, ignore_errors=True)
        wanted = PACKAGE if version == NEWEST else f"{PACKAGE}=={version}"
        run([*uv(), "pip", "install", "--quiet", "--no-deps", "--target", str(target), wanted],
            f"Version {version} of the editor could not be installed.")
    return static
