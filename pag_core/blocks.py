"""Perturbations of whole blocks: one function for each kind that acts on blocks.

A block takes streams, tensors of B samples along the first axis (one of tokens [B, N, C], or [B, ..., C] where they
lie on a grid; a second one of text where the network keeps them apart), and gives back as many of the same shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from .attention import PerturbationError, seeded

Streams = tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class BlockCall:
    """One call of a block.

    Attributes:
        streams: what goes in.
        run: the block itself; it may change what it is given.
        image: (stream, its image tokens), a slice without a step; None where this is not known.
        key: what tells this call from others, for random numbers.
    """

    streams: Streams
    run: Callable[[Streams], Streams]
    image: tuple[int, slice] | None
    key: tuple[Hashable, ...]


def skip_block(call: BlockCall, _: float) -> Streams:
    """The block returns its input and is not computed (SLG of Stable Diffusion 3.5; STG-R, arXiv 2411.18664)."""
    return call.streams


def shuffle(call: BlockCall, _: float) -> Streams:
    """Token Perturbation Guidance (arXiv 2506.10036): the image tokens that enter the block are shuffled, and stay in
    the new order after it. Each sample has its own order."""
    if call.image is None:
        raise PerturbationError("shuffle needs to know which tokens belong to the image, but this layer does not "
                                "reveal it. Use skip_block.")
    place, image = call.image
    x = call.streams[place]
    tokens = x.flatten(1, -2)
    count = len(range(*image.indices(tokens.shape[1])))
    shuffled = tokens.clone()
    for sample in range(x.shape[0]):
        order = torch.randperm(count, generator=seeded(*call.key, sample))
        shuffled[sample, image] = tokens[sample, image][order.to(x.device)]
    return call.run((*call.streams[:place], shuffled.view_as(x), *call.streams[place + 1:]))
