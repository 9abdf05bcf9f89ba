"""How the network's predictions combine into the guided one.

The guidance formulas are linear in the prediction, so they hold for epsilon, velocity and x̂0 ("denoised") alike (PAG
Eq. 4, 10); the host hands over x̂0. Shapes are [B, C, ...]; any floating dtype and device; samples stay independent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .blur import blur, gaussian
from .delta import along


def perturbed_attention_delta(cond: Tensor, perturbed: Tensor, scale: float) -> Tensor:
    """What PAG adds to the prediction: s·(D_cond − D_perturbed) (PAG Eq. 10, 11; the last term of Eq. 14)."""
    return (cond - perturbed) * scale


def guide(guided: Tensor, cond: Tensor, delta: Tensor, rescale: float = 0.0, rescale_mode: str = "full", *,
          uncond: Tensor | None = None, origin: Tensor | None = None) -> Tensor:
    """Add PAG's delta to the result of the other guidance in this step (PAG Eq. 14), limited by `rescale`.

    Args:
        guided: [B, C, ...] the prediction so far: CFG's result, or the conditional prediction where there is no CFG.
        cond: [B, C, ...] the conditional prediction, the reference of the rescaling.
        delta: [B, C, ...] from `perturbed_attention_delta`.
        rescale: 0 (off, the plain sum bit for bit) to 1; the fraction of the correction that is applied.
        rescale_mode: a key of `RESCALE_MODES`.
        uncond: [B, C, ...] the unconditional prediction, for "snf"; None where there is no CFG.
        origin: [B, C, ...] the x̂0 that belongs to a network output of zero, for "diffusers": x_t where the network
            predicts noise or flow velocity, x_t / (σ² + 1) for v-prediction, 0 (or None) where it predicts x̂0 itself.
    """
    if rescale == 0.0:
        return guided + delta
    return RESCALE_MODES[rescale_mode](_Step(guided, cond, delta, uncond, origin), rescale)


def rescaled(total: Tensor, cond: Tensor, rescale: float) -> Tensor:
    """A guided prediction whose spread moves toward the conditional one's by a fraction `rescale`, for each sample (Lin
    et al. 2023, arXiv 2305.08891, Eq. 15-16); at 0 the same tensor."""
    return total if rescale == 0.0 else total * _shrink(cond, total, rescale)


@dataclass(frozen=True, eq=False)
class _Step:
    """The arguments of `guide`, for the rescale modes."""

    guided: Tensor
    cond: Tensor
    delta: Tensor
    uncond: Tensor | None
    origin: Tensor | None

    @property
    def total(self) -> Tensor:
        return self.guided + self.delta


def _full(step: _Step, rescale: float) -> Tensor:
    """Shrink PAG's delta by the spread of the whole guided x̂0 (pamparamm's sd-perturbed-attention)."""
    return step.guided + step.delta * _shrink(step.cond, step.total, rescale)


def _partial(step: _Step, rescale: float) -> Tensor:
    """Shrink PAG's delta by the spread that PAG alone causes (pamparamm's sd-perturbed-attention)."""
    return step.guided + step.delta * _shrink(step.cond, step.cond + step.delta, rescale)


def _diffusers(step: _Step, rescale: float) -> Tensor:
    """Shrink the network's whole guided output, CFG's part included (Lin et al. 2023, Sec. 3.4, as `guidance_rescale`
    of diffusers does it on noise, velocity or whatever the network predicts).

    Every prediction type has x̂0 = origin + c·output with one number c for a sample, so the spread of x̂0 − origin is
    the output's but for c, which cancels.
    """
    if step.origin is None:
        return rescaled(step.total, step.cond, rescale)
    output = step.total - step.origin
    return step.origin + output * _shrink(step.cond - step.origin, output, rescale)


def _snf(step: _Step, rescale: float) -> Tensor:
    """Saliency-adaptive noise fusion (Wang et al. 2023, arXiv 2311.10329, as pamparamm applies it to PAG): at each
    place either CFG's update or PAG's acts, whichever is more salient. Without CFG it is the sum."""
    if step.uncond is None:
        return step.total
    update = step.guided - step.uncond
    fused = torch.where(_saliency(update) >= _saliency(step.delta), update, step.delta)
    return torch.lerp(step.total, step.uncond + fused, rescale)


def _apg(step: _Step, rescale: float) -> Tensor:
    """Remove the part of PAG's delta that is parallel to the conditional x̂0: it saturates more than it improves
    (Adaptive Projected Guidance, Sadat et al. 2024, arXiv 2410.02416, with η = 1 − rescale)."""
    return step.guided + (step.delta - rescale * along(step.delta, step.cond))


RESCALE_MODES: dict[str, Callable[[_Step, float], Tensor]] = {
    "full": _full,
    "partial": _partial,
    "diffusers": _diffusers,
    "snf": _snf,
    "apg": _apg,
}


def _std(x: Tensor) -> Tensor:
    """Standard deviation of each sample, [B, 1, ...]; in fp32, for a half-precision sum of squares overflows."""
    return x.float().std(dim=tuple(range(1, x.ndim)), keepdim=True)


def _shrink(target: Tensor, actual: Tensor, rescale: float) -> Tensor:
    """The factor of Lin et al. 2023 (arXiv 2305.08891, Eq. 15–16), [B, 1, ...]: 1 where the spreads agree already."""
    spread = _std(actual)
    # A constant prediction has nothing to rescale, and 0/0 would spread NaN over the picture.
    factor = torch.where(spread > 0, _std(target) / spread.clamp_min(torch.finfo(spread.dtype).tiny), 1.0)
    return (rescale * factor + (1.0 - rescale)).to(actual.dtype)


def _saliency(update: Tensor) -> Tensor:
    """The saliency of each position in its channel, after a 3-tap blur; over the last one or two axes.

    The logarithm of the authors' softmax, which has the same order and does not underflow.
    """
    axes = tuple(range(max(2, update.ndim - 2), update.ndim))
    magnitude = update.abs().float()
    for axis in axes:
        magnitude = blur(magnitude, axis, gaussian(1.0, 3))
    return magnitude.flatten(axes[0]).log_softmax(-1).view_as(update)
