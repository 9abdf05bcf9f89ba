"""What replaces a self-attention map in the perturbed pass.

Tensors are per head: q [B, H, N, D], k and v [B, Hkv, N, D] with Hkv dividing H (grouped queries), as they enter the
softmax, that is after normalisation and rotary embedding; any floating dtype and device. Among the N tokens, Ni are
image tokens; in a pure self-attention these are all, in a joint attention (SD3, Flux, ...) the rest is text. Only the
image-to-image block of the map [N, N] is ever perturbed; "A" below is that block, V its values.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from functools import cached_property

import torch
from einops import rearrange
from torch import Tensor

from .checks import check_choice, check_range

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]

_CHUNK = 1 << 24  # numbers held at once by what is computed piece by piece: 64 MB in fp32


class PerturbationError(ValueError):
    """This attention call cannot be perturbed as asked; the message says why and what to do instead."""


@dataclass(frozen=True)
class Perturbation:
    """What is done to the attention map; the defaults are the paper's PSA.

    Attributes:
        kind: a key of `KINDS`.
        strength: SoftPAG's u in [0, 1] (arXiv 2506.10978), per head: out = (1 − u)·attention + u·perturbed.
    """

    kind: str = "identity"
    strength: float = 1.0

    def __post_init__(self) -> None:
        check_choice("perturbation", self.kind, tuple(KINDS))
        check_range("strength", self.strength, 0.0, 1.0)


def perturb_attention(q: Tensor, k: Tensor, v: Tensor, attend: Attend, perturbation: Perturbation, *,
                      heads: Collection[int] | None = None, image: slice | None = None, scale: float | None = None,
                      mask: Tensor | None = None, grid: tuple[int, int] | None = None,
                      noise_key: tuple[Hashable, ...] = ()) -> Tensor:
    """One self-attention or joint attention, [B, H, N, D], with the image-to-image block of its map perturbed.

    Args:
        q: [B, H, N, D].
        k, v: [B, Hkv, N, D].
        attend: the model's own attention with the same mask and scale, (q, k, v) -> [B, H, n, D]. It is called with
            these q, k and v, at most once, and only where some of its result is kept; where only the text tokens'
            part is, with the n rows of q that are theirs.
        heads: the heads to perturb; None for all of them.
        image: which tokens are image tokens, a slice without a step; None for all: a pure self-attention.
        scale: what the model's softmax scales the logits by; None for D^-1/2.
        mask: the call's attention mask, boolean (True: may be seen) or added to the logits, broadcastable to
            [B, H, N, N]; None for none.
        grid: (h, w) of the image tokens, row by row; of each frame where there are several. None if unknown.
        noise_key: what tells this call from others with the same seed, for example (layer name, sigma).

    Raises:
        PerturbationError: where this call is no self-attention, or the kind cannot work on it.
    """
    call = _Call(q, k, v, attend, heads, image, scale, mask)
    if perturbation.strength == 0.0:
        return call.attended
    perturbed = KINDS[perturbation.kind](call, perturbation)
    if perturbation.strength == 1.0 and call.heads is None:
        if call.is_self:
            return perturbed
        if mask is None or call.mask.shape[2] == 1:  # a mask with a row per query would not fit fewer queries
            text = attend(q[:, :, call.text], k, v)
            return torch.cat([text[:, :, :call.start], perturbed, text[:, :, call.start:]], dim=2)
    out = call.attended.clone()
    own = (slice(None), slice(None) if call.heads is None else call.heads, call.image)
    out[own] = torch.lerp(out[own], perturbed, perturbation.strength)
    return out


class _Call:
    """One attention call, reduced to the h heads and Ni image tokens that are perturbed."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, attend: Attend, heads: Collection[int] | None,
                 image: slice | None, scale: float | None, mask: Tensor | None) -> None:
        total, tokens = q.shape[1:3]
        if k.shape[2] != tokens or v.shape[2] != tokens or total % k.shape[1] or k.shape[1] != v.shape[1]:
            raise PerturbationError(f"this is no self-attention: {tokens} queries of {total} heads meet "
                                    f"{k.shape[2]} keys of {k.shape[1]} heads.")
        chosen = range(total) if heads is None else sorted(set(heads))
        if not chosen or chosen[0] < 0 or chosen[-1] >= total:
            raise PerturbationError(f"heads {list(chosen)} do not lie among this layer's {total} heads.")
        self.start, self.stop, step = (slice(None) if image is None else image).indices(tokens)
        if self.start >= self.stop or step != 1:
            raise PerturbationError(f"{image} holds none of the {tokens} tokens, or not side by side.")
        self.whole = (q, k, v)
        self.attend = attend
        self.heads = None if len(chosen) == total else torch.tensor(chosen, device=q.device)
        self.image = slice(self.start, self.stop)
        self.is_self = self.stop - self.start == tokens
        self.scale = q.shape[-1] ** -0.5 if scale is None else scale
        self.full_mask = None if mask is None else mask.reshape((1,) * (4 - mask.ndim) + mask.shape)

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
        """[B, h, N, D]"""
        return self._chosen(self.whole[0])

    @cached_property
    def k(self) -> Tensor:
        """[B, h, N, D], each head with the keys of its group."""
        return self._chosen(self.whole[1])

    @cached_property
    def v(self) -> Tensor:
        """[B, h, N, D]"""
        return self._chosen(self.whole[2])

    @cached_property
    def mask(self) -> Tensor | None:
        """[B or 1, h or 1, N or 1, N]"""
        if self.full_mask is None:
            return None
        mask = self.full_mask if self.full_mask.shape[1] == 1 or self.heads is None else self.full_mask[:, self.heads]
        return mask.expand(-1, -1, -1, self.whole[0].shape[2])

    def _chosen(self, x: Tensor) -> Tensor:
        group = self.whole[0].shape[1] // x.shape[1]
        if self.heads is not None:
            return x[:, self.heads // group]
        return x if group == 1 else x.repeat_interleave(group, dim=1)


def _identity(call: _Call, _: Perturbation) -> Tensor:
    """A becomes the identity (PAG Eq. 13). In a joint attention an image token then sees the text and itself; the
    softmax runs over what remains: O(N·T) for T text tokens, and no N×N map."""
    if call.is_self:
        return call.v
    precise = torch.promote_types(call.q.dtype, torch.float32)
    text_k, text_v = (x[:, :, call.text].to(precise) for x in (call.k, call.v))
    q, k, v = (x[:, :, call.image] for x in (call.q, call.k, call.v))
    out = torch.empty_like(v)
    for rows in _chunks(q.shape[2], q.shape[0] * q.shape[1] * (text_k.shape[2] + q.shape[3])):
        queries = q[:, :, rows].to(precise) * call.scale
        own = (queries * k[:, :, rows].to(precise)).sum(-1, keepdim=True)
        logits = torch.cat([own, queries @ text_k.transpose(-1, -2)], dim=-1)  # [B, h, rows, 1 + T]
        if call.mask is not None:
            logits = logits + _own_and_text_mask(call, rows, precise)
        weights = torch.softmax(logits, dim=-1)
        out[:, :, rows] = (weights[..., :1] * v[:, :, rows].to(precise) + weights[..., 1:] @ text_v).to(v.dtype)
    return out


def _own_and_text_mask(call: _Call, rows: slice, dtype: torch.dtype) -> Tensor:
    """[B or 1, h or 1, rows or 1, 1 + T] the mask of each image token's own key and of the text keys."""
    tokens = slice(call.start + rows.start, call.start + rows.stop)
    by_row = call.mask.shape[2] > 1
    own = (call.mask.diagonal(dim1=-2, dim2=-1) if by_row else call.mask[:, :, 0])[..., tokens, None]
    text = (call.mask[:, :, tokens] if by_row else call.mask)[..., call.text]
    own, text = _additive(own, dtype), _additive(text.expand(-1, -1, own.shape[2], -1), dtype)
    # A padding token may see nothing at all; it keeps itself, for a softmax over nothing is NaN and spreads.
    nothing = (torch.cat([own, text], dim=-1) == -torch.inf).all(dim=-1, keepdim=True)
    return torch.cat([own.masked_fill(nothing, 0.0), text], dim=-1)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, -torch.inf)


