"""nox -s internals: lists the ComfyUI internals that the pack uses, and whether this ComfyUI has them.

The names are extracted from the pack's own source, so the list cannot become outdated: every import from ComfyUI,
every attribute of what is imported, what subclasses of ComfyUI's classes inherit, and what is used of arguments
annotated with such a class. Names that the source contains only as text come from two tables: `PROTOCOL`, and the
pack's own list of model families. The exit code is 1 if something that the nodes need is missing. A missing family
only means that this ComfyUI does not have that model or uses another name for it.

    python -m commands.internals             environment as for the demo: COMFYUI_PATH, and tools/ on PYTHONPATH
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.errors import HarnessError, command
from harness.in_process import import_pack, start_host

ROOT = Path(__file__).resolve().parents[2]
HOST_PACKAGES = {"comfy", "comfy_api", "comfy_execution", "folder_paths", "latent_preview", "server"}
# {module of the host: the words in its source through which the pack and the host's sampler talk}
PROTOCOL = {
    "comfy.samplers": ("sampler_calc_cond_batch_function", "sampler_post_cfg_function", "cond_or_uncond", "uuids",
                       "transformer_options", "conds", "cond_denoised", "uncond_denoised"),
    "comfy.ldm.modules.attention": ("optimized_attention_override", "patches_replace", "attn1", "n_heads",
                                    "attn_precision", "activations_shape"),
    "comfy.ldm.modules.diffusionmodules.openaimodel": ("block", "patches", "forward_timestep_embed_patch",
                                                       "input_block_patch", "output_block_patch"),
    "comfy.patcher_extension": ("wrappers",),
}


@dataclass(frozen=True, order=True)
class Need:
    """A dotted name of the host, and where the pack uses it."""

    name: str
    place: str


def needs(folder: Path) -> Iterator[Need]:
    """Every name of the host that the Python files under `folder` use."""
    for path in sorted(folder.rglob("*.py")):
        place = path.relative_to(folder.parent).as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        bound = dict(imported(tree))
        yield from (Need(name, place) for name in bound.values())
        for node in ast.walk(tree):
            names: list[str | None] = []
            if isinstance(node, ast.Attribute):
                names = [dotted(node, bound)]
            elif isinstance(node, ast.ClassDef):
                names = list(inherited(node, bound))
            elif isinstance(node, ast.FunctionDef):
                names = list(of_arguments(node, bound))
            yield from (Need(name, place) for name in names if name)


def imported(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(name in the file, name in the host) of every import of the host."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in HOST_PACKAGES:
                    yield alias.asname or alias.name, alias.name
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module.split(".")[0] in HOST_PACKAGES:
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def dotted(node: ast.expr, bound: dict[str, str]) -> str | None:
    """The host's name for `a.b.c`, if it begins with something imported from the host."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    parts = [node.id, *reversed(parts)]
    for length in range(len(parts), 0, -1):  # the longest import counts: `import comfy.sd` binds "comfy.sd"
        if host := bound.get(".".join(parts[:length])):
            return ".".join([host, *parts[length:]])
    return None


def inherited(node: ast.ClassDef, bound: dict[str, str]) -> Iterator[str]:
    """What a subclass of a host's class takes from it: through super(), or as an attribute that it does not set."""
    bases = [name for name in (dotted(base, bound) for base in node.bases) if name]
    own = {inner.name for inner in node.body if isinstance(inner, ast.FunctionDef)}
    own |= {inner.attr for inner in ast.walk(node) if isinstance(inner, ast.Attribute)
            and isinstance(inner.ctx, ast.Store)}
    for inner in ast.walk(node):
        if isinstance(inner, ast.Attribute) and (is_call_of(inner.value, "super") or (
                isinstance(inner.value, ast.Name) and inner.value.id == "self" and inner.attr not in own)):
            yield from (f"{base}.{inner.attr}" for base in bases)


def is_call_of(node: ast.expr, function: str) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == function


def of_arguments(node: ast.FunctionDef, bound: dict[str, str]) -> Iterator[str]:
    """What a function uses of the arguments that are annotated with a host's class."""
    types = {argument.arg: name for argument in (*node.args.args, *node.args.kwonlyargs)
             if argument.annotation is not None and (name := dotted(argument.annotation, bound))}
    for inner in ast.walk(node):
        if isinstance(inner, ast.Attribute) and isinstance(inner.value, ast.Name) and inner.value.id in types:
            yield f"{types[inner.value.id]}.{inner.attr}"


def exists(name: str) -> bool:
    """Whether a dotted name can be imported; what follows the module are attributes, of instances too."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[length:]:
            if not hasattr(found, attribute):
                return inspect.isclass(found) and sets(found, attribute)
            found = getattr(found, attribute)
        return True
    return False


def sets(cls: type, attribute: str) -> bool:
    """Whether the source of a class or a base of it gives its instances this attribute."""
    pattern = re.compile(rf"\bself\.{attribute}\s*(=[^=]|:|,)")  # also one of several in a tuple
    return any(pattern.search(_source(base)) for base in cls.__mro__ if base.__module__.startswith("comfy"))


@functools.cache
def _source(cls: type) -> str:
    return inspect.getsource(cls)  # which parses the whole file each time


def needed_names() -> dict[str, list[str]]:
    """{name of the host: the files that use it}"""
    places: dict[str, list[str]] = defaultdict(list)
    for need in sorted(set(needs(ROOT / "nodes"))):
        places[need.name].append(need.place)
    return dict(places)


def missing_names(names: Iterable[str]) -> list[str]:
    return [name for name in names if not exists(name)]


def missing_keys() -> list[str]:
    """What of `PROTOCOL` the host's source does not mention."""
    sources = {module: inspect.getsource(importlib.import_module(module)) for module in PROTOCOL}
    return [f"the key {word!r} in {module}" for module, words in PROTOCOL.items() for word in words
            if not re.search(rf"[\"'.]{word}\b", sources[module])]


def main(arguments: list[str]) -> None:
    comfyui = os.environ.get("COMFYUI_PATH")
    if not comfyui or arguments:
        raise HarnessError("Usage: nox -s internals, or COMFYUI_PATH=... python -m commands.internals.")
    start_host(comfyui, "--cpu")
    from comfyui_version import __version__

    places = needed_names()
    missing = missing_names(places) + missing_keys()
    for name, where in places.items():
        print(f"{'MISSING' if name in missing else 'found  '}  {name}   ({', '.join(where)})")
    for line in missing:
        if line not in places:
            print(f"MISSING  {line}")
    total = len(places) + sum(map(len, PROTOCOL.values()))
    print(f"ComfyUI {__version__}: {total - len(missing)} of {total} names and keys found.")
    if missing:
        raise HarnessError("This ComfyUI lacks internals that the nodes need. The lines marked MISSING say which, and "
                           "where they are used.")
    list_families()


def list_families() -> None:
    """Says which networks this ComfyUI lacks: older ones have fewer, and a newer one may have renamed some."""
    import_pack()
    families = importlib.import_module("pag_pack.nodes.host.models.families")
    networks = [family.network for family in (*families.FAMILIES, *families.BLOCKS_ONLY)]
    absent = [name for name in networks if not exists(name)]
    print(f"{len(networks) - len(absent)} of {len(networks)} networks found by name."
          + "".join(f"\n  not in this ComfyUI: {name}" for name in absent))


if __name__ == "__main__":
    command(main)
