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
from .gguf_header import read_gguf
from .headers import Header, HeaderError, read_header

# The host's own loaders: {class_type: (its widget, the host's name for the folders it loads from)}
_CHECKPOINT = "ckpt_name", "checkpoints"
LOADERS = {
    "CheckpointLoaderSimple": _CHECKPOINT,
    "CheckpointLoader": _CHECKPOINT,
    "unCLIPCheckpointLoader": _CHECKPOINT,
    "ImageOnlyCheckpointLoader": _CHECKPOINT,
    "UNETLoader": ("unet_name", "diffusion_models"),
    "PAGADMLoader": ("ckpt_name", FOLDER),
}
# Where those of other packs load from, which call their widgets as the host does, as a rule.
_FOLDERS = ("diffusion_models", "checkpoints", "unet_gguf")
_SAFETENSORS = (".safetensors", ".sft")
_GGUF = ".gguf"


class ModelFileError(ValueError):
    """A file that cannot be looked into; the message names the value and the remedy."""


def find_file(loader: dict) -> tuple[Path, os.stat_result, str]:
    """(path without links, its stat, the host's name for its folder) of the file that a loader node would load.

    A loader of another pack is taken to load from where its file is, for it can name no other.

    Args:
        loader: {"node": class_type, "input": name of the widget, "file": its value}, all texts.
    """
    node, given, name = loader["node"], loader["input"], loader["file"]
    widget, kind = LOADERS.get(node, (None, None))
    if widget == given:
        listed = _listed(kind, name)
        if listed is None:
            raise ModelFileError(f"There is no model {_quote(name)} in {' or '.join(_folders(kind))}. Choose one that "
                                 f"the loader lists; after adding a file, refresh the editor.")
    else:
        kinds = [*_FOLDERS] if "ckpt" not in given else ["checkpoints", *_FOLDERS]
        kind, listed = next(((kind, path) for kind in kinds if (path := _listed(kind, name)) is not None),
                            (_FOLDERS[0], None))
        if listed is None:
            raise ModelFileError(f"Cannot tell which file {_quote(node)} loads: there is no {_quote(name)} in "
                                 f"{' or '.join(_folders(*_FOLDERS))}. Choose the model's family by hand.")
    if not name.lower().endswith((*_SAFETENSORS, _GGUF)):
        raise ModelFileError(f"{_quote(name)} is neither a .safetensors nor a .gguf file, and other formats cannot be "
                             f"inspected without loading them. Choose the model's family by hand, or use PAG Layers.")
    if not listed:
        raise ModelFileError(f"{_quote(name)} is a broken link, or the file was removed.")
    try:
        path = Path(listed).resolve(strict=True)
        status = path.stat()
    except (OSError, RuntimeError) as error:
        raise ModelFileError(f"{_quote(name)} cannot be read: {_reason(error)}.") from None
    folders = {folder for known in {*_FOLDERS, *(kind for _, kind in LOADERS.values())} for folder in _paths(known)}
    inside = any(path.is_relative_to(Path(folder).resolve()) for folder in folders)
    if not inside or not stat.S_ISREG(status.st_mode):
        raise ModelFileError(f"{_quote(name)} links to a file outside the model folders, and such links are not "
                             f"followed. Move the file into a model folder, or add its folder to "
                             f"extra_model_paths.yaml.")
    return path, status, kind


def header_of(path: Path) -> Header:
    """The header of a file that `find_file` found."""
    is_gguf = path.suffix.lower() == _GGUF
    try:
        return read_gguf(path) if is_gguf else read_header(path)
    except (HeaderError, OSError) as error:
        raise ModelFileError(f"{path.name} cannot be read as a {'GGUF' if is_gguf else 'safetensors'} file: "
                             f"{_reason(error)}.") from None


def _listed(kind: str, name: str) -> str | None:
    """Where a file of this name is that the host lists in these folders, "" where it is a dead link, None where it
    lists none. ComfyUI-GGUF lists its files in the host's folders under a name of its own, `unet_gguf`."""
    if not _paths(kind):
        return None
    if name in folder_paths.get_filename_list(kind):
        return folder_paths.get_full_path(kind, name) or ""
    if name.lower().endswith(_GGUF):
        for folder in _paths(kind):
            if Path(folder).is_dir() and name in folder_paths.recursive_search(folder, [".git"])[0]:
                return str(Path(folder) / name)
    return None


def _paths(kind: str) -> list[str]:
    """The folders of a kind; none where nobody has registered it."""
    return folder_paths.get_folder_paths(kind) if kind in folder_paths.folder_names_and_paths else []


def _reason(error: Exception) -> str:
    """An error's text without where on this machine the file is."""
    return getattr(error, "strerror", None) or str(error)


def _folders(*kinds: str) -> list[str]:
    """The names of the folders, without where on this machine they are."""
    return list(dict.fromkeys(f"{Path(folder).parent.name}/{Path(folder).name}"
                              for kind in kinds for folder in _paths(kind)))


def _quote(text: str) -> str:
    return repr(text if len(text) <= 200 else f"{text[:200]}...")
