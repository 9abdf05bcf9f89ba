"""What the model predicts in one step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch


class Pair(NamedTuple):
    """The two predictions whose difference PAG adds, [B, C, ...], and the noise level they were made at.

    The level is None where nobody asked for it, and so is the x̂0 of a network output of zero.
    """

    cond: torch.Tensor
    perturbed: torch.Tensor
    sigma: float | None
    origin: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class Predictions:
    """What the model predicted in one step: clean latents x̂0, [B, C, ...], in the model's own scaling.

    Attributes:
        sigma: the noise level.
        scale: PAG's scale in this step; 0 where nothing of PAG is added.
        cond: the plain prediction, which CFG and PAG start from.
        uncond: the one that CFG pushes away from; None where CFG has no part in the step.
        pair: the predictions whose difference PAG adds, made in this step or, with reuse_every, in an earlier one; None
            where there is no perturbed prediction.
        guided: what CFG, PAG and other guidance make of them.
        has_weak_negative: whether `uncond` is the weak prediction, so that PAG is in what CFG adds.
    """

    sigma: float
    scale: float
    cond: torch.Tensor
    uncond: torch.Tensor | None
    pair: Pair | None
    guided: torch.Tensor
    has_weak_negative: bool = False
