"""The way into transformers: the host's attention override, and hooks that tell it where in the network it is.

The override sees every attention call of a module but not, on most families, where the text ends. Forward hooks on the
modules say so, and give the override to the selected ones alone. They are there during one forward and go away with it,
whatever happens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch

from ....pag_core.attention import PerturbationError
from ....pag_core.perturbation import KINDS
from ..models.families import Family, Group, Tokens
from ..models.structure import num_heads, selected_modules
from ..models.units import TransformerKey
from .attention import OVERRIDE, HeadLayout, LayerPerturbation, as_given, attend_rows, flags, on_copies
from .tokens import TokenCount
from .values import value_hooks

_OPTIONS = "transformer_options"  # which a forward of another pack's may leave out
_REFERENCES = "reference_image_num_tokens"  # in them, by the host's Flux


class TransformerPatch:
    """Perturbs the selected layers of one forward.

    Args:
        layers: {(group, index): what is done there}.

    Raises:
        PerturbationError: where a layer's family does not allow its kind of perturbation.
    """

    is_apart = False

    def __init__(self, family: Family, layers: dict[TransformerKey, LayerPerturbation]) -> None:
        kinds = {layer.perturbation.perturbation for layer in layers.values()}
        hidden = sorted(kind for kind in kinds if KINDS[kind].needs_map)
        if hidden and any(group.values for group in family.groups):
            raise PerturbationError(f"{family.name} supports identity, skip_attention and skip_block, but not "
                                    f"{', '.join(hidden)}: ComfyUI gives no access to the attention maps of "
                                    f"this family.")
        blurs = sorted(kind for kind in kinds if KINDS[kind].needs_grid)
        if blurs and family.patch is None:
            raise PerturbationError(f"{', '.join(blurs)} blurs along the image's rows and columns, but the tokens of "
                                    f"{family.name} do not form an image grid. Use seg_mean instead.")
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
        self.uuids = uuids  # of the rows that are in the batch at the moment; see `rows.running`
        self.is_ours = is_ours
        self.skipped = skipped
        self.noise_key = noise_key
        self.count = TokenCount(family)
        self.selected: tuple[LayerPerturbation, Group] | None = None  # the module that runs, if it is one
        self.given: list[tuple[dict, dict]] = []  # (transformer_options, the copy with our override) of that module

    def hooks(self, network: torch.nn.Module) -> Iterator[torch.utils.hooks.RemovableHandle]:
        yield from self.count.hooks(network, self.layers)
        for group, module, layer in selected_modules(network, self.family, self.layers):
            if group.values:
                yield from value_hooks(module, group.values, num_heads(module, group), layer,
                                       lambda batch: flags(self.uuids, self.is_ours, batch))
            else:
                yield module.register_forward_pre_hook(self._enter(layer, group), with_kwargs=True)
                yield module.register_forward_hook(self._leave)

    def _enter(self, layer: LayerPerturbation, group: Group):
        def hook(module, args, kwargs):
            self.selected = layer, group

            def given(value):
                if not _is_options(value):
                    return value
                self.given.append((value, self.overridden(value)))
                return self.given[-1][1]

            if not any(map(_is_options, (*args, *kwargs.values()))) and _OPTIONS in inspect.signature(
                    module.forward).parameters:
                kwargs = {**kwargs, _OPTIONS: self.overridden(kwargs.get(_OPTIONS, {}))}
            return tuple(map(given, args)), {name: given(value) for name, value in kwargs.items()}
        return hook

    def _leave(self, module, args, output) -> None:
        self.selected = None
        # What another node's patch has put there, its next patch may look for (the host's MultiTalk).
        for options, copy in self.given:
            for name in options.keys() - copy.keys():
                del options[name]
            options.update((name, value) for name, value in copy.items() if name != OVERRIDE)
        self.given.clear()

    def overridden(self, options: dict) -> dict:
        """The transformer_options for a selected module: our override around the one that is there."""
        previous = options.get(OVERRIDE)

        def override(func, *args, **kwargs):
            call = as_given(previous, func, args, kwargs)
            if self.selected is None:
                return call()
            others = on_copies(previous, func, args=args, **kwargs)
            return self._perturbed(*self.selected, func, call, others, *args, **kwargs)

        return {**options, OVERRIDE: override}

    def _places(self, group: Group, length: int, keys: int, options: dict) -> tuple[slice | None, slice]:
        """Which of the keys' tokens are the image's, None where this is not known, and which the queries are."""
        image = self.count.image_tokens(group.tokens, keys)
        if length == keys or group.tokens is Tokens.IMAGE_FIRST:
            return image if image and image.stop <= length else None, slice(0, length)
        if group.keeps:  # the text's keys are of an earlier call
            return image, slice(keys - length, keys)
        if group.tokens is Tokens.TEXT_FIRST and keys - length == sum(options.get(_REFERENCES, ())):
            # Flux KV Cache puts the references' keys of an earlier step behind the others.
            image = self.count.image_tokens(group.tokens, length)
            return image and slice(image.start, keys), slice(0, length)
        return None, slice(0, length)

    def _perturbed(self, layer: LayerPerturbation, group: Group, func, call: Callable, others: Callable | None, q, k, v,
                   heads, mask=None, *args, skip_reshape: bool = False, skip_output_reshape: bool = False, **kwargs):
        ours = flags(self.uuids, self.is_ours, q)
        layout = HeadLayout(heads, skip_reshape, skip_output_reshape)
        length, keys = (t.shape[2 if skip_reshape else 1] for t in (q, k))
        image, queries = self._places(group, length, keys, kwargs.get(_OPTIONS) or {})
        fits = image is not None and queries.start <= image.start < queries.stop
        if not fits or q.shape[0] % len(ours) or (length != keys and mask is not None):
            self.skipped(layer.name)
            return call()

        def host(q, k, v, mask):
            return func(q, k, v, heads, mask, *args, skip_reshape=skip_reshape,
                        skip_output_reshape=skip_output_reshape, **kwargs)

        def per_head(q, k, v, mask):
            return func(q, k, v, heads, mask, *args, skip_reshape=True, skip_output_reshape=True, **kwargs)

        return attend_rows(layer, ours, q, k, v, layout, host, per_head, mask=mask,
                           image=None if image == slice(0, keys) else image,
                           queries=None if length == keys else queries,
                           whole=others() if others else None, scale=kwargs.get("scale"),
                           grid=(1, keys) if group.beside else self.count.grid, noise_key=self.noise_key)


def _is_options(value) -> bool:
    return isinstance(value, dict) and "uuids" in value