def _chunks(rows: int, numbers_per_row: int) -> list[slice]:
    size = max(1, _CHUNK // max(1, numbers_per_row))
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


KINDS: dict[str, Callable[[_Call, Perturbation], Tensor]] = {
    "identity": _identity,
}


def perturbed_self_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attend: Attend, *, num_heads: int,
                             heads: Collection[int] | None = None, strength: float = 1.0) -> torch.Tensor:
    """Self-attention whose map is drawn towards the identity: (1 − u)·A·V + u·V, per head.

    u = 1 is the paper's PSA, where A becomes I and the output is V itself (PAG Eq. 13); u < 1 is SoftPAG
    (arXiv 2506.10978, whose A' = (1 − u)·A + u·I is the same, since I·V = V).

    Args:
        q, k, v: [B, N, H·D].
        attend: the model's own attention, (q, k, v) -> [B, N, H·D]; not called where the whole map is replaced.
        num_heads: H.
        heads: the heads to perturb; None for all of them.
        strength: u in [0, 1].
    """
    if strength == 1.0 and heads is None:
        return v
    attended = attend(q, k, v)
    if heads is None:
        return torch.lerp(attended, v, strength)
    out = rearrange(attended, "b n (h d) -> b n h d", h=num_heads).clone()
    value = rearrange(v, "b n (h d) -> b n h d", h=num_heads)
    for head in sorted(heads):
        out[:, :, head] = torch.lerp(out[:, :, head], value[:, :, head], strength)
    return rearrange(out, "b n h d -> b n (h d)")
