"""Beside what other packs do: the same picture as with PAG in a call of its own, where others see a conditional row.

`nox -s neighbours` does the same with the packs themselves.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import comfy.controlnet
import comfy.hooks
import comfy.samplers
import pytest
import torch
from comfy.model_patcher import ModelPatcher, set_model_options_patch_replace
from comfy_extras.nodes_custom_sampler import DualCFGGuider
from pag_pack.pag_core.settings import PAGOptions

import nodes

from . import models
from .imitations import (
    CHANGES_NOTHING,
    LATER,
    NEIGHBOURS,
    call,
    couple,
    noise,
    overridden,
    rows_mixed,
    rows_of,
    tiles_with_residuals,
    with_residuals,
    without_options,
    wrapped,
)
from .runs import Run, identity, latent_run, patched, relative_error
from .test_composition import Hint
from .test_without_prompt import control_net

SCALE = 2.0
LAYERS = {"m0": ("middle", 0, 0), "output.2": ("output", 2, 0)}
CASES = [(1.0, 1, 1), (5.0, 2, 1), (1.0, 2, 2), (5.0, 1, 2)]  # (cfg, batch, PAGs in a row): every two values meet


def separate(model: ModelPatcher, chain: int) -> ModelPatcher:
    """PAG as the host's own node makes it, so many times, each measured from the raw conditional prediction."""
    raw = {}

    def pre_cfg(args: dict) -> list[torch.Tensor]:
        raw["cond"] = args["conds_out"][0].clone()
        return args["conds_out"]

    def post_cfg(args: dict) -> torch.Tensor:
        result = args["denoised"]
        for key in list(LAYERS.values())[:chain]:
            options = set_model_options_patch_replace(args["model_options"].copy(), identity, "attn1", *key)
            (weak,) = comfy.samplers.calc_cond_batch(args["model"], [args["cond"]], args["input"], args["sigma"],
                                                     options)
            result = result + SCALE * (raw.get("cond", args["cond_denoised"]) - weak)
        return result

    model = model.clone()
    for key, function in (("sampler_pre_cfg_function", pre_cfg), ("sampler_post_cfg_function", post_cfg)):
        model.model_options[key] = [function, *model.model_options.get(key, [])]
    return model


def guided(model: ModelPatcher, chain: int) -> ModelPatcher:
    for layer in list(LAYERS)[:chain]:
        model = patched(model, SCALE, layer)
    return model


def sampled(cfg: float, batch: int) -> Run:
    return Run(cfg=cfg, steps=2, latent=models.empty_latent(batch), positive=models.conditioning(1))


@pytest.mark.in_turn("cfg", "batch", "chain")
@pytest.mark.parametrize(("cfg", "batch", "chain"), CASES)
@pytest.mark.parametrize("name", NEIGHBOURS)
def test_the_same_as_in_a_call_of_its_own(name, cfg, batch, chain):
    run, neighbour = sampled(cfg, batch), NEIGHBOURS[name]
    expected = run.ksampler(separate(neighbour(models.sd15()), chain))
    result = run.ksampler(guided(neighbour(models.sd15()), chain))
    assert relative_error(result, expected) <= 1e-4


MET = [("attention couple", "hooks"), ("a patch that is a module", "a block of another class"),
       ("forwards that count", "a mean over the batch"), ("hooks that count", "attention couple")]  # once were wrong


def pairs(number: int) -> list[tuple[str, str]]:
    """Neighbours that meet on one model, drawn once for all."""
    of_one_slot = {name for name, neighbour in NEIGHBOURS.items()
                   if "model_function_wrapper" in neighbour(models.sd15()).model_options}
    draw, found = random.Random(0), []
    while len(found) < number:
        pair = tuple(draw.sample(list(NEIGHBOURS), 2))
        if not of_one_slot.issuperset(pair) and pair not in found:
            found.append(pair)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("pair", MET + pairs(48), ids=" and ".join)
