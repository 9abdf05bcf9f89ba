"""The nodes in a real ComfyUI process: this pack is imported as the package `pag_pack`, the host from COMFYUI_PATH.

Test modules may therefore import `comfy...`, `nodes` (the host's) and `pag_pack.nodes...` (ours) at their top.
"""

import atexit
import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMFYUI = os.environ.get("COMFYUI_PATH")

def start_host(comfyui: str) -> None:
    """Makes the host importable, with its options for a small, exact run, on a base directory of our own."""
    base = tempfile.mkdtemp(prefix="pag-host-")
    atexit.register(shutil.rmtree, base, ignore_errors=True)
    if comfyui in sys.path:
        sys.path.remove(comfyui)
    sys.path.insert(0, comfyui)  # first: the host's `nodes` and `utils` must win over any others
    import comfy.options

    comfy.options.enable_args_parsing()
    arguments = sys.argv
    sys.argv = ["main.py", "--cpu", "--use-pytorch-cross-attention", "--disable-all-custom-nodes",
                "--base-directory", base]
    try:
        import comfy.cli_args  # reads sys.argv, once
    finally:
        sys.argv = arguments


def import_pack() -> None:
    spec = importlib.util.spec_from_file_location("pag_pack", ROOT / "__init__.py",
                                                  submodule_search_locations=[str(ROOT)])
    module = importlib.util.module_from_spec(spec)
    sys.modules["pag_pack"] = module
    spec.loader.exec_module(module)


if COMFYUI:
    start_host(COMFYUI)
    import torch

    torch.set_num_threads(2)
    import_pack()


class WithoutHost(pytest.Module):
    """Stands for a test module that cannot be imported, since there is no host."""

    def collect(self):
        pytest.skip("needs a ComfyUI: set COMFYUI_PATH, or use nox -s tests", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    return None if COMFYUI else WithoutHost.from_parent(parent, path=module_path)


@pytest.fixture(autouse=True)
def inference_mode():
    """As the host runs nodes."""
    with torch.inference_mode():
        yield
