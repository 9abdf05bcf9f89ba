"""Gaussian blur along one axis, reflected at the borders, and its transpose."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

Position = TypeVar("Position", int, Tensor)


def gaussian(sigma: float, size: int) -> list[float]:
    """A normalized kernel of `size` taps; `size` must be odd."""
    steps = [(i - size // 2) / sigma for i in range(size)]
    taps = [math.exp(-0.5 * step * step) for step in steps]
    return [tap / sum(taps) for tap in taps]


def reflect(position: Position, size: int) -> Position:
    """The place among `size` to which a border that reflects without repeating its edge sends this position, an int, or
    each of these, a tensor."""
    last = size - 1
    return last - abs(position % max(1, 2 * last) - last)  # pyright: ignore[reportReturnType]


def blur(x: Tensor, dim: int, weights: list[float]) -> Tensor:
    """R·x: along `dim`, reflected at the borders."""
    size, radius = x.shape[dim], len(weights) // 2
    places = reflect(torch.arange(-radius, size + radius, device=x.device), size)
    return sum(weight * x.index_select(dim, places[i:i + size]) for i, weight in enumerate(weights))


def blur_transposed(x: Tensor, weights: list[float]) -> Tensor:
    """Rᵀ·x along the tokens of x [B, h, Ni, D]: each token spreads by the kernel, and what leaves is reflected back."""
    size, radius = x.shape[2], len(weights) // 2
    spread = F.pad(torch.zeros_like(x), (0, 0, radius, radius))
    for i, weight in enumerate(weights):
        spread[:, :, i:i + size] += weight * x
    out = spread[:, :, radius:radius + size].clone()
    for i in (*range(-radius, 0), *range(size, size + radius)):
        out[:, :, reflect(i, size)] += spread[:, :, i + radius]
    return out
