"""Perturbations of an attention map: one function for each kind that acts on attention, (call, its setting) ->
[B, h, Ni, D], what the image tokens of the chosen heads get.

A is the image-to-image block of the map and V its values; see `perturbation`. Only the random masks, the noise and
`sinkhorn` hold pieces of a map; every other kind changes q, v or what comes out, at the memory of an attention.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import AttentionCall, PerturbationError, additive, chunks
from .blur import blur, blur_transposed, gaussian

SINKHORN_STEPS = 2  # normalisations of the columns; the rows are normalised before each and once more at the end

def identity(call: AttentionCall, _: float) -> Tensor:
    """A becomes the identity (PAG Eq. 13). In a joint attention an image token then sees the text and itself; the
    softmax runs over what remains: O(Ni·T) for T text tokens."""
    if call.is_self:
        return call.v
    text_k, text_v = (x[:, :, call.text].to(call.precise) for x in (call.k, call.v))
    k, v = (x[:, :, call.image] for x in (call.k, call.v))
    out = torch.empty_like(v)
    for rows in chunks(k.shape[2], k.shape[0] * k.shape[1] * (text_k.shape[2] + k.shape[3])):
        queries = call.q[:, :, rows].to(call.precise) * call.scale
        own = (queries * k[:, :, rows].to(call.precise)).sum(-1, keepdim=True)
        logits = torch.cat([own, queries @ text_k.transpose(-1, -2)], dim=-1)  # [B, h, rows, 1 + T]
        if call.mask is not None:
            logits = logits + _own_and_text_mask(call, call.mask, rows)
        weights = torch.softmax(logits, dim=-1)
        out[:, :, rows] = (weights[..., :1] * v[:, :, rows].to(call.precise) + weights[..., 1:] @ text_v).to(v.dtype)
    return out


def _own_and_text_mask(call: AttentionCall, mask: Tensor, rows: slice) -> Tensor:
    """[B or 1, h or 1, rows, 1 + T] the mask of each image token's own key and of the text keys."""
    own = mask[:, :, 0] if mask.shape[2] == 1 else mask.diagonal(dim1=-2, dim2=-1)
    own = additive(own[..., call.image][..., rows, None], call.precise)
    seen = mask if mask.shape[2] == 1 else mask[:, :, call.image][:, :, rows]
    text = additive(seen[..., call.text], call.precise).expand(-1, -1, own.shape[2], -1)
    # A padding token may see nothing at all; it keeps itself, for a softmax over nothing is NaN and spreads.
    nothing = (torch.cat([own, text], dim=-1) == -torch.inf).all(dim=-1, keepdim=True)
    return torch.cat([own.masked_fill(nothing, 0.0), text], dim=-1)


def random_mask(call: AttentionCall, rate: float, keep_diagonal: bool = False) -> Tensor:
    """Each logit of A is −∞ with probability `rate` (PAG Table 9, "random mask"). A token with no key left gets 0."""
    k, v = call.k.to(call.precise), call.v.to(call.precise)
    out = torch.zeros_like(v[:, :, call.image])
    for sample, head, rows, generator in _pieces(call):
        queries = call.q[sample, head, rows].to(call.precise) * call.scale
        logits = queries @ k[sample, head].transpose(-1, -2)  # [rows, N]
        mask = call.image_mask(rows)
        if mask is not None:
            logits += additive(mask.expand(*call.q.shape[:2], -1, -1)[sample, head], call.precise)
        hidden = torch.rand(logits.shape[0], call.stop - call.start, generator=generator) < rate
        if keep_diagonal:
            hidden.diagonal(rows.start).fill_(False)
        logits[:, call.image].masked_fill_(hidden.to(logits.device), -torch.inf)
        nothing = (logits == -torch.inf).all(dim=-1, keepdim=True)
        weights = torch.softmax(logits, dim=-1).masked_fill(nothing, 0.0)
        out[sample, head, rows] = weights @ v[sample, head]
    return out.to(call.v.dtype)


