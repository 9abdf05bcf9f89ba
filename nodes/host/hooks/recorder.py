"""What rows leave at the units in one forward, recorded by hooks; see `kept`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from ..models.families import result_axis
from ..models.units import Units
from .entry import excerpts
from .remembered import Change, Snapshot, changes, is_plain, snapshot
from .rows import map_tensors, merged, pick, tensors_in


@dataclass(frozen=True)
class Blank:
    """The form of a tensor that no one reads."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


@dataclass
class Kept:
    """What one row left behind in one forward.

    Attributes:
        outputs: {unit: its outputs, one for each time that it ran}.
        is_complete: whether the first altered unit was reached.
        entered: what it entered the network with, where that was noted; see `Entry`.
        inputs: {unit: excerpts of what it was given, for each time that it ran}, where others act between units.
        beside: what the modules beside the units returned, in the order in which they ran; None: there was no room.
        in_place: {unit: for each time that it ran what `changed_in_place` says}.
        before: what others' code inside the units remembered before the forward.
        remembered: {first altered unit: what others' code inside the units remembers there that it did not before}.
    """

    outputs: dict[int, list] = field(default_factory=lambda: defaultdict(list))
    is_complete: bool = False
    entered: list[list[torch.Tensor]] | None = None
    inputs: dict[int, list] = field(default_factory=lambda: defaultdict(list))
    beside: list | None = field(default_factory=list)
    in_place: dict[int, list[list]] = field(default_factory=lambda: defaultdict(list))
    before: Snapshot = field(default_factory=dict)
    remembered: dict[int, list[Change]] = field(default_factory=dict)


def changed_in_place(args: tuple, kwargs: dict, output) -> list[int | str | None]:
    """Of each tensor in a unit's output, which argument it is, which the unit has changed in place; None for none."""
    given = {**dict(enumerate(args)), **kwargs}
    places = {id(t): key for key, t in given.items() if isinstance(t, torch.Tensor)}
    found: list[int | str | None] = []

    def note(parts: list[torch.Tensor]) -> torch.Tensor:
        found.append(places.get(id(parts[0])))
        return parts[0]

    merged([output], (torch.Tensor,), note)
    return found


class Recorder:
    """What some rows leave in one forward of the host's own call.

    Args:
        wanted: their places among the `rows` of the `batch`.
        before: what others' code inside the units remembers.
        keeps_all, has_room: as in `PrefixStore`.
    """

    def __init__(self, units: Units, wanted: list[int], rows: int, batch: int, before: Snapshot, keeps_all: bool,
                 has_room: Callable[[list[torch.Tensor]], bool]) -> None:
        self.units, self.before, self.keeps_all, self.has_room = units, before, keeps_all, has_room
        self.wanted, self.rows, self.batch = wanted, rows, batch
        self.are_all = len(wanted) == rows  # then one copy holds them
        self.kept = [Kept(before=before) for _ in wanted]
        self.latest: int | None = None  # the unit that ran last, whose outputs may turn out to end a prefix
        self.pinned: set[tuple[int, int]] = set()
        self.done = False
        self.problem = ""

    def watch(self, others: Sequence) -> None:
        """What these remember from now on counts, too."""
        self.before = {**snapshot(others), **self.before}

    def leave(self, index: int) -> Callable:
        def hook(module, args, kwargs, output) -> None:
            if self.done or self.problem:
                return
            self._forget_latest()
            axis = result_axis(self.units.axes)
            in_place = changed_in_place(args, kwargs, output)
            if self.are_all:
                output = map_tensors(output, torch.clone)
            for row, kept in zip(self.wanted, self.kept, strict=True):
                kept.outputs[index].append(map_tensors(output, lambda t, row=row: self._cut(t, row, axis)))
                kept.in_place[index].append(in_place)
            if self.problem:
                return
            self.latest = index
            if self.keeps_all or index in self.units.skips:
                self._pin()
        return hook

    def leave_beside(self, module, args, output: tuple) -> None:
        added, *handed_on = output
        added = added.clone() if self.are_all else added
        forms = [Blank(t.shape, t.dtype, t.device) for t in handed_on]  # no one reads these
        axis = result_axis(self.units.axes)
        for row, kept in zip(self.wanted, self.kept, strict=True):
            if kept.beside is None:
                continue
            part = self._cut(added, row, axis)
            if self.has_room([part]):
                kept.beside.append((part, *(replace(form, shape=part.shape) for form in forms)))
            else:
                kept.beside = None

    def reach(self, first: int, last: int) -> Callable:
        def hook(module, args) -> None:
            if self.done:
                return
            self._pin()  # what was kept last ends the prefix of this unit
            found = changes(self.before)
            if not all(is_plain(value) for _, _, value in found):
                self.problem = "another node's patch carries data from earlier blocks to later ones"
            for kept in self.kept:
                kept.remembered.setdefault(first, found)
            if first == last:
                self.done = True
                for kept in self.kept:
                    kept.is_complete = True
        return hook

    def enter(self, index: int) -> Callable:
        def hook(module, args, kwargs) -> None:
            if self.done:
                return
            given = excerpts(args, kwargs, self.wanted, self.rows, self.units.axes)
            for kept, excerpt in zip(self.kept, given, strict=True):
                kept.inputs[index].append(excerpt)
        return hook

    def _cut(self, t: torch.Tensor, row: int, axis: int) -> torch.Tensor:
        if self.rows == 1:
            return t
        if t.ndim <= axis or t.shape[axis] % (self.rows if axis else self.batch):
            self.problem = "a block returns a tensor whose batch dimension is unknown"
            return t
        # A copy: networks and other nodes go on to change it in place.
        return pick(t, [row], self.rows, axis) if self.are_all else pick(t, [row], self.rows, axis).clone()

    def _pin(self) -> None:
        """The output of the unit that ran last will be needed."""
        if self.latest is None:
            return
        place = self.latest, len(self.kept[0].outputs[self.latest]) - 1
        if place in self.pinned:
            return
        self.pinned.add(place)
        for kept in self.kept:
            if self.has_room(tensors_in(kept.outputs[self.latest][-1])):
                continue
            if self.keeps_all or self.units.skips:
                self.problem = ("there is not enough free memory to keep the intermediate results before the first "
                                "perturbed layer")
            else:
                kept.outputs[self.latest][-1] = map_tensors(kept.outputs[self.latest][-1], torch.Tensor.cpu)

    def _forget_latest(self) -> None:
        """Of an output that nobody needs only the form stays."""
        if self.latest is None:
            return
        for kept in self.kept:
            outputs = kept.outputs[self.latest]
            if (self.latest, len(outputs) - 1) not in self.pinned:
                outputs[-1] = map_tensors(outputs[-1], lambda t: Blank(t.shape, t.dtype, t.device))
