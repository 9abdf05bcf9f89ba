"""The evaluation's parts, with the host in this process where there is one; sampling is tiny."""

import os

import pytest
from harness.in_process import import_pack, start_host

from evaluation.config import Config
from evaluation.plan import Found, layer_search, other_scale_search, pag_scale_search, tables

COMFYUI = os.environ.get("COMFYUI_PATH")
NEEDS_HOST = ("test_sampling.py", "test_evaluate.py")

if COMFYUI:
    start_host(COMFYUI, "--cpu", "--use-pytorch-cross-attention")
    import_pack()


def pytest_ignore_collect(collection_path):
    return True if not COMFYUI and collection_path.name in NEEDS_HOST else None


@pytest.fixture
def inference_mode():
    import torch

    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def every_config() -> set[Config]:
    """All that a full run may sample."""
    choices = {**pag_scale_search(["u2-5", "all"]), **other_scale_search("u2-5")}
    return {*(row.config for table in tables(Found()) for row in table.rows), *(row.config for row in layer_search()),
            *(config for options in choices.values() for _, config in options)}
