"""Skipped blocks, in rows of their own and in the negative's, sampled through the nodes on every family: against
ComfyUI's own skip-layer nodes, and against calls of their own in which the block's code is another."""

from __future__ import annotations

from collections.abc import Callable

import comfy.samplers
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT, SkipLayerGuidanceDiTSimple
from pag_pack.nodes.host.models.layers import model_layers
from pag_pack.pag_core.settings import PAGOptions
from torch.utils.flop_counter import FlopCounterMode

from .imitations import overridden
from .older import what_older_hosts_lack
from .sampled_families import SAMPLED, Sampled
from .test_blocks import blended, blocks
from .test_family_sampling import errors, sampled

SCALE = 2.0
SKIP, NEGATIVE = PAGOptions("skip_block"), PAGOptions("skip_block", row="negative")


@pytest.fixture(scope="module", params=SAMPLED, ids=lambda family: family.name)
def family(request) -> tuple[Sampled, ModelPatcher]:
    return request.param, request.param.build()


def last_layer(how: Sampled) -> str:
    return how.reference.layers[-1]


def in_another_call(model: ModelPatcher, how: Sampled, layer: str, negative: bool) -> ModelPatcher:
    """The model with one block skipped in calls of their own: of one more row, or of the negative's."""
    network = model.model.diffusion_model
    module = blocks(network)[layer][1]

    def weak(args: dict, conds: list) -> list[torch.Tensor]:
        module.forward = blended(how.reference, module, 1.0)
        try:
            return comfy.samplers.calc_cond_batch(args["model"], conds, args["input"], args["sigma"],
                                                  args["model_options"])
        finally:
            del module.forward

    def post_cfg(args: dict) -> torch.Tensor:
        return args["denoised"] + SCALE * (args["cond_denoised"] - weak(args, [args["cond"]])[0])

    def calls(args: dict) -> list[torch.Tensor]:
        cond, uncond = args["conds"]
        plain = comfy.samplers.calc_cond_batch(args["model"], [cond, None], args["input"], args["sigma"],
                                               args["model_options"])
        return [plain[0], weak(args, [None, uncond])[1]]

    model = model.clone()
    if negative:
        model.set_model_sampler_calc_cond_batch_function(calls)
    else:
        model.set_model_sampler_post_cfg_function(post_cfg)
    return model


def hosts_node(node, model: ModelPatcher, layer: str, *scale: float) -> ModelPatcher:
    group, _, index = layer.rpartition(".")
    layers = {"double_layers": "", "single_layers": ""} | {
        "single_layers" if group == "single" else "double_layers": index}
    more = {"scale": scale[0]} if scale else {}
    return node.execute(model, start_percent=0.0, end_percent=1.0, **layers, **more).result[0]


@pytest.mark.parametrize("beside", [lambda model: model, overridden], ids=["in one call", "in a call of its own"])
def test_what_went_into_a_skipped_block_stays_as_it_is(beside):
    """Wan VACE adds its controls to what the first block returns in place, and gives what went into it to the next."""
    how = next(how for how in SAMPLED if how.name == "Wan VACE, two controls")
    run, model = sampled(how, 4.0, 1), beside(how.build())
    ours = run.model_patch(model, SCALE, "0", SKIP)
    assert max(errors(ours, run.ksampler(in_another_call(model, how, "0", negative=False)))) <= 1e-4
    assert max(errors(ours, run.ksampler(model))) > 1e-3


@pytest.mark.in_turn("cfg")
@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_a_skipped_block_equals_a_call_of_its_own_and_the_hosts_node(family, cfg):
    how, model = family
    layer = last_layer(how)
    for batch in how.batches:
        run = sampled(how, cfg, batch)
        ours = run.model_patch(model, SCALE, layer, SKIP)
        assert max(errors(ours, run.ksampler(in_another_call(model, how, layer, negative=False)))) <= 1e-4, batch
        plain = run.ksampler(model)
        assert max(errors(ours, plain)) > 1e-3
    if layer[0].isdigit() or layer.startswith(("double", "single")):
        host = run.ksampler(hosts_node(SkipLayerGuidanceDiT, model, layer, SCALE))
        if max(errors(host, plain)) > 1e-3:  # on many families it does nothing
            assert max(errors(ours, host)) <= 1e-4


def test_a_weak_negative_equals_calls_of_their_own_and_the_hosts_node(family):
    how, model = family
    layer = last_layer(how)
    run = sampled(how, 4.0, how.batches[-1])
    ours, plain = run.model_patch(model, SCALE, layer, NEGATIVE), run.ksampler(model)
    assert max(errors(ours, run.ksampler(in_another_call(model, how, layer, negative=True)))) <= 1e-4
    assert max(errors(ours, plain)) > 1e-3
    if layer[0].isdigit() or layer.startswith(("double", "single")):
        host = run.ksampler(hosts_node(SkipLayerGuidanceDiTSimple, model, layer))
        if max(errors(host, plain)) > 1e-3:
            assert max(errors(ours, host)) <= 1e-4


def counted(sample: Callable[[], object]) -> tuple[int, object]:
    """(FLOPs, what comes out)."""
    with what_older_hosts_lack(AttributeError), FlopCounterMode(display=False) as counter:  # Wan S2V cannot be counted
        result = sample()
    return counter.get_total_flops(), result


def flops_before(model: ModelPatcher, layer: str, sample: Callable[[], object]) -> int:
    """FLOPs of the units before that which holds a layer, in a run."""
    found, network = model_layers(model), model.model.diffusion_model
    units = found.units(network)
    first = units.places[next(key for one, key in found.layers.items() if one.name == layer)]
    spent, handles = [], []
    with FlopCounterMode(display=False) as counter:
        for unit in units.modules[:first]:
            handles += [unit.register_forward_pre_hook(lambda *_: spent.append(-counter.get_total_flops())),
                        unit.register_forward_hook(lambda *_: spent.append(counter.get_total_flops()))]
        sample()
    for handle in handles:
        handle.remove()
    return sum(spent)


@pytest.mark.slow
def test_a_weak_negative_costs_no_more_than_cfg(family):
    how, model = family
    run = sampled(how, 4.0, how.batches[0], steps=1)
    plain, _ = counted(lambda: run.ksampler(model))
    weak, _ = counted(lambda: run.model_patch(model, SCALE, last_layer(how), NEGATIVE))
    assert weak <= 1.005 * plain


@pytest.mark.slow
def test_a_skipped_block_costs_less_than_the_hosts_node_by_the_prefix(family):
    how, model = family
    layer = last_layer(how)
    if not (layer[0].isdigit() or layer.startswith(("double", "single"))):
        pytest.skip("the host's node has no name for its blocks")
    # In HiDream-O1's first step every block runs, because the network then keeps its keys and values of the text.
    run = sampled(how, 1.0, how.batches[0], steps=3 if how.name == "HiDream-O1" else 1)
    theirs, host = counted(lambda: run.ksampler(hosts_node(SkipLayerGuidanceDiT, model, layer, SCALE)))
    plain = run.ksampler(model)
    if max(errors(host, plain)) <= 1e-3:
        pytest.skip("the host's node does nothing to this family")
    ours, _ = counted(lambda: run.model_patch(model, SCALE, layer, SKIP))
    prefix = flops_before(model, layer, lambda: run.ksampler(model))
    assert prefix > 0
    assert ours <= theirs - prefix
