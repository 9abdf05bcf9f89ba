"""What the model predicts in one step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ....pag_core.schedule import ROUNDING


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


class Reused:
    """The predictions of an earlier step, for those that `reuse_every` does not compute.

    Args:
        sigmas: the sampler's noise levels.
    """

    def __init__(self, sigmas: Sequence[float]) -> None:
        self.sigmas = sigmas
        self._pair: Pair | None = None
        self._sigma = 0.0  # of the latest evaluation
        self._base = 0  # the step from which they are counted

    def keep(self, pair: Pair) -> None:
        """Keep these predictions for `at`."""
        self._pair = pair

    def at(self, x: torch.Tensor, sigma: float, every: int) -> Pair | None:
        """The predictions of an earlier step, where they may stand for this one's.

        None where they have to be computed: in every n-th step of the sampler, and after a jump, when noise was added
        again (a restart, a second sampler) or the latent has another shape.
        """
        step = self._step_at(sigma)
        # Between two steps, ancestral samplers may stop where the next one begins but for rounding.
        jump = self._pair is None or self._pair.cond.shape != x.shape or sigma * (1 - ROUNDING) > self._sigma
        if jump:
            self._base = step
        self._sigma = sigma
        return None if (step - self._base) % every == 0 else self._pair

    def _step_at(self, sigma: float) -> int:
        """The sampler's step that an evaluation at this noise level belongs to, the last that begins at or above it."""
        return max((i for i, level in enumerate(self.sigmas) if level >= sigma * (1 - ROUNDING)), default=0)
