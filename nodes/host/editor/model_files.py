"""Which file a loader node would load, and what its header says: no weight is read.

Only files inside the host's registered model folders are opened, by the names that the host itself lists. Links that
make a whole model folder lie elsewhere are followed, since the folder is registered; a link from inside a model folder
to anywhere else is refused, or a model folder could be made to show what is in any file.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import folder_paths

from ..models.adm_files import FOLDER
from .headers import Header, HeaderError, read_header

_CHECKPOINT = "ckpt_name", "checkpoints"
# {class_type of the loader: (its widget, the host's name for the folders it loads from)}
LOADERS = {
    "CheckpointLoaderSimple": _CHECKPOINT,
    "CheckpointLoader": _CHECKPOINT,
    "unCLIPCheckpointLoader": _CHECKPOINT,
    "ImageOnlyCheckpointLoader": _CHECKPOINT,
    "UNETLoader": ("unet_name", "diffusion_models"),
    "PAGADMLoader": ("ckpt_name", FOLDER),
}
_SUFFIXES = (".safetensors", ".sft")


class ModelFileError(ValueError):
    """A file that cannot be looked into; the message names the value and the remedy."""


def find_file(loader: dict) -> tuple[Path, os.stat_result, str]:
    """(path without links, its stat, the host's name for its folder) of the file that a loader node would load.

    Args:
        loader: {"node": class_type, "input": name of the widget, "file": its value}, all texts.
    """
    node, given, name = loader["node"], loader["input"], loader["file"]
    widget, kind = LOADERS.get(node, (None, None))
    if widget != given:
        raise ModelFileError(f"It is not known which file {_quote(node)} loads by {_quote(given)}. Known are "
                             f"{', '.join(f'{known} ({widget})' for known, (widget, _) in LOADERS.items())}; choose "
                             f"the model's family by hand.")
    if name not in folder_paths.get_filename_list(kind):
        raise ModelFileError(f"There is no model {_quote(name)} in {' or '.join(_folders(kind))}. Choose one that the "
                             f"loader lists; after adding a file, refresh the editor.")
    if not name.lower().endswith(_SUFFIXES):
        raise ModelFileError(f"{_quote(name)} is no .safetensors file, and other kinds cannot be looked into without "
                             f"loading them. Choose the model's family by hand, or use PAG Layers.")
    listed = folder_paths.get_full_path(kind, name)
    if listed is None:
        raise ModelFileError(f"{_quote(name)} is a link to a file that is not there, or was removed.")
    try:
        path = Path(listed).resolve(strict=True)
        status = path.stat()
    except (OSError, RuntimeError) as error:
        raise ModelFileError(f"{_quote(name)} cannot be read: {_reason(error)}.") from None
    folders = {folder for _, known in LOADERS.values() for folder in folder_paths.get_folder_paths(known)}
    inside = any(path.is_relative_to(Path(folder).resolve()) for folder in folders)
    if not inside or not stat.S_ISREG(status.st_mode):
        raise ModelFileError(f"{_quote(name)} is a link to a place outside the model folders, which is not followed. "
                             f"Put the file itself there, or add its folder to extra_model_paths.yaml.")
    return path, status, kind


def header_of(path: Path) -> Header:
    """The header of a file that `find_file` found."""
    try:
        return read_header(path)
    except (HeaderError, OSError) as error:
        raise ModelFileError(f"{path.name} cannot be read as a safetensors file: {_reason(error)}.") from None


def _reason(error: Exception) -> str:
    """An error's text without where on this machine the file is."""
    return getattr(error, "strerror", None) or str(error)


def _folders(kind: str) -> list[str]:
    """The names of the folders, without where on this machine they are."""
    return list(dict.fromkeys(f"{Path(folder).parent.name}/{Path(folder).name}"
                              for folder in folder_paths.get_folder_paths(kind)))


def _quote(text: str) -> str:
    return repr(text if len(text) <= 200 else f"{text[:200]}...")
