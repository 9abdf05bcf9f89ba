"""The rules of the house that CONTRIBUTING states: who may import whom, and what each folder says of itself."""

import ast
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Each room may import from those before it, and from itself; a file that stands in no longer prefix is its folder's.
ROOMS = ["pag_core", "nodes/host", "nodes/host/models", "nodes/host/hooks", "nodes/host/run", "nodes/host/sampling",
         "nodes/host/research", "nodes/host/editor", "nodes", "."]
FILES = [ROOT / "__init__.py", ROOT / "host_version.py", *sorted((ROOT / "nodes").rglob("*.py")),
         *sorted((ROOT / "pag_core").rglob("*.py"))]
FOLDERS = [path.parent for path in FILES if path.name == "__init__.py" and path.parent != ROOT]
DRAWING = {"numpy", "PIL"}
EXTERNAL = {"torch", *DRAWING}


def room(path: Path) -> int:
    """The place among ROOMS of a file: that of the longest prefix."""
    folders = [str(folder) for folder in path.relative_to(ROOT).parents]
    return ROOMS.index(next(folder for folder in folders if folder in ROOMS))


@cache
def imports(path: Path) -> tuple[set[Path], set[str]]:
    """(files of ours, dotted names of other modules) that a file imports anywhere in its text."""
    ours, others = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            others |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            others.add(node.module)
        elif isinstance(node, ast.ImportFrom):
            folder = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            for alias in node.names:  # a module of that name, or something in the file that was named
                found = [file for base in (folder / alias.name, folder)
                         for file in (base.with_suffix(".py"), base / "__init__.py") if file.is_file()]
                ours |= set(found[:1])
    return ours - {path}, others


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", FILES, ids=name)
def test_nothing_is_imported_from_a_room_above(path):
    above = [name(other) for other in imports(path)[0] if room(other) > room(path)]
    assert not above, f"{name(path)} may not import {above}: the order is {' < '.join(ROOMS)}"


def test_no_imports_run_in_a_circle():
    try:
        TopologicalSorter({name(path): {name(other) for other in imports(path)[0]} for path in FILES}).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("path", [path for path in FILES if room(path) == 0], ids=name)
def test_the_core_needs_torch_alone_and_for_pictures_pillow(path):
    ours, others = imports(path)
    allowed = sys.stdlib_module_names | EXTERNAL - (set() if path.stem == "drawing" else DRAWING)
    assert {other.split(".")[0] for other in others} <= allowed
    assert all(room(other) == 0 for other in ours)


@pytest.mark.parametrize("path", [path for path in FILES if "host" not in path.relative_to(ROOT).parts], ids=name)
def test_only_the_host_layer_touches_what_comfyui_does_not_promise(path):
    """Nodes may use comfy_api, the host's public interface, and the pack's first file looks which ComfyUI it is in."""
    public = {"comfy_api.latest"} if room(path) == ROOMS.index("nodes") else set()
    version = {"comfyui_version"} if name(path) == "host_version.py" else set()
    others = {other for other in imports(path)[1] if other.split(".")[0] not in sys.stdlib_module_names | EXTERNAL}
    assert others <= public | version


@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_a_folder_says_what_belongs_there(folder):
    said = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
    assert said and said.splitlines()[0].endswith(".")
