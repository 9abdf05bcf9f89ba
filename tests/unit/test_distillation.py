"""Score distillation's formula against its definition, and against a case whose answer is known."""

import pytest
import torch

from pag_core.checks import SettingError
from pag_core.distillation import LEAST, MOST, ORDERS, WEIGHTINGS, distillation_gradient, noise_levels

LEVELS = {"noise prediction": (1.0, 2.5), "variance-preserving": (0.6, 0.8), "flow": (0.3, 0.7)}
levels = pytest.mark.parametrize(("a", "b"), LEVELS.values(), ids=LEVELS)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@levels
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_it_is_the_weighted_error_of_the_guessed_noise(a, b, weighting):
    x, epsilon, guess = (noise(2, 3, 4, 4, seed=seed) for seed in range(3))
    x0 = (a * x + b * epsilon - b * guess) / a  # of a model that guesses this noise
    alpha_bar = a * a / (a * a + b * b)
    weight = 1.0 - alpha_bar if weighting == "sigma_squared" else 1.0
    torch.testing.assert_close(distillation_gradient(x, x0, a, b, weighting), weight * (guess - epsilon))


def gaussian_prediction(noisy: torch.Tensor, a: float, b: float, mean: float, std: float) -> torch.Tensor:
    """The best guess of x from a·x + b·ε where x comes from N(mean, std²)."""
    return mean + a * std ** 2 / (a * a * std ** 2 + b * b) * (noisy - a * mean)


@levels
def test_a_perfect_denoiser_of_a_gaussian(a, b):
    """The average over the noise is w·a·b / (a²·std² + b²)·(x − mean)."""
    mean, std, n = 0.7, 0.5, 200_000
    x = torch.full((n, 1), -1.3, dtype=torch.float64)
    x0 = gaussian_prediction(a * x + b * noise(n, 1), a, b, mean, std)
    average = distillation_gradient(x, x0, a, b, "uniform").mean()
    torch.testing.assert_close(average.item(), a * b / (a * a * std ** 2 + b * b) * (-1.3 - mean), rtol=0.02, atol=0.0)


@pytest.mark.parametrize("order", ORDERS)
def test_descending_it_finds_the_mode(order):
    mean, std = 0.7, 0.5
    x = noise(1, 64, seed=1)
    for step, t in enumerate(noise_levels(2000, 0.02, 0.98, order, 0)):
        x0 = gaussian_prediction((1 - t) * x + t * noise(1, 64, seed=step), 1 - t, t, mean, std)
        x = x - 0.02 * distillation_gradient(x, x0, 1 - t, t, "sigma_squared")
    assert (x - mean).abs().max() < 0.25 < std, "and not a sample of the distribution"


def test_a_model_without_noise_is_refused():
    with pytest.raises(ValueError, match="does not add noise"):
        distillation_gradient(noise(1, 1), noise(1, 1), 1.0, 0.0, "uniform")


def test_annealed_levels_go_from_noise_to_the_picture():
    assert noise_levels(5, 0.1, 0.9, "annealed", 3) == pytest.approx([0.9, 0.7, 0.5, 0.3, 0.1])
    assert noise_levels(1, 0.1, 0.9, "annealed", 3) == [0.9]


def test_random_levels_cover_the_range_and_belong_to_the_seed():
    drawn = noise_levels(2000, 0.02, 0.98, "random", 3)
    assert drawn == noise_levels(2000, 0.02, 0.98, "random", 3) != noise_levels(2000, 0.02, 0.98, "random", 4)
    firsts = [noise_levels(1, 0.02, 0.98, "random", seed)[0] for seed in range(2000)]  # as a renderer's loop draws them
    for values in (drawn, firsts):
        counts = torch.histc(torch.tensor(values), 8, 0.02, 0.98)
        assert counts.sum() == 2000
        assert counts.min() > 180
    assert noise_levels(2, 0.5, 0.5, "random", 0) == [0.5, 0.5]


@pytest.mark.parametrize(("values", "message"), [
    ((0.6, 0.4, "random"), r"min_step_percent \(0\.6\) must not exceed max_step_percent \(0\.4\)"),
    ((0.0, 0.4, "random"), r"min_step_percent must be a number from 0\.001 to 0\.999, got 0\.0"),
    ((0.1, 1.0, "random"), "max_step_percent must"),
    ((float("nan"), 0.4, "random"), "min_step_percent must"),
    ((LEAST, MOST, "upwards"), "order must be one of annealed, random; got 'upwards'"),
])
def test_bad_levels_are_named(values, message):
    with pytest.raises(SettingError, match=message):
        noise_levels(3, *values, seed=0)
