"""Samples told by what they enter the network with, where nothing says which rows a batch holds.

A wrapper of another node may lay the host's batch out anew: tiles of all rows in one call, say. The network makes the
same of two samples that enter it with the same. So a weak row's sample may start from what a sample of the host's own
forwards left, wherever that was, if it entered with the same, bit by bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .entry import Entry, repeated

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # {bytes: type}
_FACTORS = 0x9E3779B97F4A7C15 - 2**64, 0x94D049BB133111EB - 2**64  # of splitmix64


@dataclass
class Sampled:
    """What each sample of one forward entered with, and what is kept of it; both in the batch's order.

    Attributes:
        number: of the forward among those of the host's call.
        tried: the samples that others' code was tried for, in this order; None where no such code acts.
    """

    entry: Entry
    kept: Sequence[Any]
    number: int = 0
    tried: tuple[int, ...] | None = None
    digests: dict[tuple[int, torch.Size], torch.Tensor] = field(default_factory=dict)  # {(input, its form): [n]}

    def digest(self, place: int, values: torch.Tensor) -> torch.Tensor:
        """[n] of each sample's part of an input [n, ...], the number `place` of those that entered first; or [1] of all
        of one that does not hold the batch. Computed once."""
        key = place, values.shape
        if key not in self.digests:
            self.digests[key] = digest(values if values.shape[0] == self.entry.batch else values[None])
        return self.digests[key]


def matched(entry: Entry, known: Sequence[Sampled]) -> list[tuple[Sampled, int]] | None:
    """Samples that entered as these did, one for each: the forward and the place in it. None where there is none for
    one of them. The CPU waits for the device once."""
    mine = Sampled(entry, ())
    alike = torch.cat([_alike(mine, one) for one in known], dim=1)
    places = torch.where(alike.any(1), alike.byte().argmax(1), -1).cpu().tolist()
    samples = [(one, place) for one in known for place in range(one.entry.batch)]
    return None if -1 in places else [samples[place] for place in places]


def _alike(mine: Sampled, other: Sampled) -> torch.Tensor:
    """[n, m] which samples of two forwards entered with the same."""
    (a, *_), (b, *_) = mine.entry.seen, other.entry.seen
    alike = torch.full((mine.entry.batch, other.entry.batch), len(a) == len(b), device=a[0].device)
    for place, pair in enumerate(zip(a, b, strict=False)):
        one, another = repeated(*pair)
        holds = one.shape[0] == mine.entry.batch and another.shape[0] == other.entry.batch
        if one.shape[holds:] != another.shape[holds:] or one.dtype != another.dtype:
            return torch.zeros_like(alike)
        alike &= (mine.digest(place, one)[:, None] == other.digest(place, another)[None].to(one.device)).to(alike)
    return alike


def digest(values: torch.Tensor) -> torch.Tensor:
    """[n] int64 from [n, ...]: equal for rows that are the same bit by bit, and for others by a chance of about 2^-64.
    Of integers, so that the order in which a device sums does not matter."""
    rows = values.reshape(values.shape[0], values.shape[1:].numel())
    bits = rows.contiguous().view(_INTEGERS[values.element_size()]).long()
    factors = torch.arange(1, bits.shape[1] + 1, device=bits.device) * _FACTORS[0]
    factors = (factors ^ (factors >> 30)) * _FACTORS[1]
    return (bits * (factors ^ (factors >> 27) | 1)).sum(1)
