"""Windows: closed, with exact outer ends."""

import math

import pytest
import torch

from pag_core.schedule import Window, window_from_percent

SIGMA_MAX, SIGMA_MIN = 14.6, 0.03


def percent_to_sigma(percent: float) -> float:
    """A decreasing map like the host's; the test fails if it is asked for an outer end, where the hosts disagree."""
    assert 0.0 < percent < 1.0
    return SIGMA_MAX + percent * (SIGMA_MIN - SIGMA_MAX)


def test_default_window_is_full_and_holds_every_noise_level():
    window = Window()
    assert window.is_full
    assert all(sigma in window for sigma in (0.0, 1e-9, 1.0, SIGMA_MAX, 1e9, math.inf))


def test_both_ends_are_inside():
    window = Window(sigma_start=10.0, sigma_end=2.0)
    assert 10.0 in window
    assert 2.0 in window
    assert 5.0 in window


def test_both_ends_are_inside_as_a_sampler_rounds_them_and_beyond_is_outside():
    window = Window(sigma_start=10.0, sigma_end=2.0)
    for end, outside in ((10.0, 10.001), (2.0, 1.9998)):
        rounded = float(torch.tensor(end, dtype=torch.float32))
        assert math.nextafter(rounded, math.inf) in window
        assert math.nextafter(rounded, 0.0) in window
        assert outside not in window


def test_not_a_number_is_in_no_window():
    assert math.nan not in Window()


def test_whole_run_is_full():
    assert window_from_percent(0.0, 1.0, percent_to_sigma).is_full


@pytest.mark.parametrize("sigma", [SIGMA_MAX, 2 * SIGMA_MAX, 1e6])
def test_start_0_admits_the_first_step_whatever_its_sigma(sigma):
    assert sigma in window_from_percent(0.0, 0.5, percent_to_sigma)


@pytest.mark.parametrize("sigma", [SIGMA_MIN, 1e-6, 0.0])
def test_end_1_admits_the_last_step_whatever_its_sigma(sigma):
    assert sigma in window_from_percent(0.5, 1.0, percent_to_sigma)


@pytest.mark.parametrize(("start", "end"), [(0.0, 0.5), (0.5, 1.0), (0.25, 0.75)])
def test_a_part_of_the_run_is_not_full(start, end):
    assert not window_from_percent(start, end, percent_to_sigma).is_full


def test_inner_ends_are_the_models_own_sigmas():
    window = window_from_percent(0.25, 0.75, percent_to_sigma)
    assert window == Window(sigma_start=percent_to_sigma(0.25), sigma_end=percent_to_sigma(0.75))


def test_neighbouring_windows_share_exactly_their_common_end():
    first = window_from_percent(0.0, 0.5, percent_to_sigma)
    second = window_from_percent(0.5, 1.0, percent_to_sigma)
    shared = percent_to_sigma(0.5)
    assert shared in first
    assert shared in second
    for sigma in (20.0, SIGMA_MAX, 1.0001 * shared, 0.9999 * shared, SIGMA_MIN, 0.0):
        assert (sigma in first) is (sigma > shared)
        assert (sigma in second) is (sigma < shared)


def test_ends_are_plain_numbers_whatever_the_model_gives():
    class Tensor:  # like torch's 0-d tensors: converts to float
        def __float__(self) -> float:
            return 3.0

    window = window_from_percent(0.5, 1.0, lambda percent: Tensor())
    assert type(window.sigma_start) is float
    assert 3.0 in window
