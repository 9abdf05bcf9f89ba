"""Whom a ControlNet (or a T2I adapter) is asked for, which its network is not told.

The host asks it before each forward, and names the rows. What its network gives then is noted, and given again to the
weak rows; see `control_networks`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from uuid import UUID

import torch

from ..hooks.kept import PrefixStore

Conds = list["list[dict] | None"]  # what the host's call is given: the conditionings of each prompt
Rows = tuple[tuple[UUID, int], ...]  # their uuids, and indices in "cond_or_uncond"

_rows: ContextVar[Rows] = ContextVar("rows", default=())


def asked_for() -> Rows:
    """The rows for which a ControlNet is asked at the moment, in this thread; () where nobody says."""
    return _rows.get()


def chained(conds: Conds) -> list:
    """All ControlNets of these conditionings, also in chains."""
    found = {}
    for cond in (cond for rows in conds for cond in rows or ()):
        control = cond.get("control")
        while control is not None:
            found[id(control)] = control
            control = getattr(control, "previous_controlnet", None)
    return list(found.values())


@contextmanager
def remembering_nothing(conds: Conds) -> Iterator[None]:
    """For the weak rows' call: afterwards the ControlNets are as before, for they cut their hint to the rows of a
    call."""
    before = [(vars(control), dict(vars(control))) for control in chained(conds)]
    try:
        yield
    finally:
        for own, values in before:
            own.clear()
            own.update(values)


def with_told_controls(conds: Conds, samples: int, store: PrefixStore | None) -> Conds:
    """The conditionings of a call whose rows have so many samples, with a stand-in for each ControlNet."""
    made: dict[int, object] = {}  # one for each, for only rows that share one can share a call
    asking = _Asking(samples, store)

    def changed(cond: dict) -> dict:
        control = cond.get("control")
        if control is None:
            return cond
        if id(control) not in made:
            made[id(control)] = _stand_in(control, asking)
        return {**cond, "control": made[id(control)]}

    return [rows and [changed(cond) for cond in rows] for rows in conds]


def _stand_in(control, asking: _Asking):
    """An object of the ControlNet's class, with its very attributes, for others read and set these. Only its
    get_control is another."""
    stand_in = object.__new__(_class_of(type(control)))
    stand_in.__dict__ = control.__dict__
    stand_in.pag_asking, stand_in.pag_is_replaced = asking, False
    return stand_in


@cache
def _class_of(kind: type) -> type:
    """That of the stand-ins for ControlNets of this class."""
    def get_control(self) -> Callable:
        own = vars(self).get("get_control")
        return own if self.pag_is_replaced else partial(self.pag_asking, own or partial(kind.get_control, self))

    def replace(self, function: Callable) -> None:
        vars(self)["get_control"], self.pag_is_replaced = function, True
        self.pag_asking.by_another()

    def get_instance_for_device(self, device: torch.device):
        """As the ControlNet's own, of which there is one for each GPU."""
        return _stand_in(kind.get_instance_for_device(self, device), self.pag_asking)

    return type(kind.__name__, (kind,), {
        "__slots__": ("pag_asking", "pag_is_replaced"), "get_control": property(get_control, replace),
        "get_instance_for_device": get_instance_for_device})


class _Asking:
    """How the ControlNets of one call are asked. Others may hold on to it, but not to what is kept."""

    def __init__(self, samples: int, store: PrefixStore | None) -> None:
        self.samples = samples
        self._store = store and weakref.ref(store)

    def __call__(self, ask: Callable, x_noisy: torch.Tensor, t, cond, batched_number: int, transformer_options: dict):
        """As a ControlNet's get_control, with the one that was there: {"input" or "middle" or "output": residuals}."""
        uuids, indices = (transformer_options.get(key) or () for key in ("uuids", "cond_or_uncond"))
        is_told = x_noisy.shape[0] == len(uuids) * self.samples  # else a wrapper has rearranged the batch
        before = _rows.set(tuple(zip(uuids, indices, strict=False)) if is_told else ())
        try:
            given = ask(x_noisy, t, cond, batched_number, transformer_options)
        finally:
            _rows.reset(before)
        if given is not None and not isinstance(given, dict):  # the ControlNet itself, for a wrapper
            self.by_another()
        return given

    def by_another(self) -> None:
        """Another node asks in the host's place, and later."""
        store = self._store and self._store()
        if store is not None:
            store.asks_later = True
