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

from .attention import HeadLayout, LayerPerturbation, attend_rows
from .families import Count, Family, Tokens, group_modules
from .late_blocks import LateBlocks

TransformerKey = tuple[str, int]  # (group, index)
_OVERRIDE = "optimized_attention_override"


class _Place(threading.local):
    """Where the forward of this thread is. Thread-local, for MultiGPU runs one forward in each of several threads."""

    def __init__(self) -> None:
        self.layer: LayerPerturbation | None = None
        self.tokens = Tokens.IMAGE
        self.counts: dict[str, int] = {}  # {"text" or "image": number of tokens}


class TransformerWatch:
    """Perturbs the selected layers of one call of the host.

    Args:
        layers: {(group, index): what is done there}.
    """

    def __init__(self, family: Family, layers: dict[TransformerKey, LayerPerturbation]) -> None:
        self.family = family
        self.layers = layers
        self.place = _Place()

    def install(self, transformer_options: dict, is_ours: Callable[[object], bool],
                skipped: Callable[[str], None]) -> None:
        """Put the override into `transformer_options` (the caller's own copy), around the one that is there.

        Args:
            is_ours: whether a row, by its uuid, is perturbed.
            skipped: called with a layer's name where a call cannot be perturbed.
        """
        previous = transformer_options.get(_OVERRIDE)

        def override(func, *args, **kwargs):
            layer, uuids = self.place.layer, (kwargs.get("transformer_options") or {}).get("uuids")
            ours = [is_ours(row) for row in uuids or ()]
            call = func if previous is None else (lambda *a, **k: previous(func, *a, **k))
            if layer is None or not any(ours):
                return call(*args, **kwargs)
            return self._perturbed(layer, ours, skipped, func, previous and call, *args, **kwargs)

        transformer_options[_OVERRIDE] = override

    def _perturbed(self, layer: LayerPerturbation, ours: list[bool], skipped: Callable[[str], None], func, whole, q, k,
                   v, heads, mask=None, *args, skip_reshape: bool = False, skip_output_reshape: bool = False, **kwargs):
        layout = HeadLayout(heads, skip_reshape, skip_output_reshape)
        length, keys = (t.shape[2 if skip_reshape else 1] for t in (q, k))
        image = self._image_tokens(keys)
        if length != keys or image is None or q.shape[0] % len(ours):
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
                           whole=host(q, k, v, mask, whole) if whole else None, scale=kwargs.get("scale"))

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

    @contextmanager
    def watching(self, networks: list[torch.nn.Module]) -> Iterator[None]:
        """Hooks on the networks' modules for as long as the context lasts."""
        with ExitStack() as stack:
            for network in networks:
                for handle in self._hooks(network):
                    stack.callback(handle.remove)
            yield

    def sharing(self, networks: list[torch.nn.Module], transformer_options: dict, layers: set[TransformerKey] | None,
                sources: Mapping[UUID, UUID], decline: Callable[[str], None]) -> AbstractContextManager[None]:
        """Let the perturbed rows join at the first of `layers` (None: at the start); see `late_blocks.LateBlocks`."""
        if layers is None or not self.family.late_rows:
            return nullcontext()
        names = [group.name for group in self.family.groups]
        first = min(layers, key=lambda key: (names.index(key[0]), key[1]))
        return LateBlocks(self.family, first, sources, decline).watching(networks, transformer_options)

    def _hooks(self, network: torch.nn.Module) -> Iterator[torch.utils.hooks.RemovableHandle]:
        if self.family.counter:
            module = network.get_submodule(self._last(network, self.family.counter))
            yield module.register_forward_hook(lambda module, args, output: self._count("image", output))
        for group in self.family.groups:
            for index, module in enumerate(group_modules(network, group)):
                layer = self.layers.get((group.name, index))
                if layer is None and group.count is None:
                    continue
                yield module.register_forward_pre_hook(self._enter(layer, group.tokens, group.count), with_kwargs=True)
                yield module.register_forward_hook(self._leave, always_call=True)

    def _enter(self, layer: LayerPerturbation | None, tokens: Tokens, count: Count | None):
        def hook(module, args, kwargs):
            self.place.layer, self.place.tokens = layer, tokens
            if count is not None:
                self._count(count.what, kwargs[count.name] if count.name in kwargs else args[count.position])
        return hook

    def _leave(self, module, args, output) -> None:
        self.place.layer = None

    def _count(self, what: str, tokens: torch.Tensor) -> None:
        self.place.counts = {what: tokens.shape[1]}

    @staticmethod
    def _last(network: torch.nn.Module, path: str) -> str:
        """A module path whose "-1" stands for the last of a list."""
        head, _, index = path.rpartition(".")
        return f"{head}.{len(network.get_submodule(head)) - 1}" if index == "-1" else path
