"""The shared prefix across calls: what a conditional row left at the units is kept; see `replay` for its weak row.

The host's own call runs exactly as without PAG, and hooks keep what its conditional rows return from the units that
matter: the last one before the first altered unit, and those whose output is read again later (a U-Net's skips).
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from uuid import UUID

import torch
from torch import nn

from ..models.units import Units
from .entry import Answers, Entry
from .matched import Sampled
from .recorder import Kept, Recorder
from .remembered import snapshot
from .uncopied import Uncopied


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
        self.acts_outside = False  # whether others' code acts in modules that are no part of a unit
        self.has_to_prove = False  # whether the weak rows' units are to be run too, to see that they give the same
        self.is_watched = self.has_run = False  # whether a forward of the host's was, and whether a unit ran in one
        self.index = 0  # of the conditional rows in the host's "cond_or_uncond"
        self.seen: dict[int, set[UUID]] = defaultdict(set)  # {index: uuids of the rows that ran under it}
        self.rows: dict[UUID, list[Kept]] = defaultdict(list)
        self.taken: Counter[UUID] = Counter()  # how many of a row's were, in the weak rows' call that runs
        self.inputs: dict[UUID, torch.Tensor] = {}  # {row: the latent of its first call}
        self.controls: dict[tuple[nn.Module, UUID], list] = defaultdict(list)  # {(network of a ControlNet, row): ...}
        self.asks_later = False  # whether another node asks ControlNets inside its wrapper
        self.asked: dict[nn.Module, list[tuple[list, Sampled]]] = defaultdict(list)  # what their networks gave there
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
        recorder = Recorder(units, wanted, len(uuids), batch, snapshot(others), self.keeps_all, self.has_room)
        with self._recording(recorder, entry):
            yield recorder.watch
        with self.lock:
            for row, kept in zip(wanted, recorder.kept, strict=True):
                kept.entered = entry and entry.of_row(row)
                self.rows[uuids[row]].append(kept)

    @contextmanager
    def recording_samples(self, units: Units, batch: int, entry: Entry, others: Sequence = (), number: int = 0,
                          tried: tuple[int, ...] | None = None) -> Iterator[None]:
        """The same for a forward of which nothing says what row a sample is of; all samples are kept. `number` and
        `tried` as of `Sampled`."""
        recorder = Recorder(units, list(range(batch)), batch, batch, snapshot(others), self.keeps_all, self.has_room)
        with self._recording(recorder, entry):
            yield
        for sample, kept in enumerate(recorder.kept):
            kept.entered = entry.of_row(sample)
        if all(kept.is_complete for kept in recorder.kept):
            with self.lock:
                self.samples.append(Sampled(entry, recorder.kept, number, tried))

    @contextmanager
    def _recording(self, recorder: Recorder, entry: Entry | None) -> Iterator[None]:
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
            for module in units.beside if last and not self.acts_outside else ():
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
