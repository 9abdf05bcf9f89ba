"""PAG beside other nodes: replacements of the same layer, taken slots, other guiders, the host's own PAG."""

from dataclasses import replace

import comfy.samplers
import pytest
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy_extras.nodes_custom_sampler import DualCFGGuider
from comfy_extras.nodes_perpneg import PerpNegGuider
from comfy_extras.nodes_sag import SelfAttentionGuidance
from pag_pack.pag_core.settings import PAGOptions

from . import models
from .composed import HOST, SEPARATE
from .runs import Run, counted, host_pag, identity, patched, relative_error, separate_passes

SCALE = 3.0
MIDDLE = ("middle", 0)


def halved(seen: list[int]):
    """Another node's replacement of a self-attention: half of it. Notes how many samples it is shown."""
    def replace(q, k, v, extra_options):
        seen.append(q.shape[0])
        return 0.5 * optimized_attention(q, k, v, extra_options["n_heads"])

    return replace


@pytest.mark.parametrize("key", [MIDDLE, (*MIDDLE, 0)], ids=["key of the block", "key of the transformer block"])
@pytest.mark.parametrize("cfg", [1.0, 7.0])
def test_another_replacement_on_the_same_layer_goes_on_in_the_plain_rows(key, cfg):
    run = Run(cfg=cfg)
    seen: list[int] = []
    model = models.sd15().clone()
    model.set_model_attn1_replace(halved(seen), *key)
    reference = run.ksampler(separate_passes(model, SCALE, {(*MIDDLE, 0): identity}))
    seen.clear()
    result = run.model_patch(model, SCALE)
    assert set(seen) == {2 if cfg == 7.0 else 1}, "it must see the host's call, and remember no trial of it"
    assert relative_error(result, reference) < 1e-4
    assert relative_error(run.model_patch(models.sd15(), SCALE), reference) > 1e-3


@pytest.mark.parametrize("key", [("input", 1), ("output", 2, 0)], ids=["before", "after"])
def test_another_replacement_on_another_layer_goes_on_in_all_rows(key):
    run = Run()
    model = models.sd15().clone()
    model.set_model_attn1_replace(halved([]), *key)
    reference = run.ksampler(host_pag(model, SCALE))
    assert relative_error(run.model_patch(model, SCALE), reference) < 1e-4
    assert relative_error(run.model_patch(models.sd15(), SCALE), reference) > 1e-3


def test_self_attention_guidance_which_blinds_the_hosts_own_pag_stacks(composed):
    run = Run()
    model = SelfAttentionGuidance.execute(models.sd15(), 0.5, 2.0).result[0]
    reference = run.ksampler(separate_passes(model, SCALE, {(*MIDDLE, 0): identity}))
    composed.check("SAG", SEPARATE, run.model_patch(model, SCALE), reference)
    assert relative_error(run.ksampler(model), reference) > 1e-3


@pytest.mark.parametrize("kind", ["attn1_patch", "attn2_patch", "attn1_output_patch", "attn2_output_patch",
                                  "output_block_patch", "input_block_patch", "middle_patch"])
def test_other_patches_act_on_all_rows(kind):
    def patch(*tensors_and_options):
        *tensors, _ = tensors_and_options
        changed = tuple(0.7 * tensor for tensor in tensors)
        return changed[0] if len(changed) == 1 else changed

    run = Run(latent=models.empty_latent(2))
    model = models.sd15().clone()
    model.set_model_patch(patch, kind)
    reference = run.ksampler(host_pag(model, SCALE))
    assert relative_error(run.model_patch(model, SCALE), reference) < 1e-4
    assert relative_error(run.model_patch(models.sd15(), SCALE), reference) > 1e-3


@pytest.mark.parametrize(("cfg", "rows_per_step"), [(7.0, [2, 1]), (1.0, [1, 1])])
def test_a_taken_calc_cond_batch_slot_makes_the_perturbed_pass_a_call_of_its_own(cfg, rows_per_step):
    calls = []

    def function(args):
        calls.append(len(args["conds"]))
        return comfy.samplers.calc_cond_batch(args["model"], args["conds"], args["input"], args["sigma"],
                                              args["model_options"])

    run = Run(cfg=cfg)
    expected = run.model_patch(models.sd15(), SCALE)
    model, rows = counted(models.sd15())
    model.set_model_sampler_calc_cond_batch_function(function)
    assert relative_error(run.model_patch(model, SCALE), expected) < 1e-4
    assert rows == rows_per_step * run.steps
    assert calls == [2] * run.steps


def test_two_patches_in_front_of_a_taken_slot_still_add_up():
    def function(args):
        return comfy.samplers.calc_cond_batch(args["model"], args["conds"], args["input"], args["sigma"],
                                              args["model_options"])

    run = Run()
    expected = run.ksampler(patched(patched(models.sd15(), 1.0, "m0"), 2.0, "u0"))
    model = models.sd15().clone()
    model.set_model_sampler_calc_cond_batch_function(function)
    assert relative_error(run.ksampler(patched(patched(model, 1.0, "m0"), 2.0, "u0")), expected) < 1e-4


