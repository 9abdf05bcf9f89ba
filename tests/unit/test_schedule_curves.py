"""The scale over a run: progress from sigma on the maps that models have, and the curves over it."""

import math

import pytest

from pag_core.checks import SettingError
from pag_core.schedule import SCHEDULES, ScaleSchedule, Window, percent_from_sigma, scale_at, window_from_percent

# As hosts define them, their odd answers at 0 and 1 included.
BETAS = [(0.00085**0.5 + i / 999 * (0.012**0.5 - 0.00085**0.5)) ** 2 for i in range(1000)]
_ALPHAS = [math.prod(1 - beta for beta in BETAS[:i + 1]) for i in range(1000)]
LOG_SIGMAS = [0.5 * math.log((1 - a) / a) for a in _ALPHAS]


def discrete(percent: float) -> float:
    """Stable Diffusion's 1000 noise levels, interpolated in log sigma."""
    if percent <= 0.0:
        return 999999999.9
    if percent >= 1.0:
        return 0.0
    t = (1.0 - percent) * 999.0
    low = math.floor(t)
    share = t - low
    return math.exp((1 - share) * LOG_SIGMAS[low] + share * LOG_SIGMAS[math.ceil(t)])


def edm(percent: float) -> float:
    """Continuous EDM, log-linear from 700 to 0.002 (SVD)."""
    if percent <= 0.0:
        return 999999999.9
    if percent >= 1.0:
        return 0.0
    return math.exp(math.log(700.0) * (1 - percent) + math.log(0.002) * percent)


def flow(shift: float):
    def percent_to_sigma(percent: float) -> float:
        if percent <= 0.0:
            return 1.0
        if percent >= 1.0:
            return 0.0
        t = 1.0 - percent
        return shift * t / (1 + (shift - 1) * t)

    return percent_to_sigma


MAPS = {"discrete": discrete, "EDM": edm, "flow": flow(1.0), "flow, shift 3": flow(3.0), "flow, shift 12": flow(12.0)}
maps = pytest.mark.parametrize("percent_to_sigma", MAPS.values(), ids=MAPS)


@maps
@pytest.mark.parametrize("percent", [0.001, 0.02, 0.25, 0.5, 0.6, 0.75, 0.98, 0.999])
def test_progress_is_the_inverse_of_the_models_map(percent_to_sigma, percent):
    assert percent_from_sigma(percent_to_sigma(percent), percent_to_sigma) == pytest.approx(percent, abs=1e-8)


@maps
def test_progress_is_exact_at_both_ends_and_beyond(percent_to_sigma):
    largest, smallest = percent_to_sigma(1e-12), percent_to_sigma(1 - 1e-12)
    for sigma in (largest, 2 * largest, 1e12, math.inf, percent_to_sigma(0.0)):
        assert percent_from_sigma(sigma, percent_to_sigma) == 0.0
    for sigma in (smallest, smallest / 2, 0.0, percent_to_sigma(1.0)):
        assert percent_from_sigma(sigma, percent_to_sigma) == 1.0


@maps
def test_progress_never_falls_while_the_noise_does(percent_to_sigma):
    progress = [percent_from_sigma(percent_to_sigma(i / 50), percent_to_sigma) for i in range(51)]
    assert progress == sorted(progress)
    assert progress[0] == 0.0
    assert progress[-1] == 1.0


