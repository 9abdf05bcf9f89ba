"""The way into transformers: the host's attention override, and hooks that tell it where in the network it is.

The override sees every attention call of the network but not, on most families, which layer calls it or where the text
ends. Forward hooks on the selected modules say so. They are there during one call of the host only, they change
nothing, and they go away with it, whatever happens.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from uuid import UUID

import torch

from ....pag_core.attention import PerturbationError
from ....pag_core.perturbation import KINDS
from ..models.families import Argument, Family, Group, Tokens, group_modules, num_heads
from .attention import HeadLayout, LayerPerturbation, attend_rows
from .late_blocks import LateBlocks
from .values import value_hooks

TransformerKey = tuple[str, int]  # (group, index)
_OVERRIDE = "optimized_attention_override"


class _Place(threading.local):
    """Where the forward of this thread is. Thread-local, for MultiGPU runs one forward in each of several threads."""

    def __init__(self) -> None:
        self.ours: list[bool] = []  # which rows of the batch are perturbed
        self.layer: LayerPerturbation | None = None
        self.tokens = Tokens.IMAGE
        self.counts: dict[str, int] = {}  # {"text" or "image": number of tokens}


class TransformerWatch:
    """Perturbs the selected layers of one call of the host.

    Args:
        layers: {(group, index): what is done there}.

    Raises:
        PerturbationError: where a layer's family does not allow its kind of perturbation.
    """

    def __init__(self, family: Family, layers: dict[TransformerKey, LayerPerturbation]) -> None:
        kinds = {layer.perturbation.perturbation for layer in layers.values()} - {"identity"}
        if kinds and any(group.values for group in family.groups):
            raise PerturbationError(f"{family.name} takes the identity only, not {', '.join(sorted(kinds))}: ComfyUI "
                                    f"shows no one the attention maps of this family.")
        blurs = sorted(kind for kind in kinds if KINDS[kind].needs_grid)
        if blurs:
            raise PerturbationError(f"{', '.join(blurs)} blurs over the picture's rows and columns, which the "
                                    f"attention of {family.name} does not tell; seg_mean works without them.")
        self.family = family
        self.layers = layers
        self.one_row = family.one_row
        self.place = _Place()

    def install(self, transformer_options: dict, is_ours: Callable[[object], bool],
                skipped: Callable[[str], None], noise_key: tuple) -> None:
        """Put the override into `transformer_options` (the caller's own copy), around the one that is there.

        Args:
            is_ours: whether a row, by its uuid, is perturbed.
            skipped: called with a layer's name where a call cannot be perturbed.
            noise_key: what the randomness of the layers depends on besides seed and layer.
        """
        previous = transformer_options.get(_OVERRIDE)

        def override(func, *args, **kwargs):
            layer, ours = self.place.layer, _flags(kwargs.get("transformer_options"), is_ours)
            call = func if previous is None else (lambda *a, **k: previous(func, *a, **k))
            if layer is None or not any(ours):
                return call(*args, **kwargs)
            return self._perturbed(layer, ours, skipped, noise_key, func, previous and call, *args, **kwargs)

        transformer_options[_OVERRIDE] = override

    def _perturbed(self, layer: LayerPerturbation, ours: list[bool], skipped: Callable[[str], None], noise_key: tuple,
                   func, whole, q, k, v, heads, mask=None, *args, skip_reshape: bool = False,
                   skip_output_reshape: bool = False, **kwargs):
        layout = HeadLayout(heads, skip_reshape, skip_output_reshape)
        length, keys = (t.shape[2 if skip_reshape else 1] for t in (q, k))
        image, queries = self._image_tokens(keys), self._queries(length, keys)
        fits = image is not None and image.start >= queries.start and image.stop <= queries.stop
        if not fits or q.shape[0] % len(ours) or (length != keys and mask is not None):
            skipped(layer.name)
            return (whole or func)(q, k, v, heads, mask, *args, skip_reshape=skip_reshape,
                                   skip_output_reshape=skip_output_reshape, **kwargs)

        def host(q, k, v, mask, call=func):
            return call(q, k, v, heads, mask, *args, skip_reshape=skip_reshape,
                        skip_output_reshape=skip_output_reshape, **kwargs)

        def per_head(q, k, v, mask):
            return func(q, k, v, heads, mask, *args, skip_reshape=True, skip_output_reshape=True, **kwargs)

        return attend_rows(layer, ours, q, k, v, layout, host, per_head, mask=mask,
                           image=None if image == slice(0, keys) else image,
                           queries=None if length == keys else queries,
                           whole=host(q, k, v, mask, whole) if whole else None, scale=kwargs.get("scale"),
                           noise_key=noise_key)

    def _image_tokens(self, length: int) -> slice | None:
        """The image tokens of a sequence; None where this is not known."""
        place = self.place
        if place.tokens is Tokens.IMAGE or length == place.counts.get("image"):
            return slice(0, length)
        if "text" in place.counts:
            image = length - place.counts["text"]
        elif "image" in place.counts:
            image = place.counts["image"]
        else:
            return None
        if not 0 < image <= length:
            return None
        return slice(length - image, length) if place.tokens is Tokens.TEXT_FIRST else slice(0, image)

    def _queries(self, length: int, keys: int) -> slice:
        """Which of the keys' tokens the queries are: where a network has no use for the text's, the image's."""
        return slice(keys - length, keys) if self.place.tokens is Tokens.TEXT_FIRST else slice(0, length)

    @contextmanager
    def watching(self, networks: list[torch.nn.Module], is_ours: Callable[[object], bool]) -> Iterator[None]:
        """Hooks on the networks' modules for as long as the context lasts; `is_ours` as for `install`."""
        with ExitStack() as stack:
            for network in networks:
                for handle in self._hooks(network, is_ours):
                    stack.callback(handle.remove)
            yield

    def sharing(self, networks: list[torch.nn.Module], transformer_options: dict, layers: set[TransformerKey] | None,
                sources: Mapping[UUID, UUID], decline: Callable[[str], None]) -> AbstractContextManager[None]:
        """Let the perturbed rows join at the first of `layers` (None: at the start); see `late_blocks.LateBlocks`."""
        if layers is None:
            return nullcontext()
        names = [group.name for group in self.family.groups]
        first = min(layers, key=lambda key: (names.index(key[0]), key[1]))
        return LateBlocks(self.family, first, sources, decline).watching(networks, transformer_options)

    def _hooks(self, network: torch.nn.Module, is_ours) -> Iterator[torch.utils.hooks.RemovableHandle]:
        yield network.register_forward_pre_hook(self._start(is_ours), prepend=True, with_kwargs=True)
        if self.family.counter:
            what, path = self.family.counter
            yield _submodule(network, path).register_forward_hook(
                lambda module, args, output: self._count(what, output))
        for group in self.family.groups:
            for index, module in enumerate(group_modules(network, group)):
                layer = self.layers.get((group.name, index))
                if layer is not None and group.values:
                    yield from value_hooks(module, group.values, num_heads(module, group), layer,
                                           lambda: self.place.ours)
                elif layer is not None or group.image is not None:
                    yield module.register_forward_pre_hook(self._enter(layer, group), with_kwargs=True)
                    yield module.register_forward_hook(self._leave, always_call=True)

    def _start(self, is_ours: Callable[[object], bool]):
        def hook(network, args, kwargs):
            self.place.ours = _flags(kwargs.get("transformer_options"), is_ours)
            # A prompt may be missing, and with it the module that would count the text.
            self.place.counts = {"text": 0} if self.family.counter and self.family.counter[0] == "text" else {}
        return hook

    def _enter(self, layer: LayerPerturbation | None, group: Group):
        def hook(module, args, kwargs):
            self.place.layer, self.place.tokens = layer, group.tokens
            if group.image is not None:
                self._count("image", _argument(group.image, args, kwargs))
        return hook

    def _leave(self, module, args, output) -> None:
        self.place.layer = None

    def _count(self, what: str, tokens: torch.Tensor) -> None:
        self.place.counts = {what: tokens.shape[1]}


def _flags(transformer_options: dict | None, is_ours: Callable[[object], bool]) -> list[bool]:
    """One flag for each row of the batch."""
    return [is_ours(row) for row in (transformer_options or {}).get("uuids") or ()]


def _argument(argument: Argument, args: tuple, kwargs: dict) -> torch.Tensor:
    return kwargs[argument.name] if argument.name in kwargs else args[argument.position]


def _submodule(network: torch.nn.Module, path: str) -> torch.nn.Module:
    """A module by its path, whose "-1" stands for the last of a list."""
    head, _, index = path.rpartition(".")
    return network.get_submodule(head)[-1] if index == "-1" else network.get_submodule(path)
