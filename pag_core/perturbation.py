"""What replaces a self-attention in the perturbed pass.

Tensors are [B, N, H·D]: B rows, N tokens, H heads of D channels, as the projections give them; any dtype and device.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from einops import rearrange

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


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
