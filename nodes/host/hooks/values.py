"""The way into self-attention that does not say which rows it holds: its own linear layers.

HunyuanDiT and PixArt hand no transformer_options to the attention function, so the host's override never
fires. Hooks see V leave its linear layer and the attention's output enter the next one. That is enough for the paper's
identity, strength and single heads included, and for nothing that needs the map: q and k stay out of sight.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import torch

from .attention import HeadLayout, LayerPerturbation, attend_rows


def _unasked(*args) -> torch.Tensor:
    raise AssertionError("the attention is there already, and the identity asks for neither q nor k")


def value_hooks(module: torch.nn.Module, names: tuple[str, str], heads: int, layer: LayerPerturbation,
                ours: Callable[[torch.Tensor], list[bool]]) -> Iterator[torch.utils.hooks.RemovableHandle]:
    """Hooks that put V in the place of the attention, in the perturbed rows.

    Args:
        module: the self-attention.
        names: its linear layer whose output ends in V, and the one that takes the attention's output [B, N, H·D].
        ours: one flag for each row of a batch.
    """
    seen = threading.local()

    def keep(linear, args, output) -> None:
        seen.values = output

    def replace(linear, args):
        (attended,), values = args, seen.values
        flags = ours(attended)
        if not any(flags):
            return None
        values = values[..., -attended.shape[-1]:]
        return attend_rows(layer, flags, attended, values, values, HeadLayout(heads), _unasked, _unasked,
                           whole=attended)

    yield module.get_submodule(names[0]).register_forward_hook(keep)
    yield module.get_submodule(names[1]).register_forward_pre_hook(replace)
