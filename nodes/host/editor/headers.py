"""The header of a safetensors file: names, shapes and types of its tensors, without the tensors.

Read by the safetensors library, which refuses a header that contradicts itself or the file's size. Two things are
added: a bound on the header's length, since the library holds up the whole server while it reads, and errors without
the place of the file on this machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

MAX_BYTES = 10_000_000  # of a header; the largest models have less than a tenth
_REMEDY = "The file is truncated, damaged or not a safetensors file. Download or copy it again"


class HeaderError(ValueError):
    """A file that is no whole safetensors file; the message says what is wrong with it."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: its type as the format calls it ("F16"), and its shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """What a safetensors file says about itself: {name: tensor} and {key: text}."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """The header of a file. Reads no tensor.

    Raises:
        HeaderError: if it is no whole safetensors file, or its header is longer than `MAX_BYTES`.
        OSError: if it cannot be read.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > MAX_BYTES:
        raise HeaderError(f"its header claims {length} bytes; the limit is {MAX_BYTES}. {_REMEDY}")
    try:
        with safe_open(path, framework="np") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it has no iterator)
            tensors = {name: TensorInfo(part.get_dtype(), tuple(part.get_shape())) for name, part in parts.items()}
            return Header(tensors, file.metadata() or {})
    except SafetensorError as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        raise HeaderError(f"{reason[:200]}. {_REMEDY}") from None
