"""Which row is weak, in which layers, when and where: what PAG Options asks for, in a run."""

from dataclasses import replace

import comfy.samplers
import pytest
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.model_patcher import set_model_options_patch_replace
from comfy_extras.nodes_advanced_samplers import SamplerLCMUpscale
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise, SamplerCustomAdvanced
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from pag_pack.nodes.host.models.layers import model_layers
from pag_pack.pag_core.checks import SettingError
from pag_pack.pag_core.delta import split
from pag_pack.pag_core.selection import SelectionError
from pag_pack.pag_core.settings import NoNegativeError, PAGOptions
from pag_pack.pag_core.stages import select_stages

from . import models
from .imitations import without_options
from .runs import Run, counted, identity, patched, relative_error
from .sampled_families import SAMPLED
from .test_family_sampling import sampled as sampled_family

SCALE = 3.0
RUN = Run(steps=4, cfg=5.0, latent=models.empty_latent(2, 8, 8))


def sampled(layers: str = "m0", run: Run = RUN, **options) -> torch.Tensor:
    return run.model_patch(models.sd15(), SCALE, layers, PAGOptions(**options))


@pytest.mark.parametrize("kind", ["identity", "skip_block", "tpg"])
def test_a_weak_negative_adds_no_row_and_no_call(kind):
    plain, rows = (counted(models.sd15()) for _ in "ab")
    RUN.ksampler(plain[0])
    result = RUN.model_patch(rows[0], SCALE, "m0", PAGOptions(kind, row="negative"))
    assert rows[1] == plain[1]
    assert relative_error(result, RUN.ksampler(models.sd15())) > 1e-3


def test_the_scale_of_a_weak_negative_only_switches_it_on():
    weak = PAGOptions(row="negative")
    low, high = (RUN.model_patch(models.sd15(), scale, "m0", weak) for scale in (0.1, 50.0))
    assert torch.equal(low, high)
    assert torch.equal(RUN.model_patch(models.sd15(), 0.0, "m0", weak), RUN.ksampler(models.sd15()))


def test_at_cfg_1_there_is_no_negative_and_the_error_says_so():
    with pytest.raises(NoNegativeError, match="at cfg 1 there is no negative"):
        sampled(run=Run(steps=1, cfg=1.0), row="negative")


def own_calls(args: dict) -> list[torch.Tensor]:
    """Another node's calls for CFG, past the host's, without the names of the rows."""
    texts = (models.conditioning(seed)[0][0].expand(len(args["input"]), -1, -1) for seed in (1, 2))
    return [args["model"].apply_model(args["input"], args["sigma"], c_crossattn=text, transformer_options={})
            for text, conds in zip(texts, args["conds"], strict=True) if conds]


@pytest.mark.parametrize("beside", ["set_model_sampler_calc_cond_batch_function", "set_model_unet_function_wrapper"])
def test_a_negative_that_another_node_hides_is_said_to_be_hidden(beside, caplog):
    other = without_options if beside.endswith("wrapper") else own_calls
    model = models.sd15().clone()
    getattr(model, beside)(other)
    assert relative_error(RUN.model_patch(model, 1.0, "m0", PAGOptions(row="negative")), RUN.ksampler(model)) <= 1e-5
    assert "another node calls the model itself without saying which rows are the negative's" in caplog.text


@pytest.mark.parametrize("regional", ["positive", "negative"])
def test_beside_a_prompt_for_a_region_the_negatives_rows_alone_are_weak(regional):
    """The host puts a copy of the regional prompt into the other one, under the same uuid."""
    prompts = {"positive": models.conditioning(1), "negative": models.conditioning(2)}
    prompts[regional] = [*models.conditioning(3), *models.conditioning(4, area=(8, 4, 0, 4), strength=1.0)]
    run = Run(steps=2, cfg=5.0, latent=models.empty_latent(1, 8, 8), **prompts)

    def calls(args: dict) -> list[torch.Tensor]:
        def predicted(conds: list, options: dict) -> list[torch.Tensor]:
            return comfy.samplers.calc_cond_batch(args["model"], conds, args["input"], args["sigma"], options)

        cond, uncond = args["conds"]
        weak = set_model_options_patch_replace(args["model_options"].copy(), identity, "attn1", "middle", 0)
        return [predicted([cond, None], args["model_options"])[0], predicted([None, uncond], weak)[1]]

    apart = models.sd15().clone()
    apart.set_model_sampler_calc_cond_batch_function(calls)
    assert relative_error(sampled(run=run, row="negative"), run.ksampler(apart)) <= 1e-4


