"""Gradients through the host's models, as it loads them: exact, without a trace, in bounded memory."""

from __future__ import annotations

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sampler_helpers
import comfy.samplers
import pytest
import torch
from pag_pack.nodes.host.research.gradients import (
    GradientError,
    OverwritingError,
    blocks,
    differentiable,
    gradient,
    ordinary,
)
from torch.autograd.graph import saved_tensors_hooks

from . import models

SIGMA = 2.0


def as_loaded(family, dtype: torch.dtype = torch.float32) -> comfy.model_base.BaseModel:
    """A model whose weights are inference tensors, as those are that a node loads.

    Args:
        dtype: of the weights; computing is in fp32.
    """
    template = family().model
    config = template.model_config
    inference = (config.unet_config.get("dtype"), config.manual_cast_dtype)
    config.set_inference_dtype(dtype, torch.float32 if dtype != torch.float32 else None)
    try:
        model = type(template)(config, model_type=template.model_type)
    finally:
        config.set_inference_dtype(*inference)
    model.diffusion_model.load_state_dict(template.diffusion_model.state_dict())
    assert all(weight.is_inference() for weight in model.parameters())
    model.current_patcher = comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
    return model


def problem(model, channels: int = 4):
    """x [1, C, 8, 8] and a function of x0 [B], both ordinary tensors in spite of the inference mode around."""
    conds = {"positive": comfy.sampler_helpers.convert_cond(models.conditioning(1))}
    noise = torch.zeros(1, channels, 8, 8)
    conds = comfy.samplers.process_conds(model, noise, conds, torch.device("cpu"))["positive"]
    with torch.inference_mode(False):
        x, target = (torch.randn(1, channels, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
        conds = ordinary(conds)
        sigma = torch.tensor([SIGMA])

    def energy(x):
        (x0,) = comfy.samplers.calc_cond_batch(model, [conds], SIGMA * x, sigma, {"transformer_options": {}})
        return (x0 * target).flatten(1).sum(1)

    return x, energy


def slopes(energy, x, gradient, step: float = 1e-2) -> list[tuple[float, float]]:
    """(by finite differences, by the gradient) along a few directions, the gradient's own among them."""
    found = []
    for direction in (gradient, torch.roll(gradient, 1, -1), gradient.sign()):
        direction = direction / direction.norm()
        ends = [float(energy(x + sign * step * direction)) for sign in (1, -1)]
        found.append(((ends[0] - ends[1]) / (2 * step), float((gradient * direction).sum())))
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", [models.sd15, models.sd2, models.sdxl])
def test_gradients_agree_with_finite_differences(family, dtype):
    model = as_loaded(family, dtype)
    x, energy = problem(model)
    with differentiable([model.diffusion_model], x.device):
        found = gradient(energy, x, "the model")
    pairs = slopes(energy, x, found)
    scale = max(abs(expected) for expected, _ in pairs)
    assert all(abs(expected - slope) < 1e-2 * scale for expected, slope in pairs), pairs


@pytest.mark.parametrize("family", [models.sd15, models.sdxl])
def test_checkpointing_gives_the_same_gradient_and_keeps_less(family):
    model = as_loaded(family)
    x, energy = problem(model)
    gradients, kept = [], []
    for checkpointing in (False, True):
        sizes = {}

        def pack(tensor, sizes=sizes):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        def watched(x, pack=pack):
            with saved_tensors_hooks(pack, lambda t: t):
                return energy(x)

        weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        with differentiable([model.diffusion_model], x.device, checkpointing):
            gradients.append(gradient(watched, x, "the model"))
        kept.append(sum(size for place, size in sizes.items() if place not in weights))
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-4)
    assert kept[1] < 0.5 * kept[0], kept


def test_nothing_is_left_behind():
    model = as_loaded(models.sd15)
    network = model.diffusion_model

    def state() -> list:
        return [(id(module), sorted(vars(module)), [id(weight) for weight in module.parameters(recurse=False)],
                 [id(buffer) for buffer in module.buffers(recurse=False)]) for module in network.modules()]

    x, energy = problem(model)
    before, values = state(), {name: weight.clone() for name, weight in network.state_dict().items()}
    with differentiable([network], x.device, checkpointing=True):
        assert state() != before
        gradient(energy, x, "the model")
    assert state() == before
    with pytest.raises(ZeroDivisionError), differentiable([network], x.device, checkpointing=True):
        raise ZeroDivisionError
    assert state() == before
    assert all(torch.equal(weight, values[name]) for name, weight in network.state_dict().items())
    assert torch.is_inference_mode_enabled()


def test_no_weight_is_copied():
    model = as_loaded(models.sd15)
    places = [weight.data_ptr() for weight in model.parameters()]
    with differentiable([model.diffusion_model], torch.device("cpu")):
        assert [weight.data_ptr() for weight in model.parameters()] == places
        assert not any(weight.is_inference() or weight.requires_grad for weight in model.parameters())


def test_blocks_are_those_that_the_network_calls():
    kinds = {type(block).__name__ for block in blocks(models.sd15().model.diffusion_model)}
    assert {"ResBlock", "SpatialTransformer"} <= kinds
    assert not {"Sequential", "TimestepEmbedSequential"} & kinds


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_network_that_overwrites_what_autograd_needs_is_noticed(checkpointing):
    """Flux adds in place. No gradient is better than a wrong one."""
    model = as_loaded(models.flux)
    x, energy = problem(model, channels=16)
    with differentiable([model.diffusion_model], x.device, checkpointing), pytest.raises(
            OverwritingError, match=r"Flux gives no gradient: .*inplace operation"):
        gradient(energy, x, "Flux")


def test_copies_of_what_is_overwritten_make_the_gradient_right():
    model = as_loaded(models.flux)
    x, energy = problem(model, channels=16)
    with differentiable([model.diffusion_model], x.device):
        found = gradient(energy, x, "Flux", overwriting=True)
    pairs = slopes(energy, x, found)
    scale = max(abs(expected) for expected, _ in pairs)
    assert all(abs(expected - slope) < 1e-2 * scale for expected, slope in pairs), pairs


def test_what_is_overwritten_is_not_mistaken_for_what_comes_later_at_its_address():
    def energy(x, overwrite: bool):
        total = 0.0
        for i in range(1, 40):
            h = x * i
            total = total + h.sin().sum((1, 2, 3))
            h = h.mul_(0.5) if overwrite else h * 0.5
            total = total + h.square().sum((1, 2, 3))
        return total

    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    with differentiable([], x.device):
        expected = gradient(lambda x: energy(x, False), x, "it")
        with pytest.raises(OverwritingError):
            gradient(lambda x: energy(x, True), x, "it")
        torch.testing.assert_close(gradient(lambda x: energy(x, True), x, "it", overwriting=True), expected)


def test_a_block_that_overwrites_its_input_cannot_be_computed_twice():
    model = as_loaded(models.flux)
    x, energy = problem(model, channels=16)
    with differentiable([model.diffusion_model], x.device, True), pytest.raises(
            OverwritingError, match="requires checkpointing to be off"):
        gradient(energy, x, "Flux", overwriting=True)


@pytest.mark.parametrize("family", [models.sd15, models.sdxl])
def test_copies_change_nothing_where_nothing_is_overwritten(family):
    model = as_loaded(family)
    x, energy = problem(model)
    with differentiable([model.diffusion_model], x.device):
        torch.testing.assert_close(gradient(energy, x, "it", True), gradient(energy, x, "it"), rtol=1e-4, atol=2e-5)


def test_a_model_without_gradient_is_named():
    model = models.strange().model
    x = torch.zeros(1, 4, 8, 8)
    with differentiable([model.diffusion_model], x.device), pytest.raises(
            GradientError, match=r"StrangeModel gives no gradient.*Remove patches of other nodes"):
        gradient(lambda x: model.diffusion_model(x.detach()).flatten(1).sum(1), x, "StrangeModel")


def test_a_gradient_that_is_not_finite_is_named():
    with differentiable([], torch.device("cpu")), pytest.raises(GradientError, match=r"not finite.*smaller steps"):
        gradient(lambda x: x.flatten(1).sum(1) * float("inf"), torch.ones(1, 3), "it")


def test_memory_that_runs_out_is_named(monkeypatch):
    def energy(x):
        raise comfy.model_management.OOM_EXCEPTION("CUDA out of memory")

    with differentiable([], torch.device("cpu")), pytest.raises(GradientError, match="Turn checkpointing on"):
        gradient(energy, torch.ones(1, 3), "it")
