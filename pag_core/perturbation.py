"""What replaces a self-attention map in the perturbed pass.

Tensors are per head: q [B, H, N, D], k and v [B, Hkv, N, D] with Hkv dividing H (grouped queries), as they enter the
softmax, that is after normalisation and rotary embedding; any floating dtype and device. Among the N tokens, Ni are
image tokens; in a pure self-attention these are all, in a joint attention (SD3, Flux, ...) the rest is text. Only the
image-to-image block of the map [N, N] is ever perturbed: below, A is that block and V its values. Only the random masks
and the noise hold pieces of a map; every other kind changes q, v or what comes out, at the memory of an attention.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import Attend, AttentionCall, PerturbationError, additive, chunks
from .blur import blur, blur_transposed, gaussian
from .checks import check_choice, check_range, check_whole

MAX_SEED = 2**64 - 1


@dataclass(frozen=True)
class Perturbation:
    """What is done to the attention map; the defaults are the paper's PSA.

    Attributes:
        kind: a key of `KINDS`.
        strength: SoftPAG's u in [0, 1] (arXiv 2506.10978), per head: out = (1 − u)·attention + u·perturbed.
        rate: share of the map's entries that a random mask hides, in [0, 1].
        sigma: standard deviation: of the noise, in units of the map; of a blur, in tokens.
        temperature: what "temperature" divides the logits by.
        seed: seed of the random kinds.
    """

    kind: str = "identity"
    strength: float = 1.0
    rate: float = 0.5
    sigma: float = 1.0
    temperature: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("perturbation", self.kind, tuple(KINDS))
        check_range("strength", self.strength, 0.0, 1.0)
        check_range("perturbation_rate", self.rate, 0.0, 1.0)
        check_range("perturbation_sigma", self.sigma, 0.0, 1000.0)
        check_range("perturbation_temperature", self.temperature, 0.01, 100.0)
        check_whole("perturbation_seed", self.seed, 0, MAX_SEED)

    @property
    def is_off(self) -> bool:
        """True where the perturbed attention is the plain one by definition."""
        setting, neutral = KINDS[self.kind].neutral or ("strength", 0.0)
        return self.strength == 0.0 or getattr(self, setting) == neutral


@dataclass(frozen=True)
class Kind:
    """One way to perturb.

    Attributes:
        perturb: (call, perturbation) -> [B, h, Ni, D], what the image tokens of the chosen heads get.
        neutral: the setting that controls it besides the strength, with the value at which it changes nothing.
        needs_grid: whether it has to know how the image tokens lie in the picture.
        is_random: whether it draws numbers, so that `noise_key` matters.
    """

    perturb: Callable[[AttentionCall, Perturbation], Tensor]
    neutral: tuple[str, float] | None = None
    needs_grid: bool = False
    is_random: bool = False


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
        noise_key: what tells this call from others with the same seed, for example (layer name, sigma). The random
            kinds draw for each sample by its place in this batch, so a caller with several conditionings in one batch
            calls once for each of them.

    Raises:
        PerturbationError: where this call is no self-attention, or the kind cannot work on it.
    """
    call = AttentionCall(q, k, v, attend, heads, image, scale, mask, grid, (perturbation.seed, *noise_key))
    if perturbation.is_off:
        return call.attended
    perturbed = KINDS[perturbation.kind].perturb(call, perturbation)
    if perturbation.strength == 1.0 and call.has_all_heads:
        if call.is_self:
            return perturbed
        if mask is None or call.mask.shape[2] == 1:  # a mask with a row per query would not fit fewer queries
            text = attend(q[:, :, call.text], k, v)
            return torch.cat([text[:, :, :call.start], perturbed, text[:, :, call.start:]], dim=2)
    out = call.attended.clone()
    call.blend(out, perturbed, perturbation.strength)
    return out


def _identity(call: AttentionCall, _: Perturbation) -> Tensor:
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
            logits = logits + _own_and_text_mask(call, rows)
        weights = torch.softmax(logits, dim=-1)
        out[:, :, rows] = (weights[..., :1] * v[:, :, rows].to(call.precise) + weights[..., 1:] @ text_v).to(v.dtype)
    return out


