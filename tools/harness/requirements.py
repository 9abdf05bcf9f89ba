"""Installs other packs' requirements into a separate folder. Standard library only: the noxfile imports this."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from .host import CACHE, Host, uv

PACKAGES = CACHE / "neighbours"


def install(host: Host, folder: Path) -> None:
    """Install the requirements of every pack in a folder into `PACKAGES`. What the environment has stays as it is; a
    pack whose requirements cannot be installed is named."""
    listed = subprocess.run([*uv(), "pip", "list", "--quiet", "--format", "json", "--python", str(host.python)],
                            check=True, capture_output=True, text=True).stdout
    with tempfile.TemporaryDirectory() as temporary:
        # An override that holds nowhere: the package is left out, whoever asks for it.
        there = Path(temporary) / "there.txt"
        there.write_text("".join(f"{package['name']} ; sys_platform == 'nowhere'\n" for package in json.loads(listed)),
                         encoding="utf-8")
        for requirements in sorted(folder.glob("*/requirements.txt")):
            print(f"{requirements.parent.name}: installing its requirements", flush=True)
            done = subprocess.run([*uv(), "pip", "install", "--quiet", "--python", str(host.python), "--target",
                                   str(PACKAGES), "--overrides", str(there), "--requirement", str(requirements)],
                                  capture_output=True, text=True)
            if done.returncode:
                print(f"{requirements.parent.name}: could not install its requirements:\n{done.stderr.strip()}",
                      file=sys.stderr, flush=True)
