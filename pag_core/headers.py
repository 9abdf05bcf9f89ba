"""The header of a safetensors file: names, shapes and types of its tensors, without the tensors.

A file of 8 bytes (the header's length, little-endian), the header as JSON and the data. The checks are those of the
safetensors library, with a bound on everything that costs time or memory: a header says what is in a file, and need not
be true.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

MAX_BYTES = 100_000_000  # of a header, as the safetensors library allows
MAX_TENSORS = 20_000  # about five times as many as the largest models have
_MAX_DIMENSIONS = 8
_LENGTH_BYTES = 8
_BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16,
         "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4}


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


def read_header(path: str | Path) -> Header:
    """The header of a file. Reads no tensor.

    Raises:
        HeaderError: if it is no whole safetensors file, or its header contradicts itself or the file's size.
        OSError: if it cannot be read.
    """
    with Path(path).open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        if size < _LENGTH_BYTES:
            raise HeaderError(f"{size} bytes are too few for a safetensors file")
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if length > MAX_BYTES:
            raise HeaderError(f"its header claims {length} bytes, more than the {MAX_BYTES} that the format allows")
        if length > size - _LENGTH_BYTES:
            raise HeaderError(f"its header claims {length} bytes, but the file has {size}; it is cut off, or no "
                              f"safetensors file")
        text = file.read(length)
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        raise HeaderError("its header is not JSON, so it is no safetensors file") from None
    if not isinstance(entries, dict):
        raise HeaderError(f"its header is a JSON {type(entries).__name__}, expected an object")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise HeaderError("its __metadata__ is not a table of texts")
    if len(entries) > MAX_TENSORS:
        raise HeaderError(f"it lists {len(entries)} tensors; at most {MAX_TENSORS} are read")
    _check_layout(entries, size - _LENGTH_BYTES - length)
    return Header({name: TensorInfo(entry["dtype"], tuple(entry["shape"])) for name, entry in entries.items()},
                  metadata)


def _check_layout(entries: dict[str, object], data_bytes: int) -> None:
    """Every tensor has the bytes that its shape needs, and together they are the data, without gaps or overlaps."""
    spans = sorted(_span(name, entry) for name, entry in entries.items())
    end = 0
    for start, stop, name in spans:
        if start != end:
            raise HeaderError(f"its tensor {_quote(name)} starts at byte {start} of the data, expected {end}")
        end = stop
    if end != data_bytes:
        raise HeaderError(f"its tensors need {end} bytes of data, but it has {data_bytes}; it is cut off or damaged. "
                          f"Download or copy it again")


def _span(name: str, entry: object) -> tuple[int, int, str]:
    """(first byte, byte behind the last, name) of a tensor."""
    dtype, shape, offsets = [entry.get(field) for field in ("dtype", "shape", "data_offsets")] if isinstance(
        entry, dict) else (None, None, None)
    if not isinstance(dtype, str) or not _are_whole(shape) or not _are_whole(offsets):
        raise HeaderError(f"its tensor {_quote(name)} has no dtype, shape and data_offsets of the right types")
    if dtype not in _BITS:
        raise HeaderError(f"its tensor {_quote(name)} has the unknown type {_quote(dtype)}")
    fits = len(offsets) == 2 and 8 * (offsets[1] - offsets[0]) == _BITS[dtype] * math.prod(shape)
    if not fits or len(shape) > _MAX_DIMENSIONS:
        raise HeaderError(f"its tensor {_quote(name)} has data_offsets that do not fit its shape")
    return offsets[0], offsets[1], name


def _are_whole(numbers: object) -> TypeGuard[list[int]]:
    return isinstance(numbers, list) and all(
        isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 2**48 for number in numbers)


def _quote(text: str) -> str:
    """As much of a name as a message may hold."""
    return repr(text if len(text) <= 80 else f"{text[:80]}...")
