"""A weak row's call from what its conditional row left.

The units before the first altered one are not computed; what was kept stands in for their outputs. Everything around
and after them runs as in any call, so other nodes see a call like the one for the conditional row alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch

from ..models.families import result_axis
from ..models.units import Units
from .compiled import other_forward
from .entry import Answers, agree, excerpts, is_same
from .recorder import Blank, Kept
from .remembered import put
from .rows import merged, tensors_in

OTHER_BLOCKS = "the network runs different blocks for the perturbed rows than for the conditional ones"


class PrefixLostError(Exception):
    """The weak rows cannot start from what the conditional rows left; the message says why."""


class Replay:
    """One forward in which what was kept stands in for the outputs of the units before `first`.

    Args:
        kept: of each row of the forward, in order.
        device: where the forward runs.
        differs: is told where the units are given other than the conditional rows had, or one of the answers is no;
            what that means.
        answers: of earlier trials, which are asked when `first` is reached.
        proof: (a unit, who is told whether it gives what was kept): up to this one all units run, and on where it does
            not.
    """

    def __init__(self, units: Units, first: int, kept: list[Kept], device: torch.device, differs: Callable[[], str],
                 answers: Answers, proof: tuple[int, Callable[[bool], None]] | None = None) -> None:
        self.units, self.first, self.kept, self.device = units, first, kept, device
        self.differs, self.answers, self.proof = differs, answers, proof
        self.axis = result_axis(units.axes)
        self.is_reached = False  # whether units run as they are from here on
        self.runs_beside = False  # and the modules beside them
        self.places_beside = iter(range(len(kept[0].beside or ())))

    @contextmanager
    def around(self) -> Iterator[None]:
        """For this forward.

        Raises:
            PrefixLostError: from within it, where it runs a unit of which nothing was kept, or `differs` was told.
        """
        modules = self.units.modules
        with ExitStack() as stack:
            for module in self.units.beside if not self.proof and all(row.beside for row in self.kept) else ():
                stack.enter_context(other_forward(module, self._stand_in_beside))
            for index in range(self.first):
                stack.enter_context(other_forward(modules[index], partial(self._stand_in, index)))
            stack.callback(modules[self.first].register_forward_pre_hook(self._reach, with_kwargs=True).remove)
            yield

    def run_all(self) -> None:
        """From now on all units run."""
        self.is_reached = self.runs_beside = True

    def _reach(self, module, args: tuple, kwargs: dict) -> None:
        if self.is_reached:
            return
        self.is_reached = True
        self._compare(self.first, 0, args, kwargs)
        if not self.answers.ask():
            raise PrefixLostError(self.differs())
        for change in self.kept[0].remembered.get(self.first, ()):
            put(*change)

    def _stand_in(self, index: int, forward: Callable) -> Callable:
        places = iter(range(len(self.kept[0].outputs[index])))

        def run(*args, **kwargs):
            if self.is_reached:
                return forward(*args, **kwargs)
            place = next(places, None)
            if place is None:
                raise PrefixLostError(OTHER_BLOCKS)
            self._compare(index, place, args, kwargs)
            if self.proof and index < self.proof[0]:
                return forward(*args, **kwargs)
            outputs = [row.outputs[index][place] for row in self.kept]
            if self.proof and index == self.proof[0]:
                return self._proven(forward(*args, **kwargs), self._joined(outputs))
            given = {**dict(enumerate(args)), **kwargs}
            return self._joined(outputs, [given.get(key) for key in self.kept[0].in_place[index][place]])
        return run

    def _proven(self, output, kept):
        """A unit's own output, which the one that was kept is compared with."""
        assert self.proof
        alike = all(map(is_same, tensors_in(output), tensors_in(kept)))
        self.proof[1](alike)
        self.is_reached |= not alike
        return output

    def _stand_in_beside(self, forward: Callable) -> Callable:
        def run(*args, **kwargs):
            if self.runs_beside:
                return forward(*args, **kwargs)
            place = next(self.places_beside, None)
            if place is None:
                raise PrefixLostError(OTHER_BLOCKS)
            return self._joined([row.beside[place] for row in self.kept if row.beside])
        return run

    def _compare(self, index: int, place: int, args: tuple, kwargs: dict) -> None:
        """Add to the answers whether a unit is given what the conditional rows had, where that was kept."""
        if not self.kept[0].inputs:
            return
        given = zip(*excerpts(args, kwargs, range(len(self.kept)), len(self.kept), self.units.axes), strict=True)
        before = zip(*(row.inputs[index][place] for row in self.kept), strict=False)
        for number, (ones, others) in enumerate(zip(given, before, strict=False)):
            if any(part is None for part in (*ones, *others)):
                continue
            # A text that shares a call with a longer one has another length.
            if len({part.of for part in (*ones, *others)}) == 1:
                now, then = (torch.stack([part.numbers for part in parts]) for parts in (ones, others))
                self.answers.add(agree(now, then.to(now.device)))
            elif number == 0:
                self.answers.add(torch.tensor(False, device=self.device))

    def _joined(self, values: list, own: Iterable = ()):
        """What each row left, as one batch; anything of the right form where no one reads it.

        Args:
            own: of each tensor the one to write it into, if it is one: others may still hold that.
        """
        places = iter(own)

        def join(parts: list) -> torch.Tensor:
            shape, into = list(parts[0].shape), next(places, None)
            shape[self.axis] = sum(part.shape[self.axis] for part in parts)
            if into is not None and (list(into.shape) != shape or into.dtype != parts[0].dtype):
                into = None
            if isinstance(parts[0], Blank):
                return blank(shape, parts[0].dtype, self.device) if into is None else into
            # A copy in any case: the network goes on to change it in place, and a second PAG starts from the same.
            joined = torch.cat([part.to(self.device) for part in parts], dim=self.axis)
            return joined if into is None else into.copy_(joined)

        return merged(values, (torch.Tensor, Blank), join)


def blank(shape: list[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor of anything."""
    return torch.empty(shape, dtype=dtype, device=device)
