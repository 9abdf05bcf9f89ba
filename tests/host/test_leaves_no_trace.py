"""A run leaves the model, the patched model and the host as they were, also where it is cut short."""

import comfy.model_management
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from pag_pack.nodes.guidance import PAGGuider

from . import models
from .runs import WAYS, Run, patched, snapshot

SCALE = 3.0
ways = pytest.mark.parametrize("sample", WAYS.values(), ids=WAYS)
families = pytest.mark.parametrize("family", [models.sd15, models.flux], ids=["U-Net", "transformer"])


def hooks(model) -> int:
    """Number of hooks on the network's modules."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks)
               for module in model.model.diffusion_model.modules())


@ways
@families
def test_the_given_model_is_never_changed(family, sample):
    run = Run()
    model = family()
    plain = run.ksampler(model)
    before = snapshot(model)
    sample(run, model, SCALE, "auto")
    assert snapshot(model) == before
    assert hooks(model) == 0
    assert torch.equal(run.ksampler(model), plain)


@families
def test_a_run_leaves_nothing_behind_in_the_patched_model(family):
    run = Run()
    model = patched(family(), SCALE, "auto")
    before = snapshot(model)
    first = run.ksampler(model)
    assert snapshot(model) == before
    assert torch.equal(run.ksampler(model), first)


@families
def test_a_clone_of_a_patched_model_samples_alike(family):
    run = Run()
    model = patched(family(), SCALE, "auto")
    assert torch.equal(run.ksampler(model.clone()), run.ksampler(model))


@families
def test_a_guider_can_be_used_twice(family):
    run = Run()
    guider = PAGGuider.execute(family(), run.positive, run.negative, run.cfg, SCALE, "auto").result[0]
    options = dict(guider.model_options)
    first = run.advanced(guider)
    assert guider.model_options == options
    assert torch.equal(run.advanced(guider), first)


def at_call(model, number: int, action):
    """A clone of the model that acts once, in the middle of its call with that number."""
    calls = []

    def inside(executor, *args, **kwargs):
        calls.append(None)
        if len(calls) == number:
            action()
        return executor(*args, **kwargs)

    model = model.clone()
    # Beside ours, in the innermost of the host's places for wrappers.
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "at call", inside)
    return model


class BrokenError(Exception):
    pass


def fail() -> None:
    raise BrokenError


@pytest.mark.in_turn("sample")
@ways
@families
@pytest.mark.parametrize(("action", "error"), [
    (fail, BrokenError),
    (comfy.model_management.interrupt_current_processing, comfy.model_management.InterruptProcessingException),
], ids=["exception", "interrupt"])
def test_a_run_cut_short_leaves_no_trace_and_the_next_one_is_right(family, sample, action, error):
    run = Run()
    model = family()
    plain, guided = run.ksampler(model), sample(run, model, SCALE, "auto")
    before = snapshot(model)
    with pytest.raises(error):
        sample(run, at_call(model, 2, action), SCALE, "auto")
    assert snapshot(model) == before
    assert hooks(model) == 0
    assert not comfy.model_management.processing_interrupted()
    assert torch.equal(run.ksampler(model), plain)
    assert torch.equal(sample(run, model, SCALE, "auto"), guided)


@families
def test_a_patched_model_cut_short_samples_again(family):
    run = Run()
    model = patched(at_call(family(), 2, fail), SCALE, "auto")
    with pytest.raises(BrokenError):
        run.ksampler(model)
    never = patched(at_call(family(), 0, fail), SCALE, "auto")
    assert torch.equal(run.ksampler(model), run.ksampler(never))
