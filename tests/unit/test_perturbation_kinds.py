"""Every kind of perturbation against attention maps written out in double precision, one query after the other."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pag_core.perturbation import Perturbation, PerturbationError, perturb_attention

BATCH, HEADS, CHANNELS, IMAGE, TEXT = 2, 4, 6, 12, 5
IMAGE_SLICES = {"self": None, "text first": slice(TEXT, TEXT + IMAGE), "text last": slice(0, IMAGE),
                "text around": slice(2, 2 + IMAGE)}
layouts = pytest.mark.parametrize("image", IMAGE_SLICES.values(), ids=IMAGE_SLICES)
grouped = pytest.mark.parametrize("kv_heads", [HEADS, 2, 1], ids="{} key heads".format)
chosen_heads = pytest.mark.parametrize("heads", [None, {0}, {1, 3}], ids=str)
strengths = pytest.mark.parametrize("strength", [1.0, 0.3])


def tensors(image: slice | None, kv_heads: int = HEADS, seed: int = 0, dtype=torch.float64) -> list[Tensor]:
    """q, k, v: [2, 4 or kv_heads, N, 6]."""
    tokens = IMAGE if image is None else IMAGE + TEXT
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(BATCH, heads, tokens, CHANNELS, generator=generator, dtype=torch.float64).to(dtype)
            for heads in (HEADS, kv_heads, kv_heads)]


def masks(tokens: int) -> dict[str, Tensor | None]:
    """Masks as hosts pass them: padded text (the last tokens but one), per sample, per query, boolean or added."""
    generator = torch.Generator().manual_seed(7)
    visible = torch.ones(BATCH, 1, 1, tokens, dtype=torch.bool)
    visible[0, ..., -2:] = False
    visible[1, ..., :1] = False
    bias = torch.randn(1, HEADS, tokens, tokens, generator=generator, dtype=torch.float64)
    return {"none": None, "boolean": visible, "added": torch.zeros(BATCH, 1, 1, tokens).masked_fill(~visible, -math.inf),
            "bias": bias, "two axes": bias[0, 0] > -1.0}


masked = pytest.mark.parametrize("mask_name", masks(IMAGE))


def logits_of(q: Tensor, k: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """[B, H, N, N]"""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    logits = q @ k.transpose(-1, -2) * scale
    if mask is None:
        return logits
    return logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask


def model_attention(scale: float, mask: Tensor | None) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def attend(q, k, v):
        own_mask = mask
        if mask is not None and q.shape[2] != k.shape[2]:
            assert mask.ndim == 4
            assert mask.shape[2] == 1, "only a mask without an axis of queries fits fewer queries"
        v = v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
        return torch.softmax(logits_of(q, k, scale, own_mask), dim=-1) @ v

    return attend


def reference(q: Tensor, k: Tensor, v: Tensor, change: Callable[[Tensor, Tensor, slice], Tensor], *, image, heads,
              strength, scale, mask) -> Tensor:
    """(1 − u)·A·V + u·A'·V over the whole map [N, N] of every head, A' = change(logits, A, image)."""
    image = image or slice(0, q.shape[2])
    logits = logits_of(q, k, scale, mask)
    maps = torch.softmax(logits, dim=-1)
    changed = maps.clone()
    for head in range(q.shape[1]) if heads is None else heads:
        for sample in range(q.shape[0]):
            new = change(logits[sample, head].clone(), maps[sample, head].clone(), image)
            changed[sample, head, image] = torch.lerp(maps[sample, head, image], new[image], strength)
    return changed @ v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)


def identity(logits: Tensor, attention_map: Tensor, image: slice) -> Tensor:
    keep = torch.ones_like(logits, dtype=torch.bool)
    keep[image, image] = torch.eye(image.stop - image.start, dtype=torch.bool)
    if keep[image.start].sum() == 1:  # a pure self-attention: V itself, whatever the mask (PAG Eq. 13)
        return torch.eye(logits.shape[0], dtype=logits.dtype)
    return torch.softmax(logits.masked_fill(~keep, -math.inf), dim=-1)


@layouts
@grouped
@chosen_heads
@strengths
@masked
def test_identity_equals_the_map_with_an_identity_block(image, kv_heads, heads, strength, mask_name):
    q, k, v = tensors(image, kv_heads)
    mask, scale = masks(q.shape[2])[mask_name], 0.5
    expected = reference(q, k, v, identity, image=image, heads=heads, strength=strength, scale=scale, mask=mask)
    result = perturb_attention(q, k, v, model_attention(scale, mask), Perturbation(strength=strength), heads=heads,
                               image=image, scale=scale, mask=mask)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-10)
