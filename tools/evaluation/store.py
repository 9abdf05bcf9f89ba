"""Stores samples in small files, each written whole or not at all, so that an interrupted run can continue."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar, Protocol

import torch
from harness.whole_files import written_whole
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor


class Configuration(Protocol):
    """A way to make pictures: a frozen dataclass. Those with equal keys make the same."""

    __dataclass_fields__: ClassVar[dict]

    @property
    def key(self) -> str: ...

    @property
    def settings(self) -> str: ...


def file_key(path: Path) -> str:
    """A short name for a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


class Store:
    """Pictures by configuration and sample id, for one model file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def ids(self, config: Configuration) -> set[int]:
        """The samples that are there."""
        found: set[int] = set()
        for path in self._files(config):
            with safe_open(path, "pt") as file:
                found.update(file.get_tensor("ids").tolist())
        return found

    def load(self, config: Configuration, ids: Iterable[int]) -> Tensor:
        """uint8 [N, 3, S, S] of these samples, in this order; KeyError where one is missing."""
        found: dict[int, Tensor] = {}
        for path in self._files(config):
            content = load_file(path)
            found.update(zip(content["ids"].tolist(), content["samples"], strict=True))
        return torch.stack([found[i] for i in ids])

    def flops(self, config: Configuration) -> float | None:
        """FLOPs of one sample, over its whole run; None where nobody counted."""
        for path in self._files(config):
            with safe_open(path, "pt") as file:
                if "flops" in file.metadata():
                    return float(file.metadata()["flops"])
        return None

    def add(self, config: Configuration, ids: list[int], samples: Tensor, flops: float | None = None) -> None:
        """Keep samples uint8 [N, 3, S, S], and what one of them cost, if it was counted."""
        facts = {"config": json.dumps(asdict(config))} | ({} if flops is None else {"flops": str(flops)})
        with written_whole(self.folder / config.key / f"{ids[0]}-{ids[-1]}-{len(ids)}.safetensors") as path:
            save_file({"samples": samples.contiguous(), "ids": torch.tensor(ids)}, path, facts)

    def _files(self, config: Configuration) -> list[Path]:
        return sorted((self.folder / config.key).glob("*.safetensors"))
