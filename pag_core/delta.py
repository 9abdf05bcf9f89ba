"""Modifications of the guidance term s·(D_cond − D_perturbed); none of them costs an extra pass.

Tensors are predictions of x̂0, [B, C, ...], of any floating dtype and device; samples stay independent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .blur import blur
from .checks import number
from .schedule import ROUNDING

_BINOMIAL = [1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16]  # the kernel of Laplacian pyramids
MEMORY = 0.6  # the share of the older predictions that a step keeps in `History`


@dataclass(frozen=True)
class DeltaRules:
    """How `shaped` changes the delta; the defaults leave it as it is.

    Attributes:
        early_damping: α of `damped`.
        momentum: times which `History.momentum` is added.
        coarse_scale: `low` of `split`.
        tangential_scale: `amount` of `tangential`.
    """

    early_damping: float = number(0.0, 0.0, 100.0)
    momentum: float = number(0.0, 0.0, 10.0)
    coarse_scale: float = number(1.0, 0.0, 10.0)
    tangential_scale: float = number(1.0, 0.0, 10.0)


def damped(delta: Tensor, perturbed: Tensor, alpha: float, scale: float, origin: Tensor | None = None) -> Tensor:
    """The delta, reduced where it is large relative to the prediction, as early in a run: times exp(−α·r), with
    r = ‖D_cond − D_perturbed‖ / ‖D_perturbed‖ for each sample (MAMBO-G, arXiv 2508.03442, whose delta is CFG's and
    whose r is of network outputs: ‖cond − uncond‖ / ‖uncond‖).

    Args:
        delta: s·(D_cond − D_perturbed).
        alpha: α; 0 changes nothing, the paper uses 8.
        scale: s, which r does without.
        origin: the x̂0 of a network output of zero, as in `guidance.guide`; the paper measures the network's output.
    """
    output = perturbed if origin is None else perturbed - origin
    ratio = _length(delta) / (scale * _length(output)).clamp_min(torch.finfo(torch.float32).tiny)
    return delta * torch.exp(-alpha * ratio).to(delta.dtype)


def low_frequencies(x: Tensor) -> Tensor:
    """The low frequencies of each image, frame or track: two binomial blurs along the last one or two axes."""
    low = x.float()
    for axis in range(max(2, x.ndim - 2), x.ndim):
        low = blur(blur(low, axis, _BINOMIAL), axis, _BINOMIAL)
    return low.to(x.dtype)


def split(delta: Tensor, low: float) -> Tensor:
    """The coarse part of the delta times `low`, the fine part unchanged: below 1, composition and colors are left to
    the model. Frequency-Decoupled Guidance (arXiv 2506.19713) does so with both levels of a Laplacian pyramid of CFG's
    delta; here its coarse level is a blur that keeps every position, so that no size has to be even."""
    return delta + (low - 1.0) * low_frequencies(delta)


def tangential(delta: Tensor, x: Tensor, amount: float) -> Tensor:
    """The part of the delta perpendicular to x_t times `amount`, the parallel part unchanged: above 1 it changes what
    the image shows more than how strong it is. TAG (arXiv 2510.04533, Eq. 6, 7) does so with a sampler's whole step."""
    return amount * delta - (amount - 1.0) * along(delta, x)


class History:
    """An exponential moving average of the model's predictions in the earlier steps of one run."""

    def __init__(self) -> None:
        self.mean: Tensor | None = None
        self.sigma = 0.0

    def momentum(self, cond: Tensor, sigma: float) -> Tensor:
        """D_cond − its average over the earlier steps. Takes note of this step.

        Momentum Guidance (arXiv 2602.20360, Eq. 12, 13, β = 0.6) does so with velocities, v = (D − x)/σ, of flow
        models. HiGS (arXiv 2509.22300) has D, of which it adds only high frequencies perpendicular to D, with a weight
        that falls over the run; its average begins at 0.

        It is 0 in a first step, and after a jump: where noise was added again, or the latent has another shape.
        """
        # Between two steps, ancestral samplers may stop where the next one begins but for rounding.
        if self.mean is None or self.mean.shape != cond.shape or sigma * (1 - ROUNDING) > self.sigma:
            self.mean = cond
        self.sigma = sigma
        change = cond - self.mean
        self.mean = torch.lerp(cond, self.mean, MEMORY)
        return change


def shaped(delta: Tensor, cond: Tensor, perturbed: Tensor, x: Tensor, rules: DeltaRules, *, scale: float, sigma: float,
           history: History, origin: Tensor | None = None) -> Tensor:
    """The delta after these rules, in this order: `damped`, momentum added, `split`, `tangential`.

    Args:
        delta: s·(cond − perturbed), with s = `scale`.
        cond: the conditional prediction of this step, also where the delta is an earlier step's.
        perturbed: the delta's own.
        x: the noisy latent x_t.
        sigma: its noise level; not used without momentum.
        history: of this run.
        origin: as for `damped`.
    """
    if rules.early_damping:
        delta = damped(delta, perturbed, rules.early_damping, scale, origin)
    if rules.momentum:
        delta = delta + rules.momentum * history.momentum(cond, sigma)
    if rules.coarse_scale != 1.0:
        delta = split(delta, rules.coarse_scale)
    return tangential(delta, x, rules.tangential_scale) if rules.tangential_scale != 1.0 else delta


def _length(x: Tensor) -> Tensor:
    """[B, 1, ...] in fp32."""
    return torch.linalg.vector_norm(x.float(), dim=tuple(range(1, x.ndim)), keepdim=True)


def along(delta: Tensor, x: Tensor) -> Tensor:
    """The part of each sample's delta that is parallel to its x; both [B, C, ...]."""
    direction = x.float() / _length(x).clamp_min(torch.finfo(torch.float32).tiny)
    return ((delta.float() * direction).sum(tuple(range(1, x.ndim)), keepdim=True) * direction).to(delta.dtype)
