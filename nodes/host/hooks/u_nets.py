"""The way into U-Nets and ADM: the host's replacement of a block's first attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from uuid import UUID

import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.patcher_extension import WrappersMP

from .attention import HeadLayout, LayerPerturbation, attend_rows
from .prefix import SharedPrefix, block_order, host_asks_before_layers

UNetKey = tuple[str, int, int]  # (block kind, block number, transformer block inside), as in patches_replace


class UNetWatch:
    """Perturbs the selected layers of one call of the host; see `transformers.TransformerWatch`."""

    one_row = ()

    def __init__(self, layers: dict[UNetKey, LayerPerturbation]) -> None:
        self.layers = layers

    def install(self, transformer_options: dict, is_ours: Callable[[object], bool],
                skipped: Callable[[str], None], noise_key: tuple) -> None:
        """Put the replacements into `transformer_options` (the caller's own copy), around those that are there."""
        replace = transformer_options["patches_replace"] = transformer_options.get("patches_replace", {}).copy()
        attn1 = replace["attn1"] = replace.get("attn1", {}).copy()
        for key, layer in self.layers.items():
            # The host lets (block, number, index) win over (block, number), so ours takes the stronger key.
            attn1[key] = _Replacement(layer, attn1.get(key, attn1.get(key[:2])), is_ours, skipped, noise_key)

    def watching(self, networks: list[torch.nn.Module],
                 is_ours: Callable[[object], bool]) -> AbstractContextManager[None]:
        return nullcontext()

    def sharing(self, networks: list[torch.nn.Module], transformer_options: dict, layers: set[UNetKey] | None,
                sources: Mapping[UUID, UUID], decline: Callable[[str], None]) -> AbstractContextManager[None]:
        """Let the perturbed rows join at the first of `layers` (None: at the start); see `prefix.SharedPrefix`."""
        first = None if layers is None else min((key[:2] for key in layers), key=block_order)
        if first is not None and not can_share(networks[0]):
            decline("this ComfyUI's U-Net has no hook in front of its layers")
            first = None
        wrappers = transformer_options["wrappers"] = transformer_options.get("wrappers", {}).copy()
        # Last, that is innermost: caches and other wrappers see every row.
        ours = {"perturbed_attention_guidance": [SharedPrefix(sources, first, decline)]}
        wrappers[WrappersMP.DIFFUSION_MODEL] = {**wrappers.get(WrappersMP.DIFFUSION_MODEL, {}), **ours}
        return nullcontext()


def can_share(network: torch.nn.Module) -> bool:
    """Whether the host has the hook that the shared prefix of this U-Net or ADM needs."""
    return host_asks_before_layers() or not isinstance(network, UNetModel)


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

        ours = [self.is_ours(row) for row in extra_options["uuids"]]
        # Tiled or merged tokens (HyperTile, ToMe), or frames (SVD's temporal layers, under the same key): V has not the
        # tokens of the output, or they are not an image's, so the identity has no meaning there.
        shape = extra_options.get("activations_shape")
        temporal = shape is not None and q.shape[0] != shape[0]
        fits = q.shape == v.shape and v.shape[0] % len(ours) == 0 and not temporal
        if not any(ours) or not fits:
            if any(ours) and not (temporal and q.shape == v.shape):
                self.skipped(self.layer.name)
            return self.previous(q, k, v, extra_options, **kwargs) if self.previous else host(q, k, v)

        whole = None
        if self.previous:
            whole = self.previous(q, k, v, extra_options, **kwargs)
        elif "optimized_attention_override" in extra_options:
            whole = host(q, k, v)
        grid = None if shape is None or shape[-2] * shape[-1] != q.shape[1] else (shape[-2], shape[-1])
        return attend_rows(self.layer, ours, q, k, v, layout, host, per_head, whole=whole, grid=grid,
                           noise_key=self.noise_key)
