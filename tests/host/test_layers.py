"""Which layers a U-Net has by which name, and that exactly the selected ones are perturbed."""

import pytest
import torch
from pag_pack.nodes.host.models.layers import model_layers
from pag_pack.pag_core.settings import PAGOptions

from . import models
from .composed import SEPARATE
from .imitations import of_other_classes
from .runs import Run, identity, patched, relative_error, separate_passes

SCALE = 3.0
SD = {"d0": ("input", 1, 0), "d1": ("input", 3, 0), "m0": ("middle", 0, 0), "u0": ("output", 2, 0),
      "u1": ("output", 3, 0), "u2": ("output", 4, 0), "u3": ("output", 5, 0)}
SDXL_ENCODER = {"d0": ("input", 3, 0), "d1.0": ("input", 5, 0), "d1.1": ("input", 5, 1)}
SDXL_MIDDLE = {"m0.0": ("middle", 0, 0), "m0.1": ("middle", 0, 1)}
SDXL_DECODER = {"u0.0": ("output", 0, 0), "u0.1": ("output", 0, 1), "u1.0": ("output", 1, 0), "u1.1": ("output", 1, 1),
                "u2": ("output", 2, 0), "u3": ("output", 3, 0)}


@pytest.mark.parametrize(("family", "layers", "auto"), [
    (models.sd15, SD, "m0"),
    (models.sd15_inpainting, SD, "u0"),
    (models.sd2, SD, "m0"),
    (models.sdxl, SDXL_ENCODER | SDXL_MIDDLE | SDXL_DECODER, "m0"),
    (models.no_middle_attention, SDXL_ENCODER | SDXL_DECODER, "d1"),
    (models.no_middle_block, SDXL_ENCODER | SDXL_DECODER, "d1"),
    (models.x4_upscaler, {"d0": ("input", 5, 0), "m0": ("middle", 0, 0), "u0": ("output", 0, 0),
                          "u1": ("output", 1, 0)}, "m0"),
], ids=lambda value: getattr(value, "__name__", ""))
def test_family_has_these_layers_and_this_recommendation(family, layers, auto):
    found = model_layers(family())
    assert {layer.name: key for layer, key in found.layers.items()} == layers
    assert found.auto == auto


@pytest.mark.parametrize(("family", "heads"), [
    (models.sd15, {"d0": 4, "m0": 4}),   # a fixed number of heads
    (models.sd2, {"d0": 2, "m0": 4}),    # a fixed width
])
def test_heads_are_counted_per_layer(family, heads):
    found = {layer.name: layer.heads for layer in model_layers(family()).layers}
    assert {name: found[name] for name in heads} == heads


def latent(family) -> dict:
    return models.empty_latent(2, 9, 13) if family is not models.x4_upscaler else models.empty_latent(1, 9, 13)


@pytest.mark.in_turn("share_prefix", "cfg")
@pytest.mark.parametrize(("family", "layers", "keys"), [
    (models.sd15, "d0", [("input", 1)]),
    (models.sd15, "u3", [("output", 5)]),
    (models.sd15, "input.3", [("input", 3)]),
    (models.sd15, "d1,u0-1", [("input", 3), ("output", 2), ("output", 3)]),
    (models.sd15, "all,!m0", [key[:2] for name, key in SD.items() if name != "m0"]),
    (models.sd2, "all", [key[:2] for key in SD.values()]),
    (models.sdxl, "m0", [("middle", 0)]),
    (models.sdxl, "m0.1", [("middle", 0, 1)]),
    (models.sdxl, "u0.0,u1.1", [("output", 0, 0), ("output", 1, 1)]),
    (models.sdxl, "d1", [("input", 5)]),
    (models.sdxl, "m0,!m0.0", [("middle", 0, 1)]),
    (models.no_middle_attention, "auto", [("input", 5)]),
    (models.no_middle_block, "auto", [("input", 5)]),
    (models.x4_upscaler, "d0,u1", [("input", 5), ("output", 1)]),
], ids=lambda value: getattr(value, "__name__", None) or (value if isinstance(value, str) else ""))
@pytest.mark.parametrize("share_prefix", [True, False], ids=["shared prefix", "whole pass"])
@pytest.mark.parametrize("cfg", [1.0, 7.0])
def test_exactly_the_selected_layers_are_perturbed(family, layers, keys, share_prefix, cfg):
    run = Run(cfg=cfg, steps=2, latent=latent(family))
    reference = run.ksampler(separate_passes(family(), SCALE, dict.fromkeys(keys, identity)))
    result = run.model_patch(family(), SCALE, layers, PAGOptions(share_prefix=share_prefix))
    assert relative_error(result, reference) < 1e-4
    assert relative_error(run.ksampler(family()), reference) > 1e-3


