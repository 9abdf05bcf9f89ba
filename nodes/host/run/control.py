"""What a ControlNet (or a T2I adapter) gave a conditional row, given to its weak row: its inputs are the same."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

import torch

from ..hooks.kept import PrefixStore


def with_kept_controls(conds: list[dict], store: PrefixStore, sources: Mapping[UUID, UUID]) -> list[dict]:
    """The weak rows' conditionings, with each ControlNet replaced by what it gave their conditional rows."""
    stand_ins: dict[int, KeptControl] = {}  # one for each ControlNet: only rows that share one can share a call
    result = []
    for cond in conds:
        control = cond.get("control")
        if control is not None:
            cond = dict(cond, control=stand_ins.setdefault(id(control), KeptControl(control, store, sources)))
        result.append(cond)
    return result


class KeptControl:
    """Stands for a ControlNet in the call of the weak rows."""

    def __init__(self, control, store: PrefixStore, sources: Mapping[UUID, UUID]) -> None:
        self.control = control
        self.store = store
        self.sources = sources

    def get_control(self, x_noisy: torch.Tensor, t, cond, batched_number: int, transformer_options: dict):
        """As the ControlNet's own: {"input" or "middle" or "output": residuals}, here of the conditional rows."""
        kept = self.store.look(transformer_options["uuids"], self.sources)
        controls = [row.control for row in kept or () if row.control is not None]
        if kept is None or len(controls) < len(kept):
            return self.control.get_control(x_noisy, t, cond, batched_number, transformer_options)
        return {place: [_joined([control[place][i] for control in controls], x_noisy.device)
                        for i in range(len(hints))]
                for place, hints in controls[0].items()}

    def get_instance_for_device(self, device: torch.device) -> KeptControl:
        return self


def _joined(hints: list, device: torch.device):
    if hints[0] is None:
        return None
    if len(hints) == 1 or hints[0].shape[0] == 1:
        return hints[0].to(device)
    return torch.cat([hint.to(device) for hint in hints])
