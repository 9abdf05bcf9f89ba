"""The nodes against references that no one here wrote: diffusers' PAG pipelines, on the same weights and noise.

Where diffusers differs, a test shows how and why; `MaskedAttention` is then the reference, diffusers' own plain
attention under the mask of PAG's identity.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed; it comes with the dependency group test")

from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from diffusers import FlowMatchEulerDiscreteScheduler
from pag_pack.pag_core.settings import PAGOptions

from .diffusers_models import MaskedAttention, Pair, pixart, sd2, sd3, sd15, sdxl
from .models import empty_latent
from .runs import WAYS, Run, relative_error

CFG, SCALE = 6.0, 2.0
PAIRS = {"SD 1.5, DDIM": (sd15, "ddim"), "SD 2, velocity, Euler": (sd2, "euler"), "SDXL, Euler": (sdxl, "euler"),
         "SD3, flow, Euler": (sd3, "euler"), "PixArt-Sigma, Euler": (pixart, "euler")}
U_NET_SELECTIONS = {  # of SD 1.5 and 2, as diffusers' expressions: as our grammar
    "mid": "mid",
    "down_blocks.1": "d1",
    "up_blocks.1": "u0-1",
    "up_blocks.2.attentions.0": "u2",
    "mid_block.attentions.0.transformer_blocks.0.attn1": "mid_block.attentions.0.transformer_blocks.0.attn1",
    "down_blocks.0 mid up_blocks.1.attentions.1": "d0,mid,u1",
}
SDXL_SELECTIONS = {  # several transformer blocks in each attention, and no attention in the first level
    "mid": "m0",
    "mid_block.attentions.0.transformer_blocks.1": "m0.1",
    "down_blocks.1": "d0",
    "down_blocks.2": "d1",
    "up_blocks.0": "u0-1",
    "up_blocks.0.attentions.1.transformer_blocks.0": "u1.0",
    "up_blocks.1.attentions.1": "u3",
}
SD3_SELECTIONS = {
    "blocks.0": "blocks.0",
    "blocks.1": "transformer_blocks.1",
    "blocks.2": "2",  # the last: its text tokens go nowhere
    "blocks.0 blocks.2": "0,2",
}
PIXART_SELECTIONS = {"blocks.1": "1", "blocks.0 blocks.2": "0,2"}
SELECTIONS = [(name, *selection) for name, selections in zip(
    PAIRS, (U_NET_SELECTIONS, U_NET_SELECTIONS, SDXL_SELECTIONS, SD3_SELECTIONS, PIXART_SELECTIONS), strict=True)
    for selection in selections.items()]
WITHOUT_AND_WITH_CFG = pytest.mark.parametrize("cfg", [1.0, CFG], ids=["PAG alone", "CFG + PAG"])


def pair_and_run(name: str, **values) -> tuple[Pair, Run]:
    build, sampler = PAIRS[name]
    pair = build()
    return pair, pair.run(sampler=sampler, **values)


def ours(pair: Pair, run: Run, scale: float, layers: str = "auto", options: PAGOptions | None = None,
         way: str = "PAGKSampler") -> torch.Tensor:
    """[B, C, H, W] from one of our nodes, as the pipelines have it."""
    return pair.to_model(WAYS[way](run, pair.model, scale, layers, options))


def agree(result: torch.Tensor, reference: torch.Tensor, without: torch.Tensor | None = None) -> bool:
    """Whether two latents are equal to 1e-3 relative, in fp32.

    Args:
        without: the reference without the guidance in question, which then has to be reproduced to 1e-3 of what it
            changes, not only of the whole.
    """
    change = 1.0 if without is None else relative_error(reference, without)
    assert change > 0.01, "the guidance changes nothing here, so that the test would show nothing"
    return relative_error(result, reference) < 1e-3 * min(1.0, change)


@pytest.mark.parametrize("cfg", [1.0, CFG], ids=["unguided", "CFG"])
@pytest.mark.parametrize("name", PAIRS)
def test_without_pag_both_are_one_model(name: str, cfg: float):
    pair, run = pair_and_run(name, cfg=cfg)
    assert agree(ours(pair, run, 0.0), pair.reference(run, 0.0))


@WITHOUT_AND_WITH_CFG
@pytest.mark.parametrize(("name", "theirs", "layers"), SELECTIONS)
def test_equal_to_the_pipeline(name: str, theirs: str, layers: str, cfg: float):
    pair, run = pair_and_run(name, cfg=cfg)
    reference = pair.reference(run, SCALE, theirs.split())
    assert agree(ours(pair, run, SCALE, layers), reference, without=pair.reference(run, 0.0))


@pytest.mark.parametrize("way", ["PAGModelPatch", "PAGGuider"])
@pytest.mark.parametrize("name", ["SD 1.5, DDIM", "SD3, flow, Euler"])
def test_equal_in_the_other_nodes(name: str, way: str):
    pair, run = pair_and_run(name, cfg=CFG)
    theirs = "blocks.1" if pair is sd3() else "mid"
    assert agree(ours(pair, run, SCALE, theirs, way=way), pair.reference(run, SCALE, theirs),
                 without=pair.reference(run, 0.0))


@WITHOUT_AND_WITH_CFG
def test_equal_in_a_batch(cfg: float):
    pair, run = pair_and_run("SDXL, Euler", cfg=cfg, latent=empty_latent(batch=2))
    assert agree(ours(pair, run, SCALE, "m0"), pair.reference(run, SCALE), without=pair.reference(run, 0.0))


@pytest.mark.parametrize("rescale", [0.4, 1.0])
@pytest.mark.parametrize("name", ["SD 1.5, DDIM", "SD 2, velocity, Euler", "SDXL, Euler"])
def test_rescale_is_their_guidance_rescale(name: str, rescale: float):
    """Theirs acts on noise or velocity, ours on x̂0; in a batch, so that each sample has a spread of its own."""
    pair, run = pair_and_run(name, cfg=CFG, latent=empty_latent(batch=2))
    options = PAGOptions(rescale=rescale, rescale_mode="diffusers")
    assert agree(ours(pair, run, SCALE, "m0", options), pair.reference(run, SCALE, guidance_rescale=rescale),
                 without=pair.reference(run, SCALE))


def test_they_do_not_rescale_without_cfg():
    """PAG alone over-saturates too, but the pipelines rescale "if do_classifier_free_guidance" only; we always do."""
    pair, run = pair_and_run("SD 1.5, DDIM", cfg=1.0)
    plain = pair.reference(run, SCALE)
    assert torch.equal(pair.reference(run, SCALE, guidance_rescale=1.0), plain)
    rescaled = ours(pair, run, SCALE, "m0", PAGOptions(rescale=1.0, rescale_mode="diffusers"))
    assert relative_error(rescaled, plain) > 0.01


@pytest.mark.parametrize("adaptive_scale", [0.001, 0.004])  # the latter is 0 from the third step on
@pytest.mark.parametrize("name", ["SD 1.5, DDIM", "SDXL, Euler"])
def test_adaptive_scale_is_theirs(name: str, adaptive_scale: float):
    pair, run = pair_and_run(name, cfg=CFG)
    options = PAGOptions(schedule="adaptive_diffusers", adaptive_scale=adaptive_scale)
    assert agree(ours(pair, run, SCALE, "m0", options), pair.reference(run, SCALE, pag_adaptive_scale=adaptive_scale),
                 without=pair.reference(run, SCALE))


def test_adaptive_scale_on_flow_models():
    """They take 1000·σ for the timestep, but a flow model's shift keeps σ high for most of the run: half way, SD3's is
    0.75, and what has fallen by half on SD 1.5 has fallen by a quarter. Ours goes by the share of the run on every
    model. Without a shift the two are one (but for the first timestep, 999 or 1000)."""
    scale, adaptive_scale = 3.0, 0.003  # falls to 0 over the whole run
    options = PAGOptions(schedule="adaptive_diffusers", adaptive_scale=adaptive_scale)
    pair = sd3()
    (unshifted_model,) = ModelSamplingSD3().patch(pair.model, shift=1.0)
    unshifted = replace(pair, model=unshifted_model,
                        parts={**pair.parts, "scheduler": FlowMatchEulerDiscreteScheduler(shift=1.0)})
    for model, same in ((unshifted, True), (pair, False)):
        run = model.run(cfg=CFG)
        theirs = model.reference(run, scale, "blocks.1", pag_adaptive_scale=adaptive_scale)
        assert relative_error(theirs, model.reference(run, scale, "blocks.1")) > 0.01
        assert agree(ours(model, run, scale, "1", options), theirs) is same


def test_their_numbers_match_longer_ones():
    """Their layers are regular expressions that match anywhere, and the guard against "blocks.1" in "blocks.10" looks
    at names that end in a number, which no attention's does. In our grammar blocks.1 is one block."""
    pair = sd3(blocks=12, heads=1)
    run = pair.run(cfg=CFG)
    without, theirs = pair.reference(run, 0.0), pair.reference(run, SCALE, "blocks.1")
    block_1 = ours(pair, run, SCALE, "blocks.1")
    assert agree(ours(pair, run, SCALE, "1,10-11"), theirs, without)
    assert not agree(block_1, theirs, without)
    assert agree(block_1, pair.reference(run, SCALE, r"blocks\.1\."), without)