def test_others_pre_cfg_functions_see_the_predictions_they_asked_for():
    shown = []

    def pre_cfg(args):
        shown.append((len(args["conds"]), len(args["conds_out"])))
        return args["conds_out"]

    model = models.sd15().clone()
    model.set_model_sampler_pre_cfg_function(pre_cfg)
    Run().model_patch(model, SCALE)
    assert set(shown) == {(2, 2)}


def test_others_post_cfg_functions_get_the_guided_prediction():
    shown = []

    def post_cfg(args):
        shown.append(args["denoised"])
        return args["denoised"]

    model = models.sd15().clone()
    model.set_model_sampler_post_cfg_function(post_cfg)
    run = Run(steps=1)  # one step goes straight to the prediction
    plain, guided = run.ksampler(model), run.model_patch(model, SCALE)
    for prediction, picture in zip(shown, (plain, guided), strict=True):
        assert relative_error(model.model.process_latent_out(prediction), picture) < 1e-4
    assert relative_error(guided, plain) > 1e-3


def perp_neg(model, run: Run, cfg: float, neg_scale: float) -> comfy.samplers.CFGGuider:
    return PerpNegGuider.execute(model, run.positive, run.negative, models.conditioning(3), cfg, neg_scale).result[0]


def dual_cfg(model, run: Run, cfg1: float, cfg2: float, style: str) -> comfy.samplers.CFGGuider:
    return DualCFGGuider.execute(model, run.positive, models.conditioning(3), run.negative, cfg1, cfg2, style).result[0]


@pytest.mark.parametrize("guider", [
    lambda model, run: perp_neg(model, run, 5.0, 1.0),
    lambda model, run: perp_neg(model, run, 1.0, 0.0),
    lambda model, run: dual_cfg(model, run, 5.0, 2.0, "regular"),
    lambda model, run: dual_cfg(model, run, 5.0, 1.0, "regular"),
    lambda model, run: dual_cfg(model, run, 5.0, 2.0, "nested"),
], ids=["PerpNeg", "PerpNeg cfg 1", "DualCFG", "DualCFG cfg2 1", "DualCFG nested"])
def test_other_guiders_give_what_they_give_with_the_hosts_own_pag(guider, composed, request):
    run = Run(latent=models.empty_latent(2))
    model = models.sd15()
    reference = run.advanced(guider(host_pag(model, 0.5), run))
    composed.check(request.node.callspec.id.partition(" ")[0], HOST, run.advanced(guider(patched(model, 0.5), run)),
                   reference)
    assert relative_error(run.advanced(guider(model, run)), reference) > 1e-3


@pytest.mark.parametrize("style", ["regular", "nested"])
def test_beside_a_prompt_for_a_region_a_row_starts_from_its_own_prompts(style):
    """The host puts copies of the regional prompt into the others, under the same uuid."""
    region = models.conditioning(4, area=(8, 6, 0, 6), strength=1.0)
    run, model = Run(positive=[*models.conditioning(1), *region]), models.sd15()
    expected = run.advanced(dual_cfg(host_pag(model, 0.5), run, 5.0, 2.0, style))
    assert relative_error(run.advanced(dual_cfg(patched(model, 0.5), run, 5.0, 2.0, style)), expected) <= 1e-4


def overridden_cfg(model, run: Run) -> torch.Tensor:
    from comfy_extras.nodes_custom_sampler import CFGOverride  # older hosts have none

    return replace(run, cfg=1.0).ksampler(CFGOverride.execute(model, 5.0, 0.0, 1.0).result[0])


@pytest.mark.parametrize("sample", [
    lambda model, run: run.advanced(dual_cfg(model, run, 5.0, 2.0, "regular")), overridden_cfg,
], ids=["two scales of its own", "cfg changed by another node"])
def test_a_negative_that_cfg_does_not_tell_of_is_made_weak(sample):
    weak = patched(models.sd15(), SCALE, options=PAGOptions(row="negative"))
    assert relative_error(sample(weak, Run()), sample(models.sd15(), Run())) > 1e-3


def test_a_guider_without_post_cfg_functions_is_named(caplog):
    run = Run(steps=1)
    from comfy_extras.nodes_custom_sampler import DualModelGuider  # older hosts have none

    guider = DualModelGuider.execute(patched(models.sd15(), SCALE), run.positive, 1.0, models.sd15(), run.negative
                                     ).result[0]
    run.advanced(guider)
    assert "the guider of this run (Guider_DualModel) runs no post-CFG functions" in caplog.text


def test_dual_cfg_with_both_scales_1_hands_pag_no_conditioning_and_stays_as_it_is():
    run = Run()
    model = models.sd15()
    plain = run.advanced(dual_cfg(model, run, 1.0, 1.0, "regular"))
    assert torch.equal(run.advanced(dual_cfg(host_pag(model, SCALE), run, 1.0, 1.0, "regular")), plain)
    assert torch.equal(run.advanced(dual_cfg(patched(model, SCALE), run, 1.0, 1.0, "regular")), plain)


@pytest.mark.parametrize("order", ["ours first", "ours last"])
def test_the_hosts_own_pag_stacks(order, composed):
    run = Run()
    model = models.sd15()
    stacked = host_pag(patched(model, 1.0), 2.0) if order == "ours first" else patched(host_pag(model, 2.0), 1.0)
    composed.check(f"the host's own PAG, {order}", HOST, run.ksampler(stacked), run.ksampler(host_pag(model, 3.0)))
