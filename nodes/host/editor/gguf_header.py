"""The header of a GGUF file: names, shapes and types of its tensors, without the tensors.

The layout is that of ggml's docs/gguf.md: "GGUF", a version, two counts, the metadata, then for each tensor its name,
shape (the innermost axis first), type and offset. Files come from strangers, so every length is checked before it is
believed. Values of the metadata are passed over but for ComfyUI-GGUF's, which tell a tensor's shape before it was
flattened.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from .headers import MAX_BYTES, Header, HeaderError, TensorInfo

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_ENTRIES = 50_000  # tensors, and entries of metadata; the largest models have a tenth
_MAX_DIMENSIONS = 8
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # of the metadata's types, in bytes
_STRING, _ARRAY = 8, 9
_INT32 = 5
_PLAIN = {0: "F32", 1: "F16", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16"}  # not quantised
_QUANTISED = "F16"  # what they are taken for: the kind of number does not tell the kind of model
_SHAPES = "comfy.gguf.orig_shape."


def read_gguf(path: Path) -> Header:
    """The header of a file. Reads no tensor.

    Raises:
        HeaderError: if it is no GGUF file of a known version, or its header contradicts itself.
        OSError: if it cannot be read.
    """
    with path.open("rb") as file:
        reader = _Reader(file)
        if reader.take(4) != _MAGIC:
            raise HeaderError("it does not start like a GGUF file. Download or copy it again")
        version = reader.number("I")
        if version not in _VERSIONS:
            raise HeaderError(f"it is a GGUF file of version {version}; only versions {_VERSIONS[0]} and "
                              f"{_VERSIONS[1]} are supported")
        tensors, entries = reader.count(), reader.count()
        shapes = dict(filter(None, (_entry(reader) for _ in range(entries))))
        found = {}
        for _ in range(tensors):
            name, info = _tensor(reader)
            found[name] = TensorInfo(info.dtype, shapes.get(name, info.shape))
    return Header(found, {})


class _Reader:
    """Reads numbers and texts, of one header no more than `MAX_BYTES`."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.left = MAX_BYTES

    def take(self, size: int) -> bytes:
        if size > self.left:
            raise HeaderError(f"its header is longer than {MAX_BYTES} bytes. The file is damaged or not a GGUF file")
        self.left -= size
        data = self.file.read(size)
        if len(data) < size:
            raise HeaderError("it ends inside its header, so it is truncated. Download or copy it again")
        return data

    def number(self, kind: str) -> int:
        return struct.unpack(f"<{kind}", self.take(struct.calcsize(f"<{kind}")))[0]

    def count(self) -> int:
        count = self.number("Q")
        if count > _MAX_ENTRIES:
            raise HeaderError(f"its header claims {count} entries; the limit is {_MAX_ENTRIES}")
        return count

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", "replace")


def _entry(reader: _Reader) -> tuple[str, tuple[int, ...]] | None:
    """(tensor, shape) of an entry of metadata that tells it; of all others None."""
    key, kind = reader.text(), reader.number("I")
    if kind != _ARRAY:
        _skip(reader, kind, 1)
        return None
    of, count = reader.number("I"), reader.number("Q")
    if key.startswith(_SHAPES) and of == _INT32 and count <= _MAX_DIMENSIONS:
        return key.removeprefix(_SHAPES), tuple(reader.number("i") for _ in range(count))
    _skip(reader, of, count)
    return None


def _skip(reader: _Reader, kind: int, count: int) -> None:
    if kind in _SIZES:
        reader.take(_SIZES[kind] * count)
    elif kind == _STRING:
        for _ in range(count):
            reader.text()
    else:
        raise HeaderError(f"its metadata contains a value of the unknown type {kind}. The file is damaged")


def _tensor(reader: _Reader) -> tuple[str, TensorInfo]:
    name, dimensions = reader.text(), reader.number("I")
    if dimensions > _MAX_DIMENSIONS:
        raise HeaderError(f"one of its tensors claims {dimensions} dimensions. The file is damaged")
    shape = tuple(reader.number("Q") for _ in range(dimensions))[::-1]
    if any(size >= 2**40 for size in shape):
        raise HeaderError("one of its tensors claims an impossible size. The file is damaged")
    kind = reader.number("I")
    reader.number("Q")  # where its data begins
    return name, TensorInfo(_PLAIN.get(kind, _QUANTISED), shape)
