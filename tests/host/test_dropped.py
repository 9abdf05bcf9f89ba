"""What other nodes leave of PAG's part, when they have it: where nothing is left, the run says so and names them."""

from __future__ import annotations

import copy
import gc
import logging
from collections.abc import Callable

import comfy.samplers
import numpy as np
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from pag_pack.pag_core.settings import PAGOptions

from . import models
from .runs import Run, host_pag, patched, relative_error

SCALE = 3.0
PostCFG = Callable[[dict], torch.Tensor]
cfgs = pytest.mark.parametrize("cfg", [1.0, 7.0])


@pytest.fixture
def said(caplog):
    """() -> what runs said of PAG without effect."""
    caplog.set_level(logging.WARNING)
    return lambda: [record.getMessage() for record in caplog.records if "no effect" in record.getMessage()]


def after_cfg(function: PostCFG, model=None):
    model = (model or models.sd15()).clone()
    model.set_model_sampler_post_cfg_function(function)
    return model


def own_pass(args: dict) -> torch.Tensor:
    """CFG and a guidance of its own, from the raw predictions, as SEGAttention's node has it."""
    (weak,) = comfy.samplers.calc_cond_batch(args["model"], [args["cond"]], args["input"], args["sigma"],
                                             args["model_options"])
    cond, uncond = args["cond_denoised"], args["uncond_denoised"]
    return cond + (6.0 * (cond - uncond) if args["uncond"] is not None else 0.0) + 0.5 * (cond - weak)


def taken_but_not_used(args: dict) -> torch.Tensor:
    result = args["denoised"]
    if result.isnan().any():
        return result
    kept = torch.zeros_like(result)
    kept[:, :2] = args["cond_denoised"][:, :2]
    return kept.add_(args["cond_denoised"])


def conditional(args: dict) -> torch.Tensor:
    return args["cond_denoised"]


DROPPING = {function.__name__: function for function in (own_pass, taken_but_not_used, conditional)}


@cfgs
@pytest.mark.parametrize("function", DROPPING.values(), ids=DROPPING)
def test_a_function_after_cfg_that_drops_pag_is_named(function, cfg, said):
    run, model = Run(cfg=cfg), after_cfg(function)
    assert relative_error(run.model_patch(model, SCALE), run.ksampler(model)) < 1e-4
    (message,) = said()
    assert f"({__name__}.{function.__name__}) runs after PAG" in message


def test_of_several_functions_the_one_that_drops_is_named(said):
    model = after_cfg(_halved, after_cfg(conditional, after_cfg(_halved)))
    Run().model_patch(model, SCALE)
    (message,) = said()
    assert f"{__name__}.conditional" in message


def test_a_chain_says_it_once(said):
    Run().ksampler(patched(patched(after_cfg(conditional), 1.0), 2.0, "u0"))
    assert len(said()) == 1


def test_a_function_of_a_pack_is_named_as_users_know_it(said):
    def drop(args: dict) -> torch.Tensor:
        return args["cond_denoised"]

    drop.__module__ = "/home/somebody/ComfyUI/custom_nodes/ComfyUI-Pack.nodes"
    Run().model_patch(after_cfg(drop), SCALE)
    (message,) = said()
    assert "(ComfyUI-Pack.nodes.test_a_function_of_a_pack_is_named_as_users_know_it.drop)" in message


def _halved(args: dict) -> torch.Tensor:
    return 0.5 * args["denoised"]


def with_another_pass(args: dict) -> torch.Tensor:
    return args["denoised"] + own_pass(args)


def in_place(args: dict) -> torch.Tensor:
    result = torch.empty_like(args["cond_denoised"])
    for channel in range(result.shape[1]):
        result[:, channel] = args["denoised"][:, channel]
    return result.clamp_(-2, 2)


def into_the_conditional(args: dict) -> torch.Tensor:
    args["cond_denoised"].copy_(args["denoised"])
    return args["cond_denoised"]


