"""The way into U-Nets and ADM: the host's replacement of a block's first attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from comfy.ldm.modules.attention import optimized_attention

from ..models.units import UNetKey, u_net_blocks
from .attention import OVERRIDE, HeadLayout, LayerPerturbation, attend_rows, flags, on_copies


class UNetPatch:
    """Perturbs the selected layers of one forward; see `transformers.TransformerPatch`."""

    is_apart = False  # whether weak rows may share no call with others

    def __init__(self, layers: dict[UNetKey, LayerPerturbation]) -> None:
        self.layers = layers

    @contextmanager
    def around(self, network: torch.nn.Module, options: dict, is_ours: Callable[[object], bool],
               skipped: Callable[[str], None], noise_key: tuple) -> Iterator[dict]:
        """For one forward of `network`: the transformer_options to run it with, our replacements around those that are
        there. Arguments as for `TransformerPatch.around`."""
        replace = options.get("patches_replace", {})
        attn1 = replace.get("attn1", {}).copy()
        for key, layer in self.layers.items():
            # The host lets (block, number, index) win over (block, number), so ours takes the stronger key.
            attn1[key] = _Replacement(layer, attn1.get(key, attn1.get(key[:2])), is_ours, skipped, noise_key)
        options = {**options, "patches_replace": {**replace, "attn1": attn1}}
        with ExitStack() as stack:
            for handle in self._handed_on(network, options):
                stack.callback(handle.remove)
            yield options

    def _handed_on(self, network: torch.nn.Module, options: dict) -> Iterator[torch.utils.hooks.RemovableHandle]:
        """Hooks that give a selected block these options where another node's code has dropped the host's."""
        def given_to(place: tuple[str, int], index: int) -> Callable:
            def give(module, args, kwargs):
                given = kwargs.get("transformer_options") or {}
                return None if "uuids" in given else (args, {**kwargs, "transformer_options": {
                    **given, **options, "block": place, "block_index": index}})
            return give

        for place, layers in u_net_blocks(network):
            blocks = [block for layer in layers for block in getattr(layer, "transformer_blocks", ())]
            for index, block in enumerate(blocks):
                if (*place, index) in self.layers:
                    yield block.register_forward_pre_hook(given_to(place, index), with_kwargs=True)


class _Replacement:
    """An attn1 replacement: our rows are perturbed, all others are what they were."""

    def __init__(self, layer: LayerPerturbation, previous, is_ours, skipped, noise_key) -> None:
        self.layer = layer
        self.previous = previous
        self.is_ours = is_ours
        self.skipped = skipped
        self.noise_key = noise_key

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra_options: dict, **kwargs):
        layout = HeadLayout(extra_options["n_heads"])

        def host(q, k, v, mask=None, **layout):
            return optimized_attention(q, k, v, extra_options["n_heads"], mask=mask,
                                       attn_precision=extra_options.get("attn_precision"),
                                       transformer_options=extra_options, **layout)

        def per_head(q, k, v, mask=None):
            return host(q, k, v, mask, skip_reshape=True, skip_output_reshape=True)

        ours = flags(extra_options["uuids"], self.is_ours, q)
        # Tiled or merged tokens (HyperTile, ToMe), or frames (SVD's temporal layers, under the same key): V has not the
        # tokens of the output, or they are not an image's, so the identity has no meaning there.
        shape = extra_options.get("activations_shape")
        temporal = shape is not None and q.shape[0] != shape[0]
        fits = q.shape == v.shape and v.shape[0] % len(ours) == 0 and not temporal
        if not any(ours) or not fits:
            if any(ours) and not (temporal and q.shape == v.shape):
                self.skipped(self.layer.name)
            return self.previous(q, k, v, extra_options, **kwargs) if self.previous else host(q, k, v)

        others = on_copies(self.previous, args=(q, k, v, extra_options), **kwargs)
        if others is None and OVERRIDE in extra_options:
            others = on_copies(host, args=(q, k, v))
        whole = others() if others else None
        grid = None if shape is None or shape[-2] * shape[-1] != q.shape[1] else (shape[-2], shape[-1])
        return attend_rows(self.layer, ours, q, k, v, layout, host, per_head, whole=whole, grid=grid,
                           noise_key=self.noise_key)
