"""Every family sampled through the nodes, as its users sample it: the same as a separate pass with the full map.

The reference is a forward of the conditional rows alone in each step, in which one layer's whole attention map is
worked out in fp64 and masked (`full_map`): no hook of this pack has a part in it.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager

import comfy.samplers
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT, SkipLayerGuidanceDiTSimple

from .composed import SEPARATE
from .family_models import CASES, Case
from .full_map import FullMap
from .runs import Run, relative_error
from .sampled_families import SAMPLED, Sampled

SCALE = 2.0
CFG = (1.0, 4.0)


@pytest.fixture(scope="module", params=SAMPLED, ids=lambda family: family.name)
def family(request) -> tuple[Sampled, ModelPatcher]:
    return request.param, request.param.build()


@contextmanager
def whole_map(case: Case, layer: str, options: dict) -> Iterator[None]:
    """The attention of one layer worked out in full for as long as the context lasts; `options` are the call's own."""
    full_map = FullMap(case, layer)
    if case.attention is None:
        options["optimized_attention_override"] = full_map
        yield
    else:  # the host's override does not reach it
        module = importlib.import_module(f"comfy.ldm.{case.attention}")
        attention = module.optimized_attention
        module.optimized_attention = lambda *args, **kwargs: full_map(attention, *args, **kwargs)
        try:
            yield
        finally:
            module.optimized_attention = attention
    assert full_map.replaced
    assert next(full_map.calls, None) is None, "each call was counted, the layer's among them"


def separate_pass(model: ModelPatcher, case: Case, layer: str) -> ModelPatcher:
    """The model with PAG added by a forward of its own in each step."""
    def post_cfg(args: dict) -> torch.Tensor:
        options = args["model_options"].copy()
        options["transformer_options"] = options.get("transformer_options", {}).copy()
        with whole_map(case, layer, options["transformer_options"]):
            (perturbed,) = comfy.samplers.calc_cond_batch(args["model"], [args["cond"]], args["input"], args["sigma"],
                                                          options)
        return args["denoised"] + SCALE * (args["cond_denoised"] - perturbed)

    model = model.clone()
    model.set_model_sampler_post_cfg_function(post_cfg)
    return model


def sampled(family: Sampled, cfg: float, batch: int, steps: int = 2) -> Run:
    return Run(cfg=cfg, steps=steps, scheduler="simple", latent=family.latent(batch), **family.prompts())


def errors(result, expected) -> list[float]:
    """The relative error; of each of several latents in one, such as video and sound."""
    results, expected = ((value.unbind() if value.is_nested else [value]) for value in (result, expected))
    return [relative_error(*pair) for pair in zip(results, expected, strict=True)]


@pytest.mark.in_turn("cfg")
@pytest.mark.parametrize("cfg", CFG)
def test_equals_a_separate_pass_with_the_full_map(family, cfg):
    how, model = family
    layer = how.reference.layers[-1]
    for batch in how.batches:
        run = sampled(how, cfg, batch)
        expected = run.ksampler(separate_pass(model, how.reference, layer))
        assert max(errors(run.model_patch(model, SCALE, layer), expected)) <= 1e-4, batch
    assert max(errors(run.pag_ksampler(model, SCALE, layer), expected)) <= 1e-4
    assert max(errors(run.ksampler(model), expected)) > 1e-3, "PAG must do something"


def with_others_forwards(model: ModelPatcher) -> ModelPatcher:
    """As patches of a feed-forward or an attention: every part of the blocks has a forward of another node's, which
    changes nothing."""
    model = model.clone()
    for name, block in model.model.diffusion_model.named_modules():
        if name.rpartition(".")[2].isdigit():
            for child in dict(block.named_children()):
                path = f"diffusion_model.{name}.{child}.forward"
                own = model.get_model_object(path)
                model.add_object_patch(path, lambda *args, own=own, **kwargs: own(*args, **kwargs))
    return model


@pytest.mark.in_turn("cfg")
@pytest.mark.parametrize("cfg", CFG)
def test_beside_forwards_of_others_in_the_blocks(family, cfg):
    """In the first step the conditional rows' blocks are run for the perturbed rows, too, to see that they give the
    same; many blocks change their input in place."""
    how, model = family
    layer, run = how.reference.layers[-1], sampled(how, cfg, 1)
    beside = run.model_patch(with_others_forwards(model), SCALE, layer)
    assert max(errors(beside, run.model_patch(model, SCALE, layer))) <= 1e-4


@pytest.mark.slow
def test_scale_zero_is_the_plain_model_bit_for_bit(family):
    how, model = family
    run = sampled(how, CFG[1], how.batches[0], steps=1)
    assert errors(run.model_patch(model, 0.0, "auto"), run.ksampler(model)) in ([0.0], [0.0, 0.0])


def test_every_family_is_sampled():
    assert {how.case for how in SAMPLED} == {case.name for case in CASES}


GUIDANCE = {
    "SLG": lambda model: SkipLayerGuidanceDiT.execute(model, 2.0, 0.0, 1.0, "0", "0"),
    "SLG, simple": lambda model: SkipLayerGuidanceDiTSimple.execute(model, 0.0, 1.0, "0", "0"),
}


@pytest.mark.parametrize("name", GUIDANCE)
@pytest.mark.parametrize("layer", ["double.1", "single.1"])
def test_beside_guidance_by_skipped_layers(name, layer, composed):
    how = next(how for how in SAMPLED if how.name == "Flux")
    run, model = sampled(how, 4.0, 1), how.build()
    skipping = GUIDANCE[name](model).result[0]
    result = run.model_patch(skipping, SCALE, layer)
    composed.check(name, SEPARATE, result, run.ksampler(separate_pass(skipping, how.reference, layer)))
    assert relative_error(result, run.ksampler(skipping)) > 1e-3
    assert relative_error(result, run.model_patch(model, SCALE, layer)) > 1e-3


def talking(model: ModelPatcher) -> ModelPatcher:
    """As the host's MultiTalk with two speakers: what a patch in a block's self-attention puts into the
    transformer_options, the next patch in that block takes out."""
    def leave(args: dict) -> torch.Tensor:
        args["transformer_options"]["left"] = args["q"].flatten(1).std(1)[:, None, None]
        return args["x"]

    def take(args: dict) -> torch.Tensor:
        return args["x"] * args["transformer_options"].pop("left", 0.0)

    model = model.clone()
    model.set_model_patch(leave, "attn1_patch")
    model.set_model_patch(take, "attn2_patch")
    return model


def test_what_a_patch_leaves_in_a_perturbed_layer_reaches_the_next():
    how = next(how for how in SAMPLED if how.name == "Wan, text to video")
    run, model = sampled(how, 1.0, 1), talking(how.build())
    expected = run.ksampler(separate_pass(model, how.reference, "0"))
    assert relative_error(run.model_patch(model, SCALE, "0"), expected) <= 1e-4
