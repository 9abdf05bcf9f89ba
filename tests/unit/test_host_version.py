"""Below the oldest supported ComfyUI the pack loads without nodes and says why."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# As ComfyUI imports a pack; none of ComfyUI's own modules is there.
IMPORT = """
import importlib.util, sys
root = sys.argv[1]
spec = importlib.util.spec_from_file_location("pack", root + "/__init__.py", submodule_search_locations=[root])
sys.modules["pack"] = pack = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
assert pack.NODE_CLASS_MAPPINGS == {}
assert not hasattr(pack, "comfy_entrypoint")
assert not hasattr(pack, "WEB_DIRECTORY")
"""


def import_pack(folder: Path) -> subprocess.CompletedProcess:
    """Imports the pack beside what lies in `folder`, and nothing else of a host."""
    return subprocess.run([sys.executable, "-c", IMPORT, str(ROOT)], cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("version", ["0.16.2", "0.3.48", "v0.3.48", "0.3.75-dev", None])
def test_an_older_comfyui_is_told_so(tmp_path, version):
    if version is not None:
        (tmp_path / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    done = import_pack(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "needs ComfyUI 0.16.3 or newer" in done.stderr
    assert (version or "does not say its version") in done.stderr
    assert "Update ComfyUI" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("version", ["0.16.3", "0.30.0", "1.0.0", "unknown"])
def test_a_newer_comfyui_gets_the_nodes(tmp_path, version):
    """An unreadable version is given the benefit of the doubt. Here the import goes on to ComfyUI's own modules."""
    (tmp_path / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    done = import_pack(tmp_path)
    assert "No module named 'comfy" in done.stderr
    assert "needs ComfyUI" not in done.stderr


def test_pyproject_names_the_same_version():
    (required,) = re.findall(r'^requires-comfyui = ">=(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    sys.path.append(str(ROOT))
    import host_version

    assert required == ".".join(map(str, host_version.OLDEST))
