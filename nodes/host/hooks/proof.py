"""Whether a row that is left out of a unit would have been given the same there.

Other nodes' patches inside a unit may treat a row by what else is in the batch (NAG looks for the unconditional row) or
by chance (token merging). Then a weak row in a call of its own would not have got what its conditional row got, and may
not start from it. Nothing tells such patches from others but what they do, so two units are tried, once in a run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch

from ..models.families import result_axis
from ..models.units import SELF_ATTENTION, Units
from .entry import is_same
from .joint import plain_rows
from .rows import RowPlan, UnclearError, map_tensors, pick, running, tensors_in


@contextmanager
def trying(units: Units, first: int, rows: list[int], options: dict, batch: int,
           tell: Callable[[bool], None]) -> Iterator[None]:
    """For one forward: runs two units before `first` for these rows alone as well, and tells of each whether it gives
    the same. The last one, where the rows differ, and the first one, since token merging acts on large pictures only.

    Args:
        rows: places of the conditional rows in the batch.
        options: the transformer_options of the forward.
        batch: the first axis of what the network is given.
    """
    candidates = [unit for unit in units.modules[:first] if isinstance(unit, SELF_ATTENTION)] or units.modules[:first]
    plan = RowPlan(tuple(rows), tuple(range(len(options["uuids"]))))
    with ExitStack() as stack:
        for unit in {id(unit): unit for unit in (candidates[0], candidates[-1])}.values():
            trial = _Trial(plan, options, batch, units, tell)
            stack.callback(unit.register_forward_pre_hook(trial.before, with_kwargs=True).remove)
            stack.callback(unit.register_forward_hook(trial.after).remove)
        yield


class _Trial:
    """One unit, tried the first time that it runs."""

    def __init__(self, plan: RowPlan, options: dict, batch: int, units: Units, tell: Callable[[bool], None]) -> None:
        self.plan, self.options, self.batch, self.units, self.tell = plan, options, batch, units, tell
        self.is_done = False
        self.alone = None

    def before(self, unit, args, kwargs) -> None:
        if self.is_done:
            return
        try:
            args, kwargs = plain_rows(self.plan, self.options, self.batch, self.units, args, kwargs)
        except UnclearError:
            return
        # Copies, for the unit may change what it is given. Other random numbers, so that chance shows.
        args = map_tensors(args, torch.clone)
        kwargs = {name: map_tensors(value, torch.clone) for name, value in kwargs.items()}
        with running(self.options["uuids"], self.plan.plain), torch.random.fork_rng(devices=_devices(args)):
            torch.manual_seed(torch.initial_seed() ^ 1)
            self.alone = unit.forward(*args, **kwargs)

    def after(self, unit, args, output) -> None:
        if self.is_done:
            return
        self.is_done = True
        rows, axis = self.plan.plain, result_axis(self.units.axes)
        got = tensors_in(map_tensors(output, lambda t: pick(t, rows, len(self.plan.places), axis)))
        self.tell(self.alone is not None and all(map(is_same, got, tensors_in(self.alone))))
        self.alone = None


def _devices(value) -> list[torch.device]:
    """The accelerators on which random numbers may be drawn."""
    return list({t.device for t in tensors_in(value) if t.device.type == "cuda"})