@pytest.mark.parametrize("documented", ["down.block_1", "up.block_0.attentions_0"])
def test_layers_in_their_own_comments_are_refused_there(documented: str):
    """Names of an earlier version, which the comments of today's SDXL pipeline still give."""
    pair, run = pair_and_run("SDXL, Euler")
    with pytest.raises(ValueError, match="Cannot find PAG layer"):
        pair.reference(run, SCALE, documented)


@WITHOUT_AND_WITH_CFG
def test_masked_attention_is_their_perturbation(cfg: float):
    """On SD3, where nothing is wrong with their own."""
    pair, run = pair_and_run("SD3, flow, Euler", cfg=cfg)
    masked = pair.reference(run, SCALE, "blocks.1", (MaskedAttention(3), MaskedAttention(2)))
    assert agree(masked, pair.reference(run, SCALE, "blocks.1"), without=pair.reference(run, 0.0))


@WITHOUT_AND_WITH_CFG
def test_sd35_is_equal_to_masked_attention(cfg: float):
    pair = sd3(qk_norm="rms_norm")
    run = pair.run(cfg=cfg)
    masked = pair.reference(run, SCALE, "blocks.1", (MaskedAttention(3), MaskedAttention(2)))
    assert agree(ours(pair, run, SCALE, "blocks.1"), masked, without=pair.reference(run, 0.0))