def test_two_of_them(pair):
    run = sampled(*CASES[len("".join(pair)) % len(CASES)][:2])

    def beside() -> ModelPatcher:
        model = models.sd15()
        for name in pair:
            model = NEIGHBOURS[name](model)
        return model

    try:
        run.ksampler(beside())
    except (IndexError, StopIteration, ValueError, RuntimeError) as error:
        pytest.skip(f"they cannot meet without PAG either: {error}")
    expected = run.ksampler(separate(beside(), 1))
    assert relative_error(run.ksampler(guided(beside(), 1)), expected) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", NEIGHBOURS)
def test_pag_in_front_of_the_other_node(name):
    run, neighbour = sampled(5.0, 1), NEIGHBOURS[name]
    expected, beside = (run.ksampler(change(neighbour(models.sd15()))) for change in (
        lambda model: separate(model, 1), lambda model: model))
    assert relative_error(beside, expected) > 1e-3, "PAG must do something"
    assert (relative_error(beside, run.ksampler(models.sd15())) > 1e-3) is (name not in CHANGES_NOTHING)
    assert relative_error(run.ksampler(neighbour(guided(models.sd15(), 1))), expected) <= 1e-4


@pytest.mark.parametrize("beside", LATER.values(), ids=LATER)
def test_what_acts_in_the_middle_of_a_run_alone(beside):
    run = replace(sampled(5.0, 1), steps=4)
    expected = run.ksampler(separate(beside(models.sd15()), 1))
    assert relative_error(run.ksampler(beside(models.sd15())), run.ksampler(models.sd15())) > 2e-4
    assert relative_error(run.ksampler(guided(beside(models.sd15()), 1)), expected) <= 1e-5


@pytest.mark.parametrize("kind", ["override", "forward"])
def test_what_mixes_rows_in_one_block_is_found_in_the_first_step(kind):
    """A function that is tried in one block a step is tried in all of them at first."""
    run, beside = sampled(5.0, 1), rows_mixed(kind, (0.0, 1e9))
    expected = run.ksampler(separate(beside(models.sd15()), 1))
    assert relative_error(run.ksampler(guided(beside(models.sd15()), 1)), expected) <= 1e-5


@pytest.mark.parametrize("kind", ["override", "forward"])
def test_what_begins_to_mix_rows_in_one_block_is_told(kind, caplog):
    """Where it was noticed after its first step, or else the result is exact."""
    exact, told = [], []
    for sigma in (3.0, 1.0, 0.3):
        run, beside = replace(sampled(5.0, 1), steps=6, scheduler="karras"), rows_mixed(kind, (0.0, sigma))
        expected = run.ksampler(separate(beside(models.sd15()), 1))
        caplog.clear()
        exact.append(relative_error(run.ksampler(guided(beside(models.sd15()), 1)), expected) <= 1e-5)
        told.append("began to mix" in caplog.text)
    assert all(an_exact or a_told for an_exact, a_told in zip(exact, told, strict=True))
    assert any(told)


@pytest.mark.parametrize(("cfg", "batch", "chain"), CASES)
def test_patches_that_come_with_a_prompt(cfg, batch, chain):
    """As prompt-control's attention couple: a hook on the positive prompt brings them."""
    hooks, options = comfy.hooks.HookGroup(), couple(models.sd15()).model_options["transformer_options"]
    hooks.add(comfy.hooks.TransformerOptionsHook({"patches": options["patches"]},
                                                 hook_scope=comfy.hooks.EnumHookScope.HookedOnly))
    run = sampled(cfg, batch)
    run = replace(run, positive=comfy.hooks.set_hooks_for_conditioning(run.positive, hooks))
    expected = run.ksampler(separate(models.sd15(), chain))
    assert relative_error(run.ksampler(guided(models.sd15(), chain)), expected) <= 1e-4
    assert relative_error(sampled(cfg, batch).ksampler(separate(models.sd15(), chain)), expected) > 1e-3


