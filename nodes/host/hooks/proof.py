"""Whether a row that is left out of a unit would have been given the same there.

Other nodes' patches inside a unit may treat a row by what else is in the batch (NAG looks for the unconditional row) or
by chance (token merging). Then a weak row in a call of its own would not have got what its conditional row got, and may
not start from it. Nothing tells such patches from others but what they do, so a few units are tried, once in a run, and
others' attention functions in every step.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager

import torch

from ..models.families import result_axis
from ..models.units import SELF_ATTENTION, Units
from .entry import agree, is_same
from .joint import plain_rows
from .remembered import unchanged
from .rows import RowPlan, UnclearError, map_tensors, options_of_rows, pick, running, tensors_in


@contextmanager
def trying(units: Units, first: int, rows: list[int], options: dict, batch: int,
           tell: Callable[[bool], None], others: list, replaced: Collection[int]) -> Iterator[None]:
    """For one forward: runs two units before `first` for these rows alone as well, and tells of each whether it gives
    the same. The last one, where the rows differ, and the first one, since token merging acts on large pictures only;
    of those in which an attention is replaced, too.

    Args:
        rows: places of the conditional rows in the batch.
        options: the transformer_options of the forward.
        batch: the first axis of what the network is given.
        others: what other nodes have attached that acts inside the units; it remembers nothing of a trial.
        replaced: the units in which they replace an attention.
    """
    candidates = [unit for unit in units.modules[:first] if isinstance(unit, SELF_ATTENTION)] or units.modules[:first]
    places = sorted(place for place in replaced if place < first)
    tried = [candidates[0], candidates[-1], *(units.modules[place] for place in (*places[:1], *places[-1:]))]
    plan = RowPlan(tuple(rows), tuple(range(len(options["uuids"]))))
    with ExitStack() as stack:
        for unit in {id(unit): unit for unit in tried}.values():
            trial = _Trial(plan, options, batch, units, tell, others)
            stack.callback(unit.register_forward_pre_hook(trial.before, with_kwargs=True).remove)
            stack.callback(unit.register_forward_hook(trial.after).remove)
        yield


class Tried:
    """Another node's attention function in a forward, tried in its first calls: for some of the rows alone, it has to
    give the same. That costs an attention, not a unit.

    Args:
        function: given tensors of the whole batch, or of none, and the transformer_options or what is made of them.
        calls: how many of its calls are tried.
        rows, batch, others: as for `trying`.
        of: how many rows the batch has.
        tell: is told of each call whether it gives the same, [] on its device: asking would wait for it.
    """

    def __init__(self, function: Callable, calls: int, rows: list[int], of: int, batch: int,
                 tell: Callable[[torch.Tensor], None], others: list) -> None:
        self.function, self.left = function, calls
        self.rows, self.of, self.batch, self.tell, self.others = rows, of, batch, tell, others

    def __call__(self, *args, **kwargs):
        if not self.left or not any(t.shape[0] == self.batch for t in tensors_in(args)):
            return self.function(*args, **kwargs)
        self.left -= 1
        # Before the call itself, for others may count.
        alone = _apart(lambda: self.function(*map(self._cut, args), **{
            name: self._cut(value) for name, value in kwargs.items()}), args, self.others)
        out = self.function(*args, **kwargs)
        self.tell(agree(alone, self._cut(out)))
        return out

    def _cut(self, value):
        if isinstance(value, dict) and "uuids" in value:
            return options_of_rows(value, self.rows, self.of)
        return map_tensors(value, lambda t: pick(t, self.rows, self.of) if t.shape[0] == self.batch else t)


def _apart(call: Callable, args: tuple, others: list):
    """A call of which others remember nothing, with other random numbers, so that chance shows."""
    with torch.random.fork_rng(devices=_devices(args)), unchanged(others):
        torch.manual_seed(torch.initial_seed() ^ 1)
        return call()


class _Trial:
    """One unit, tried the first time that it runs."""

    def __init__(self, plan: RowPlan, options: dict, batch: int, units: Units, tell: Callable[[bool], None],
                 others: list) -> None:
        self.plan, self.options, self.batch, self.units, self.tell = plan, options, batch, units, tell
        self.others = others
        self.is_done = False
        self.alone = None

    def before(self, unit, args, kwargs) -> None:
        if self.is_done:
            return
        try:
            args, kwargs = plain_rows(self.plan, self.batch, self.units, args, kwargs)
        except UnclearError:
            return
        # Copies, for the unit may change what it is given.
        args = map_tensors(args, torch.clone)
        kwargs = {name: map_tensors(value, torch.clone) for name, value in kwargs.items()}
        with running(self.options["uuids"], self.plan.plain):
            self.alone = _apart(lambda: unit.forward(*args, **kwargs), args, self.others)

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
