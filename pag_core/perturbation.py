"""The perturbations that make a row of the batch a weaker prediction, for guidance to steer away from.

An operation acts on a self-attention map or on a whole block, with a strength u. Attention tensors are per head: q
[B, H, N, D], k and v [B, Hkv, N, D] with Hkv dividing H (grouped queries), as they enter the softmax, that is after
normalization and rotary embedding; any floating dtype and device. Among the N tokens, Ni are image tokens; in a pure
self-attention these are all, in a joint attention (SD3, Flux, ...) the rest is text. Only the image-to-image block of
the map [N, N] is ever perturbed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import blocks, maps
from .attention import Attend, AttentionCall, PerturbationError
from .blocks import BlockCall, Streams
from .checks import check_fields, choice, number, whole

__all__ = ["KINDS", "MAX_SEED", "Kind", "Perturbation", "PerturbationError", "perturb_attention", "perturb_block"]
MAX_SEED = 2**64 - 1


@dataclass(frozen=True)
class Kind:
    """One kind of perturbation.

    Attributes:
        perturb: (AttentionCall, setting) -> [B, h, Ni, D], what the image tokens of the chosen heads get; of a block,
            (BlockCall, setting) -> its streams. The setting's value is that of `neutral`, else 0.
        neutral: the setting that controls it besides the strength, with the value at which it changes nothing.
        acts_on_block: whether it acts on the whole block that holds a layer, not on the layer's attention.
        needs_map: whether something of the block or its attention map has to be computed even at full strength.
        needs_grid: whether it has to know how the image tokens lie in the picture.
        is_random: whether it draws numbers, so that `noise_key` matters.
    """

    perturb: Callable[[Any, float], Any]
    neutral: tuple[str, float] | None = None
    acts_on_block: bool = False
    needs_map: bool = True
    needs_grid: bool = False
    is_random: bool = False


_RATE, _SIGMA = ("perturbation_rate", 0.0), ("perturbation_sigma", 0.0)
KINDS: dict[str, Kind] = {
    "identity": Kind(maps.identity, needs_map=False),
    "random_mask": Kind(maps.random_mask, _RATE, is_random=True),
    "random_off_diagonal_mask": Kind(maps.random_off_diagonal_mask, _RATE, is_random=True),
    "noise": Kind(maps.noise, _SIGMA, is_random=True),
    "map_blur": Kind(maps.map_blur, _SIGMA),
    "uniform": Kind(maps.uniform),
    "seg": Kind(maps.seg, _SIGMA, needs_grid=True),
    "seg_mean": Kind(maps.seg_mean),
    "tpg": Kind(maps.tpg, is_random=True),
    "temperature": Kind(maps.temperature, ("perturbation_temperature", 1.0)),
    "skip_attention": Kind(maps.skip_attention, needs_map=False),
    "sinkhorn": Kind(maps.sinkhorn),
    "skip_block": Kind(blocks.skip_block, acts_on_block=True, needs_map=False),
    "shuffle": Kind(blocks.shuffle, acts_on_block=True, is_random=True),
}


@dataclass(frozen=True)
class Perturbation:
    """How the selected layers are perturbed; the defaults are the paper's PSA.

    Attributes:
        perturbation: a key of `KINDS`.
        strength: SoftPAG's u in [0, 1] (arXiv 2506.10978): out = (1 − u)·plain + u·perturbed, per head or for the
            block.
        perturbation_rate: fraction of the map's entries that a random mask hides, in [0, 1].
        perturbation_sigma: standard deviation: of the noise, in units of the map; of a blur, in tokens.
        perturbation_temperature: what "temperature" divides the logits by.
        perturbation_seed: seed of the random kinds.
    """

    perturbation: str = choice("identity", tuple(KINDS))
    strength: float = number(1.0)
    perturbation_rate: float = number(0.5)
    perturbation_sigma: float = number(1.0, 0.0, 1000.0)
    perturbation_temperature: float = number(2.0, 0.01, 100.0)
    perturbation_seed: int = whole(0, 0, MAX_SEED)

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def kind(self) -> Kind:
        return KINDS[self.perturbation]

    @property
    def setting(self) -> float:
        """The setting that controls the kind, 0 where it has none."""
        return getattr(self, self.kind.neutral[0]) if self.kind.neutral else 0.0

    @property
    def is_off(self) -> bool:
        """True if the perturbed layer equals the plain one by definition."""
        return self.strength == 0.0 or (self.kind.neutral is not None and self.setting == self.kind.neutral[1])

    @property
    def skips_blocks(self) -> bool:
        """Whether it skips whole blocks, however many of their layers are selected."""
        return self.kind.acts_on_block and not self.kind.needs_map

    @property
    def needs_map(self) -> bool:
        """Whether the attention map, or the block, has to be computed in the weak row."""
        return self.kind.needs_map or self.strength < 1.0


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
    call = AttentionCall(q, k, v, attend, heads, image, scale, mask, grid, (perturbation.perturbation_seed, *noise_key))
    if perturbation.is_off:
        return call.attended
    perturbed = perturbation.kind.perturb(call, perturbation.setting)
    if perturbation.strength == 1.0 and call.has_all_heads:
        if call.is_self:
            return perturbed
        if call.mask is None or call.mask.shape[2] == 1:  # a mask with a row per query would not fit fewer queries
            text = attend(q[:, :, call.text], k, v)
            return torch.cat([text[:, :, :call.start], perturbed, text[:, :, call.start:]], dim=2)
    out = call.attended.clone()
    call.blend(out, perturbed, perturbation.strength)
    return out


def perturb_block(streams: Streams, run: Callable[[Streams], Streams], perturbation: Perturbation, *,
                  image: tuple[int, slice] | None = None, noise_key: tuple[Hashable, ...] = ()) -> Streams:
    """One block of a network, (1 − u)·block + u·perturbed for each of its streams.

    Args:
        streams: what goes in, see `blocks`.
        run: the block; called only where something of its result is kept.
        image: (stream, its image tokens) for kinds that move tokens; None where this is not known.
        noise_key: as for `perturb_attention`.

    Raises:
        PerturbationError: where the block gives back other shapes than it takes, or the kind cannot work on it.
    """
    def checked(given: Streams) -> Streams:
        out = run(given)
        if [x.shape for x in out] != [x.shape for x in streams]:
            raise PerturbationError(f"{perturbation.perturbation} needs a block whose output has the shape of its "
                                    f"input, but this one turns {_shapes(streams)} into {_shapes(out)}. Select other "
                                    f"layers.")
        return out

    if perturbation.is_off:
        return checked(streams)
    # The block may change what it is given, which is needed once more.
    plain = checked(tuple(x.clone() for x in streams)) if perturbation.strength < 1.0 else None
    call = BlockCall(streams, checked, image, (perturbation.perturbation_seed, *noise_key))
    perturbed = perturbation.kind.perturb(call, perturbation.setting)
    if plain is None:
        return perturbed
    return tuple(torch.lerp(one, other, perturbation.strength) if one.is_floating_point() else one  # sizes are kept
                 for one, other in zip(plain, perturbed, strict=True))


def _shapes(streams: Streams) -> str:
    return " and ".join("×".join(map(str, x.shape)) for x in streams)