def test_the_samplers_of_cfg_plus_plus_have_a_negative_at_cfg_1():
    run = Run(steps=4, cfg=1.0, sampler="euler_cfg_pp", latent=models.empty_latent(1, 8, 8))
    assert relative_error(sampled("all", run=run, row="negative"), run.ksampler(models.sd15())) > 1e-3


def rows_replaced(weak, plain: torch.Tensor, options: dict) -> torch.Tensor:
    """The negative's rows of the one, the others' of the other."""
    rows = options["cond_or_uncond"]
    negative = torch.tensor([row == 1 for row in rows]).repeat_interleave(len(plain) // len(rows))
    return torch.where(negative.view(-1, *[1] * (plain.ndim - 1)), weak, plain)


def identity_in_the_negative(model):
    def attention(q, k, v, options):
        return rows_replaced(v, optimized_attention(q, k, v, options["n_heads"]), options)

    model = model.clone()
    model.set_model_attn1_replace(attention, "middle", 0)
    return model


def skipped_in_the_negative(model, kind: str):
    def block(args: dict, extra: dict) -> dict:
        given = {name: args[name].clone() for name in ("img", "txt") if isinstance(args.get(name), torch.Tensor)}
        out = extra["original_block"](args)
        return {name: rows_replaced(given[name], value, args["transformer_options"]) for name, value in out.items()}

    model = model.clone()
    model.set_model_patch_replace(block, "dit", kind, 1)
    return model


VIDEO_RUN = Run(cfg=4.0, steps=10, scheduler="simple", positive=models.conditioning(1),
                latent={"samples": torch.zeros(1, 16, 2, 8, 12)})
CACHED = {
    "U-Net": (models.sd15, identity_in_the_negative, "m0", "identity",
              Run(cfg=5.0, steps=10, latent=models.empty_latent(2, 8, 8))),
    "Flux": (models.flux, lambda model: skipped_in_the_negative(model, "double_block"), "double.1", "skip_block",
             replace(VIDEO_RUN, latent={"samples": torch.zeros(2, 16, 8, 12)})),
    "Wan": (models.wan, lambda model: skipped_in_the_negative(model, "double_block"), "1", "skip_block", VIDEO_RUN),
}


@pytest.mark.parametrize("node", [EasyCacheNode, LazyCacheNode])
@pytest.mark.parametrize("name", CACHED)
def test_beside_a_cache_of_whole_steps_a_weak_negative_keeps_its_own(name, node):
    """What the cache decides for a step holds for both prompts."""
    build, weak, layers, kind, run = CACHED[name]
    model = node.execute(build(), 0.5, 0.0, 1.0, False).result[0]
    watched, rows = counted(model)
    ours = run.model_patch(watched, SCALE, layers, PAGOptions(kind, row="negative"))
    assert set(rows) == {2 * len(run.latent["samples"])}, "both prompts in each call"
    assert relative_error(ours, run.ksampler(weak(model))) <= 1e-5
    assert relative_error(ours, run.ksampler(model)) > 1e-3
    assert relative_error(run.ksampler(model), run.ksampler(build())) > 1e-3, "the cache must have been used"


@pytest.mark.parametrize("kind", ["skip_block", "identity"])
def test_a_random_share_is_the_same_however_the_batch_is_split(kind, monkeypatch):
    share = {"perturbation": kind, "random_share": 0.3}
    together = sampled("all", **share)
    assert relative_error(sampled("all", perturbation=kind), together) > 1e-3
    assert relative_error(sampled("all", perturbation_seed=1, **share), together) > 1e-3
    monkeypatch.setattr(models.sd15().model, "memory_required", lambda *_, **__: 1e30)  # the host runs row by row
    assert relative_error(sampled("all", **share), together) < 1e-4


@pytest.mark.parametrize(("layers", "share"), [("m0", 0.1), ("all", 0.95), ("50%: all; 100%: m0", 0.3)])
def test_a_share_that_draws_all_layers_is_refused_before_sampling(layers, share):
    with pytest.raises(SettingError, match=rf"random_share is {share}, but of (\d) selected it draws \1"):
        patched(models.sd15(), SCALE, layers, PAGOptions(random_share=share))


def test_of_a_block_with_two_layers_one_is_drawn_where_blocks_are_skipped():
    found = model_layers(next(how for how in SAMPLED if how.name == "LTX-Video with sound").build())
    stages = select_stages("all", tuple(found.layers), found.auto)
    names = [layer.name for layer in found.drawn_from(stages, PAGOptions("skip_block", random_share=0.5))[0].chosen]
    assert names == ["0", "1"]
    assert len(found.drawn_from(stages, PAGOptions(random_share=0.5))[0].chosen) == 4


def test_stages_are_the_layers_of_two_nodes_with_ranges_of_their_own():
    model = patched(models.sd15(), SCALE, "m0", PAGOptions(end_percent=0.5))
    model = patched(model, SCALE, "u0", PAGOptions(start_percent=0.5))
    expected = RUN.ksampler(model)
    assert relative_error(sampled("50%: m0; 100%: u0"), expected) < 1e-4
    assert relative_error(sampled("m0"), expected) > 1e-3


@pytest.mark.parametrize("layers", ["60%: m0; 50%: u0", "60%: m0", "m0; u0"])
def test_bad_stages_are_refused_before_sampling(layers):
    with pytest.raises(SelectionError, match=r"^layers"):
        patched(models.sd15(), SCALE, layers)


def test_heads_of_a_whole_block_are_refused():
    with pytest.raises(SelectionError, match=r"skip_block acts on the whole block of m0.*Remove the heads"):
        patched(models.sd15(), SCALE, "m0:h0", PAGOptions("skip_block"))


def test_a_mask_says_where_pag_acts():
    plain = RUN.ksampler(models.sd15())
    one_step = Run(steps=1, cfg=5.0, latent=models.empty_latent(2, 8, 8))
    assert torch.equal(sampled(scale_mask=torch.zeros(1, 64, 64)), plain)
    assert torch.equal(sampled(scale_mask=torch.ones(2, 64, 64)), sampled())
    half = torch.zeros(1, 64, 64)
    half[:, :, :32] = 1.0
    masked, whole, without = (sampled(run=one_step, scale_mask=half), sampled(run=one_step),
                              one_step.ksampler(models.sd15()))
    assert relative_error(masked[..., :4], whole[..., :4]) < 1e-5
    assert relative_error(masked[..., 4:], without[..., 4:]) < 1e-5


def test_images_of_a_video_model_have_a_mask_each():
    """Qwen-Image's latents are videos of one frame: of two masks each image has its own."""
    how = next(how for how in SAMPLED if how.name == "Qwen-Image")
    model, run = how.build(), sampled_family(how, 1.0, 2, steps=1)
    masks = torch.stack([torch.zeros(64, 64), torch.ones(64, 64)])
    masked, whole = (run.model_patch(model, SCALE, "0", PAGOptions(scale_mask=mask)) for mask in (masks, None))
    without = run.ksampler(model)
    assert relative_error(masked[1], whole[1]) < 1e-5
    assert relative_error(masked[0], without[0]) < 1e-5
    assert relative_error(whole[0], without[0]) > 1e-3


def test_a_mask_follows_a_latent_that_the_sampler_enlarges():
    run = Run(cfg=5.0, latent=models.empty_latent(1, 8, 8))

    def result(**options) -> torch.Tensor:
        guider = comfy.samplers.CFGGuider(patched(models.sd15(), SCALE, "m0", PAGOptions(**options)))
        guider.set_conds(run.positive, run.negative)
        guider.set_cfg(run.cfg)
        sampler = SamplerLCMUpscale.execute(2.0, -1, "bilinear").result[0]
        torch.manual_seed(0)  # of the noise that it adds
        return SamplerCustomAdvanced.execute(Noise_RandomNoise(1), guider, sampler, torch.tensor([14.6, 3.0, 0.5, 0.0]),
                                             run.latent).result[0]["samples"]

    assert torch.equal(result(scale_mask=torch.ones(1, 64, 64)), result())


def test_a_black_mask_says_so(caplog):
    sampled(scale_mask=torch.zeros(1, 64, 64))
    assert "scale_mask is black everywhere" in caplog.text


def test_a_mask_for_another_batch_is_refused_before_sampling():
    watched, rows = counted(models.sd15())
    with pytest.raises(SettingError, match="has 3 masks, but the batch has 2"):
        RUN.model_patch(watched, SCALE, "m0", PAGOptions(scale_mask=torch.ones(3, 64, 64)))
    assert not rows


@pytest.mark.parametrize("rule", [{"early_damping": 8.0}, {"momentum": 0.5}, {"coarse_scale": 0.3},
                                  {"tangential_scale": 1.5}], ids=str)
def test_rules_on_the_delta_cost_no_row_and_start_anew_in_each_run(rule):
    watched, rows = counted(models.sd15())
    model = patched(watched, SCALE, "m0", PAGOptions(share_prefix=False, **rule))
    first = RUN.ksampler(model)
    assert relative_error(first, sampled()) > 1e-4
    assert torch.equal(RUN.ksampler(model), first)
    plain, plain_rows = counted(models.sd15())
    RUN.ksampler(patched(plain, SCALE, "m0", PAGOptions(share_prefix=False)))
    assert rows == plain_rows * 2


def test_rules_act_on_each_of_several_latents():
    """What is coarse in the video is not mixed with the sound, with which it shares one tensor."""
    how = next(how for how in SAMPLED if how.name == "LTX-Video with sound")
    model, run = how.build(), sampled_family(how, 1.0, 2, steps=1)
    fine, whole = (run.model_patch(model, SCALE, "1", PAGOptions(coarse_scale=scale)).unbind() for scale in (0.0, 1.0))
    for one, other, plain in zip(fine, whole, run.ksampler(model).unbind(), strict=True):
        torch.testing.assert_close(one - plain, split(other - plain, 0.0), rtol=1e-3, atol=1e-4)


def test_momentum_is_of_every_step_also_where_the_push_is_reused():
    every, third = (sampled(momentum=0.5, strength=1e-6, reuse_every=n) for n in (1, 3))
    assert relative_error(third, every) < 1e-3


def test_damping_is_of_the_networks_output():
    """One step from pure noise: x0 = x - sigma·output, so the ratio is that of the deltas and of the weak output."""
    seen = {}

    def watch(args):
        seen.update(args)
        return args["denoised"]

    one_step = Run(steps=1, cfg=1.0, latent=models.empty_latent(1, 8, 8))
    results = {}
    for alpha in (0.0, 8.0):
        model = patched(models.sd15(), SCALE, "m0", PAGOptions(early_damping=alpha))
        model.set_model_sampler_post_cfg_function(watch)
        one_step.ksampler(model)
        results[alpha] = seen["denoised"] - seen["cond_denoised"]
    weak = seen["cond_denoised"] - results[0.0] / SCALE
    ratio = (results[0.0] / SCALE).norm() / (weak - seen["input"]).norm()
    torch.testing.assert_close(results[8.0], results[0.0] * torch.exp(-8.0 * ratio), rtol=1e-3, atol=1e-5)
