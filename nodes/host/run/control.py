"""What a ControlNet (or a T2I adapter) gave a conditional row, given to its weak row: its inputs are the same.

It is noted where the ControlNet gives it: a wrapper may go on to change it, and does so in the weak rows' call as well.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any
from uuid import UUID

import torch

from ..hooks.kept import PrefixStore

Conds = list["list[dict] | None"]  # what the host's call is given: the conditionings of each prompt


def with_noted_controls(conds: Conds, store: PrefixStore) -> Conds:
    """The conditionings of the host's own call, whose ControlNets leave in `store` what they give."""
    return _with_stand_ins(conds, _Noting(store))


def with_kept_controls(conds: Conds, store: PrefixStore, sources: Mapping[UUID, UUID]) -> Conds:
    """The weak rows' conditionings of one call, with each ControlNet replaced by what it gave their conditional rows.
    """
    return _with_stand_ins(conds, _Keeping(store, sources))


def _with_stand_ins(conds: Conds, asking: _Asking) -> Conds:
    """One stand-in for each ControlNet: only rows that share one can share a call."""
    made: dict[int, object] = {}

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


class _Asking(ABC):
    """How the ControlNets of one call are asked. Others may hold on to it, but not to what it knows."""

    def __init__(self, store: PrefixStore) -> None:
        self._store = weakref.ref(store)

    @abstractmethod
    def __call__(self, ask: Callable, x_noisy: torch.Tensor, t, cond, batched_number: int,
                 transformer_options: dict) -> Any:
        """As a ControlNet's get_control, with the one that was there: {"input" or "middle" or "output": residuals}."""

    def by_another(self) -> None:
        """Another node asks in the host's place, and later."""
        store = self._store()
        if store is not None:
            store.asks_later = True


class _Noting(_Asking):
    """Of the host: what it is given is noted."""

    def __call__(self, ask, x_noisy, t, cond, batched_number, transformer_options):
        given, store = ask(x_noisy, t, cond, batched_number, transformer_options), self._store()
        if not isinstance(given, dict):
            if given is not None:  # the ControlNet itself
                self.by_another()
        elif store is not None:
            store.note_control(given, x_noisy.shape[0], transformer_options)
        return given


class _Keeping(_Asking):
    """Of the weak rows: they are given what the ControlNet gave their conditional rows."""

    def __init__(self, store: PrefixStore, sources: Mapping[UUID, UUID]) -> None:
        super().__init__(store)
        self.sources = sources
        self.used: Counter = Counter()  # how often a row has asked in this call

    def __call__(self, ask, x_noisy, t, cond, batched_number, transformer_options):
        store = self._store()
        rows = [self.sources.get(uuid) for uuid in transformer_options.get("uuids") or ()]
        places = [self.used[row] for row in rows]
        self.used.update(rows)
        noted = [store.controls.get(row, ()) if row and store else () for row in rows]
        controls = [found[place] for found, place in zip(noted, places, strict=True) if place < len(found)]
        if not rows or len(controls) < len(rows):
            return ask(x_noisy, t, cond, batched_number, transformer_options)
        return {place: [_joined([control[place][i] for control in controls], x_noisy.device)
                        for i in range(len(hints))]
                for place, hints in controls[0].items()}


def _joined(hints: list, device: torch.device):
    """A copy, which a wrapper may change in place."""
    return None if hints[0] is None else torch.cat([hint.to(device) for hint in hints])
