"""The way into the attention of a network that no table knows, where lengths show that it is the image's alone.

Its blocks were found by their structure, and its attention calls by the host's override. A call inside a selected block
is image self-attention if queries and keys are as many as the latent has patches, and no number of text tokens explains
that as well. Everything else is refused where it shows, in the first step: nothing is perturbed on a guess.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch

from ....pag_core.attention import PerturbationError
from ..models.families import Family
from ..models.structure import selected_modules
from ..models.units import LayerKey
from .attention import OVERRIDE, HeadLayout, LayerPerturbation, as_given, attend_rows, on_copies
from .rows import tensors_in

_PATCHES = (1, 2, 4, 8, 16, 32)  # positions of the latent that a token is wide
_FRAMES = (1, 2, 4)  # of a video that one token spans


class UnknownPatch:
    """Perturbs the image self-attention in the selected blocks of one forward, whose rows are all weak; see
    `transformers.TransformerPatch`."""

    is_apart = True

    def __init__(self, family: Family, layers: dict[LayerKey, LayerPerturbation]) -> None:
        self.family = family
        self.layers = layers

    @contextmanager
    def around(self, network: torch.nn.Module, options: dict, is_ours: Callable[[object], bool],
               skipped: Callable[[str], None], noise_key: tuple) -> Iterator[dict]:
        """For one forward of `network`; arguments as for `TransformerPatch.around`."""
        if not any(map(is_ours, options["uuids"])):
            yield options
            return
        if not all(map(is_ours, options["uuids"])):
            raise PerturbationError(f"{self.family.name} got plain and perturbed rows in one call, which only a known "
                                    f"network supports.")
        forward = _Forward(self.family.name, options.get(OVERRIDE))
        with ExitStack() as stack:
            stack.callback(network.register_forward_pre_hook(forward.measure, with_kwargs=True).remove)
            for _, module, layer in selected_modules(network, self.family, self.layers):
                stack.callback(module.register_forward_pre_hook(forward.entering(layer)).remove)
                stack.callback(module.register_forward_hook(forward.leave).remove)
            yield {**options, OVERRIDE: forward.override}


class _Forward:
    """One forward.

    Args:
        name: the network's.
        previous: another node's override.
    """

    def __init__(self, name: str, previous: Callable | None) -> None:
        self.name = name
        self.previous = previous
        self.image: set[int] = set()  # how many tokens the latent can have
        self.others: set[int] = set()  # lengths of what else the network is given
        self.layer: LayerPerturbation | None = None  # of the block that runs, if it is a selected one
        self.done = False

    def measure(self, network: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        latent, *rest = args
        if isinstance(latent, torch.Tensor) and latent.ndim >= 3:
            self.image = token_counts(latent.shape)
        self.others = {t.shape[1] for t in tensors_in((rest, kwargs)) if t.ndim == 3}

    def entering(self, layer: LayerPerturbation) -> Callable:
        def enter(module, args) -> None:
            self.layer, self.done = layer, False
        return enter

    def leave(self, module, args, output) -> None:
        layer, self.layer = self.layer, None
        if layer is not None and not self.done:
            raise PerturbationError(f"layers: {layer.name} of {self.name} has no self-attention over image tokens "
                                    f"alone, so its attention cannot be perturbed. Set perturbation in PAG Options to "
                                    f"skip_block.")

    def override(self, func: Callable, *args, **kwargs):
        return self._attend(func, as_given(self.previous, func, args, kwargs),
                            on_copies(self.previous, func, args=args, **kwargs), *args, **kwargs)

    def _attend(self, func: Callable, call: Callable, others: Callable | None, q, k, v, heads: int, mask=None, *args,
                skip_reshape: bool = False, skip_output_reshape: bool = False, **kwargs):
        def host(q, k, v, mask, split: tuple[bool, bool] = (skip_reshape, skip_output_reshape)):
            return func(q, k, v, heads, mask, *args, skip_reshape=split[0], skip_output_reshape=split[1], **kwargs)

        queries, keys = (t.shape[2 if skip_reshape else 1] for t in (q, k))
        if self.layer is None or queries != keys or not self._is_image(queries):
            return call()
        self.done = True
        return attend_rows(self.layer, [True], q, k, v, HeadLayout(heads, skip_reshape, skip_output_reshape), host,
                           lambda *given: host(*given, split=(True, True)), mask=mask,
                           whole=others() if others else None, scale=kwargs.get("scale"))

    def _is_image(self, tokens: int) -> bool:
        """Whether so many tokens are the image's, and cannot be text, or image and text, as well."""
        return tokens in self.image and tokens not in self.others and not any(
            tokens - other in self.image for other in self.others)


def token_counts(latent: torch.Size) -> set[int]:
    """How many tokens a latent [B, C, L], [B, C, H, W] or [B, C, T, H, W] can be cut into."""
    if len(latent) == 3:
        return {-(-latent[2] // patch) for patch in _PATCHES}
    *frames, height, width = latent[2:]
    return {math.prod(-(-size // span) for size in frames) * -(-height // patch) * -(-width // patch)
            for span, patch in itertools.product(_FRAMES if frames else (1,), _PATCHES)}
