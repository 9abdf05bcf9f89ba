"""Files of any size that take no room on disk: a true header, and a hole where the data would be."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path


def write_sparse(path: Path, shapes: Mapping[str, Sequence[int]], metadata: Mapping[str, str] | None = None) -> Path:
    """A safetensors file with fp16 tensors of these shapes, all of them zero."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, shape in shapes.items():
        size = 2
        for length in shape:
            size *= length
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with path.open("r+b") as file:
        file.truncate(8 + len(text) + end)
    return path
