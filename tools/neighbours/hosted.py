"""ComfyUI in this process with our pack and one other pack, and access to their nodes by id."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from harness.in_process import import_pack, start_host


class CannotImport(Exception):
    """The pack does not load in this ComfyUI, and why."""


class _Reasons(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def start() -> None:
    """Start the host with all of its own nodes, and import our pack."""
    start_host(os.environ["COMFYUI_PATH"], "--cpu", "--use-pytorch-cross-attention")
    importlib.import_module("utils.extra_config")  # older hosts would take comfy's own for it later
    import comfy.utils
    import server

    import nodes

    comfy.utils.PROGRESS_BAR_ENABLED = False
    server.PromptServer(asyncio.new_event_loop())
    asyncio.run(nodes.init_builtin_extra_nodes())
    import_pack()


def load(pack: Path, lacking: Mapping[str, str | None]) -> None:
    """Load another pack as the host does.

    Args:
        lacking: {"module.name" that the pack imports and this host no longer has: what stands there instead}.

    Raises:
        CannotImport: with the host's own words.
    """
    import folder_paths

    import nodes

    (custom_nodes,) = folder_paths.get_folder_paths("custom_nodes")  # some packs look for themselves there
    place = Path(custom_nodes) / pack.name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(pack.resolve())
    sys.path.append(str(place.parent.parent))
    sys.path.insert(0, str(Path(nodes.__file__).parent / "comfy"))  # as the host does
    for path, instead in lacking.items():
        module, _, name = path.rpartition(".")
        if getattr(importlib.import_module(module), name, None) is None:
            setattr(importlib.import_module(module), name, instead and _named(instead))
    reasons = _Reasons()
    logging.getLogger().addHandler(reasons)
    try:
        loaded = asyncio.run(nodes.load_custom_node(str(place)))
    finally:
        logging.getLogger().removeHandler(reasons)
    if not loaded:
        raise CannotImport(next((text.rpartition("custom nodes: ")[2] for text in reasons.messages
                                 if "custom nodes: " in text), "it has no nodes"))


def _named(path: str):
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def call(node_id: str, **inputs):
    """Execute a node of the host or of a pack with these inputs, its defaults for all others: its outputs."""
    import nodes

    node = nodes.NODE_CLASS_MAPPINGS[node_id]
    if hasattr(node, "define_schema"):
        for given in node.define_schema().inputs:
            default = getattr(given, "default", None)
            options = getattr(given, "options", None)
            if default is None and options and not getattr(given, "optional", False):
                default = options[0]
            if given.id not in inputs and default is not None:
                inputs[given.id] = default
        output = node.PREPARE_CLASS_CLONE(None).execute(**inputs)
        return output.result if hasattr(output, "result") else output
    for kind, *options in (node.INPUT_TYPES().get("required", {})).items():
        name, (choices, *more) = kind, options[0]
        if name not in inputs:
            default = (more[0] if more else {}).get("default")
            inputs[name] = choices[0] if default is None and isinstance(choices, (list, tuple)) else default
    return getattr(node(), node.FUNCTION)(**inputs)
