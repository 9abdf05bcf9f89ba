"""Transformers of several families, sampled through the nodes: the same as a separate pass with the full map."""

from __future__ import annotations

from dataclasses import replace

import comfy.model_base
import comfy.model_patcher
import comfy.samplers
import comfy.supported_models
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT, SkipLayerGuidanceDiTSimple

from . import models
from .composed import SEPARATE
from .family_models import Case
from .full_map import FullMap
from .runs import WAYS, Run, counted, patched, relative_error

SCALE = 2.0
STEPS = 2


def sd3(depth: int = 2) -> ModelPatcher:
    """Of so many blocks, and heads."""
    config = comfy.supported_models.SD3({
        "in_channels": 16, "input_size": None, "patch_size": 2, "depth": depth, "num_blocks": depth,
        "adm_in_channels": models.POOLED, "pos_embed_max_size": 16, "num_patches": 256, "qk_norm": "rms",
        "context_embedder_config": {"target": "torch.nn.Linear",
                                    "params": {"in_features": models.CONTEXT, "out_features": 64 * depth}}})

    def build() -> comfy.model_base.SD3:
        model = comfy.model_base.SD3(config)
        with torch.no_grad():
            model.diffusion_model.pos_embed.fill_(0.1)  # a buffer that a checkpoint would bring
        return model

    return models.model_patcher(config, build)


def wan() -> ModelPatcher:
    config = comfy.supported_models.WAN21_T2V({
        "image_model": "wan2.1", "model_type": "t2v", "in_dim": 16, "dim": 96, "ffn_dim": 64, "freq_dim": 32,
        "text_dim": models.CONTEXT, "out_dim": 16, "num_heads": 4, "num_layers": 2})
    return models.model_patcher(config, lambda: comfy.model_base.WAN21(config))


def z_image() -> ModelPatcher:
    config = comfy.supported_models.ZImage({
        "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 256, "cap_feat_dim": models.CONTEXT,
        "n_layers": 2, "n_refiner_layers": 1, "n_heads": 4, "n_kv_heads": 4, "qk_norm": True,
        "axes_dims": [16, 24, 24], "axes_lens": [300, 512, 512], "z_image_modulation": True, "time_scale": 1000.0,
        "pad_tokens_multiple": 32})
    return models.model_patcher(config, lambda: comfy.model_base.Lumina2(config))


def hunyuan_video() -> ModelPatcher:
    config = comfy.supported_models.HunyuanVideo({
        "image_model": "hunyuan_video", "in_channels": 16, "out_channels": 16, "patch_size": [1, 2, 2],
        "vec_in_dim": models.POOLED, "context_in_dim": models.CONTEXT, "hidden_size": 64, "mlp_ratio": 2.0,
        "num_heads": 4, "depth": 1, "depth_single_blocks": 2, "axes_dim": [4, 6, 6], "theta": 256, "qkv_bias": True,
        "guidance_embed": True, "byt5": False, "meanflow": False, "use_cond_type_embedding": False,
        "vision_in_dim": None, "meanflow_sum": False})
    return models.model_patcher(config, lambda: comfy.model_base.HunyuanVideo(config))


def pixart() -> ModelPatcher:
    config = comfy.supported_models.PixArtSigma({
        "image_model": "pixart_sigma", "in_channels": 4, "hidden_size": 48, "depth": 2, "num_heads": 4,
        "caption_channels": models.CONTEXT, "model_max_length": 7, "micro_condition": False, "input_size": 8,
        "patch_size": 2, "pe_interpolation": 1})
    return models.model_patcher(config, lambda: comfy.model_base.PixArt(config))


