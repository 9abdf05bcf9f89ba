"""pag_core works where there is no ComfyUI."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

IMPORT_ALL = """
import importlib, pkgutil, sys

for name in ("comfy", "comfy_api", "comfy_extras", "folder_paths", "nodes"):
    sys.modules[name] = None  # importing it raises ImportError
sys.path.append(sys.argv[1])
import pag_core

for module in pkgutil.walk_packages(pag_core.__path__, "pag_core."):
    importlib.import_module(module.name)
print(pag_core.__file__)
"""


def test_core_imports_without_the_host():
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL, str(ROOT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).parent == ROOT / "pag_core"
