"""A weak row's call from what its conditional row left.

The units before the first altered one are not computed; what was kept stands in for their outputs. Everything around
and after them runs as in any call, so other nodes see a call like the one for the conditional row alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch

from ..models.families import result_axis
from ..models.units import Units
from .compiled import other_forward
from .entry import Answers, agree, excerpts, is_same
from .kept import Blank, Kept
from .remembered import put
from .rows import merged, tensors_in

OTHER_BLOCKS = "the network runs different blocks for the perturbed rows than for the conditional ones"


class PrefixLostError(Exception):
    """The weak rows cannot start from what the conditional rows left; the message says why."""


@contextmanager
def replaying(units: Units, first: int, kept: list[Kept], device: torch.device,
              differs: Callable[[], str], answers: Answers,
              proof: tuple[int, Callable[[bool], None]] | None = None) -> Iterator[Callable[[], None]]:
    """One forward in which what was kept stands in for the outputs of the units before `first`; from a call of what it
    yields on, all units run.

    Args:
        kept: of each row of the forward, in order.
        device: where the forward runs.
        differs: is told where the units are given other than the conditional rows had, or one of the answers is no;
            what that means.
        answers: of earlier trials, which are asked when `first` is reached.
        proof: (a unit, who is told whether it gives what was kept): up to this one all units run, and on where it does
            not.

    Raises:
        PrefixLostError: from within the forward, where it runs a unit of which nothing was kept, or where `differs`
            was told.
    """
    reached, runs_all = threading.Event(), threading.Event()
    axis = result_axis(units.axes)

    def compare(index: int, place: int, args: tuple, kwargs: dict) -> None:
        if not kept[0].inputs:
            return
        given = zip(*excerpts(args, kwargs, range(len(kept)), len(kept), units.axes), strict=True)
        before = zip(*(row.inputs[index][place] for row in kept), strict=False)
        for number, (ones, others) in enumerate(zip(given, before, strict=False)):
            if any(part is None for part in (*ones, *others)):
                continue
            # A text that shares a call with a longer one has another length.
            if len({part.of for part in (*ones, *others)}) == 1:
                now, then = (torch.stack([part.numbers for part in parts]) for parts in (ones, others))
                answers.add(agree(now, then.to(now.device)))
            elif number == 0:
                answers.add(torch.tensor(False, device=device))

    def reach(module, args, kwargs) -> None:
        if reached.is_set():
            return
        reached.set()
        compare(first, 0, args, kwargs)
        if not answers.ask():
            raise PrefixLostError(differs())
        for change in kept[0].remembered.get(first, ()):
            put(*change)

    def stand_in(index: int, forward: Callable) -> Callable:
        places = iter(range(len(kept[0].outputs[index])))

        def run(*args, **kwargs):
            if reached.is_set():
                return forward(*args, **kwargs)
            place = next(places, None)
            if place is None:
                raise PrefixLostError(OTHER_BLOCKS)
            compare(index, place, args, kwargs)
            if proof and index < proof[0]:
                return forward(*args, **kwargs)
            kept_output = merged([row.outputs[index][place] for row in kept], (torch.Tensor, Blank),
                                 lambda parts: _joined(parts, axis, device))
            if not proof or index != proof[0]:
                return kept_output
            output = forward(*args, **kwargs)
            alike = all(map(is_same, tensors_in(output), tensors_in(kept_output)))
            proof[1](alike)
            if not alike:
                reached.set()
            return output
        return run

    places_beside = iter(range(len(kept[0].beside or ())))

    def stand_in_beside(forward: Callable) -> Callable:
        def run(*args, **kwargs):
            if runs_all.is_set():
                return forward(*args, **kwargs)
            place = next(places_beside, None)
            if place is None:
                raise PrefixLostError(OTHER_BLOCKS)
            return merged([row.beside[place] for row in kept if row.beside], (torch.Tensor, Blank),
                          lambda parts: _joined(parts, axis, device))
        return run

    def run_all() -> None:
        reached.set()
        runs_all.set()

    with ExitStack() as stack:
        for module in units.beside if not proof and all(row.beside for row in kept) else ():
            stack.enter_context(other_forward(module, stand_in_beside))
        for index in range(first):
            stack.enter_context(other_forward(units.modules[index], partial(stand_in, index)))
        stack.callback(units.modules[first].register_forward_pre_hook(reach, with_kwargs=True).remove)
        yield run_all


def blank(shape: list[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor of anything."""
    return torch.empty(shape, dtype=dtype, device=device)


def _joined(parts: list, axis: int, device: torch.device) -> torch.Tensor:
    """The rows' tensors as one batch; anything of the right form where no one reads it."""
    if isinstance(parts[0], Blank):
        shape = list(parts[0].shape)
        shape[axis] = sum(part.shape[axis] for part in parts)
        return blank(shape, parts[0].dtype, device)
    # A copy in any case: the network goes on to change it in place, and a second PAG starts from the same.
    return torch.cat([part.to(device) for part in parts], dim=axis)
