"""Beside what keeps results from call to call: the rows of PAG have a memory of their own there, and the others' stays
what it is without PAG."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import comfy.samplers
import pytest
import torch
from comfy.model_patcher import ModelPatcher, set_model_options_patch_replace
from comfy.patcher_extension import WrappersMP
from comfy.samplers import CFGGuider
from pag_pack.pag_core.settings import PAGOptions

from . import models
from .imitations import (
    attention_kept_for_later,
    between_blocks,
    call,
    count_on_the_network,
    counting,
    in_a_private_method,
    in_forwards,
    mean_over_the_batch,
    method_beside_a_wrapper_that_names_the_network,
    with_hooks,
    wrapped,
)
from .runs import Run, host_pag, identity, patched, relative_error
from .sampled_families import SAMPLED
from .test_family_sampling import sampled as of_family

SCALE = 2.0


def every_second_call(model: ModelPatcher) -> ModelPatcher:
    """As DeepCache: a step is computed, the next one is answered with it, told by the noise level and a counter."""
    step, last, kept = -1, -1.0, None

    def cached(function, inputs: dict) -> torch.Tensor:
        nonlocal step, last, kept
        sigma = inputs["timestep"].max().item()
        step = 0 if sigma > last else step + 1
        last = sigma
        if step % 2 == 0:
            kept = call(function, inputs)
        elif kept.shape != inputs["input"].shape:
            raise RuntimeError("Sizes of tensors must match")
        return kept
    return wrapped(cached)(model)


def same_input(model: ModelPatcher) -> ModelPatcher:
    """As TeaCache: for each index a call with nearly the same input is answered with the last one's output."""
    kept = {}

    def cached(function, inputs: dict) -> torch.Tensor:
        index = inputs["cond_or_uncond"]
        rows = inputs["input"].chunk(len(index))
        if all(i in kept and (kept[i][0] - row).abs().mean() < 1e-3 for i, row in zip(index, rows, strict=True)):
            return torch.cat([kept[i][1] for i in index])
        out = call(function, inputs)
        kept.update((i, (row, part)) for i, row, part in zip(index, rows, out.chunk(len(index)), strict=True))
        return out
    return wrapped(cached)(model)


class OnTheNetwork:
    """The same, kept as an attribute of the network, by a wrapper around the network."""

    def __init__(self, network) -> None:
        self.network = network

    def __call__(self, executor, x, *args, **kwargs):
        kept = getattr(self.network, "kept_by_another_pack", None)
        if kept is not None and kept[0].shape == x.shape and (kept[0] - x).abs().mean() < 1e-3:
            return kept[1]
        out = executor(x, *args, **kwargs)
        self.network.kept_by_another_pack = x, out
        return out


def on_the_network(model: ModelPatcher) -> ModelPatcher:
    model, network = model.clone(), model.model.diffusion_model
    vars(network).pop("kept_by_another_pack", None)
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "kept", OnTheNetwork(network))
    return model


def every_second_one(model: ModelPatcher) -> ModelPatcher:
    """Told by the number of calls alone."""
    calls, kept = 0, None

    def cached(function, inputs: dict) -> torch.Tensor:
        nonlocal calls, kept
        calls += 1
        if calls % 2 or kept.shape != inputs["input"].shape:
            kept = call(function, inputs)
        return kept
    return wrapped(cached)(model)


KEPT: dict[tuple, tuple] = {}


def in_the_module(model: ModelPatcher) -> ModelPatcher:
    """A step is answered from memory where it is asked for again; this one is a variable of the pack's module."""
    KEPT.clear()

    def cached(function, inputs: dict) -> torch.Tensor:
        place = tuple(inputs["cond_or_uncond"])
        if place not in KEPT or KEPT[place][0] != float(inputs["timestep"].max()):
            KEPT[place] = float(inputs["timestep"].max()), call(function, inputs)
        return KEPT[place][1]
    return wrapped(cached)(model)


class InTheClass:
    kept: ClassVar[dict[tuple, tuple]] = {}

    def __call__(self, function, inputs: dict) -> torch.Tensor:
        place = tuple(inputs["cond_or_uncond"])
        if place not in InTheClass.kept or InTheClass.kept[place][0] != float(inputs["timestep"].max()):
            InTheClass.kept[place] = float(inputs["timestep"].max()), call(function, inputs)
        return InTheClass.kept[place][1]


def in_the_class(model: ModelPatcher) -> ModelPatcher:
    InTheClass.kept.clear()
    return wrapped(InTheClass())(model)


