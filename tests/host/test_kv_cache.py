"""Beside the host's Flux KV Cache: from the second step on its references are in the keys alone."""

from __future__ import annotations

from dataclasses import replace

import comfy.samplers
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from pag_pack.pag_core.settings import PAGOptions

from .full_map import FullMap
from .runs import Run, relative_error
from .sampled_families import SAMPLED
from .test_family_sampling import SCALE


def cached(model: ModelPatcher) -> ModelPatcher:
    from comfy_extras.nodes_flux import FluxKVCache  # not in older hosts

    return FluxKVCache.execute(model).result[0]


def separate_pass(model: ModelPatcher, how, layer: str) -> ModelPatcher:
    """PAG in a call of its own, with a cache of its own."""
    model, patches = cached(model), cached(model).model_options["transformer_options"]["patches"]

    def post_cfg(args: dict) -> torch.Tensor:
        full_map = FullMap(how.reference, layer, asks_first=True)
        options = args["model_options"] | {"transformer_options": args["model_options"]["transformer_options"] | {
            "patches": patches, "optimized_attention_override": full_map}}
        (weak,) = comfy.samplers.calc_cond_batch(args["model"], [args["cond"]], args["input"], args["sigma"], options)
        assert full_map.replaced
        return args["denoised"] + SCALE * (args["cond_denoised"] - weak)

    model.set_model_sampler_post_cfg_function(post_cfg)
    return model


@pytest.mark.parametrize("layer", ["double.0", "single.1"])
@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_equals_a_separate_pass_with_a_cache_of_its_own(cfg, layer):
    how = next(how for how in SAMPLED if how.name == "Flux 2, two references")
    how = replace(how, arguments=how.arguments | {"guidance_embed": False})  # as Klein, the only one it works with
    run = Run(cfg=cfg, steps=3, scheduler="simple", latent=how.latent(1), **how.prompts())
    expected = run.ksampler(separate_pass(how.build(), how, layer))
    assert relative_error(run.model_patch(cached(how.build()), SCALE, layer), expected) <= 1e-4
    assert relative_error(run.ksampler(cached(how.build())), expected) > 1e-3


@pytest.mark.parametrize(("layers", "options"), [
    ("50%: single.1; 100%: double.1", PAGOptions()), ("single.1", PAGOptions(start_percent=0.4))],
    ids=["later steps begin at an earlier block", "later steps alone"])
def test_with_layers_and_ranges_of_later_steps(layers, options):
    how = next(how for how in SAMPLED if how.name == "Flux 2, two references")
    how = replace(how, arguments=how.arguments | {"guidance_embed": False})
    run = Run(cfg=4.0, steps=4, scheduler="simple", latent=how.latent(1), **how.prompts())
    expected = run.model_patch(cached(how.build()), SCALE, layers, replace(options, share_prefix=False))
    assert relative_error(run.model_patch(cached(how.build()), SCALE, layers, options), expected) <= 1e-4
    assert relative_error(run.ksampler(cached(how.build())), expected) > 1e-3
