"""ControlNets of transformers: their residuals come after each block, and the perturbed rows need theirs too.

The host's own classes, small and random; the reference perturbs in a call of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import comfy.cldm.mmdit
import comfy.controlnet
import comfy.ldm.flux.controlnet
import comfy.ops
import pytest
import torch
from pag_pack.pag_core.settings import PAGOptions

import nodes

from . import models
from .family_models import Case
from .runs import WAYS, Run, latent_run, relative_error
from .test_family_sampling import SCALE, separate_pass

BATCH, SIZE = 2, (8, 12)
DEPTH = 3


def control_net(network: Callable[..., torch.nn.Module], config: dict, **options) -> comfy.controlnet.ControlNet:
    with torch.inference_mode(False):
        made = network(**{**config, "dtype": torch.float32, "operations": comfy.ops.disable_weight_init})
        models.fill_with_noise(made)
        if hasattr(made, "pos_embed"):
            made.pos_embed.fill_(0.1)
    return comfy.controlnet.ControlNet(made, load_device=torch.device("cpu"), **options)


def flux_control() -> tuple[comfy.controlnet.ControlNet, tuple[int, ...]]:
    """After XLabs: the hint is a picture. Residuals for double and single blocks."""
    config = {**models.flux().model.model_config.unet_config, "depth": 1, "depth_single_blocks": 1}
    net = control_net(comfy.ldm.flux.controlnet.ControlNetFlux, config, extra_conds=["y", "guidance"])
    return net, (8 * SIZE[0], 8 * SIZE[1], 3)


def sd3_control() -> tuple[comfy.controlnet.ControlNet, tuple[int, ...]]:
    """The hint is a latent. Residuals for all blocks but the last."""
    config = models.sd3(DEPTH).model.model_config.unet_config
    return control_net(comfy.cldm.mmdit.ControlNet, config, compression_ratio=1), (*SIZE, 16)


FAMILIES = {
    "Flux": (models.flux, flux_control, Case("", "", {}, {}, "double.0 double.1 single.0 single.1 single.2", image=24)),
    "SD3": (lambda: models.sd3(DEPTH), sd3_control, Case("", "", {}, {}, "0 1 2", image=24, heads=DEPTH)),
}
LAYERS = [(name, layer) for name, (*_, case) in FAMILIES.items() for layer in case.layers]


def controlled(name: str, cfg: float, seed: int = 0, both: bool = True) -> Run:
    """A batch with a hint for each picture, on both prompts or on the positive one only."""
    net, shape = FAMILIES[name][1]()
    run = replace(latent_run(SIZE, cfg), latent={"samples": torch.zeros(BATCH, 16, *SIZE)})
    hint = torch.rand(BATCH, *shape, generator=torch.Generator().manual_seed(seed))
    positive, negative = nodes.ControlNetApplyAdvanced().apply_controlnet(
        run.positive, run.negative, net, hint, 0.5, 0.0, 1.0)
    return replace(run, positive=positive, negative=negative if both else run.negative)


@pytest.mark.in_turn("cfg", "both")
@pytest.mark.parametrize(("cfg", "both"), [(1.0, True), (4.0, True), (4.0, False)])
@pytest.mark.parametrize(("name", "layer"), LAYERS)
def test_perturbed_rows_get_the_residuals_of_every_block(name, layer, cfg, both):
    build, _, case = FAMILIES[name]
    run = controlled(name, cfg, both=both)
    reference = run.ksampler(separate_pass(build(), case, layer))
    assert relative_error(reference, run.ksampler(build())) > 1e-3
    for way in WAYS.values():
        assert relative_error(way(run, build(), SCALE, layer), reference) < 1e-4
    whole = run.model_patch(build(), SCALE, layer, PAGOptions(share_prefix=False))
    assert relative_error(run.model_patch(build(), SCALE, layer), whole) < 1e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_the_hint_matters(name):
    """Else the test above would show nothing."""
    build, _, case = FAMILIES[name]
    one, other = (controlled(name, 1.0, seed).model_patch(build(), SCALE, case.layers[-1]) for seed in (0, 1))
    assert relative_error(one, other) > 1e-3
