"""Problems with the pack's folder, written to ComfyUI's log, because the editor may not be able to show them."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).parents[2]  # as ComfyUI found it; a link is not followed
SERVED = re.compile(r"[A-Za-z0-9_.~!$&'()*+,;=:@-]+")  # what an address holds as it is
NODE = "PAGModelPatch"


def warn() -> None:
    """Logs what is wrong."""
    for problem in problems(FOLDER, already_loaded()):
        logging.warning("Perturbed-Attention Guidance (PAG): %s", problem)


def problems(folder: Path, other: Path | None) -> Iterator[str]:
    """Messages that a user can act on.

    Args:
        folder: where the pack is being loaded from.
        other: the folder that already gave ComfyUI a node of this pack's name.
    """
    if not SERVED.fullmatch(folder.name):
        yield (f"the folder name {folder.name!r} contains a space or another character for which ComfyUI does not "
               f"serve a pack's JavaScript. The nodes work, but without the layer picker and the schedule plot. Rename "
               f"the folder to perturbed-attention-guidance and restart ComfyUI.")
    if other is not None and other != folder:
        yield (f"it is installed twice, in {other} and in {folder}. ComfyUI mixes the two: the nodes of one, and "
               f"perhaps the layer picker of the other. Remove one of the folders and restart ComfyUI.")


def already_loaded() -> Path | None:
    """The folder of another copy of this pack that the host has loaded before this one."""
    known = getattr(sys.modules.get("nodes"), "NODE_CLASS_MAPPINGS", {}).get(NODE)
    module = sys.modules.get(getattr(known, "__module__", ""))
    file = getattr(module, "__file__", None)
    return Path(file).parents[1] if file else None
