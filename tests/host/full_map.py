"""The reference for a perturbed transformer: the whole attention map, in fp64.

Everything off the diagonal of the image-to-image block is masked, the other blocks and the call's own mask are kept.
"""

from __future__ import annotations

import torch

from .family_models import Case


class FullMap:
    """An override for one forward: the selected layer's attention is worked out, the other calls pass.

    Args:
        case: says which layer each call belongs to, and which tokens are the image's.
        asks_first: whether, where there are fewer queries than keys, they are the first tokens and not the last ones.
    """

    def __init__(self, case: Case, layer: str, *, asks_first: bool = False) -> None:
        self.case = case
        self.asks_first = asks_first or case.image_first
        self.layer = layer
        self.calls = iter(case.calls.split())
        self.replaced = 0

    def __call__(self, attention, q, k, v, heads, mask=None, *args, skip_reshape=False, skip_output_reshape=False,
                 **kwargs):
        if next(self.calls) != self.layer:
            return attention(q, k, v, heads, mask, *args, skip_reshape=skip_reshape,
                             skip_output_reshape=skip_output_reshape, **kwargs)
        self.replaced += 1
        if not skip_reshape:
            q, k, v = (t.flatten(2).unflatten(-1, (-1, q.flatten(2).shape[-1] // heads)).transpose(1, 2)
                       for t in (q, k, v))
        dtype, q, k, v = v.dtype, q.double(), k.double(), v.double()
        k, v = (t.repeat_interleave(heads // t.shape[1], dim=1) for t in (k, v))
        logits = q @ k.transpose(-1, -2) * kwargs.get("scale", q.shape[-1] ** -0.5)
        if mask is not None:
            mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape) if mask.ndim != 3 else mask.unsqueeze(1)
            logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
        tokens = torch.arange(k.shape[2])
        is_image = torch.zeros(k.shape[2], dtype=torch.bool)
        is_image[self.case.image_tokens(k.shape[2])] = True
        asking = slice(0, q.shape[2]) if self.asks_first else slice(k.shape[2] - q.shape[2], None)
        others = is_image[asking, None] & is_image & (tokens[asking, None] != tokens)
        out = logits.masked_fill(others, -torch.inf).softmax(dim=-1) @ v
        return (out if skip_output_reshape else out.transpose(1, 2).flatten(2)).to(dtype)