def _own_and_text_mask(call: AttentionCall, rows: slice) -> Tensor:
    """[B or 1, h or 1, rows, 1 + T] the mask of each image token's own key and of the text keys."""
    own = call.mask[:, :, 0] if call.mask.shape[2] == 1 else call.mask.diagonal(dim1=-2, dim2=-1)
    own = additive(own[..., call.image][..., rows, None], call.precise)
    text = additive(call.image_mask(rows)[..., call.text], call.precise).expand(-1, -1, own.shape[2], -1)
    # A padding token may see nothing at all; it keeps itself, for a softmax over nothing is NaN and spreads.
    nothing = (torch.cat([own, text], dim=-1) == -torch.inf).all(dim=-1, keepdim=True)
    return torch.cat([own.masked_fill(nothing, 0.0), text], dim=-1)


def _random_mask(call: AttentionCall, perturbation: Perturbation, keep_diagonal: bool = False) -> Tensor:
    """Each logit of A is −∞ with probability `rate` (PAG Table 9, "random mask"). A token left with nothing gets 0."""
    k, v = call.k.to(call.precise), call.v.to(call.precise)
    out = torch.zeros_like(v[:, :, call.image])
    for sample, head, rows, generator in _pieces(call):
        queries = call.q[sample, head, rows].to(call.precise) * call.scale
        logits = queries @ k[sample, head].transpose(-1, -2)  # [rows, N]
        mask = call.image_mask(rows)
        if mask is not None:
            logits += additive(mask.expand(*call.q.shape[:2], -1, -1)[sample, head], call.precise)
        hidden = torch.rand(logits.shape[0], call.stop - call.start, generator=generator) < perturbation.rate
        if keep_diagonal:
            hidden.diagonal(rows.start).fill_(False)
        logits[:, call.image].masked_fill_(hidden.to(logits.device), -torch.inf)
        nothing = (logits == -torch.inf).all(dim=-1, keepdim=True)
        weights = torch.softmax(logits, dim=-1).masked_fill(nothing, 0.0)
        out[sample, head, rows] = weights @ v[sample, head]
    return out.to(call.v.dtype)


def _random_off_diagonal_mask(call: AttentionCall, perturbation: Perturbation) -> Tensor:
    """The same off the diagonal only (PAG Table 9, "off-diag"); at rate 1 it is the identity."""
    return _random_mask(call, perturbation, keep_diagonal=True)


def _noise(call: AttentionCall, perturbation: Perturbation) -> Tensor:
    """A + σ·n, n ~ N(0, 1), not renormalised (PAG Table 9, "additive noise"): σ·n·V more than the attention."""
    v = call.v[:, :, call.image].to(call.precise)
    noise = torch.empty_like(v)
    for sample, head, rows, generator in _pieces(call):
        n = torch.randn(rows.stop - rows.start, v.shape[2], generator=generator)
        noise[sample, head, rows] = n.to(v) @ v[sample, head]
    attended = call.attention(call.q, call.k, call.v)
    return (attended.to(call.precise) + perturbation.sigma * noise).to(attended.dtype)


def _map_blur(call: AttentionCall, perturbation: Perturbation) -> Tensor:
    """A blurred as a picture, kernel 5, reflected at its borders, not renormalised (PAG Table 9, "Gaussian blur").

    The blur is separable, R·A·Rᵀ with R over the tokens, so the attention runs over Rᵀ·V and R over its result.
    """
    weights = gaussian(perturbation.sigma, 5)
    v = blur_transposed(call.v[:, :, call.image].to(call.precise), weights).to(call.v.dtype)
    if call.is_self:
        attended = call.attention(call.q, call.k, v)
        return blur(attended.to(call.precise), 2, weights).to(v.dtype)
    # Side by side, [V_text, 0; 0, Rᵀ·V]: what an image token reads in the text stays apart from what it sees.
    values = F.pad(call.v, (0, v.shape[-1]))
    values[:, :, call.image] = F.pad(v, (v.shape[-1], 0))
    text, seen = call.attention(call.q, call.k, values).to(call.precise).chunk(2, dim=-1)
    return (text + blur(seen, 2, weights)).to(v.dtype)


