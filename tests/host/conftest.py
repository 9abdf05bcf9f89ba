"""The nodes in a real ComfyUI process: this pack is imported as the package `pag_pack`, the host from COMFYUI_PATH.

Test modules may therefore import `comfy...`, `nodes` (the host's) and `pag_pack.nodes...` (ours) at their top.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.in_process import import_pack, start_host

COMFYUI = os.environ.get("COMFYUI_PATH")

if COMFYUI:
    start_host(COMFYUI, "--cpu", "--use-pytorch-cross-attention")
    import torch
    from support import real_gpu, stand_in_gpu

    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
    if not real_gpu.NAME:
        stand_in_gpu.register()
    import_pack()


class WithoutHost(pytest.Module):
    """Stands for a test module that cannot be imported, since there is no host."""

    def collect(self):
        pytest.skip("needs a ComfyUI: set COMFYUI_PATH, or use nox -s tests", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    return None if COMFYUI else WithoutHost.from_parent(parent, path=module_path)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    return (yield from missing_modules_skip())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    return (yield from missing_modules_skip())


def missing_modules_skip() -> Iterator[None]:
    """A module that an older host does not have yet, such as a model family's, skips what needs it."""
    if not COMFYUI:
        return (yield)
    from .older import what_older_hosts_lack

    with what_older_hosts_lack(ImportError):
        return (yield)


@pytest.fixture(autouse=True)
def inference_mode():
    """As the host runs nodes."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def composed():
    """Compares PAG beside another node with a reference, for the table of compositions."""
    from .composed import Compositions

    compositions = Compositions()
    yield compositions
    compositions.write()
