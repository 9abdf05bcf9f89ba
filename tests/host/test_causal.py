"""Causal Wan, which makes a video frame by frame and keeps the keys and values of the earlier ones."""

from __future__ import annotations

import comfy.samplers
import pytest
import torch
from pag_pack.nodes.host.models.layers import model_layers
from pag_pack.pag_core.attention import PerturbationError
from pag_pack.pag_core.settings import PAGOptions

from .family_models import TEXT
from .older import newest_only
from .runs import Run, patched, relative_error
from .sampled_blocks import SampledBlocks
from .sampled_families import VIDEO, noise
from .test_blocks import blended, blocks
from .test_weak_rows import SCALE, SKIP

HOW = SampledBlocks("Causal Wan", "", "WAN21_CausalAR_T2V", VIDEO, {
    "model_type": "t2v", "dim": 64, "ffn_dim": 96, "num_heads": 4, "num_layers": 3, "text_dim": 24, "freq_dim": 32,
    "in_dim": 16, "out_dim": 16, "text_len": 16})
FRAMES = 3
pytestmark = newest_only


@pytest.fixture(scope="module")
def model():
    return HOW.build()


@pytest.fixture(scope="module")
def run() -> Run:
    prompts = {name: [[noise(seed, 1, TEXT, 24), {}]] for seed, name in enumerate(("positive", "negative"), 1)}
    return Run(cfg=1.0, steps=2, scheduler="simple", latent={"samples": torch.zeros(1, 16, FRAMES, 8, 12)}, **prompts)


def sample(model, run: Run) -> torch.Tensor:
    """Frame by frame, by the host's sampler for this model."""
    from comfy_extras.nodes_ar_video import SamplerARVideo
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise, SamplerCustomAdvanced

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(run.positive, run.negative)
    guider.set_cfg(1.0)
    sigmas = comfy.samplers.KSampler(model, run.steps, torch.device("cpu"), "euler", run.scheduler, 1.0).sigmas
    return SamplerCustomAdvanced.execute(Noise_RandomNoise(run.seed), guider, SamplerARVideo.execute(1).result[0],
                                         sigmas, run.latent).result[0]["samples"]


def in_another_call(model, layer: str):
    """The model with one block skipped in a call of its own, on copies of everything that the network keeps."""
    module = blocks(model.model.diffusion_model)[layer][1]

    def post_cfg(args: dict) -> torch.Tensor:
        options = args["model_options"].copy()
        state = options["transformer_options"]["ar_state"]
        _, _, frames, height, width = args["input"].shape
        kept = [{"k": cache["k"].clone(), "v": cache["v"].clone(), "end": cache["end"] - frames * height * width // 4}
                for cache in state["kv_caches"]]
        options["transformer_options"] = {**options["transformer_options"], "ar_state": {
            **state, "kv_caches": kept, "crossattn_caches": [dict(cache) for cache in state["crossattn_caches"]]}}
        module.forward = blended(HOW.reference, module, 1.0)
        try:
            (weak,) = comfy.samplers.calc_cond_batch(args["model"], [args["cond"]], args["input"], args["sigma"],
                                                     options)
        finally:
            del module.forward
        return args["denoised"] + SCALE * (args["cond_denoised"] - weak)

    model = model.clone()
    model.set_model_sampler_post_cfg_function(post_cfg)
    return model


@pytest.mark.parametrize("layer", ["0", "1", "2"])
def test_a_skipped_block_equals_a_call_of_its_own_frame_by_frame(model, run, layer):
    ours, plain = sample(patched(model, SCALE, layer, SKIP), run), sample(model, run)
    assert relative_error(ours, sample(in_another_call(model, layer), run)) <= 1e-4
    assert all(relative_error(ours[:, :, frame], plain[:, :, frame]) > 1e-3 for frame in range(FRAMES))


def test_with_other_samplers_it_is_a_wan_like_any(model, run):
    ours = run.model_patch(model, SCALE, "1", SKIP)
    assert relative_error(ours, run.ksampler(model)) > 1e-3


def test_attention_is_refused_with_the_reason(model, run):
    assert [layer.name for layer in model_layers(model).layers] == ["0", "1", "2"]
    with pytest.raises(PerturbationError, match=r"keys and values that it caches between calls.*skip_block"):
        run.model_patch(model, SCALE, "1", PAGOptions())
