"""Starts ComfyUI in this process, for tests and measurements: `comfy...` and the pack can then be imported."""

from __future__ import annotations

import atexit
import importlib.util
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def start_host(comfyui: str, *options: str) -> None:
    """Make the host importable, with its command line's `options`, on a base directory of our own."""
    base = tempfile.mkdtemp(prefix="pag-host-")
    atexit.register(shutil.rmtree, base, ignore_errors=True)
    if comfyui in sys.path:
        sys.path.remove(comfyui)
    sys.path.insert(0, comfyui)  # first: the host's `nodes` and `utils` must win over any others
    import comfy.options

    comfy.options.enable_args_parsing()
    arguments = sys.argv
    sys.argv = ["main.py", *options, "--disable-all-custom-nodes", "--base-directory", base]
    try:
        import comfy.cli_args  # reads sys.argv, once
    finally:
        sys.argv = arguments


def import_pack() -> None:
    """Import this pack as the package `pag_pack`."""
    spec = importlib.util.spec_from_file_location("pag_pack", ROOT / "__init__.py",
                                                  submodule_search_locations=[str(ROOT)])
    module = importlib.util.module_from_spec(spec)
    sys.modules["pag_pack"] = module
    spec.loader.exec_module(module)
