"""Whether a weak row enters the network with what its conditional row entered it with.

A wrapper of another node may draw random numbers, or change what it hands on from call to call. Then a weak row in a
call of its own would not have got what its conditional row got, and may not start from it. What enters is compared once
in a run: at the host's call of the model, and inside the last wrapper around the network.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from comfy.patcher_extension import WrappersMP

from .rows import pick


class Entry:
    """What enters the network in one forward, each time that something does.

    Args:
        rows: how many rows the batch has.
        batch: its size.
    """

    def __init__(self, rows: int, batch: int) -> None:
        self.rows, self.batch = rows, batch
        self.seen: list[list[torch.Tensor]] = []

    def note(self, *values) -> None:
        """The tensors among these enter now. Copies are kept, for a network may change what it is given."""
        self.seen.append([value.clone() for value in values if isinstance(value, torch.Tensor) and value.ndim])

    def of_row(self, row: int) -> list[list[torch.Tensor]]:
        """The row's part of each; all of it where a tensor does not hold the batch."""
        return [[pick(t, [row], self.rows) if t.shape[0] == self.batch else t for t in tensors]
                for tensors in self.seen]


def noting(options: dict, key: str, enter: Callable[..., None]) -> dict:
    """The transformer_options of a forward in which `enter` gets the network's arguments after all other wrappers."""
    wrappers = options.get("wrappers", {})

    def wrapper(executor, *args, **kwargs):
        enter(*args, *kwargs.values())
        return executor(*args, **kwargs)

    others = {name: found for name, found in wrappers.get(WrappersMP.DIFFUSION_MODEL, {}).items() if name != key}
    return {**options, "wrappers": {**wrappers, WrappersMP.DIFFUSION_MODEL: {**others, key: [wrapper]}}}


def is_same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Up to the rounding of their precision."""
    if a.shape != b.shape:
        return False
    error = (a.float() - b.float()).abs().amax() / b.float().abs().amax().clamp_min(1e-12)
    return bool(error <= max(1e-4, 20 * torch.finfo(a.dtype).eps)) if a.is_floating_point() else bool((a == b).all())


def entered_alike(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    """Whether two rows entered with the same. The host repeats a text that shares a call with a longer one, so what
    counts is the length that both have."""
    if len(one) != len(other):
        return False
    for a, b in zip(one, other, strict=True):
        if a.ndim != b.ndim:
            return False
        common = tuple(slice(min(sizes)) for sizes in zip(a.shape, b.shape, strict=True))
        if a.numel() and not is_same(a[common], b[common].to(a)):
            return False
    return True
