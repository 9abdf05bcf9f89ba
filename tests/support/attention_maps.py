"""Small attentions, and the maps of what perturbs them, for tests that compare with maps written out."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pag_core.perturbation import KINDS, Perturbation, perturb_attention

BATCH, HEADS, CHANNELS, TEXT = 2, 4, 6, 5
GRID = (6, 6)
IMAGE = math.prod(GRID)
SCALE = 0.5
LAYOUTS = {"self": None, "text first": slice(TEXT, TEXT + IMAGE), "text last": slice(0, IMAGE),
           "text around": slice(2, 2 + IMAGE)}
ATTENTION = [name for name, kind in KINDS.items() if not kind.acts_on_block]
RANDOM = [name for name in ATTENTION if KINDS[name].is_random]
layouts = pytest.mark.parametrize("image", LAYOUTS.values(), ids=LAYOUTS)
two_layouts = pytest.mark.parametrize("image", [None, LAYOUTS["text around"]], ids=["self", "joint"])


def tensors(image: slice | None, kv_heads: int = HEADS, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """q, k, v: [2, 4 or kv_heads, N, 6]."""
    tokens = IMAGE if image is None else IMAGE + TEXT
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(BATCH, heads, tokens, CHANNELS, generator=generator, dtype=torch.float64).to(dtype)
            for heads in (HEADS, kv_heads, kv_heads)]


def logits_of(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """[B, H, n, N]"""
    logits = q @ k.repeat_interleave(q.shape[1] // k.shape[1], dim=1).transpose(-1, -2) * SCALE
    if mask is None:
        return logits
    return logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask


def model_attention(mask: Tensor | None = None) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def attend(q, k, v):
        assert mask is None or q.shape[2] == k.shape[2] or mask.shape[-2] == 1, "this mask does not fit fewer queries"
        return torch.softmax(logits_of(q, k, mask), dim=-1) @ v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)

    return attend


def attend_not_expected(q, k, v):
    raise AssertionError("the attention must not be computed")


def perturb(q: Tensor, k: Tensor, v: Tensor, how: Perturbation, mask: Tensor | None = None, **options) -> Tensor:
    return perturb_attention(q, k, v, model_attention(mask), how, mask=mask, grid=GRID, scale=SCALE, **options)


def map_of(q: Tensor, k: Tensor, how: Perturbation, mask: Tensor | None = None, **options) -> Tensor:
    """[B, H, N, N]: what multiplies V, read off by making V the identity."""
    tokens = q.shape[2]
    eye = torch.eye(tokens, dtype=q.dtype).expand(q.shape[0], k.shape[1], tokens, tokens)
    return perturb(q, k, eye, how, mask, **options)


def assert_same(result: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(result, expected, rtol=0, atol=tolerance)
