"""ComfyUI-Manager installs, updates, disables, enables and removes the pack, and installs nothing else for it."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from harness.server import PACK_NAME, Server

from .conftest import git


def installed_packages() -> set[tuple[str, str]]:
    return {(package.name, package.version) for package in importlib.metadata.distributions()}


def copy_of(comfyui: Path, folder: Path) -> Path:
    """A ComfyUI whose custom_nodes and user folders are its own; the manager knows no base directory."""
    for entry in comfyui.iterdir():
        if entry.is_file():
            (folder / entry.name).write_bytes(entry.read_bytes())
        elif entry.name not in ("custom_nodes", "user", "temp"):
            (folder / entry.name).symlink_to(entry)
    for name in ("custom_nodes", "user"):
        (folder / name).mkdir()
    return folder


def test_from_installation_to_removal(repository, tool, comfyui, tmp_path):
    base = copy_of(comfyui, tmp_path)
    nodes = base / "custom_nodes"
    packages = installed_packages()

    def manager(*arguments: str) -> str:
        return tool("cm-cli", *arguments, "--mode", "local", cwd=base, COMFYUI_PATH=str(base))

    def folders() -> list[Path]:
        """Where the pack lies, in use or put aside."""
        return [path for path in (nodes / PACK_NAME, nodes / ".disabled" / PACK_NAME) if path.exists()]

    assert "INSTALLED" in manager("install", f"file://localhost{repository}")
    assert folders() == [nodes / PACK_NAME]
    with Server(comfyui, base, log=base / "server.log", pack=nodes / PACK_NAME,
                arguments=("--enable-manager",)) as server:
        assert "PAGKSampler" in server.client.object_info()

    git("commit", "--quiet", "--allow-empty", "--message", "newer", cwd=repository)
    assert "UPDATED" in manager("update", f"{PACK_NAME}@unknown")
    assert git("log", "-1", "--format=%s", cwd=nodes / PACK_NAME).strip() == "newer"

    assert "DISABLED" in manager("disable", f"{PACK_NAME}@unknown")
    assert folders() == [nodes / ".disabled" / PACK_NAME]
    assert "ENABLED" in manager("enable", PACK_NAME)
    assert folders() == [nodes / PACK_NAME]
    assert "UNINSTALLED" in manager("uninstall", f"{PACK_NAME}@unknown")
    assert folders() == []
    assert installed_packages() == packages
