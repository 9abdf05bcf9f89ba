"""The source of what runs in ComfyUI: no code from strings, no pickles, no other programs, no network."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [ROOT / "__init__.py", ROOT / "host_version.py", *sorted((ROOT / "nodes").rglob("*.py")),
           *sorted((ROOT / "pag_core").rglob("*.py"))]
CALLS = {"eval", "exec", "compile", "__import__", "breakpoint"}
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "subprocess", "socket", "ssl", "urllib",
           "http", "requests", "httpx", "ftplib", "smtplib", "telnetlib", "ctypes", "pip", "ensurepip", "runpy", "pty",
           "code", "codeop", "multiprocessing", "webbrowser", "huggingface_hub", "git"}
ATTRIBUTES = {"system", "popen", "execv", "execve", "execvp", "spawnl", "spawnv", "spawnvp", "posix_spawn", "fork",
              "import_module", "ClientSession", "write_text", "write_bytes", "unlink", "rmtree", "rmdir", "mkdir",
              "makedirs", "hub"}


def findings(source: str) -> list[tuple[int, str]]:
    """(line, what) of everything in the source that has no place in a node pack."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS:
            names = [node.func.id]
        elif isinstance(node, ast.Attribute) and node.attr in ATTRIBUTES:
            names = [node.attr]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module.split(".")[0] in MODULES:
            names = [node.module]
        elif is_call(node, "torch", "load") and not weights_only(node):
            names = ["torch.load"]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open":
            names = ["open" for mode in node.args[1:2] if not reads(mode)]
        found += [(node.lineno, name) for name in names]
    return found


def is_call(node: ast.AST, module: str, function: str) -> bool:
    return (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == function
            and isinstance(node.func.value, ast.Name) and node.func.value.id == module)


def weights_only(call: ast.Call) -> bool:
    return any(keyword.arg == "weights_only" and getattr(keyword.value, "value", None) is True
               for keyword in call.keywords)


def reads(mode: ast.expr) -> bool:
    return isinstance(mode, ast.Constant) and not set(str(mode.value)) & set("wax+")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_dangerous_in_the_source(path):
    assert findings(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("source", [
    "eval('1')", "import pickle", "from urllib.request import urlopen", "import os; os.system('ls')",
    "torch.load('x')", "torch.load('x', weights_only=False)", "open('x', 'w')", "import subprocess as s",
    "from pathlib import Path; Path('x').write_text('')", "aiohttp.ClientSession()", "torch.hub.load('a', 'b')"])
def test_the_scan_sees_what_it_looks_for(source):
    assert findings(source)


@pytest.mark.parametrize("source", ["torch.load('x', weights_only=True)", "open('x', 'rb')", "from .code import a"])
def test_the_scan_lets_the_harmless_pass(source):
    assert not findings(source)
