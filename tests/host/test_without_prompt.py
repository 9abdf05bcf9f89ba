"""Where there is no prompt (PAG App. A.4, C.2): ControlNet, SD inpainting and the x4 upscaler, by the host's own nodes.

In a batch, so that hints, masked latents and small pictures have to follow each row to its perturbed one. The reference
is the host's own PAG node, which perturbs in a call of its own.
"""

from __future__ import annotations

import dataclasses

import comfy.cldm.cldm
import comfy.controlnet
import comfy.ops
import pytest
import torch
from comfy_extras.nodes_sdupscale import SD_4XUpscale_Conditioning

import nodes

from . import models
from .runs import WAYS, Run, host_pag, relative_error
from .test_psld import vae

SCALE, BATCH = 3.0, 2
EMPTY = models.empty_conditioning()


def pictures(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """A batch of different IMAGEs."""
    return torch.rand(BATCH, height, width, 3, generator=torch.Generator().manual_seed(seed))


def control_net() -> comfy.controlnet.ControlNet:
    """The host's ControlNet of SD 1.5, as small as the models' U-Nets, with no layer at zero."""
    with torch.inference_mode(False):
        network = comfy.cldm.cldm.ControlNet(
            image_size=32, in_channels=4, model_channels=32, hint_channels=3, num_res_blocks=[1, 1, 1],
            channel_mult=[1, 2, 2], transformer_depth=[1, 1, 0], transformer_depth_middle=1, num_heads=4,
            context_dim=models.CONTEXT, use_spatial_transformer=True, legacy=False, dtype=torch.float32,
            operations=comfy.ops.disable_weight_init)
        models.fill_with_noise(network)
    return comfy.controlnet.ControlNet(network, load_device=torch.device("cpu"))


def controlled(hint_seed: int = 0) -> Run:
    positive, negative = nodes.ControlNetApplyAdvanced().apply_controlnet(
        EMPTY, EMPTY, control_net(), pictures(64, 96, hint_seed), 0.5, 0.0, 1.0)
    return Run(positive=positive, negative=negative, latent=models.empty_latent(BATCH))


def inpainting(picture_seed: int = 0) -> Run:
    positive, negative, latent = nodes.InpaintModelConditioning().encode(
        EMPTY, EMPTY, pictures(64, 96, picture_seed), vae(), models.half_mask(BATCH))
    return Run(positive=positive, negative=negative, latent=latent)


def upscaling(picture_seed: int = 0) -> Run:
    positive, negative, latent = SD_4XUpscale_Conditioning.execute(
        pictures(8, 12, picture_seed), EMPTY, EMPTY, 4.0, 0.1).result
    return Run(positive=positive, negative=negative, latent=latent)


PIPELINES = {"ControlNet": (models.sd15, controlled), "inpainting": (models.sd15_inpainting, inpainting),
             "x4 upscaler": (models.x4_upscaler, upscaling)}


@pytest.mark.in_turn("way")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cfg", [1.0, 7.0])
@pytest.mark.parametrize("name", PIPELINES)
def test_pag_follows_what_conditions_each_row(name, cfg, way):
    family, build = PIPELINES[name]
    run = dataclasses.replace(build(), cfg=cfg)
    reference = run.ksampler(host_pag(family(), SCALE))
    assert relative_error(WAYS[way](run, family(), SCALE), reference) < 1e-4
    assert relative_error(run.ksampler(family()), reference) > 1e-2


@pytest.mark.parametrize("name", PIPELINES)
def test_the_picture_that_conditions_matters(name):
    """Else the test above would show nothing."""
    family, build = PIPELINES[name]
    one, other = (build(seed).model_patch(family(), SCALE) for seed in (0, 1))
    assert relative_error(one, other) > 1e-3