def soft(strength: float, heads: set[int]):
    """SoftPAG as a replacement: A' = (1 − u)·A + u·I in the given heads, by the map itself."""
    def replace(q, k, v, extra_options):
        def split(x):
            return x.unflatten(-1, (extra_options["n_heads"], -1)).transpose(1, 2)
        attention_map = torch.softmax(split(q) @ split(k).transpose(-1, -2) / split(q).shape[-1] ** 0.5, dim=-1)
        for head in heads:
            changed = (1.0 - strength) * attention_map[:, head] + strength * torch.eye(attention_map.shape[-1])
            attention_map[:, head] = changed
        return (attention_map @ split(v)).transpose(1, 2).flatten(2)

    return replace


@pytest.mark.parametrize(("family", "layers", "strength", "expected"), [
    (models.sd15, "m0", 0.4, {("middle", 0): range(4)}),
    (models.sd15, "m0:h0+2-3", 1.0, {("middle", 0): {0, 2, 3}}),
    (models.sd2, "d0:h1,u3:h0", 1.0, {("input", 1): {1}, ("output", 5): {0}}),
    (models.sdxl, "m0.1:h1,u0", 0.7, {("middle", 0, 1): {1}, ("output", 0): range(4)}),
], ids=["strength", "heads", "heads of two layers", "both"])
def test_strength_and_heads_reach_the_layers(family, layers, strength, expected):
    run = Run(steps=2, latent=models.empty_latent(2))
    reference = run.ksampler(separate_passes(
        family(), SCALE, {key: soft(strength, heads) for key, heads in expected.items()}))
    result = run.model_patch(family(), SCALE, layers, PAGOptions(strength=strength))
    assert relative_error(result, reference) < 1e-4
    assert relative_error(run.model_patch(family(), SCALE, "m0"), reference) > 1e-3


def test_two_patches_add_their_deltas(composed):
    run = Run()
    model = models.sd15()
    reference = separate_passes(separate_passes(model, 1.5, {("middle", 0): identity}), 2.0,
                                {("output", 2): identity})
    chained = patched(patched(model, 1.5, "m0"), 2.0, "u0")
    composed.check("two of our own nodes in a row", SEPARATE, run.ksampler(chained), run.ksampler(reference))


@pytest.mark.parametrize("order", [("m0", "u0,m0"), ("u0,m0", "m0")], ids=" then ".join)
def test_two_patches_on_one_layer_do_not_perturb_each_others_rows(order):
    run = Run(latent=models.empty_latent(2))
    model = models.sd15()
    keys = {"m0": [("middle", 0)], "u0,m0": [("middle", 0), ("output", 2)]}
    reference = model
    chained = model
    for scale, layers in zip((1.5, 2.0), order, strict=True):
        reference = separate_passes(reference, scale, dict.fromkeys(keys[layers], identity))
        chained = patched(chained, scale, layers)
    assert relative_error(run.ksampler(chained), run.ksampler(reference)) < 1e-4


def test_two_patches_alike_equal_one_of_both_scales():
    run = Run()
    chained = patched(patched(models.sd15(), 1.0), 2.0)
    assert relative_error(run.ksampler(chained), run.model_patch(models.sd15(), 3.0)) < 1e-4


def test_a_patch_before_pag_ksampler_adds_to_its_own():
    run = Run()
    chained = run.pag_ksampler(patched(models.sd15(), 1.0, "u0"), 2.0, "m0")
    assert relative_error(chained, run.ksampler(patched(patched(models.sd15(), 1.0, "u0"), 2.0, "m0"))) < 1e-4


def test_a_u_net_is_known_by_its_parts_while_another_node_gives_it_other_classes():
    """For the length of a run, and as long as it stays loaded."""
    patched = of_other_classes(models.sd15())
    patched.patch_model(load_weights=False)
    try:
        found = model_layers(patched)
    finally:
        patched.unpatch_model()
    assert {layer.name: key for layer, key in found.layers.items()} == SD
    assert found.auto == "m0"
