"""The shared prefix across calls: what a conditional row left at the units is kept; see `replay` for its weak row.

The host's own call runs exactly as without PAG, and hooks keep what its conditional rows return from the units that
matter: the last one before the first altered unit, and those whose output is read again later (a U-Net's skips).
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from uuid import UUID

import torch

from ..models.families import result_axis
from ..models.units import Units
from .entry import Answers, Entry, excerpts
from .matched import Sampled
from .remembered import Change, Snapshot, changes, is_plain, snapshot
from .rows import map_tensors, merged, pick, tensors_in
from .uncopied import Uncopied


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
        remembered: {first altered unit: what others' code inside the units remembers there that it did not before}.
    """

    outputs: dict[int, list] = field(default_factory=lambda: defaultdict(list))
    is_complete: bool = False
    entered: list[list[torch.Tensor]] | None = None
    inputs: dict[int, list] = field(default_factory=lambda: defaultdict(list))
    beside: list | None = field(default_factory=list)
    in_place: dict[int, list[list]] = field(default_factory=lambda: defaultdict(list))
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


class PrefixStore(Uncopied):
    """What the conditional rows of one step left at the units. Shared by the PAGs of a chain.

    It may fill half of the memory that is free on its device. What is too much for that goes to the CPU if it is one
    output (it travels in less time than the many units before it take), and is given up if it is one of many.

    Args:
        keeps_all: whether every unit's output is kept: where another node may look at what goes from unit to unit.
        free_memory: of a device, in bytes.
        is_entry_noted: whether it is noted what enters the network, since others may change that.
    """

    def __init__(self, keeps_all: bool, free_memory: Callable[[torch.device], float],
                 is_entry_noted: bool = False) -> None:
        self.keeps_all = keeps_all
        self.is_entry_noted = is_entry_noted
        self.free_memory = free_memory
        self.room: dict[torch.device, float] = {}
        self.firsts: set[int] = set()  # the first altered units of the PAGs
        self.has_to_prove = False  # whether the weak rows' units are to be run too, to see that they give the same
        self.is_watched = self.has_run = False  # whether a forward of the host's was, and whether a unit ran in one
        self.index = 0  # of the conditional rows in the host's "cond_or_uncond"
        self.seen: dict[int, set[UUID]] = defaultdict(set)  # {index: uuids of the rows that ran under it}
        self.rows: dict[UUID, list[Kept]] = defaultdict(list)
        self.taken: Counter[UUID] = Counter()  # how many of a row's were, in the weak rows' call that runs
        self.inputs: dict[UUID, torch.Tensor] = {}  # {row: the latent of its first call}
        self.controls: dict[UUID, list[dict[str, list]]] = defaultdict(list)  # {row: what its ControlNet gave it}
        self.samples: list[Sampled] = []  # of forwards whose rows nothing names
        self.lost: set[str] = set()  # why something was not kept
        self.answers = Answers()  # whether others' code in the units gave these rows alone the same
        self.lock = threading.Lock()

    def add(self, first: int, index: int) -> None:
        """Keep what a PAG needs whose first altered unit this is; `index` of the conditional rows."""
        self.firsts.add(first)
        self.index = index

    @contextmanager
    def recording(self, units: Units, options: dict, batch: int, entry: Entry | None = None,
                  others: Sequence = ()) -> Iterator[Callable[[Sequence], None]]:
        """Hooks for one forward of a network with this batch and these transformer_options, made without PAG. `entry`
        notes what enters it; `others` is what acts inside its units, and what it yields is to be called with more of
        it."""
        uuids, conds = options["uuids"], options["cond_or_uncond"]
        with self.lock:
            for uuid, index in zip(uuids, conds, strict=True):
                self.seen[index].add(uuid)
        wanted = [row for row, index in enumerate(conds) if index == self.index]
        if not wanted:
            yield lambda others: None
            return
        recorder = _Recorder(self, units, wanted, len(uuids), batch, snapshot(others))
        with self._recording(recorder, entry):
            yield recorder.watch
        with self.lock:
            for row, kept in zip(wanted, recorder.kept, strict=True):
                kept.entered = entry and entry.of_row(row)
                self.rows[uuids[row]].append(kept)

    @contextmanager
    def recording_samples(self, units: Units, batch: int, entry: Entry) -> Iterator[None]:
        """The same for a forward of which nothing says what row a sample is of; all samples are kept."""
        recorder = _Recorder(self, units, list(range(batch)), batch, batch, {})
        with self._recording(recorder, entry):
            yield
        for sample, kept in enumerate(recorder.kept):
            kept.entered = entry.of_row(sample)
        if all(kept.is_complete for kept in recorder.kept):
            with self.lock:
                self.samples.append(Sampled(entry, recorder.kept))

    @contextmanager
    def _recording(self, recorder: _Recorder, entry: Entry | None) -> Iterator[None]:
        units, last = recorder.units, max(self.firsts, default=0)
        with ExitStack() as stack:
            for index in range(last):
                # Before others' hooks on a unit, which act on the weak rows, too.
                handle = units.modules[index].register_forward_hook(recorder.leave(index), prepend=True,
                                                                     with_kwargs=True)
                stack.callback(handle.remove)
            for index in range(last + 1 if self.keeps_all else 0):
                handle = units.modules[index].register_forward_pre_hook(recorder.enter(index), with_kwargs=True)
                stack.callback(handle.remove)
            for module in units.beside if last else ():
                stack.callback(module.register_forward_hook(recorder.leave_beside).remove)
            for first in self.firsts:
                stack.callback(units.modules[first].register_forward_pre_hook(recorder.reach(first, last)).remove)
            yield
        if entry and entry.is_moved:
            recorder.problem = "another node rearranges the batch"
        if recorder.problem:
            self.lost.add(recorder.problem)
            for kept in recorder.kept:
                kept.outputs.clear()
                kept.beside, kept.is_complete = None, False

    def note_input(self, conds: list[list[dict] | None], x: torch.Tensor) -> None:
        """A call of the host runs these conditionings on this latent."""
        for cond in (cond for rows in conds for cond in rows or ()):
            self.inputs.setdefault(cond["uuid"], x)

    def note_control(self, control: dict[str, list], batch: int, options: dict) -> None:
        """A ControlNet has given this, {place: residuals}, to a batch with these transformer_options."""
        uuids, conds = options["uuids"], options["cond_or_uncond"]
        hints = [hint for place in control.values() for hint in place if hint is not None]
        if not all(hint.shape[0] in (1, batch) for hint in hints):
            return

        def cut(hint: torch.Tensor | None, row: int) -> torch.Tensor | None:
            if hint is None:
                return None
            samples = batch // len(uuids)
            part = hint.expand(samples, *hint.shape[1:]) if hint.shape[0] < batch else pick(hint, [row], len(uuids))
            return part.clone() if self.is_entry_noted else part  # a wrapper may go on to change it in place

        with self.lock:
            for row, index in enumerate(conds):
                if index == 0:  # as of the weak rows; a ControlNet may look at it
                    self.controls[uuids[row]].append({place: [cut(hint, row) for hint in found]
                                                      for place, found in control.items()})

    def take(self, uuids: Collection[UUID], sources: Mapping[UUID, UUID]) -> list[Kept] | None:
        """What the conditional rows of these weak rows left, in the order in which they ran; None where one is missing.

        The rest of what a row left is of later calls: a guider may run it again, with a perturbation of its own.
        """
        plain = [sources[uuid] for uuid in uuids if uuid in sources]
        if not plain or len(plain) < len(uuids) or not all(self.rows.get(row) for row in plain):
            return None
        with self.lock:
            kept = [self.rows[row][self.taken[row] % len(self.rows[row])] for row in plain]
            self.taken.update(plain)
        return kept if all(row.is_complete for row in kept) else None

    def start_again(self) -> None:
        """Before a call of weak rows, for each of a chain starts from the same."""
        self.taken.clear()

    @property
    def is_skipped(self) -> bool:
        """Whether all of the host's forwards of this step were answered before the first unit ran."""
        return self.is_watched and not self.has_run

    @contextmanager
    def watching(self, units: Units | None) -> Iterator[None]:
        """For one forward of the host's: notes whether a unit runs. Of other networks it is taken for granted."""
        if units is None:
            self.has_run = True
            yield
            return

        def note(*_) -> None:
            self.has_run = True

        self.is_watched = True
        handle = units.modules[0].register_forward_pre_hook(note)
        try:
            yield
        finally:
            handle.remove()

    def has_room(self, tensors: list[torch.Tensor]) -> bool:
        """Whether these may stay on their device; they are counted if they may."""
        with self.lock:
            for device in {t.device for t in tensors} - self.room.keys():
                self.room[device] = self.free_memory(device) / 2
            room = dict(self.room)
            for t in tensors:
                room[t.device] -= t.nbytes
            if any(room[t.device] < 0 for t in tensors):
                return False
            self.room = room
            return True


class _Recorder:
    """One forward of the host's own call."""

    def __init__(self, store: PrefixStore, units: Units, wanted: list[int], rows: int, batch: int,
                 before: Snapshot) -> None:
        self.store, self.units, self.before = store, units, before
        self.wanted, self.rows, self.batch = wanted, rows, batch
        self.are_all = len(wanted) == rows  # then one copy holds them
        self.kept = [Kept() for _ in wanted]
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
            if self.store.keeps_all or index in self.units.skips:
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
            if self.store.has_room([part]):
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
            if self.store.has_room(tensors_in(kept.outputs[self.latest][-1])):
                continue
            if self.store.keeps_all or self.units.skips:
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
