"""What a ControlNet (or a T2I adapter) gave a conditional row, given to its weak row: its inputs are the same.

It is noted where the ControlNet gives it: a wrapper may go on to change it, and does so in the weak rows' call as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from copy import copy
from uuid import UUID

import torch

from ..hooks.kept import PrefixStore

Conds = list["list[dict] | None"]  # what the host's call is given: the conditionings of each prompt


def with_noted_controls(conds: Conds, store: PrefixStore) -> Conds:
    """The conditionings of the host's own call, whose ControlNets leave in `store` what they give."""
    return _with_stand_ins(conds, lambda control: NotedControl(control, store))


def with_kept_controls(conds: Conds, store: PrefixStore, sources: Mapping[UUID, UUID]) -> Conds:
    """The weak rows' conditionings of one call, with each ControlNet replaced by what it gave their conditional rows.
    """
    used: Counter = Counter()
    return _with_stand_ins(conds, lambda control: KeptControl(control, store, sources, used))


def _with_stand_ins(conds: Conds, stand_in: Callable) -> Conds:
    """One stand-in for each ControlNet: only rows that share one can share a call."""
    made: dict[int, object] = {}

    def changed(cond: dict) -> dict:
        control = cond.get("control")
        if control is None:
            return cond
        if id(control) not in made:
            made[id(control)] = stand_in(control)
        return {**cond, "control": made[id(control)]}

    return [rows and [changed(cond) for cond in rows] for rows in conds]


class _StandIn:
    """Stands for a ControlNet in one call."""

    def __init__(self, control) -> None:
        self.control = control

    def get_instance_for_device(self, device: torch.device) -> _StandIn:
        """As the ControlNet's own; with what this one knows."""
        other = copy(self)
        other.control = self.control.get_instance_for_device(device)
        return other


class NotedControl(_StandIn):
    """Of the host: what it gives is noted."""

    def __init__(self, control, store: PrefixStore) -> None:
        super().__init__(control)
        self.store = store

    def get_control(self, x_noisy: torch.Tensor, t, cond, batched_number: int, transformer_options: dict):
        """As the ControlNet's own: {"input" or "middle" or "output": residuals}."""
        given = self.control.get_control(x_noisy, t, cond, batched_number, transformer_options)
        if isinstance(given, dict):  # a node that cuts pictures into tiles may ask for it only later
            self.store.note_control(given, x_noisy.shape[0], transformer_options)
        return given


class KeptControl(_StandIn):
    """Of the weak rows: what the ControlNet gave their conditional rows.

    Args:
        used: how often a row has asked in this call.
    """

    def __init__(self, control, store: PrefixStore, sources: Mapping[UUID, UUID], used: Counter) -> None:
        super().__init__(control)
        self.store, self.sources, self.used = store, sources, used

    def get_control(self, x_noisy: torch.Tensor, t, cond, batched_number: int, transformer_options: dict):
        """As the ControlNet's own."""
        rows = [self.sources.get(uuid) for uuid in transformer_options["uuids"]]
        places = [self.used[row] for row in rows]
        self.used.update(rows)
        noted = [self.store.controls.get(row, ()) if row else () for row in rows]
        controls = [found[place] for found, place in zip(noted, places, strict=True) if place < len(found)]
        if len(controls) < len(rows):
            return self.control.get_control(x_noisy, t, cond, batched_number, transformer_options)
        return {place: [_joined([control[place][i] for control in controls], x_noisy.device)
                        for i in range(len(hints))]
                for place, hints in controls[0].items()}


def _joined(hints: list, device: torch.device):
    """A copy, which a wrapper may change in place."""
    return None if hints[0] is None else torch.cat([hint.to(device) for hint in hints])