def _uniform(call: AttentionCall, _: Perturbation) -> Tensor:
    """What a row of A adds up to, spread evenly over the image tokens; alone, that is the mean of V. It is SoftPAG's
    opposite end: structure is not frozen but averaged away."""
    if call.mask is not None and call.mask.shape[2] > 1:
        raise PerturbationError("uniform needs a mask that is the same for every query; take identity or seg_mean.")
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


def _seg(call: AttentionCall, perturbation: Perturbation) -> Tensor:
    """Smoothed Energy Guidance (arXiv 2408.00760): a Gaussian blur of the image queries over the picture, reflected at
    its borders; the kernel spans 6σ, at most the picture's side. Frames are blurred one by one."""
    if call.grid is None:
        raise PerturbationError("seg blurs over the picture, and how this layer's tokens lie in it is not known; take "
                                "seg_mean, its limit for a large sigma.")
    height, width = call.grid
    if height * width == 0 or call.q.shape[2] % (height * width):
        raise PerturbationError(f"seg: {call.q.shape[2]} image tokens do not fill frames of {height}×{width}; take "
                                f"seg_mean, its limit for a large sigma.")
    queries = call.q.to(call.precise).unflatten(2, (-1, height, width))  # [B, h, frames, height, width, D]
    size = math.ceil(6 * perturbation.sigma) // 2 * 2 + 1
    for dim, tokens in ((3, height), (4, width)):
        queries = blur(queries, dim, gaussian(perturbation.sigma, min(size, tokens // 2 * 2 + 1)))
    return call.attention_to_image_by(queries.flatten(2, 4).to(call.q.dtype))


def _seg_mean(call: AttentionCall, _: Perturbation) -> Tensor:
    """Smoothed Energy Guidance for σ → ∞: every image query is their mean, over all frames where there are several."""
    return call.attention_to_image_by(call.q.mean(dim=2, keepdim=True).expand_as(call.q))


def _tpg(call: AttentionCall, _: Perturbation) -> Tensor:
    """Token Perturbation Guidance (arXiv 2506.10036), as far as it is a matter of the attention map: the rows of A are
    shuffled, so that each token gets what the attention means for another.

    The released code shuffles a block's tokens before it and leaves them so; this is that, for the attention alone.
    Shuffled back after it, nothing would change without a positional embedding: attention does not heed order.
    """
    shuffled = torch.empty_like(call.q)
    for sample in range(call.q.shape[0]):
        order = torch.randperm(call.q.shape[2], generator=call.generator(sample))
        shuffled[sample] = call.q[sample][:, order.to(call.q.device)]
    return call.attention_to_image_by(shuffled)


def _temperature(call: AttentionCall, perturbation: Perturbation) -> Tensor:
    """The logits of A divided by a temperature (ERG, arXiv 2504.13987): above 1 it spreads, below 1 it sharpens."""
    return call.attention_to_image_by(call.q / perturbation.temperature)


KINDS: dict[str, Kind] = {
    "identity": Kind(_identity),
    "random_mask": Kind(_random_mask, neutral=("rate", 0.0), is_random=True),
    "random_off_diagonal_mask": Kind(_random_off_diagonal_mask, neutral=("rate", 0.0), is_random=True),
    "noise": Kind(_noise, neutral=("sigma", 0.0), is_random=True),
    "map_blur": Kind(_map_blur, neutral=("sigma", 0.0)),
    "uniform": Kind(_uniform),
    "seg": Kind(_seg, neutral=("sigma", 0.0), needs_grid=True),
    "seg_mean": Kind(_seg_mean),
    "tpg": Kind(_tpg, is_random=True),
    "temperature": Kind(_temperature, neutral=("temperature", 1.0)),
}


def _pieces(call: AttentionCall) -> Iterator[tuple[int, int, slice, torch.Generator]]:
    """(sample, place of the head among the h, rows of A, generator), with the same numbers in whatever batch."""
    tokens = call.stop - call.start
    for sample in range(call.q.shape[0]):
        for place, head in enumerate(call.numbers):
            generator = call.generator(sample, head)
            for rows in chunks(tokens, tokens):
                yield sample, place, rows, generator