def test_maps_that_answer_with_tensors_or_in_single_precision_work():
    torch = pytest.importorskip("torch")

    def in_steps(percent: float):  # many neighbouring percents share a number
        return torch.tensor(edm(round(percent, 3)), dtype=torch.float32)

    assert percent_from_sigma(edm(0.3), in_steps) == pytest.approx(0.3, abs=1e-3)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("progress", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_scale_stays_between_0_and_itself(schedule, progress):
    for adaptive_scale in (0.0, 0.001, 0.5, 1.0):
        assert 0.0 <= scale_at(3.0, schedule, progress, adaptive_scale=adaptive_scale) <= 3.0


@pytest.mark.parametrize(("schedule", "values"), [
    ("constant", (3.0, 3.0, 3.0, 3.0)),
    ("linear", (3.0, 2.25, 1.5, 0.0)),
    ("cosine", (3.0, 1.5 + 1.5 * math.cos(math.pi / 4), 1.5, 0.0)),
    ("linear_up", (0.0, 0.75, 1.5, 3.0)),
    ("cosine_up", (0.0, 1.5 - 1.5 * math.cos(math.pi / 4), 1.5, 3.0)),
])
def test_curves_run_between_the_windows_ends(schedule, values):
    for position, value in zip((0.0, 0.25, 0.5, 1.0), values, strict=True):
        progress = 0.2 + position * 0.4
        assert scale_at(3.0, schedule, progress, start=0.2, end=0.6) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("t", [0, 1, 250, 500, 981, 999])
@pytest.mark.parametrize("a", [0.0, 0.001, 0.003, 0.01])
def test_adaptive_rules_are_their_authors_on_a_model_of_1000_timesteps(t, a):
    """diffusers: s − a·(1000 − t); pamparamm: s − s·a⁴·(1000 − t); both at least 0."""
    s = 3.0
    progress = percent_from_sigma(math.exp(LOG_SIGMAS[t]), discrete)
    assert scale_at(s, "adaptive_diffusers", progress, adaptive_scale=a) == pytest.approx(max(s - a * (1000 - t), 0.0),
                                                                                          abs=2e-5)
    a = a * 40
    assert scale_at(s, "adaptive_pamparamm", progress, adaptive_scale=a) == pytest.approx(
        max(s - s * a**4 * (1000 - t), 0.0), abs=2e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_means_the_same_on_every_model(schedule):
    """At the same share of the run the scale is the same, whatever the noise level or timestep is called there."""
    window = (0.1, 0.9)
    schedules = [ScaleSchedule(3.0, window_from_percent(*window, own), own, schedule, adaptive_scale=0.002)
                 for own in MAPS.values()]
    for percent in (0.1, 0.3, 0.6, 0.9):
        scales = [one.scale_at(own(percent)) for one, own in zip(schedules, MAPS.values(), strict=True)]
        assert scales == pytest.approx([scales[0]] * len(scales), abs=1e-6)


@maps
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_outside_the_window_the_scale_is_0(percent_to_sigma, schedule):
    one = ScaleSchedule(3.0, window_from_percent(0.3, 0.6, percent_to_sigma), percent_to_sigma, schedule)
    assert one.scale_at(percent_to_sigma(0.29)) == 0.0
    assert one.scale_at(percent_to_sigma(0.61)) == 0.0
    assert one.scale_at(percent_to_sigma(0.45)) > 0.0
    assert not one.is_constant


@maps
def test_first_and_last_step_of_a_whole_run_are_covered(percent_to_sigma):
    for schedule, first, last in (("constant", 3.0, 3.0), ("linear", 3.0, 0.0), ("cosine_up", 0.0, 3.0)):
        one = ScaleSchedule(3.0, Window(), percent_to_sigma, schedule)
        assert one.scale_at(percent_to_sigma(1e-12)) == first
        assert one.scale_at(percent_to_sigma(1 - 1e-12)) == last


def test_a_window_in_sigma_bends_the_curve_to_its_ends():
    one = ScaleSchedule(3.0, Window(edm(0.2), edm(0.6)), edm, "linear")
    assert one.scale_at(edm(0.4)) == pytest.approx(1.5, abs=1e-6)
    assert one.scale_at(edm(0.2)) == pytest.approx(3.0, abs=1e-6)


@pytest.mark.parametrize(("schedule", "adaptive_scale", "constant"), [
    ("constant", 0.0, True), ("constant", 0.5, True), ("adaptive_diffusers", 0.0, True),
    ("adaptive_pamparamm", 0.0, True), ("adaptive_diffusers", 1e-3, False), ("linear", 0.0, False)])
def test_a_constant_scale_says_so(schedule, adaptive_scale, constant):
    assert ScaleSchedule(3.0, Window(), discrete, schedule, adaptive_scale).is_constant is constant
    assert not ScaleSchedule(3.0, Window(sigma_end=0.1), discrete, schedule, adaptive_scale).is_constant


def test_intersection_of_windows():
    assert Window(10.0, 2.0).intersection(Window()) == Window(10.0, 2.0)
    assert Window(10.0, 2.0).intersection(Window(5.0, 0.0)) == Window(5.0, 2.0)
    assert Window(10.0, 2.0).intersection(Window(2.0, 1.0)) == Window(2.0, 2.0)


def test_windows_without_a_common_noise_level_are_refused_with_both():
    with pytest.raises(SettingError, match=r"10 to 2.*1 to 0.*Widen"):
        Window(10.0, 2.0).intersection(Window(1.0, 0.0))
