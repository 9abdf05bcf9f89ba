"""What a causal network keeps of earlier frames, for the length of a weak call.

The host's causal Wan makes a video block by block of frames. Each forward writes its keys and values behind those of
the earlier frames, and the next step writes over them. A weak call follows the host's own of the same step: it has to
read what is kept of the earlier frames, and leave what the host's call wrote.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_STATE = "ar_state"  # in transformer_options


@contextmanager
def untouched(network: torch.nn.Module, options: dict) -> Iterator[dict]:
    """The transformer_options for a forward of weak rows alone, after which everything is kept as before it; the same
    where nothing is kept."""
    state = options.get(_STATE)
    if state is None:
        yield options
        return
    caches = [dict(cache) for cache in state["kv_caches"]]
    written: list[tuple[torch.Tensor, torch.Tensor]] = []  # (where, what the host's call left there)

    def start(module, args: tuple) -> None:
        sizes = zip(args[0].shape[2:], module.patch_size, strict=True)
        tokens = math.prod(-(-size // patch) for size, patch in sizes)
        for cache in caches:
            end = cache["end"]
            cache["end"] = end - tokens
            for name in ("k", "v"):
                place = cache[name][:, cache["end"]:end]
                written.append((place, place.clone()))

    handle = network.register_forward_pre_hook(start)
    try:
        yield {**options, _STATE: {**state, "kv_caches": caches,
                                   "crossattn_caches": [dict(cache) for cache in state["crossattn_caches"]]}}
    finally:
        handle.remove()
        for place, before in written:
            place.copy_(before)