def through_numpy(args: dict) -> torch.Tensor:
    return torch.from_numpy(np.tanh(args["denoised"].cpu().numpy()))


def through_an_array(args: dict) -> torch.Tensor:
    return torch.from_numpy(np.asarray(args["denoised"]) * 1.0)


def through_lists(args: dict) -> torch.Tensor:
    return torch.tensor(args["denoised"].tolist())


def through_a_number(args: dict) -> torch.Tensor:
    return args["cond_denoised"] * float(args["denoised"].std())


def copied(args: dict) -> torch.Tensor:
    return copy.deepcopy(args["denoised"])


def as_data(args: dict) -> torch.Tensor:
    result = args["cond_denoised"].clone()
    result.data = args["denoised"].data * 2
    return result


def many_at_once(args: dict) -> torch.Tensor:
    parts = [part.clone() for part in args["cond_denoised"]]
    torch._foreach_add_(parts, list(args["denoised"]))
    return torch.stack(parts)


def in_a_spectrum(args: dict) -> torch.Tensor:
    return torch.fft.ifft2(torch.fft.fft2(args["denoised"].float()) * 1.1).real


@torch.jit.script
def _scripted(x: torch.Tensor) -> torch.Tensor:
    return x.mul(0.9)


def scripted(args: dict) -> torch.Tensor:
    return _scripted(args["denoised"])


def written_to(args: dict) -> torch.Tensor:
    result = torch.empty_like(args["cond_denoised"])
    torch.mul(args["denoised"], 0.9, out=result)
    return result


def by_a_mask(args: dict) -> torch.Tensor:
    return torch.where(args["denoised"] > 0, args["cond_denoised"], 0.5)


def twice_its_size(args: dict) -> torch.Tensor:
    large = torch.nn.functional.interpolate(args["denoised"], scale_factor=2.0)
    return torch.nn.functional.avg_pool2d(large, 2)


KEEPING = {function.__name__: function for function in (
    _halved, with_another_pass, in_place, into_the_conditional, through_numpy, through_an_array, through_lists,
    through_a_number, copied, as_data, many_at_once, in_a_spectrum, scripted, written_to, by_a_mask, twice_its_size)}


@cfgs
@pytest.mark.parametrize("function", KEEPING.values(), ids=KEEPING)
def test_a_function_that_uses_the_result_is_not_blamed(function, cfg, said):
    run = Run(cfg=cfg)
    model = after_cfg(function)
    result = run.model_patch(model, SCALE)
    assert said() == []
    assert relative_error(result, run.ksampler(model)) > 1e-3


@pytest.mark.parametrize("order", ["ours first", "ours last"])
def test_passes_after_ours_are_not_blamed(order, said):
    ran, model = Run(), models.sd15()
    ran.ksampler(host_pag(patched(model, 1.0), 2.0) if order == "ours first" else patched(host_pag(model, 2.0), 1.0))
    assert said() == []


@pytest.mark.parametrize("dropped", [range(1), range(1, 3), range(5, 8)], ids=["early", "soon", "late"])
def test_what_is_dropped_in_some_steps_only_is_told_as_that(dropped, said):
    seen = []

    def in_part(args: dict) -> torch.Tensor:
        seen.append(args)
        return args["cond_denoised"] if len(seen) - 1 in dropped else args["denoised"]

    Run(steps=8).model_patch(after_cfg(in_part), SCALE)
    (message,) = said()
    assert "in some steps: another node's function" in message and "in_part) runs after PAG" in message


def test_a_guider_that_drops_pag_in_some_steps_is_named(said):
    run = Run()

    class Guider(_Guider):
        @property
        def has_pag(self) -> bool:
            self.asked += 1
            return self.asked == 1

    Guider.asked = 0
    guider = Guider(patched(models.sd15(), SCALE))
    guider.set_conds(run.positive, run.negative)
    guider.set_cfg(run.cfg)
    run.advanced(guider)
    (message,) = said()
    assert "in some steps: the guider of this run (Guider)" in message


