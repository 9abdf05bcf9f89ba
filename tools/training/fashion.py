"""Fashion-MNIST, as its authors publish it."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import torch
from harness.errors import HarnessError
from torch import Tensor, nn

DATA = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts it


def read_data(folder: Path, split: str = "train") -> tuple[Tensor, Tensor]:
    """Images uint8 [N, 32, 32] and labels long [N] of a split: "train" (60,000) or "t10k" (10,000).

    Raises:
        HarnessError: where files are missing or incomplete.
    """
    files = [folder / f"{split}-{name}-ubyte.gz" for name in ("images-idx3", "labels-idx1")]
    if missing := [str(path) for path in files if not path.is_file()]:
        raise HarnessError(
            f"Fashion-MNIST is not there: {', '.join(missing)}\n"
            "On Debian or Ubuntu: apt install dataset-fashion-mnist. Elsewhere fetch the four .gz files from\n"
            "https://github.com/zalandoresearch/fashion-mnist and name their folder with --data."
        )
    images, labels = map(read_idx, files)
    return nn.functional.pad(images, (2, 2, 2, 2)), labels.long()


def read_idx(path: Path) -> Tensor:
    """One gzipped IDX file of unsigned bytes, as LeCun's MNIST page defines it."""
    with gzip.open(path) as file:
        raw = file.read()
    dims = raw[3]
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(dims)]
    if raw[:3] != b"\0\0\x08" or len(raw) != 4 + 4 * dims + math.prod(shape):
        raise HarnessError(f"{path} is no complete IDX file of bytes; install the data set again")
    return torch.frombuffer(bytearray(raw[4 + 4 * dims :]), dtype=torch.uint8).reshape(shape)
