"""Which tokens of a sequence are the image's, and how they lie, as one forward tells it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import partial

import torch
from torch import nn

from ..models.families import Argument, Family, Tokens
from ..models.structure import group_modules, token_grid


class TokenCount:
    """The number of text or image tokens in one forward of a transformer of this family, or of a U-Net (None)."""

    def __init__(self, family: Family | None) -> None:
        self.family = family
        # {"text" or "image": number of tokens}. A prompt may be missing, and with it the module that would count it.
        self.counts: dict[str, int] = {"text": 0} if family and family.counter and family.counter[0] == "text" else {}
        self.grid: tuple[int, int] | None = None  # of the image tokens of each frame
        self.kept = 0  # tokens that the network keeps from call to call; see `Group.keeps`

    def hooks(self, network: nn.Module, layers: Collection[tuple[str, int]]) -> Iterator[
            torch.utils.hooks.RemovableHandle]:
        """Forward hooks that count for these layers, (group, index) of each."""
        if self.family is None:
            return
        yield network.register_forward_pre_hook(partial(self._measure, self.family), with_kwargs=True)
        if self.family.counter:
            what, path = self.family.counter
            yield _submodule(network, path).register_forward_hook(
                lambda module, args, output: self._count(what, output))
        # A selected module counts for itself where it can; only others' counts serve groups that cannot.
        chosen = {name for name, _ in layers}
        needs_count = any(group.image is None and group.tokens is not Tokens.IMAGE for group in self.family.groups
                          if group.name in chosen)
        for group in self.family.groups:
            for index, module in enumerate(group_modules(network, group)):
                if group.image is not None and (needs_count or (group.name, index) in layers):
                    yield module.register_forward_pre_hook(self._counting(group.image), with_kwargs=True)

    def image_tokens(self, tokens: Tokens, length: int) -> slice | None:
        """The image tokens of a sequence of this length and order; None where this is not known."""
        if tokens is Tokens.IMAGE or length == self.counts.get("image"):
            return slice(0, length)
        if "text" in self.counts:
            image = length - self.counts["text"]
        elif "image" in self.counts:
            image = self.counts["image"]
        else:
            return None
        if not 0 < image <= length:
            return None
        return slice(length - image, length) if tokens is Tokens.TEXT_FIRST else slice(0, image)

    def _measure(self, family: Family, network: nn.Module, args: tuple, kwargs: dict) -> None:
        latent = args[0] if isinstance(args[0], torch.Tensor) else args[0][0]  # several latents: video and sound
        self.grid = token_grid(network, family, latent.shape)
        self.kept = sum(kwargs.get(group.keeps[0], 0) for group in family.groups if group.keeps)

    def _counting(self, argument: Argument):
        def hook(module, args, kwargs) -> None:
            self._count("image", kwargs[argument.name] if argument.name in kwargs else args[argument.position])
        return hook

    def _count(self, what: str, tokens: torch.Tensor) -> None:
        self.counts = {what: tokens.shape[1]}


def _submodule(network: nn.Module, path: str) -> nn.Module:
    """A module by its path, whose "-1" stands for the last of a list."""
    head, _, index = path.rpartition(".")
    return network.get_submodule(head)[-1] if index == "-1" else network.get_submodule(path)