CACHES = {"every second call": every_second_call, "the same input": same_input, "on the network": on_the_network,
          "every second one": every_second_one, "in the module": in_the_module, "in the class": in_the_class}


@pytest.fixture(autouse=True)
def clean_network():
    yield
    vars(models.sd15().model.diffusion_model).pop("kept_by_another_pack", None)


def separate(model: ModelPatcher, twin: ModelPatcher) -> ModelPatcher:
    """PAG in a call of its own, which goes through the wrapper of a second copy."""
    def post_cfg(args: dict) -> torch.Tensor:
        options = set_model_options_patch_replace(args["model_options"].copy(), identity, "attn1", "middle", 0)
        options["model_function_wrapper"] = twin.model_options["model_function_wrapper"]
        (weak,) = comfy.samplers.calc_cond_batch(args["model"], [args["cond"]], args["input"], args["sigma"], options)
        return args["denoised"] + SCALE * (args["cond_denoised"] - weak)

    model = model.clone()
    model.set_model_sampler_post_cfg_function(post_cfg)
    return model


def sampled(cfg: float = 5.0, **changes) -> Run:
    return Run(**{"cfg": cfg, "steps": 4, "positive": models.conditioning(1), **changes})


@pytest.mark.parametrize("cfg", [1.0, 5.0])
@pytest.mark.parametrize("name", ["every second call", "the same input", "every second one"])
def test_as_with_a_second_copy_of_the_cache(name, cfg):
    run, cache = sampled(cfg), CACHES[name]
    expected = run.ksampler(separate(cache(models.sd15()), cache(models.sd15())))
    result = run.ksampler(patched(cache(models.sd15()), SCALE))
    assert relative_error(result, expected) <= 1e-4
    assert relative_error(result, run.ksampler(cache(models.sd15()))) > 1e-3


@pytest.mark.parametrize("options", [PAGOptions(start_percent=0.4), PAGOptions(end_percent=0.5),
                                     PAGOptions(reuse_every=2)], ids=["late", "early", "reused"])
@pytest.mark.parametrize("cache", CACHES.values(), ids=CACHES)
def test_with_a_range(cache, options):
    run = sampled()
    result = run.ksampler(patched(cache(models.sd15()), SCALE, options=options))
    assert relative_error(result, run.ksampler(cache(models.sd15()))) > 1e-4


def changed_by(change: Callable, out: torch.Tensor, options: dict) -> torch.Tensor:
    return change(out)


COUNTS = {"in single layers": counting(partial(in_forwards, of=".to_out.0"), 5),
          "between blocks": counting(between_blocks, 5), "by hooks, on the network": count_on_the_network,
          "in a partial": counting(lambda model, scaled: model.set_model_attn1_output_patch(
              partial(changed_by, scaled)), 5),
          "in a default": counting(lambda model, scaled: model.set_model_attn1_output_patch(
              lambda out, options, scaled=scaled: scaled(out)), 5),
          "in a private method": counting(in_a_private_method, 5)}


@pytest.mark.parametrize("cache", (CACHES | COUNTS).values(), ids=CACHES | COUNTS)
def test_the_others_remember_what_they_do_without_pag(cache):
    """With a delta of zero weight the picture is the plain one, cached rows and all."""
    run = sampled()
    options = PAGOptions(scale_mask=torch.zeros(1, 8, 12))
    assert relative_error(run.ksampler(patched(cache(models.sd15()), SCALE, options=options)),
                          run.ksampler(cache(models.sd15()))) <= 1e-5


def test_what_fails_for_these_rows_alone_is_named():
    def fails(function, inputs: dict) -> torch.Tensor:
        if len(inputs["cond_or_uncond"]) == 1:
            raise IndexError("list index out of range")
        return call(function, inputs)

    with pytest.raises(RuntimeError, match=r"cannot run together with another node.*fails.*list index out of range"):
        sampled().ksampler(patched(wrapped(fails)(models.sd15()), SCALE))


def feedback(read: str, leave: str) -> Callable[[ModelPatcher], ModelPatcher]:
    """A hook on one module scales by what another one's left in the step before."""
    def attach(model: ModelPatcher) -> ModelPatcher:
        kept = {}
        return with_hooks(model.clone(), {read: lambda out: out * (1.0 + kept.get("mean", 0.0)),
                                          leave: lambda out: kept.update(mean=out.mean().tanh())})
    return attach


