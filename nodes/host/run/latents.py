"""Several latents in one tensor [B, 1, N], as the host packs video and sound for a sampler."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import comfy.utils
import torch

from ....pag_core.checks import SettingError
from ....pag_core.mask import fit_mask

Shapes = Sequence[Sequence[int]]
"""[B, ...] of the latents, in their order; one or none where nothing is packed."""


def spread(values: Sequence[float], shapes: Shapes) -> torch.Tensor:
    """[1, 1, N] one value for all numbers of each latent."""
    return torch.cat([torch.full((1, 1, math.prod(shape[1:])), value)
                      for value, shape in zip(values, shapes, strict=True)], dim=-1)


class Weights:
    """What multiplies PAG's delta.

    Args:
        mask: the user's [1 or B, H, W], in whatever size; see `fit_mask`.
        scales: of each of several latents in one, of these `shapes`; where there is one latent, they have no meaning.
    """

    def __init__(self, mask: torch.Tensor | None = None, scales: Sequence[float] | None = None, shapes: Shapes = ()
                 ) -> None:
        self._is_mask = mask is not None
        self._given = mask if mask is not None else spread(scales, shapes) if scales and shapes else None
        self._weights: torch.Tensor | None = None
        self._of: tuple | None = None  # (shape, device) of the deltas that these are for

    @property
    def are_zero(self) -> bool:
        """Whether a delta was multiplied, by 0 everywhere."""
        return self._weights is not None and not self._weights.any()

    def applied_to(self, delta: torch.Tensor) -> torch.Tensor:
        """The delta [B, C, ...] times these."""
        if self._given is None:
            return delta
        if self._of != (delta.shape, delta.device):  # a sampler may enlarge the latent on its way
            weights = fit_mask(self._given, tuple(delta.shape)) if self._is_mask else self._given
            self._weights, self._of = weights.to(delta), (delta.shape, delta.device)
        return delta * self._weights


def latent_by_latent(rule: Callable[..., torch.Tensor], shapes: Shapes, *tensors: torch.Tensor | None) -> torch.Tensor:
    """What `rule` makes of each latent, from its number and its part of these tensors, in one tensor again."""
    if len(shapes) < 2:
        return rule(0, *tensors)
    parts = ([None] * len(shapes) if t is None else comfy.utils.unpack_latents(t, shapes) for t in tensors)
    return comfy.utils.pack_latents([rule(number, *of_one) for number, of_one in enumerate(zip(*parts, strict=True))]
                                    )[0]


def check_mask(mask: torch.Tensor | None, shapes: Shapes) -> None:
    """Raise SettingError where a scale_mask fits no latent of these shapes."""
    if mask is None:
        return
    if len(shapes) > 1:
        raise SettingError("scale_mask needs a latent of images or video alone; this one contains several latents. "
                           "Disconnect the mask.")
    fit_mask(mask, tuple(shapes[0]))
