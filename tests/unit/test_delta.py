"""The rules on the delta against their papers' formulas, written out for one sample at a time in fp64."""

import math

import pytest
import torch
import torch.nn.functional as F

from pag_core.delta import MEMORY, DeltaRules, History, along, damped, low_frequencies, shaped, split, tangential

SHAPES = {"picture": (3, 4, 9, 7), "video": (2, 4, 3, 8, 6), "sound": (2, 8, 40)}
SCALE = 2.5
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def tensors(shape, count: int = 3, dtype=torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


@shapes
@pytest.mark.parametrize("has_origin", [False, True])
def test_damping_is_mambo_gs_for_each_sample(shape, has_origin):
    cond, perturbed, origin = tensors(shape)
    result = damped((cond - perturbed) * SCALE, perturbed, 8.0, SCALE, origin if has_origin else None)
    for n in range(shape[0]):
        output = perturbed[n] - origin[n] if has_origin else perturbed[n]
        ratio = (cond[n] - perturbed[n]).norm() / output.norm()
        expected = SCALE * math.exp(-8.0 * ratio) * (cond[n] - perturbed[n])
        torch.testing.assert_close(result[n], expected, rtol=1e-4, atol=1e-9)


@shapes
def test_the_low_frequencies_are_a_blur_of_the_last_two_axes(shape):
    (x,) = tensors(shape, 1)
    taps = torch.tensor([1.0, 4, 6, 4, 1], dtype=torch.float64) / 16
    if len(shape) == 3:
        flat, kernel, pad, convolve = x.reshape(-1, 1, shape[-1]), taps[None, None], (2, 2), F.conv1d
    else:
        flat, kernel = x.reshape(-1, 1, *shape[-2:]), torch.outer(taps, taps)[None, None]
        pad, convolve = (2, 2, 2, 2), F.conv2d
    for _ in range(2):
        flat = convolve(F.pad(flat, pad, mode="reflect"), kernel)
    torch.testing.assert_close(low_frequencies(x), flat.view(shape), rtol=0, atol=1e-5)


def test_the_split_is_close_to_that_of_the_papers_laplacian_pyramid():
    """Of two levels: the coarse one is blurred, halved, doubled and blurred again. Pictures have a spectrum of 1/f."""
    spectrum = torch.fft.rfft2(torch.randn(4, 4, 64, 64, generator=torch.Generator().manual_seed(0)))
    frequency = torch.hypot(torch.fft.fftfreq(64)[:, None], torch.fft.rfftfreq(64)[None])
    delta = torch.fft.irfft2(spectrum / frequency.clamp_min(1 / 64), s=(64, 64))
    taps = torch.tensor([1.0, 4, 6, 4, 1]) / 16

    def blurred(x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), torch.outer(taps, taps)[None, None])

    half = F.interpolate(blurred(delta.view(16, 1, 64, 64)), scale_factor=0.5, mode="bilinear")
    coarse = blurred(F.interpolate(half, scale_factor=2, mode="bilinear")).view_as(delta)
    expected = delta - 0.5 * coarse
    assert (split(delta, 0.5) - expected).norm() < 0.05 * expected.norm()


@shapes
@pytest.mark.parametrize("low", [0.0, 0.3, 1.0, 2.0])
def test_the_split_scales_coarse_and_fine_parts_apart(shape, low):
    (delta,) = tensors(shape, 1)
    coarse = low_frequencies(delta)
    torch.testing.assert_close(split(delta, low), low * coarse + (delta - coarse), rtol=0, atol=1e-9)


@shapes
@pytest.mark.parametrize("amount", [0.0, 1.0, 1.15, 3.0])
def test_tangential_is_tags_projection_for_each_sample(shape, amount):
    delta, x = tensors(shape, 2)
    result = tangential(delta, x, amount)
    for n in range(shape[0]):
        unit = x[n].flatten() / x[n].norm()
        projection = torch.outer(unit, unit)
        eye = torch.eye(len(unit), dtype=torch.float64)
        expected = (projection + amount * (eye - projection)) @ delta[n].flatten()
        torch.testing.assert_close(result[n].flatten(), expected, rtol=0, atol=1e-5)


def test_what_is_along_x_is_parallel_to_it_and_the_rest_is_orthogonal():
    delta, x = tensors(SHAPES["picture"], 2)
    part = along(delta, x)
    for n in range(3):
        assert abs(F.cosine_similarity(part[n].flatten(), x[n].flatten(), dim=0)) == pytest.approx(1, abs=1e-6)
        assert float(((delta - part)[n] * x[n]).sum()) == pytest.approx(0, abs=1e-4)


@shapes
def test_momentum_is_the_distance_to_the_average_of_the_earlier_steps(shape):
    """m₀ = D₀, mₖ₊₁ = β·mₖ + (1 − β)·Dₖ, and step k adds w·(Dₖ − mₖ) (MG's Eq. 12 and 13, for D instead of v)."""
    predictions, history = tensors(shape, 5), History()
    mean = predictions[0]
    for step, cond in enumerate(predictions):
        torch.testing.assert_close(history.momentum(cond, 5.0 - step), cond - mean, rtol=0, atol=1e-12)
        mean = MEMORY * mean + (1 - MEMORY) * cond


@pytest.mark.parametrize(("shape", "sigma"), [((2, 4, 8, 8), 0.5), ((1, 4, 8, 8), 2.0)], ids=["shape", "more noise"])
def test_after_a_jump_a_new_history_begins(shape, sigma):
    history = History()
    history.momentum(torch.ones(1, 4, 8, 8), 1.0)
    assert not history.momentum(torch.zeros(shape), sigma).any()


def test_rounding_of_the_noise_level_is_no_jump():
    """dpm_2_ancestral stops between two steps where the next one begins but for rounding."""
    history = History()
    history.momentum(torch.zeros(1, 4, 8, 8), 1.0)
    assert history.momentum(torch.ones(1, 4, 8, 8), 1.0 + 1e-6).all()


def test_the_rules_follow_one_another():
    delta, cond, perturbed, x, origin, earlier = tensors(SHAPES["picture"], 6)
    histories = History(), History()
    for history in histories:
        history.momentum(earlier, 2.0)
    expected = damped(delta, perturbed, 8.0, SCALE, origin) + 0.5 * histories[0].momentum(cond, 1.0)
    expected = tangential(split(expected, 0.4), x, 1.2)
    result = shaped(delta, cond, perturbed, x, DeltaRules(8.0, 0.5, 0.4, 1.2), scale=SCALE, sigma=1.0,
                    history=histories[1], origin=origin)
    assert torch.equal(result, expected)
    assert shaped(delta, cond, perturbed, x, DeltaRules(), scale=SCALE, sigma=1.0, history=History()) is delta


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rules_keep_the_dtype_and_stay_finite(dtype):
    delta, x = tensors(SHAPES["picture"], 2, dtype)
    for result in (damped(delta, x, 8.0, 1.0), split(delta, 0.5), tangential(delta, x, 2.0), History().momentum(x, 1.0),
                   damped(delta, torch.zeros_like(x), 8.0, 1.0), tangential(delta, torch.zeros_like(x), 2.0)):
        assert result.dtype == dtype
        assert result.isfinite().all()


@shapes
def test_neutral_values_change_nothing(shape):
    delta, x = tensors(shape, 2)
    assert torch.equal(damped(delta, x, 0.0, 1.0), delta)
    assert torch.equal(split(delta, 1.0), delta)
    assert torch.equal(tangential(delta, x, 1.0), delta)
