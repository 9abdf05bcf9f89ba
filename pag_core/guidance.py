"""How the network's predictions combine into the guided one.

All functions are linear in the prediction, so they hold for epsilon, velocity and x̂0 ("denoised") alike (PAG Eq. 4, 10);
the host hands over x̂0. Shapes are [B, C, ...]; any floating dtype and device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch


def perturbed_attention_delta(cond: torch.Tensor, perturbed: torch.Tensor, scale: float) -> torch.Tensor:
    """What PAG adds to the prediction: s·(D_cond − D_perturbed) (PAG Eq. 10, 11; the last term of Eq. 14)."""
    return (cond - perturbed) * scale


def guide(guided: torch.Tensor, cond: torch.Tensor, delta: torch.Tensor, rescale: float = 0.0,
          rescale_mode: str = "full") -> torch.Tensor:
    """Add PAG's delta to what the other guidance made of this step (PAG Eq. 14), tamed by `rescale`.

    Args:
        guided: [B, C, ...] the prediction so far: CFG's result, or the conditional prediction where there is no CFG.
        cond: [B, C, ...] the conditional prediction, the reference of the rescaling.
        delta: [B, C, ...] from `perturbed_attention_delta`.
        rescale: 0 (off) to 1; the share of the correction that is applied.
        rescale_mode: a key of `RESCALE_MODES`.
    """
    if rescale == 0.0:
        return guided + delta
    return RESCALE_MODES[rescale_mode](guided, cond, delta, rescale)


def _std(x: torch.Tensor) -> torch.Tensor:
    """Standard deviation of each sample, [B, 1, ...]; in fp32, for a half-precision sum of squares overflows."""
    return x.float().std(dim=tuple(range(1, x.ndim)), keepdim=True)


def _shrink(target: torch.Tensor, actual: torch.Tensor, rescale: float) -> torch.Tensor:
    """The factor of Lin et al. 2023 (arXiv 2305.08891, Eq. 15–16), [B, 1, ...]: 1 where the spreads agree already."""
    # A constant prediction has nothing to rescale, and 0/0 would spread NaN over the picture.
    actual = _std(actual)
    factor = torch.where(actual > 0, _std(target) / actual.clamp_min(torch.finfo(actual.dtype).tiny), 1.0)
    return rescale * factor + (1.0 - rescale)


def _rescale_full(guided: torch.Tensor, cond: torch.Tensor, delta: torch.Tensor, rescale: float) -> torch.Tensor:
    return guided + delta * _shrink(cond, guided + delta, rescale).to(delta.dtype)


def _rescale_partial(guided: torch.Tensor, cond: torch.Tensor, delta: torch.Tensor, rescale: float) -> torch.Tensor:
    return guided + delta * _shrink(cond, cond + delta, rescale).to(delta.dtype)


def _rescale_total(guided: torch.Tensor, cond: torch.Tensor, delta: torch.Tensor, rescale: float) -> torch.Tensor:
    total = guided + delta
    return total * _shrink(cond, total, rescale).to(total.dtype)


RESCALE_MODES: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]] = {
    "full": _rescale_full,        # shrink PAG's delta by the spread of the whole guided prediction (pamparamm)
    "partial": _rescale_partial,  # shrink PAG's delta by the spread that PAG alone causes (pamparamm)
    "total": _rescale_total,      # shrink the whole prediction, CFG's part too (Lin et al. 2023, applied to x̂0)
}
