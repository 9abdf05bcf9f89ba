"""The way into transformers: the host's attention override, and hooks that tell it where in the network it is.

The override sees every attention call of a module but not, on most families, where the text ends. Forward hooks on the
modules say so, and give the override to the selected ones alone. They are there during one forward and go away with it,
whatever happens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch

from ....pag_core.attention import PerturbationError
from ....pag_core.perturbation import KINDS
from ..models.families import Argument, Family, Group, Tokens, group_modules, num_heads
from ..models.units import TransformerKey
from .attention import HeadLayout, LayerPerturbation, attend_rows, flags
from .values import value_hooks

_OVERRIDE = "optimized_attention_override"


class TransformerPatch:
    """Perturbs the selected layers of one forward.

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

    @contextmanager
    def around(self, network: torch.nn.Module, options: dict, is_ours: Callable[[object], bool],
               skipped: Callable[[str], None], noise_key: tuple) -> Iterator[dict]:
        """Hooks for one forward of `network`; the transformer_options to run it with.

        Args:
            options: the transformer_options of the forward.
            is_ours: whether a row, by its uuid, is perturbed.
            skipped: called with a layer's name where a call cannot be perturbed.
            noise_key: what the randomness of the layers depends on besides seed and layer.
        """
        if any(is_ours(row) for row in options["uuids"]):
            forward = _Forward(self.family, self.layers, options["uuids"], is_ours, skipped, noise_key)
            with ExitStack() as stack:
                for handle in forward.hooks(network):
                    stack.callback(handle.remove)
                yield forward.overridden(options) if self.family.keeps_between_calls else options
        else:
            yield options


class _Forward:
    """One forward of a network: where its text ends, as far as it has got."""

    def __init__(self, family: Family, layers: dict[TransformerKey, LayerPerturbation], uuids, is_ours, skipped,
                 noise_key: tuple) -> None:
        self.family = family
        self.layers = layers
        self.uuids = uuids
        self.is_ours = is_ours
        self.skipped = skipped
        self.noise_key = noise_key
        # {"text" or "image": number of tokens}. A prompt may be missing, and with it the module that would count it.
        self.counts: dict[str, int] = {"text": 0} if family.counter and family.counter[0] == "text" else {}
        self.selected: tuple[LayerPerturbation, Tokens] | None = None  # the module that runs, if it is one

    def hooks(self, network: torch.nn.Module) -> Iterator[torch.utils.hooks.RemovableHandle]:
        if self.family.counter:
            what, path = self.family.counter
            yield _submodule(network, path).register_forward_hook(
                lambda module, args, output: self._count(what, output))
        # An altered module counts for itself where it can; only others' counts serve groups that cannot.
        needs_count = any(group.image is None and group.tokens is not Tokens.IMAGE
                          for group in self.family.groups if any(name == group.name for name, _ in self.layers))
        for group in self.family.groups:
            for index, module in enumerate(group_modules(network, group)):
                layer = self.layers.get((group.name, index))
                if layer is not None and group.values:
                    yield from value_hooks(module, group.values, num_heads(module, group), layer,
                                           lambda batch: flags(self.uuids, self.is_ours, batch))
                elif layer is not None or (group.image is not None and needs_count):
                    yield module.register_forward_pre_hook(self._enter(layer, group), with_kwargs=True)
                    yield module.register_forward_hook(self._leave)

    def _enter(self, layer: LayerPerturbation | None, group: Group):
        def hook(module, args, kwargs):
            if group.image is not None:
                self._count("image", _argument(group.image, args, kwargs))
            if layer is None:
                return None
            self.selected = layer, group.tokens

            def given(value):
                return self.overridden(value) if _is_options(value) else value

            return tuple(map(given, args)), {name: given(value) for name, value in kwargs.items()}
        return hook

    def _leave(self, module, args, output) -> None:
        self.selected = None

    def _count(self, what: str, tokens: torch.Tensor) -> None:
        self.counts = {what: tokens.shape[1]}

    def overridden(self, options: dict) -> dict:
        """The transformer_options for a selected module: our override around the one that is there."""
        previous = options.get(_OVERRIDE)

        def override(func, *args, **kwargs):
            whole = None if previous is None else (lambda *a, **k: previous(func, *a, **k))
            if self.selected is None:
                return (whole or func)(*args, **kwargs)
            return self._perturbed(*self.selected, func, whole, *args, **kwargs)

        return {**options, _OVERRIDE: override}

    def _perturbed(self, layer: LayerPerturbation, tokens: Tokens, func, whole, q, k, v, heads, mask=None, *args,
                   skip_reshape: bool = False, skip_output_reshape: bool = False, **kwargs):
        ours = flags(self.uuids, self.is_ours, q)
        layout = HeadLayout(heads, skip_reshape, skip_output_reshape)
        length, keys = (t.shape[2 if skip_reshape else 1] for t in (q, k))
        image = self._image_tokens(tokens, keys)
        # Where a network has no use for the text's queries, they are the image's.
        queries = slice(keys - length, keys) if tokens is Tokens.TEXT_FIRST else slice(0, length)
        fits = image is not None and image.start >= queries.start and image.stop <= queries.stop
        if not fits or q.shape[0] % len(ours) or (length != keys and mask is not None):
            self.skipped(layer.name)
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
                           noise_key=self.noise_key)

    def _image_tokens(self, tokens: Tokens, length: int) -> slice | None:
        """The image tokens of a sequence; None where this is not known."""
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


def _is_options(value) -> bool:
    return isinstance(value, dict) and "uuids" in value


def _argument(argument: Argument, args: tuple, kwargs: dict) -> torch.Tensor:
    return kwargs[argument.name] if argument.name in kwargs else args[argument.position]


def _submodule(network: torch.nn.Module, path: str) -> torch.nn.Module:
    """A module by its path, whose "-1" stands for the last of a list."""
    head, _, index = path.rpartition(".")
    return network.get_submodule(head)[-1] if index == "-1" else network.get_submodule(path)