def random_off_diagonal_mask(call: AttentionCall, rate: float) -> Tensor:
    """The same off the diagonal only (PAG Table 9, "off-diag"); at rate 1 it is the identity."""
    return random_mask(call, rate, keep_diagonal=True)


def noise(call: AttentionCall, sigma: float) -> Tensor:
    """A + σ·n, n ~ N(0, 1), not renormalized (PAG Table 9, "additive noise"): σ·n·V more than the attention."""
    v = call.v[:, :, call.image].to(call.precise)
    added = torch.empty_like(v)
    for sample, head, rows, generator in _pieces(call):
        n = torch.randn(rows.stop - rows.start, v.shape[2], generator=generator)
        added[sample, head, rows] = n.to(v) @ v[sample, head]
    attended = call.attention(call.q, call.k, call.v)
    return (attended.to(call.precise) + sigma * added).to(attended.dtype)


def map_blur(call: AttentionCall, sigma: float) -> Tensor:
    """A blurred like an image, kernel 5, reflected at its borders, not renormalized (PAG Table 9, "Gaussian blur").

    The blur is separable, R·A·Rᵀ with R over the tokens, so the attention runs over Rᵀ·V and R over its result.
    """
    weights = gaussian(sigma, 5)
    v = blur_transposed(call.v[:, :, call.image].to(call.precise), weights).to(call.v.dtype)
    if call.is_self:
        attended = call.attention(call.q, call.k, v)
        return blur(attended.to(call.precise), 2, weights).to(v.dtype)
    # Side by side, [V_text, 0; 0, Rᵀ·V]: what an image token reads in the text stays apart from what it sees.
    values = F.pad(call.v, (0, v.shape[-1]))
    values[:, :, call.image] = F.pad(v, (v.shape[-1], 0))
    text, seen = call.attention(call.q, call.k, values).to(call.precise).chunk(2, dim=-1)
    return (text + blur(seen, 2, weights)).to(v.dtype)


def uniform(call: AttentionCall, _: float) -> Tensor:
    """What a row of A adds up to, spread evenly over the image tokens; alone, that is the mean of V. It is SoftPAG's
    opposite end: structure is not frozen but averaged away."""
    if call.mask is not None and call.mask.shape[2] > 1:
        raise PerturbationError("uniform needs an attention mask that is the same for every query. Use identity "
                                "or seg_mean.")
    # Queries of zero see all visible image tokens alike; their keys do not matter.
    v = call.v[:, :, call.image]
    mask = None if call.mask is None else call.mask[..., call.image].expand(*v.shape[:2], -1, -1)
    zero = torch.zeros_like(v[:, :, :1])
    mean = F.scaled_dot_product_attention(zero, torch.zeros_like(v), v,
                                          attn_mask=None if mask is None else additive(mask, v.dtype))
    if call.is_self:
        return mean.expand_as(v).contiguous()
    values = call.v.clone()
    values[:, :, call.image] = mean
    return call.attention(call.q, call.k, values)


