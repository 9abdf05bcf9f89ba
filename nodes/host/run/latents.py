"""Several latents in one tensor [B, 1, N], as the host packs video and sound for a sampler."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def spread(values: Sequence[float], shapes: Sequence[Sequence[int]]) -> torch.Tensor:
    """[1, 1, N] one value for all numbers of each latent.

    Args:
        shapes: of the latents, [B, ...], in their order.
    """
    return torch.cat([torch.full((1, 1, math.prod(shape[1:])), value)
                      for value, shape in zip(values, shapes, strict=True)], dim=-1)
