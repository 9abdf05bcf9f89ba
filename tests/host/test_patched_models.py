"""PAG beside patches that bring a network of their own, and conditionings that bring more than a text.

SUPIR's is the host's class, with small invented modules; the others are written after what their nodes attach. The
reference is PAG's whole pass in a call of its own, and for identity the host's own PAG node too.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from pag_pack.pag_core.perturbation import KINDS
from pag_pack.pag_core.settings import PAGOptions

from . import models
from .runs import Run, host_pag, patched, relative_error
from .sampled_families import SAMPLED, noise
from .test_family_sampling import SCALE, errors, sampled, separate_pass
from .test_weak_rows import SKIP, in_another_call

RUN = Run(cfg=5.0, steps=2, latent=models.empty_latent(2, 8, 8))


def like(feature: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    return 0.3 * F.interpolate(feature, size=h.shape[-2:])


def supir(model):
    """It runs its control network once a call, in the middle, and counts its adapters down from there."""
    patch = pytest.importorskip("comfy.ldm.supir.supir_patch").SUPIRPatch

    class Owner:
        model = None

    def control_model(hint, timesteps, x, context, y):
        own = torch.tanh(x.mean(1, keepdim=True) + hint.mean(1, keepdim=True) + context.mean((1, 2)).view(-1, 1, 1, 1))
        return [own * (1 + 0.1 * place) for place in range(20)]

    def adapter(feature, *streams, control_scale):
        *before, h = streams
        h = h + control_scale * like(feature, h)
        return torch.cat([h, *before], dim=1)

    owner = Owner()
    owner.model = type("Control", (), {"control_model": staticmethod(control_model)})
    made = patch(owner, [adapter] * 40, noise(7, 1, 4, 8, 8), 1.0, 0.5)
    made.to = lambda device_or_dtype: made
    made.models = list
    model = model.clone()
    made.register(model)
    return model


def uni_control(model):
    """Local conditions as residuals of every input block, a global one as tokens behind the text's."""
    hint, tokens = noise(8, 1, 1, 8, 8), noise(9, 1, 4, 16)

    def residual(h, options):
        return h + like(hint, h)

    def with_tokens(q, k, v, options):
        return q, *(torch.cat([x, F.interpolate(tokens, size=x.shape[-1]).expand(x.shape[0], -1, -1)], dim=1)
                    for x in (k, v))

    model = model.clone()
    model.set_model_patch(residual, "input_block_patch")
    model.set_model_attn2_patch(with_tokens)
    return model


def layer_diffusion(model):
    """The picture behind or before a layer, in further channels of the input."""
    behind = noise(10, 1, 5, 8, 8)

    def wrapper(apply_model, args):
        return apply_model(args["input"], args["timestep"], **{
            **args["c"], "c_concat": behind.expand(args["input"].shape[0], -1, -1, -1)})

    model = model.clone()
    model.set_model_unet_function_wrapper(wrapper)
    return model


PATCHED = {"SUPIR": (models.sd15, supir), "Uni-ControlNet": (models.sd15, uni_control),
           "LayerDiffusion": (models.sd15_inpainting, layer_diffusion)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PATCHED)
def test_every_perturbation_beside_a_patch_with_a_network(name, kind):
    build, patch = PATCHED[name]
    model = patch(build())
    plain = RUN.ksampler(model)
    for layers in ("m0", "d1", "u1"):
        result, whole = (RUN.model_patch(model, SCALE, layers, PAGOptions(kind, share_prefix=share))
                         for share in (True, False))
        assert relative_error(result, whole) < 1e-4, layers
        assert relative_error(result, plain) > 1e-4, layers
        if kind == "identity" and layers == "m0":
            assert relative_error(result, RUN.ksampler(host_pag(model, SCALE))) < 1e-4
    assert relative_error(plain, RUN.ksampler(build())) > 1e-3, "the patch must do something"


@pytest.mark.parametrize("name", PATCHED)
def test_a_weak_negative_beside_a_patch_with_a_network(name):
    build, patch = PATCHED[name]
    model = patch(build())
    result = RUN.ksampler(patched(model, SCALE, "m0", PAGOptions("skip_block", row="negative")))
    assert relative_error(result, RUN.ksampler(model)) > 1e-4


VOID = replace(next(how for how in SAMPLED if how.name == "CogVideoX"), arguments={"in_channels": 48},
               extras=lambda seed: {"concat_latent_image": noise(60, 1, 32, 3, 4, 6)})
PHOTO_MAKER = replace(next(how for how in SAMPLED if how.name == "SDXL"), text=(77, 16))


@pytest.mark.parametrize("how", [VOID, PHOTO_MAKER], ids=["VOID", "PhotoMaker"])
@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_conditionings_that_bring_more_than_a_text(how, cfg):
    model, run = how.build(), sampled(how, cfg, 1)
    layer = how.reference.layers[-1]
    plain = run.ksampler(model)
    ours = run.model_patch(model, SCALE, layer)
    assert max(errors(ours, run.ksampler(separate_pass(model, how.reference, layer)))) <= 1e-4
    assert max(errors(ours, plain)) > 1e-4
    skipped = run.model_patch(model, SCALE, layer, SKIP)
    assert max(errors(skipped, run.ksampler(in_another_call(model, how, layer, negative=False)))) <= 1e-4
