"""Samples what is missing, on one or several ranks (torch.distributed with a shared folder)."""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch.distributed as dist
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from .store import Configuration, Store

Wanted = Sequence[tuple[Configuration, range]]


@dataclass
class Ranks:
    """The processes that share the work; one, unless torchrun started us."""

    rank: int = 0
    count: int = 1

    @classmethod
    def join(cls) -> Ranks:
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count == 1:
            return cls()
        # Ranks wait for the slowest, and for the first one's tables.
        dist.init_process_group("gloo", timeout=datetime.timedelta(days=7))
        return cls(dist.get_rank(), count)

    def agree(self, value):
        """The first rank's value, on all of them."""
        if self.count > 1:
            values = [value]
            dist.broadcast_object_list(values)
            value = values[0]
        return value

    def leave(self) -> None:
        if self.count > 1:
            dist.destroy_process_group()


class Maker(Protocol):
    """What makes pictures of configurations."""

    def cost(self, config: Any) -> float:
        """Of one picture, as a multiple of sampling without guidance."""

    def batches(self, config: Any, wanted: Iterable[int], present: set[int], size: int) -> list[list[int]]:
        """The ids to make, in batches of about `size`."""

    def sample(self, config: Any, ids: list[int]) -> Tensor:
        """uint8 [N, 3, S, S]."""


class Worker:
    """Samples into one store."""

    def __init__(self, sampler: Maker, store: Store, ranks: Ranks, batch: int) -> None:
        self.sampler, self.store, self.ranks, self.batch = sampler, store, ranks, batch
        # In units of a sample without guidance, for samples with guidance take longer.
        self.bar = tqdm(total=0, unit="sample", desc="sampling", smoothing=0.02, mininterval=1,
                        disable=not sys.stderr.isatty() or ranks.rank > 0)

    def announce(self, wanted: Wanted) -> None:
        """Add what is missing of these to the bar's total."""
        self.bar.total += sum(self._share(config, len(set(ids) - self.store.ids(config))) for config, ids in wanted)
        self.bar.refresh()

    def run(self, wanted: Wanted) -> None:
        """Sample all that is missing; returns when every rank is done."""
        missing = self.ranks.agree([(config, ids) for config, samples in wanted
                                    for ids in self.sampler.batches(config, samples, self.store.ids(config),
                                                                    self.batch)])
        counted = {config for config in {config for config, _ in missing} if self.store.flops(config) is not None}
        for config, ids in missing[self.ranks.rank::self.ranks.count]:
            self.bar.set_postfix_str(config.settings or "no guidance")
            if config not in counted:
                with FlopCounterMode(display=False) as counter:
                    samples = self.sampler.sample(config, ids)
                self.store.add(config, ids, samples, counter.get_total_flops() / len(ids))
                counted.add(config)
            else:
                self.store.add(config, ids, self.sampler.sample(config, ids))
            self.bar.update(self._share(config, len(ids)))
        if self.ranks.count > 1:
            dist.barrier()

    def _share(self, config: Configuration, samples: int) -> int:
        return round(self.sampler.cost(config) * samples / self.ranks.count)