@pytest.mark.parametrize("cfg", [1.0, 5.0])
@pytest.mark.parametrize("read", ["input_blocks.1.1.transformer_blocks.0.attn2", "time_embed"])
def test_what_later_blocks_left_for_the_next_step(read, cfg):
    """In the blocks that are shared, and outside all blocks."""
    run, beside = sampled(cfg), feedback(read, "output_blocks.3.0")
    expected, result = (run.model_patch(beside(models.sd15()), SCALE, options=PAGOptions(share_prefix=share))
                        for share in (False, True))
    assert relative_error(run.ksampler(beside(models.sd15())), expected) > 1e-3
    assert relative_error(result, expected) <= 1e-5


def test_hooks_that_count_between_the_blocks():
    """VACE's control blocks run in turn with the blocks, and are left out with them."""
    how = next(how for how in SAMPLED if how.name == "Wan VACE")
    run = of_family(how, 4.0, 1)

    def beside() -> ModelPatcher:
        calls, model = 0, how.build()

        def count(module, args, out: tuple) -> tuple:
            nonlocal calls
            calls += 1
            return (out[0] * (1.0 + 0.05 * (calls % 3)), *out[1:])

        for block in model.model.diffusion_model.vace_blocks:
            block.register_forward_hook(count)
        return model

    expected, result = (run.model_patch(beside(), SCALE, "1", PAGOptions(share_prefix=share))
                        for share in (False, True))
    assert relative_error(result, expected) <= 1e-5


@pytest.mark.parametrize("cfg", [1.0, 5.0])
def test_what_acts_around_the_calls_beside_a_cache_acts_on_every_step(cfg):
    """Also on one that the cache answers."""
    def cached(model: ModelPatcher) -> ModelPatcher:
        calls, kept, model = 0, None, model.clone()

        def answer(executor, *args, **kwargs) -> torch.Tensor:
            nonlocal calls, kept
            calls += 1
            if calls % 2:
                kept = executor(*args, **kwargs)
            return kept

        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "a cache", answer)
        return model

    def scaled(kind: str) -> ModelPatcher:
        def scale(executor, *args, **kwargs):
            out = executor(*args, **kwargs)
            return [1.1 * part for part in out] if isinstance(out, list) else 1.1 * out

        model = models.sd15().clone()
        model.add_wrapper_with_key(kind, "a factor", scale)
        return model

    run = sampled(cfg)
    around_all, around_calls = (run.model_patch(cached(scaled(kind)), SCALE)
                                for kind in (WrappersMP.PREDICT_NOISE, WrappersMP.CALC_COND_BATCH))
    assert relative_error(around_calls, around_all) <= 1e-5


def test_a_method_stays_on_a_network_that_another_wrapper_names():
    """The host puts it there after the run has begun."""
    beside = method_beside_a_wrapper_that_names_the_network
    run = sampled()
    result = run.ksampler(patched(beside(models.sd15.__wrapped__()), SCALE))
    assert relative_error(result, run.ksampler(host_pag(beside(models.sd15()), SCALE))) <= 1e-4


class _Direct(CFGGuider):
    """As ComfyUI-NAG's guider: past the host's PREDICT_NOISE wrappers."""

    def __call__(self, *args, **kwargs):
        return self.predict_noise(*args, **kwargs)


@pytest.mark.parametrize("chain", [1, 2])
def test_a_guider_that_does_not_ask_wrappers(chain, caplog):
    results = []
    for kind in (_Direct, CFGGuider):
        model = models.sd15()
        for layer in ("m0", "output.2")[:chain]:
            model = patched(model, SCALE, layer)
        run, guider = sampled(), kind(model)
        guider.set_conds(run.positive, run.negative)
        guider.set_cfg(5.0)
        results.append(run.advanced(guider))
        assert "predict_noise" not in vars(guider)
    assert torch.equal(*results)
    assert "no effect" not in caplog.text


@pytest.mark.parametrize("options", [PAGOptions(), PAGOptions(share_prefix=False), PAGOptions(start_percent=0.5)],
                         ids=["", "whole pass", "late"])
def test_what_a_node_of_an_earlier_run_had_put_on_the_network_stays_away(options):
    """The host takes it off when it loads the model for the next run."""
    run = Run()
    expected = run.pag_ksampler(attention_kept_for_later(models.sd15.__wrapped__()), SCALE, "m0", options)
    run.ksampler(mean_over_the_batch(models.sd15()))
    found = run.pag_ksampler(attention_kept_for_later(models.sd15()), SCALE, "m0", options)
    assert relative_error(found, expected) < 1e-6