class _Guider(comfy.samplers.CFGGuider):
    """With a formula of its own around the host's."""

    has_pag = False

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006
        raw = []

        def look(args: dict) -> torch.Tensor:
            raw.append(args["cond_denoised"])
            return args["denoised"]

        options = {**model_options, "sampler_post_cfg_function":
                   [*model_options.get("sampler_post_cfg_function", []), look]}
        guided = super().predict_noise(x, timestep, options, seed)
        return raw[0] + 2.0 * (guided - raw[0] if self.has_pag else x - raw[0])


@pytest.mark.parametrize("has_pag", [True, False])
def test_a_guider_that_drops_pag_is_named(has_pag, said):
    run = Run()
    guider = _Guider(patched(models.sd15(), SCALE))
    guider.set_conds(run.positive, run.negative)
    guider.set_cfg(run.cfg)
    guider.has_pag = has_pag
    run.advanced(guider)
    named = ["the guider of this run (_Guider), or a node around it" in message for message in said()]
    assert named == ([] if has_pag else [True])


def test_a_wrapper_inside_ours_that_drops_pag_is_told(said):
    run = Run()

    def recombined(executor, x, *args):
        return 0.9 * x if executor(x, *args) is not None else x

    model = patched(models.sd15(), SCALE)
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "another", recombined)
    run.ksampler(model)
    (message,) = said()
    assert "or a node around it" in message


@cfgs
def test_the_network_runs_unwatched_and_few_steps_are_followed(cfg):
    """Compiled networks would be compiled anew."""
    run, in_network, after = Run(cfg=cfg, steps=9), [], []

    def look(args: dict) -> torch.Tensor:
        after.append(torch._C._len_torch_dispatch_stack())
        return own_pass(args) + args["denoised"]

    model = after_cfg(look)
    hook = model.model.diffusion_model.register_forward_pre_hook(
        lambda *_: in_network.append(torch._C._len_torch_dispatch_stack()))
    try:
        run.model_patch(model, SCALE)
    finally:
        hook.remove()
    assert set(in_network) == {0}
    assert after == [1, 1, 0, 1, 0, 0, 0, 1, 0]


def test_the_picture_is_the_same_followed_or_not(monkeypatch):
    run, model = Run(), after_cfg(_halved)
    followed = run.model_patch(model, SCALE)
    monkeypatch.setattr("pag_pack.nodes.host.run.patching.begun", lambda _: None)
    assert torch.equal(run.model_patch(model, SCALE), followed)


def test_each_function_runs_once_a_step_and_nothing_is_kept():
    seen, kept = [], []

    def count(args: dict) -> torch.Tensor:
        seen.append(args["sigma"])
        kept.append(torch.multiprocessing.reductions.StorageWeakRef(args["denoised"].untyped_storage()))
        return args["denoised"] * 1.0

    run = Run()
    run.model_patch(after_cfg(count), SCALE)
    assert len(seen) == run.steps
    gc.collect()
    assert all(storage.expired() for storage in kept)


def test_where_the_negative_is_weak_its_part_is_not_in_the_result_alone(said):
    Run().model_patch(after_cfg(own_pass), SCALE, "m0", PAGOptions(row="negative"))
    assert said() == []


@pytest.mark.parametrize("chain", [1, 2])
def test_a_sampler_may_take_derivatives_of_the_model(chain, said):
    """As torch.func does: its tensors have no storage that could be followed."""
    def through_jvp(executor, x, *args):
        return torch.func.jvp(lambda x: executor(x, *args), (x,), (torch.ones_like(x),))[0]

    model = models.sd15()
    for layer in ("m0", "u0")[:chain]:
        model = patched(model, SCALE, layer)
    expected = Run(7.0).ksampler(model)
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "another", through_jvp)
    model.wrappers[WrappersMP.PREDICT_NOISE] = dict(reversed(model.wrappers[WrappersMP.PREDICT_NOISE].items()))
    assert relative_error(Run(7.0).ksampler(model), expected) < 1e-5
    assert not said()