class Indexed(Hint):
    """A ControlNet with a weight of its own for rows under another index than 0."""

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        index = torch.tensor(transformer_options["cond_or_uncond"]).repeat_interleave(len(x_noisy) // batched_number)
        control = super().get_control(x_noisy, t, cond, batched_number, transformer_options)
        return {place: [hint / (1 + index[:, None, None, None]) for hint in hints] for place, hints in control.items()}


@pytest.mark.parametrize(("cfg", "batch", "chain"), CASES)
@pytest.mark.parametrize("place", [("middle", 64, 4), ("input", 32, 1)], ids=lambda place: place[0])
@pytest.mark.parametrize("beside", [
    with_residuals(lambda hint: 0.5 * hint), with_residuals(lambda hint: hint.mul_(0.5)), wrapped(tiles_with_residuals),
], ids=["halved", "halved in place", "tiles"])
def test_a_wrapper_gets_what_a_control_net_gave(beside, place, cfg, batch, chain):
    hint = Hint(*place)
    texts = [models.conditioning(seed, control=hint, control_apply_to_uncond=False) for seed in (1, 2)]
    run = Run(cfg, 2, latent=models.empty_latent(batch, 16, 16), positive=texts[0], negative=texts[1])
    result = run.ksampler(guided(beside(models.sd15()), chain))
    assert relative_error(result, run.ksampler(separate(beside(models.sd15()), chain))) <= 1e-4


class AskedInTiles:
    """A node that asks the ControlNets itself, for tiles: it has the host hand on the objects in a call's options."""

    def __init__(self, monkeypatch) -> None:
        monkeypatch.setattr(comfy.samplers, "get_area_and_mult", partial(self.area, comfy.samplers.get_area_and_mult))

    @staticmethod
    def area(host: Callable, conds: dict, *args):
        control = conds.get("control")
        if control is not None:
            if not hasattr(control, "ask"):
                control.ask = control.get_control
            control.get_control = lambda *_: control
        return host(conds, *args)

    @staticmethod
    def tiles(function: Callable, inputs: dict) -> torch.Tensor:
        left, right = inputs["input"].chunk(2, dim=-1)
        both = rows_of(inputs, lambda value: torch.cat((value, value)))
        both["input"] = torch.cat((left, right))
        control, options = inputs["c"]["control"], inputs["c"]["transformer_options"]
        control.cond_hint = torch.cat([half.expand(len(left), *half.shape[1:]) for half in
                                       control.cond_hint_original.chunk(2, dim=-1)])
        both["c"]["control"] = control.ask(both["input"], both["timestep"], both["c"], len(options["uuids"]), options)
        return torch.cat(call(function, both).chunk(2), dim=-1)


def with_control_net(cfg: float, batch: int, pictures: int = 1) -> tuple[Run, list[int]]:
    """A run with the host's ControlNet and so many different hints, and the hints of each of its network's calls."""
    net, hints = control_net(), []
    network = net.control_model

    def forward(*args, hint, **kwargs):
        hints.append(len(hint))
        return type(network).forward(network, *args, hint=hint, **kwargs)

    network.forward = forward
    positive, negative = nodes.ControlNetApplyAdvanced().apply_controlnet(
        models.conditioning(1), models.conditioning(2), net, noise(1, pictures, 64, 64, 3).sigmoid(), 0.5, 0.0, 1.0)
    return Run(cfg, 2, latent=models.empty_latent(batch, 8, 8), positive=positive, negative=negative), hints


@pytest.mark.parametrize(("beside", "shares"), [
    (lambda model: model, True), (overridden, True), (overridden, False)], ids=["alone", "an override", "not shared"])
def test_the_host_asks_a_control_net_as_without_pag(beside, shares):
    """It cuts its hints to the rows of a call, and remembers that."""
    run, hints = with_control_net(5.0, 1, pictures=2)
    model = beside(models.sd15())
    run.ksampler(model)
    plain = hints.copy()
    hints.clear()
    run.model_patch(model, SCALE, "m0", PAGOptions(share_prefix=shares))
    assert hints == plain if shares else hints[::2] == plain


class Leaving(comfy.controlnet.ControlBase):
    """It computes nothing, and leaves what a patch looks for."""

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        control = self.previous_controlnet.get_control(x_noisy, t, cond, batched_number, transformer_options)
        transformer_options["left"], self.rows = 1.2, len(x_noisy)
        return control

    def copy(self):
        return self


@pytest.mark.parametrize(("cfg", "batch", "chain"), CASES)
def test_a_control_net_that_leaves_something_for_a_patch(cfg, batch, chain):
    run, hints = with_control_net(cfg, batch)
    leaving = Leaving()
    leaving.set_previous_controlnet(run.positive[0][1]["control"])
    for text in (run.positive, run.negative):
        text[0][1]["control"] = leaving

    def patch(out, options):
        return out * options.get("left", 1.0) * (1.0 if len(out) == leaving.rows else 0.5)

    model = models.sd15().clone()
    model.set_model_attn1_output_patch(patch)
    model.set_model_attn2_output_patch(patch)
    result = run.ksampler(guided(model, chain))
    assert len(hints) == run.steps
    assert relative_error(result, run.ksampler(separate(model, chain))) <= 1e-4


@pytest.mark.parametrize(("cfg", "batch", "chain"), CASES)
def test_a_control_net_that_a_wrapper_asks_runs_once(cfg, batch, chain, monkeypatch):
    run, hints = with_control_net(cfg, batch)
    model = wrapped(AskedInTiles(monkeypatch).tiles)(models.sd15())
    result = run.ksampler(guided(model, chain))
    assert len(hints) == run.steps
    assert relative_error(result, run.ksampler(separate(model, chain))) <= 1e-4
    assert relative_error(result, run.ksampler(model)) > 1e-3


@pytest.mark.parametrize(("cfg", "batch", "chain"), CASES)
def test_regions_that_share_a_control_net(cfg, batch, chain):
    """In one call it gives each of them something else."""
    hint = Hint("middle", 64, 4)
    regions = [models.conditioning(seed, area=(16, 8, 0, start), strength=1.0, control=hint,
                                   control_apply_to_uncond=False)[0] for seed, start in ((1, 0), (3, 8))]
    run = Run(cfg, 2, latent=models.picture_latent(batch, 16, 16), positive=regions)
    assert relative_error(run.ksampler(guided(models.sd15(), chain)),
                          run.ksampler(separate(models.sd15(), chain))) <= 1e-4


@pytest.mark.parametrize("style", ["regular", "nested"])
@pytest.mark.parametrize("beside", ["index 0", "image tokens from a pair", "a ControlNet"])
def test_where_a_guider_gives_the_conditional_rows_another_index(beside, style):
    """What others do under index 0, they do to the perturbed rows alone."""
    hint = Indexed("middle", 64, 4)
    texts = [models.conditioning(seed, **({"control": hint} if beside == "a ControlNet" else {})) for seed in (1, 3, 2)]
    run, neighbour = replace(sampled(1.0, 1), steps=3), NEIGHBOURS.get(beside, lambda model: model)

    def result(model: ModelPatcher) -> torch.Tensor:
        return run.advanced(DualCFGGuider.execute(model, *texts, 3.0, 2.0, style).result[0])

    expected = result(separate(neighbour(models.sd15()), 1))
    assert relative_error(result(guided(neighbour(models.sd15()), 1)), expected) <= 1e-4
    assert relative_error(result(neighbour(models.sd15())), expected) > 1e-3


class OwnFormula(comfy.samplers.CFGGuider):
    """As a guider of STG: it calls the model by itself, the conditional rows a second time with attentions off, and
    asks only the functions after CFG. It names its result as the input, and no negative where it computed none.

    Args:
        names_input: whether it names the input as the host does.
    """

    def __init__(self, model: ModelPatcher, run: Run, names_input: bool) -> None:
        super().__init__(model)
        self.set_conds(run.positive, run.negative)
        self.set_cfg(run.cfg)
        self.names_input = names_input

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        def called(name: str, options: dict | None = None) -> torch.Tensor:
            return comfy.samplers.calc_cond_batch(self.inner_model, [self.conds[name]], x, timestep,
                                                  options or model_options)[0]

        cond, negative = called("positive"), called("negative") if self.cfg > 1.0 else 0
        off = set_model_options_patch_replace(model_options.copy(), lambda q, *_: torch.zeros_like(q), "attn1", "input",
                                              1)
        result = cond + (self.cfg - 1.0) * (cond - negative) + 0.5 * (cond - called("positive", off))
        for function in model_options.get("sampler_post_cfg_function", []):
            result = function({
                "denoised": result, "cond": self.conds["positive"], "uncond": self.conds["negative"],
                "model": self.inner_model, "uncond_denoised": negative, "cond_denoised": cond, "sigma": timestep,
                "model_options": model_options, "input": x if self.names_input else result})
        return result


@pytest.mark.parametrize("names_input", [True, False])
@pytest.mark.parametrize(("cfg", "batch", "chain"), CASES)
def test_a_guider_with_a_formula_of_its_own(cfg, batch, chain, names_input):
    run = sampled(cfg, batch)
    expected, beside = (run.advanced(OwnFormula(model, run, True)) for model in (
        separate(models.sd15(), chain), models.sd15()))
    assert relative_error(beside, expected) > 1e-3
    result = run.advanced(OwnFormula(guided(models.sd15(), chain), run, names_input))
    assert relative_error(result, expected) <= 1e-4


@pytest.mark.parametrize(("build", "layer", "run"), [
    (models.flux, "single.1", latent_run((8, 12), 4.0)), (models.wan, "1", latent_run((2, 8, 12), 4.0))],
    ids=["Flux", "Wan"])
def test_an_override_may_change_in_place_what_it_is_given(build, layer, run):
    def sampled(change) -> torch.Tensor:
        def override(function, q, k, v, *args, **kwargs):
            return function(*(change(t) for t in (q, k, v)), *args, **kwargs)

        model = build().clone()
        model.model_options["transformer_options"]["optimized_attention_override"] = override
        return run.model_patch(model, SCALE, layer)

    assert torch.equal(sampled(lambda t: t.mul_(0.9)), sampled(lambda t: 0.9 * t))


@pytest.mark.parametrize("cfg", [1.0, 4.0])
@pytest.mark.parametrize("layer", ["double.1", "single.1"])
def test_what_others_still_hold_of_what_blocks_change_in_place(layer, cfg):
    """As a cache of residuals: it holds the image as it enters the blocks, which change it in place."""
    def beside(model: ModelPatcher) -> ModelPatcher:
        held = {}

        def first(args: dict, extra: dict) -> dict:
            held["img"] = args["img"]
            return extra["original_block"](args)

        def last(args: dict, extra: dict) -> dict:
            out = extra["original_block"](args)
            out["img"][:, -held["img"].shape[1]:] -= 0.5 * held["img"]
            return out

        model = model.clone()
        model.set_model_patch_replace(first, "dit", "double_block", 0)
        model.set_model_patch_replace(last, "dit", "single_block", 2)
        return model

    run = latent_run((8, 12), cfg)
    expected, result, plain = (sample(beside(models.flux())) for sample in (
        lambda model: run.model_patch(model, SCALE, layer, PAGOptions(share_prefix=False)),
        lambda model: run.model_patch(model, SCALE, layer), run.ksampler))
    assert relative_error(plain, expected) > 1e-3
    assert relative_error(result, expected) <= 1e-5


def one_text(function, inputs: dict) -> torch.Tensor:
    """Later in a run all rows get the text of the first."""
    text = inputs["c"]["c_crossattn"]
    late = {"c_crossattn": text[:1].expand_as(text)} if inputs["timestep"][0] <= 1.5 else {}
    return call(function, {**inputs, "c": {**inputs["c"], **late}})


@pytest.mark.parametrize("cfg", [1.0, 5.0])
def test_what_a_replaced_forward_keeps_for_later_steps(cfg):
    """As a gate of attention: a block before the perturbed one adds later what it added last. It then runs for the
    perturbed rows, too, for these get another text."""
    def gated(model: ModelPatcher) -> ModelPatcher:
        kept, model = {}, model.clone()
        path = "diffusion_model.input_blocks.1.1.transformer_blocks.0"
        block = model.get_model_object(path)

        def forward(x, context=None, transformer_options={}):  # noqa: B006 (as the host's)
            before = x.clone()
            if transformer_options["sigmas"][0] > 1.5:
                kept["added"] = type(block).forward(block, x, context, transformer_options) - before
            return before + kept["added"]

        model.add_object_patch(f"{path}.forward", forward)
        return wrapped(one_text)(model)

    run = replace(sampled(cfg, 1), steps=6)
    expected, result = (run.model_patch(gated(models.sd15()), SCALE, "m0", PAGOptions(share_prefix=share))
                        for share in (False, True))
    assert relative_error(run.ksampler(gated(models.sd15())), expected) > 1e-3
    assert relative_error(result, expected) <= 1e-5


def test_a_method_of_another_node_sees_pairs_of_rows():
    model = models.flux().clone()
    own = model.get_model_object("diffusion_model.forward_orig")

    def forward(img, *args, **kwargs):
        assert len(img) <= 2
        return own(img, *args, **kwargs)

    model.add_object_patch("diffusion_model.forward_orig", forward)
    run = latent_run((8, 12), 4.0)
    result = run.model_patch(model, SCALE, "single.1")
    assert relative_error(result, run.model_patch(models.flux(), SCALE, "single.1")) <= 1e-5


@pytest.mark.parametrize(("build", "layer", "run"), [
    (models.flux, "single.1", latent_run((8, 12), 4.0)), (models.wan, "1", latent_run((2, 8, 12), 4.0))],
    ids=["Flux", "Wan"])
def test_an_override_gets_its_arguments_as_the_host_gives_them(build, layer, run):
    """Here it takes all but the heads by keyword alone."""
    def sampled(override) -> torch.Tensor:
        model = build().clone()
        model.model_options["transformer_options"]["optimized_attention_override"] = override
        return run.model_patch(model, SCALE, layer)

    expected = sampled(lambda function, q, k, v, *args, **kwargs: function(0.9 * q, k, v, *args, **kwargs))
    result = sampled(lambda function, q, k, v, heads, **kwargs: function(0.9 * q, k, v, heads, **kwargs))
    assert torch.equal(result, expected)


@pytest.mark.parametrize(("build", "layer", "run"), [
    (models.sd15, "m0", Run()), (models.sdxl, "m0.1", Run()), (models.flux, "single.1", latent_run((8, 12), 4.0)),
    (models.wan, "1", latent_run((2, 8, 12), 4.0))], ids=["SD 1.5", "SDXL", "Flux", "Wan"])
def test_where_the_hosts_options_are_dropped_on_the_way(build, layer, run):
    """And ours with them: the perturbation finds its layers all the same."""
    expected, result = (run.model_patch(beside(build()), SCALE, layer) for beside in (
        lambda model: model, wrapped(without_options)))
    assert relative_error(result, expected) <= 1e-4
    assert relative_error(run.ksampler(build()), expected) > 1e-3
