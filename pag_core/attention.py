"""One attention call of a network, reduced to the heads and image tokens to perturb."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Hashable
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]

CHUNK = 1 << 22  # numbers held at once by what is computed piece by piece: 16 MB in fp32


class PerturbationError(ValueError):
    """This attention call cannot be perturbed as asked; the message says why and what to do instead."""


class AttentionCall:
    """The arguments of `perturbation.perturb_attention`, and the h heads and Ni image tokens cut out of them."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, attend: Attend, heads: Collection[int] | None,
                 image: slice | None, scale: float | None, mask: Tensor | None, grid: tuple[int, int] | None,
                 key: tuple[Hashable, ...]) -> None:
        total, tokens = q.shape[1:3]
        if k.shape[2] != tokens or v.shape[2] != tokens or total % k.shape[1] or k.shape[1] != v.shape[1]:
            raise PerturbationError(f"this is not self-attention: {tokens} queries of {total} heads meet "
                                    f"{k.shape[2]} keys of {k.shape[1]} heads.")
        self.numbers = range(total) if heads is None else sorted(set(heads))
        if not self.numbers or self.numbers[0] < 0 or self.numbers[-1] >= total:
            raise PerturbationError(f"heads {list(self.numbers)}: this layer has heads 0 to {total - 1}.")
        self.start, self.stop, step = (slice(None) if image is None else image).indices(tokens)
        if self.start >= self.stop or step != 1:
            raise PerturbationError(f"{image} contains none of the {tokens} tokens, or they are not contiguous.")
        self.whole = (q, k, v)
        self.attend = attend
        self.has_all_heads = len(self.numbers) == total
        self.image = slice(self.start, self.stop)
        self.is_self = self.stop - self.start == tokens
        self.scale = q.shape[-1] ** -0.5 if scale is None else scale
        self.full_mask = None if mask is None else mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
        self.grid = grid
        self.key = key
        self.precise = torch.promote_types(q.dtype, torch.float32)

    @cached_property
    def attended(self) -> Tensor:
        """[B, H, N, D] what the model itself computes."""
        return self.attend(*self.whole)

    @cached_property
    def text(self) -> Tensor:
        """[N − Ni] indices of the tokens that are not image tokens."""
        tokens = torch.arange(self.whole[0].shape[2], device=self.whole[0].device)
        return torch.cat([tokens[:self.start], tokens[self.stop:]])

    @cached_property
    def q(self) -> Tensor:
        """[B, h, Ni, D] the image tokens' queries."""
        return self.chosen(self.whole[0])[:, :, self.image]

    @cached_property
    def k(self) -> Tensor:
        """[B, h, N, D], each head with the keys of its group."""
        return self.chosen(self.whole[1])

    @cached_property
    def v(self) -> Tensor:
        """[B, h, N, D]"""
        return self.chosen(self.whole[2])

    @cached_property
    def mask(self) -> Tensor | None:
        """[B or 1, h or 1, N or 1, N]"""
        if self.full_mask is None:
            return None
        mask = self.full_mask if self.full_mask.shape[1] == 1 else self.chosen(self.full_mask)
        return mask.expand(-1, -1, -1, self.whole[0].shape[2])

    def chosen(self, x: Tensor) -> Tensor:
        """[B, H or Hkv, ...] -> [B, h, ...]"""
        group = self.whole[0].shape[1] // x.shape[1]
        if self.has_all_heads:
            return x if group == 1 else x.repeat_interleave(group, dim=1)
        # An index would be brought from the CPU, and a GPU waited for.
        return torch.stack([x[:, head // group] for head in self.numbers], dim=1)

    def blend(self, out: Tensor, perturbed: Tensor, strength: float) -> None:
        """Move `out` [B, H, N, D] towards `perturbed` [B, h, Ni, D] where that belongs, in place."""
        if self.has_all_heads:
            out[:, :, self.image].lerp_(perturbed, strength)
            return
        for place, head in enumerate(self.numbers):
            out[:, head, self.image].lerp_(perturbed[:, place], strength)

    def image_mask(self, rows: slice) -> Tensor | None:
        """[B or 1, h or 1, rows or 1, N] the mask of these image tokens' queries."""
        if self.mask is None or self.mask.shape[2] == 1:
            return self.mask
        return self.mask[:, :, self.image][:, :, rows]

    def generator(self, sample: int, head: int | None = None) -> torch.Generator:
        """For this call, sample and head; independent of anything else that is drawn."""
        return seeded(*self.key, sample, head)

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[B, h, Ni, D'] softmax attention of image queries over all keys, with the call's mask.

        In pieces, for where torch has no kernel for these shapes it holds the whole map; in large ones, for mostly it
        has one.
        """
        pieces = []
        for rows in chunks(q.shape[2], q.shape[0] * q.shape[1] * k.shape[2] // 64):
            mask = self.image_mask(rows)
            if mask is not None and mask.dtype != torch.bool:
                mask = mask.to(q.dtype)
            pieces.append(F.scaled_dot_product_attention(q[:, :, rows], k, v, attn_mask=mask,
                                                         scale=self.scale))
        return torch.cat(pieces, dim=2)

    def attention_to_image_by(self, queries: Tensor) -> Tensor:
        """[B, h, Ni, D] the attention in which the image keys meet `queries` [B, h, Ni, D] instead of the image tokens'
        own queries, which the text keys still meet: [q, queries]·[k_text, 0] and [q, queries]·[0, k_image]."""
        if self.is_self:
            return self.attention(queries, self.k, self.v)
        channels = self.k.shape[-1]
        keys = F.pad(self.k, (0, channels))
        keys[:, :, self.image] = keys[:, :, self.image].roll(channels, dims=-1)
        return self.attention(torch.cat([self.q, queries], dim=-1), keys, self.v)


def seeded(*key: Hashable) -> torch.Generator:
    """A generator seeded by this key, on the CPU, where every machine draws the same numbers."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask (True: may be seen) as what is added to the logits; any other as it is."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, -torch.inf)


def chunks(rows: int, numbers_per_row: int) -> list[slice]:
    """Slices of the rows, as large as `CHUNK` allows."""
    size = max(1, CHUNK // max(1, numbers_per_row))
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
