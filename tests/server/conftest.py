"""Tests over the API of a real server, which is started once for all of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.client import Client
from harness.server import PACK_NAME, Server


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoints folder of the server's that tests may write to."""
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="session")
def server(comfyui: Path, checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tmp_path_factory.mktemp("comfyui")
    folders = base / "folders.yaml"
    folders.write_text(json.dumps({"tests": {"checkpoints": str(checkpoints)}}), encoding="utf-8")  # JSON is YAML
    with Server(comfyui, base, log=base / "server.log",
                arguments=("--extra-model-paths-config", str(folders))) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Client:
    return server.client


@pytest.fixture(scope="session")
def object_info(server: Server) -> dict[str, dict]:
    return server.client.object_info()


@pytest.fixture(scope="session")
def ours(object_info) -> dict[str, dict]:
    """The nodes of this pack alone."""
    return {name: node for name, node in object_info.items() if node["python_module"] == f"custom_nodes.{PACK_NAME}"}
