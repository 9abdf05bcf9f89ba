"""The shared prefix inside one call: weak rows leave the batch until the first altered unit.

Hooks on the units before it leave the weak rows out of what enters a unit, and put copies of their conditional rows
into what leaves it. So the network itself, with all that it keeps and does between its units (skips, modulation,
positions), has every row all the time. From the first altered unit on they do nothing, also where a network runs
earlier units again (Stable Cascade). For calls in which nothing of another node has a part; see `kept` for the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from uuid import UUID

from ..models.families import STACKED, result_axis
from ..models.units import Units
from .rows import UNCLEAR, RowPlan, UnclearError, holds_rows, map_tensors, options_of_rows, pick_stacked, running

SPLIT_BATCH = "ComfyUI ran the conditional and the perturbed rows in separate calls"


class _Forward:
    """One forward with rows left out of its first units.

    Args:
        full: the batch of all rows, the first axis of what the network is given.
        options: makes those of the plain rows from a forward's.
    """

    def __init__(self, plan: RowPlan, full: int, options: Callable[[dict], dict]) -> None:
        self.plan = plan
        self.full = full
        self.options = options
        self.plain = full // len(plan.places) * len(plan.plain)

    def leave_out(self, value, argument: str | int, axes: Mapping[str | int, int | None]):
        """`value`, an argument of a unit, with the plain rows only; `axes` as in `Family`. UnclearError where it may
        hold rows in a way that these do not say."""
        if isinstance(value, dict) and "uuids" in value:
            return self.options(value)
        if argument not in axes:
            return map_tensors(value, lambda t: self.plan.leave_out(t) if holds_rows(t, self.full) else t)
        axis = axes[argument]
        if axis == STACKED:
            return map_tensors(value, lambda t: pick_stacked(t, self.plan.plain, len(self.plan.places), self.full))
        return map_tensors(value, lambda t: self.plan.leave_out(t, axis)
                           if axis is not None and t.ndim > axis and t.shape[axis] % self.full == 0 else t)

    def left_out(self, args: tuple, kwargs: dict, axes: Mapping[str | int, int | None]) -> tuple[tuple, dict]:
        """All of a unit's arguments with the plain rows only."""
        return (tuple(self.leave_out(value, place, axes) for place, value in enumerate(args)),
                {name: self.leave_out(value, name, axes) for name, value in kwargs.items()})

    def put_back(self, value, axis: int | None = 0):
        """`value` with all rows, from the plain ones; what a unit returns always holds them."""
        return map_tensors(value, lambda t: self.plan.put_back(t, axis)
                           if axis is not None and t.ndim > axis and t.shape[axis] % self.plain == 0 else t)


def plain_rows(plan: RowPlan, batch: int, units: Units, args: tuple, kwargs: dict,
               options: Callable[[dict], dict]) -> tuple[tuple, dict]:
    """A unit's arguments with the plan's plain rows only, and what `options` makes of a forward's options.

    Raises:
        UnclearError: where a tensor may hold rows in a way that nobody says.
    """
    return _Forward(plan, batch, options).left_out(args, kwargs, units.axes)


class JointPrefix:
    """Leaves the weak rows out of the units before the first altered one, in one forward.

    Args:
        units: of the network that runs.
        first: the index of the first altered unit; their number where none is.
        sources: {uuid of a weak row: uuid of the conditional row that it copies}.
        decline: called with a reason where the prefix cannot be shared.
    """

    def __init__(self, units: Units, first: int, sources: Mapping[UUID, UUID],
                 decline: Callable[[str], None]) -> None:
        self.units = units
        self.first = first
        self.sources = sources
        self.decline = decline
        self.forward: _Forward | None = None  # while rows are left out
        self.uuids: list = []  # of its rows; see `rows.running`
        self.unit = ExitStack()  # what lasts while a unit runs

    @contextmanager
    def around(self, options: dict, batch: int) -> Iterator[None]:
        """Hooks for one forward of the network with this batch and these transformer_options."""
        if not self.first or not any(row in self.sources for row in options["uuids"]):
            yield
            return
        plan = RowPlan.of(options["uuids"], options["cond_or_uncond"], self.sources)
        if plan is None:
            self.decline(SPLIT_BATCH)
            yield
            return
        self.forward = _Forward(plan, batch, lambda given: options_of_rows(given, plan.plain, len(plan.places)))
        self.uuids = options["uuids"]
        with self.unit, ExitStack() as stack:
            for unit in self.units.modules[:self.first]:
                stack.callback(unit.register_forward_pre_hook(self._enter, with_kwargs=True).remove)
                stack.callback(unit.register_forward_hook(self._leave).remove)
            for unit in self.units.modules[self.first:self.first + 1]:
                stack.callback(unit.register_forward_pre_hook(self._finish).remove)
            yield

    def _enter(self, module, args, kwargs):
        if self.forward is None:
            return None
        try:
            left_out = self.forward.left_out(args, kwargs, self.units.axes)
            self.unit.enter_context(running(self.uuids, self.forward.plan.plain))
            return left_out
        except UnclearError:
            self.decline(UNCLEAR)
            self.forward = None  # every row runs from here on: the same result
            return None

    def _leave(self, module, args, output):
        self.unit.close()
        return None if self.forward is None else self.forward.put_back(output, result_axis(self.units.axes))

    def _finish(self, *_) -> None:
        self.forward = None