FAMILIES = {
    "Flux": (models.flux, Case("", "", {}, {}, "double.0 double.1 single.0 single.1 single.2", image=24), (8, 12)),
    "SD3": (sd3, Case("", "", {}, {}, "0 1", image=24), (8, 12)),
    "Wan": (wan, Case("", "", {}, {}, "0 - 1 -", image=48), (2, 8, 12)),
    "Z-Image": (z_image, Case("", "", {}, {}, "- - 0 1", image=32), (8, 12)),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> tuple[ModelPatcher, Case, tuple[int, ...]]:
    build, case, size = FAMILIES[request.param]
    return build(), case, size


def separate_pass(model: ModelPatcher, case: Case, layer: str) -> ModelPatcher:
    """The model with PAG added by a forward of its own in each step, in which the layer's full map is worked out."""
    def post_cfg(args: dict) -> torch.Tensor:
        options = args["model_options"].copy()
        options["transformer_options"] = {**options.get("transformer_options", {}),
                                          "optimized_attention_override": FullMap(case, layer)}
        (perturbed,) = comfy.samplers.calc_cond_batch(args["model"], [args["cond"]], args["input"], args["sigma"],
                                                      options)
        return args["denoised"] + SCALE * (args["cond_denoised"] - perturbed)

    model = model.clone()
    model.set_model_sampler_post_cfg_function(post_cfg)
    return model


def latent_run(size: tuple[int, ...], cfg: float) -> Run:
    return Run(cfg=cfg, steps=STEPS, scheduler="simple", positive=models.conditioning(1),
               negative=models.conditioning(2), latent={"samples": torch.zeros(1, 16, *size)})


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_equals_a_separate_pass_with_the_full_map_in_one_batched_call(family, cfg):
    model, case, size = family
    run = latent_run(size, cfg)
    layer = case.layers[-1]
    plain, expected = run.ksampler(model), run.ksampler(separate_pass(model, case, layer))
    assert expected.isfinite().all()
    assert relative_error(expected, plain) > 1e-3
    for way in WAYS.values():
        counting, rows = counted(model)
        assert relative_error(way(run, counting, SCALE, layer), expected) <= 1e-4
        assert rows == [2 if cfg == 1.0 else 3] * STEPS


def test_scale_zero_is_the_plain_model_bit_for_bit(family):
    model, _, size = family
    run = latent_run(size, 4.0)
    for way in WAYS.values():
        assert torch.equal(way(run, model, 0.0, "auto"), run.ksampler(model))


def test_a_text_mask_that_the_host_takes_for_one_row_only():
    """HunyuanVideo's own code fails on two rows with a mask; so the perturbed one runs apart, the plain one as ever."""
    case = Case("", "", {}, {}, "- - double.0 single.0 single.1", image=48)
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0]])
    run = replace(latent_run((2, 8, 12), 1.0), positive=models.conditioning(1, attention_mask=mask))
    model = hunyuan_video()
    for way in WAYS.values():
        counting, rows = counted(model)
        result = way(run, counting, SCALE, "single.0")
        assert relative_error(result, run.ksampler(separate_pass(model, case, "single.0"))) <= 1e-4
        assert rows == [1, 1] * STEPS
    assert relative_error(result, run.ksampler(model)) > 1e-3


GUIDANCE = {
    "SLG": lambda model: SkipLayerGuidanceDiT.execute(model, 2.0, 0.0, 1.0, "0", "0"),
    "SLG, simple": lambda model: SkipLayerGuidanceDiTSimple.execute(model, 0.0, 1.0, "0", "0"),
}


@pytest.mark.parametrize("name", GUIDANCE)
@pytest.mark.parametrize("layer", ["double.1", "single.2"])
def test_beside_guidance_by_skipped_layers(name, layer, composed):
    build, case, size = FAMILIES["Flux"]
    run, model = latent_run(size, 4.0), build()
    skipping = GUIDANCE[name](model).result[0]
    result = run.model_patch(skipping, SCALE, layer)
    composed.check(name, SEPARATE, result, run.ksampler(separate_pass(skipping, case, layer)))
    assert relative_error(result, run.ksampler(skipping)) > 1e-3
    assert relative_error(result, run.model_patch(model, SCALE, layer)) > 1e-3


def test_a_family_that_hides_its_attention_maps_samples_too():
    run, model = latent_run((8, 8), 4.0), pixart()
    run.latent["samples"] = torch.zeros(1, 4, 32, 40)
    counting, rows = counted(model)
    assert relative_error(run.ksampler(patched(counting, SCALE, "auto")), run.ksampler(model)) > 1e-3
    assert rows == [3] * STEPS