def seg(call: AttentionCall, sigma: float) -> Tensor:
    """Smoothed Energy Guidance (arXiv 2408.00760): a Gaussian blur of the image queries over the picture, reflected at
    its borders; the kernel spans 6σ, at most the picture's side. Frames are blurred one by one."""
    if call.grid is None:
        raise PerturbationError("seg blurs along the image's rows and columns, but the token grid of this layer is "
                                "unknown. Use seg_mean, its limit for a large sigma.")
    height, width = call.grid
    frames = call.q.shape[2] // (height * width) if height * width else 0
    if not frames:
        raise PerturbationError(f"seg: {call.q.shape[2]} image tokens do not fill a frame of {height}×{width}. Use "
                                f"seg_mean, its limit for a large sigma.")
    # What lies behind the frames is padding, or reference pictures of another size.
    queries, others = call.q.to(call.precise).split_with_sizes(
        [frames * height * width, call.q.shape[2] - frames * height * width], dim=2)
    queries = queries.unflatten(2, (frames, height, width))  # [B, h, frames, height, width, D]
    size = math.ceil(6 * sigma) // 2 * 2 + 1
    for dim, tokens in ((3, height), (4, width)):
        queries = blur(queries, dim, gaussian(sigma, min(size, tokens // 2 * 2 + 1)))
    return call.attention_to_image_by(torch.cat([queries.flatten(2, 4), others], dim=2).to(call.q.dtype))


def seg_mean(call: AttentionCall, _: float) -> Tensor:
    """Smoothed Energy Guidance for σ → ∞: every image query is their mean, over all frames where there are several."""
    return call.attention_to_image_by(call.q.mean(dim=2, keepdim=True).expand_as(call.q))


def tpg(call: AttentionCall, _: float) -> Tensor:
    """Token Perturbation Guidance (arXiv 2506.10036), as far as it is a matter of the attention map: the rows of A are
    shuffled, so that each token gets the attention of another.

    The released code shuffles a block's tokens before it and leaves them so; this is that, for the attention alone.
    Shuffled back after it, nothing would change without a positional embedding: attention does not heed order.
    """
    shuffled = torch.empty_like(call.q)
    for sample in range(call.q.shape[0]):
        order = torch.randperm(call.q.shape[2], generator=call.generator(sample))
        shuffled[sample] = call.q[sample][:, order.to(call.q.device)]
    return call.attention_to_image_by(shuffled)


def temperature(call: AttentionCall, value: float) -> Tensor:
    """The logits of A divided by a temperature (ERG, arXiv 2504.13987): above 1 it spreads, below 1 it sharpens."""
    return call.attention_to_image_by(call.q / value)


def skip_attention(call: AttentionCall, _: float) -> Tensor:
    """The map becomes 0: the image tokens get nothing, neither from each other nor from the text (the attention-skip
    ablation of STG, arXiv 2411.18664). What the layer's output projection adds to a zero, its bias, stays."""
    return torch.zeros_like(call.v[:, :, call.image])


def sinkhorn(call: AttentionCall, _: float) -> Tensor:
    """Adversarial Sinkhorn Attention Guidance (arXiv 2511.07499): the logits of A are negated, so that tokens attend
    to what they are least like, and Sinkhorn steps make the map doubly stochastic. In a joint attention, each row of
    A keeps its sum.

    In potentials f and g of rows and columns, S = exp(−A's logits + f + g), so that only pieces of the map are held.
    """
    if call.mask is not None:
        raise PerturbationError("sinkhorn does not support attention masks, and this layer has one. Use "
                                "identity or seg_mean.")
    q, k, v = (x.to(call.precise) for x in (call.q * call.scale, call.k, call.v))
    out = torch.empty_like(v[:, :, call.image])
    tokens = out.shape[2]
    for sample in range(q.shape[0]):
        for head in range(q.shape[1]):
            queries, keys, values = q[sample, head], k[sample, head], v[sample, head]
            pieces = chunks(tokens, keys.shape[0])
            columns = torch.zeros_like(queries[:, 0])  # g
            for _ in range(SINKHORN_STEPS):
                total = torch.full_like(columns, -torch.inf)
                for rows in pieces:
                    spread = torch.log_softmax(columns - queries[rows] @ keys[call.image].T, dim=-1) - columns
                    total = torch.logaddexp(total, spread.logsumexp(0))
                columns = -total
            for rows in pieces:
                weights = torch.softmax(columns - queries[rows] @ keys[call.image].T, dim=-1)
                mixed = weights @ values[call.image]
                if not call.is_self:
                    plain = torch.softmax(queries[rows] @ keys.T, dim=-1)
                    share = plain[:, call.image].sum(-1, keepdim=True)
                    mixed = share * mixed + plain[:, call.text] @ values[call.text]
                out[sample, head, rows] = mixed
    return out.to(call.v.dtype)


def _pieces(call: AttentionCall) -> Iterator[tuple[int, int, slice, torch.Generator]]:
    """(sample, place of the head among the h, rows of A, generator), with the same numbers in whatever batch."""
    tokens = call.stop - call.start
    for sample in range(call.q.shape[0]):
        for place, head in enumerate(call.numbers):
            generator = call.generator(sample, head)
            for rows in chunks(tokens, tokens):
                yield sample, place, rows, generator