def test_they_forget_sd35s_norms():
    """Their PAG processors leave out the normalisation of queries and keys, in the plain rows too: the pipeline changes
    the picture at a scale that counts for nothing. On SD3, which has no such norms, it does not."""
    nothing = 1e-9
    for pair, change in ((sd3(), False), (sd3(qk_norm="rms_norm"), True)):
        run = pair.run(cfg=CFG)
        without = pair.reference(run, 0.0)
        assert (relative_error(pair.reference(run, nothing, "blocks.1"), without) > 0.01) is change
        assert agree(ours(pair, run, nothing, "blocks.1"), without)


@WITHOUT_AND_WITH_CFG
def test_sd35_mediums_second_attention(cfg: float):
    """Some of its blocks have a second attention, among image tokens alone. Theirs fails there, for its processor
    counts on text; ours perturbs both."""
    pair = sd3(qk_norm="rms_norm", dual_attention=(0, 1))
    run = pair.run(cfg=cfg)
    with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'ndim'"):
        pair.reference(run, SCALE, "blocks.1")
    masked = pair.reference(run, SCALE, "blocks.1", (MaskedAttention(3), MaskedAttention(2)))
    assert agree(ours(pair, run, SCALE, "blocks.1"), masked, without=pair.reference(run, 0.0))
