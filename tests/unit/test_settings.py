"""Settings refuse every bad value with an error that names it."""

import dataclasses
import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from pag_core.checks import SettingError, check_percent_range, check_range
from pag_core.guidance import RESCALE_MODES
from pag_core.perturbation import KINDS, MAX_SEED, Perturbation
from pag_core.schedule import ADAPTIVE_SCHEDULES, SCHEDULES, Window
from pag_core.settings import MAX_SCALE, MAX_SIGMA, PAGOptions, PAGSettings

NO_NUMBERS = [math.nan, math.inf, -math.inf, True, False, "0.5", None, [0.5], 0.5j]
SHARES = ["strength", "start_percent", "end_percent", "rescale", "perturbation_rate", "adaptive_scale"]


def short(value) -> str:
    return repr(value)[:8]


@pytest.mark.parametrize("value", [*NO_NUMBERS, -0.01, 1.01, -5, 10**400], ids=short)
@pytest.mark.parametrize("name", SHARES)
def test_options_refuse_a_bad_share_by_name(name, value):
    with pytest.raises(SettingError, match=f"^{name} must"):
        PAGOptions(**{name: value})


@pytest.mark.parametrize("value", [*NO_NUMBERS, -0.01, -5, MAX_SCALE + 0.1, 1e30, 10**400], ids=short)
def test_settings_refuse_a_bad_scale_by_name(value):
    with pytest.raises(SettingError, match=r"^PAG scale must"):
        PAGSettings(value)


@pytest.mark.parametrize(("value", "quoted"), [(math.nan, "nan"), (-0.25, "-0.25"), (1.5, "1.5"), ("0.5", "'0.5'"),
                                               (True, "True"), (None, "None")])
def test_error_quotes_the_value_and_the_range(value, quoted):
    with pytest.raises(SettingError) as error:
        check_range("strength", value, 0.0, 1.0)
    assert quoted in str(error.value)
    assert "0" in str(error.value)
    assert "1" in str(error.value)


@pytest.mark.parametrize("value", [0, 1, 0.0, 1.0, 0.5, 1e-300])
def test_range_includes_its_ends_and_takes_integers(value):
    check_range("strength", value, 0.0, 1.0)


@pytest.mark.parametrize("scale", [0, 0.0, 3.0, 100, MAX_SCALE])
def test_scales_of_the_paper_are_accepted(scale):
    assert PAGSettings(scale).scale == scale


@pytest.mark.parametrize(("start", "end"), [(0.5, 0.5), (0.6, 0.4), (0.0, 0.0), (1.0, 1.0), (1.0, 0.0)])
def test_empty_and_backward_windows_are_refused_with_both_ends_and_a_remedy(start, end):
    with pytest.raises(SettingError) as error:
        PAGOptions(start_percent=start, end_percent=end)
    for expected in (f"start_percent ({start:g})", f"end_percent ({end:g})", "scale to 0"):
        assert expected in str(error.value)


def test_percent_range_names_the_inputs_it_was_given():
    with pytest.raises(SettingError, match=r"cfg_start_percent \(0.7\).*cfg_end_percent \(0.3\)"):
        check_percent_range("cfg_start_percent", 0.7, "cfg_end_percent", 0.3)


@pytest.mark.parametrize("value", [*NO_NUMBERS, -0.01, 10**400], ids=lambda value: str(value)[:8])
@pytest.mark.parametrize("name", ["perturbation_sigma", "perturbation_temperature", "start_sigma", "end_sigma"])
def test_options_refuse_a_bad_number_by_name(name, value):
    with pytest.raises(SettingError, match=f"^{name} must"):
        PAGOptions(**{name: value})


@pytest.mark.parametrize("value", [*NO_NUMBERS, -1, 0.5, 1.0, 2**64], ids=lambda value: str(value)[:8])
@pytest.mark.parametrize("name", ["perturbation_seed", "reuse_every"])
def test_options_refuse_what_is_no_whole_number_by_name(name, value):
    with pytest.raises(SettingError, match=f"^{name} must be a whole number from"):
        PAGOptions(**{name: value})


@pytest.mark.parametrize("value", [None, 1, 0, "false", "", [], 0.0], ids=repr)
def test_a_switch_is_true_or_false(value):
    with pytest.raises(SettingError, match=r"^share_prefix must be true or false, got"):
        PAGOptions(share_prefix=value)


@pytest.mark.parametrize("schedule", ADAPTIVE_SCHEDULES)
def test_an_adaptive_schedule_that_does_not_fall_is_refused_with_the_remedy(schedule):
    with pytest.raises(SettingError, match=f"^schedule is {schedule}, but adaptive_scale is 0.*Raise adaptive_scale"):
        PAGOptions(schedule=schedule)
    assert PAGOptions(schedule=schedule, adaptive_scale=0.001).schedule == schedule


@pytest.mark.parametrize("options", [None, {}, "neutral", 3])
def test_options_of_another_kind_are_refused(options):
    with pytest.raises(SettingError, match=r"^options must come from a PAG Options node"):
        PAGSettings(3.0, options=options)


def test_no_step_can_be_reused_for_none():
    with pytest.raises(SettingError, match=r"^reuse_every must be a whole number from 1 to"):
        PAGOptions(reuse_every=0)


CHOICES = {"perturbation": tuple(KINDS), "schedule": SCHEDULES, "rescale_mode": tuple(RESCALE_MODES)}
each_choice = pytest.mark.parametrize(("name", "known"), CHOICES.items(), ids=CHOICES)


@each_choice
@pytest.mark.parametrize("choice", ["", "FULL", "half", None, 1, True, [], ("full",)])
def test_unknown_choice_is_refused_with_the_known_ones(name, known, choice):
    with pytest.raises(SettingError) as error:
        PAGOptions(**{name: choice})
    assert str(error.value).startswith(f"{name} must")
    assert repr(choice) in str(error.value)
    assert all(one in str(error.value) for one in known)


@each_choice
def test_every_choice_is_accepted(name, known):
    for choice in known:
        assert getattr(PAGOptions(**{name: choice, "adaptive_scale": 0.1}), name) == choice


@pytest.mark.parametrize(("start", "end"), [(1.0, 1.0), (0.5, 2.0), (0.0, 0.0)])
def test_an_empty_range_in_sigma_is_refused_with_both_ends_and_a_remedy(start, end):
    with pytest.raises(SettingError, match=rf"^start_sigma \({start:g}\).*end_sigma \({end:g}\).*scale to 0"):
        PAGOptions(start_sigma=start, end_sigma=end)


@pytest.mark.parametrize("value", [np.float32(0.5), np.float64(0.5), np.array(0.5), torch.tensor(0.5), Fraction(1, 2)],
                         ids=repr)
def test_numbers_of_other_libraries_become_plain_ones(value):
    """As other packs' nodes pass them on."""
    for kept in (PAGOptions(strength=value).strength, PAGSettings(value).scale, check_range("cfg", value, 0.0, 1.0)):
        assert type(kept) is float
        assert kept == 0.5


@pytest.mark.parametrize("value", [np.int64(7), np.uint8(7), np.array(7), torch.tensor(7)], ids=repr)
def test_whole_numbers_of_other_libraries_too(value):
    options = PAGOptions(perturbation_seed=value, perturbation_sigma=value)
    assert type(options.perturbation_seed) is type(options.perturbation_sigma) is int
    assert (options.perturbation_seed, options.perturbation_sigma) == (7, 7)


def test_switches_of_other_libraries_too():
    assert PAGOptions(share_prefix=np.bool_(False)).share_prefix is False
    with pytest.raises(SettingError, match=r"^strength must be a number"):
        PAGOptions(strength=np.bool_(True))


@pytest.mark.parametrize("value", [np.float32("nan"), torch.tensor(math.inf), np.array([0.5]), torch.tensor([0.5]),
                                   np.array("0.5"), np.array([0.5, 0.5]), torch.tensor(0.5j), Decimal("0.5")], ids=repr)
def test_what_is_no_number_there_is_none_here(value):
    for name in ("strength", "perturbation_seed", "share_prefix", "schedule"):
        with pytest.raises(SettingError, match=f"^{name} must"):
            PAGOptions(**{name: value})


def test_a_long_value_is_quoted_in_part():
    with pytest.raises(SettingError, match=r"got 'xxx.*x\.\.\.") as error:
        PAGOptions(schedule="x" * 100_000)
    assert len(str(error.value)) < 500


def test_setting_error_is_a_value_error():
    assert issubclass(SettingError, ValueError)


def test_defaults_are_the_papers_plain_pag():
    options = PAGSettings(3.0).options
    assert (options.strength, options.start_percent, options.end_percent, options.rescale) == (1.0, 0.0, 1.0, 0.0)
    assert PAGSettings(3.0).layers == "auto"


@pytest.mark.parametrize(("settings", "off"), [
    (PAGSettings(0.0), True),
    (PAGSettings(0), True),
    (PAGSettings(3.0, options=PAGOptions(strength=0.0)), True),
    (PAGSettings(3.0, options=PAGOptions("random_mask", perturbation_rate=0.0)), True),
    (PAGSettings(3.0, options=PAGOptions("noise", perturbation_sigma=0.0)), True),
    (PAGSettings(3.0, options=PAGOptions("temperature", perturbation_temperature=1.0)), True),
    (PAGSettings(3.0, options=PAGOptions("temperature", perturbation_rate=0.0, perturbation_sigma=0.0)), False),
    (PAGSettings(3.0, options=PAGOptions("identity", perturbation_rate=0.0, perturbation_temperature=1.0)), False),
    (PAGSettings(3.0), False),
    (PAGSettings(1e-6, options=PAGOptions(strength=1e-6)), False),
])
def test_off_means_a_scale_a_strength_or_a_perturbation_of_nothing(settings, off):
    assert settings.is_off is off


@pytest.mark.parametrize("settings", [PAGSettings(3.0), PAGOptions()])
def test_settings_cannot_be_changed_after_the_check(settings):
    field = dataclasses.fields(settings)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(settings, field, -1.0)


def test_the_options_are_a_perturbation_whose_setting_is_the_kinds_own():
    options = PAGOptions("seg", 0.5, perturbation_rate=0.1, perturbation_sigma=7.0, perturbation_temperature=3.0,
                         perturbation_seed=MAX_SEED)
    assert isinstance(options, Perturbation)
    assert options.kind is KINDS["seg"]
    assert options.setting == 7.0
    assert [PAGOptions(kind, perturbation_rate=0.1, perturbation_temperature=3.0).setting
            for kind in ("identity", "random_mask", "temperature")] == [0.0, 0.1, 3.0]


@pytest.mark.parametrize("options", [Perturbation, PAGOptions])
def test_every_field_says_what_it_accepts(options):
    assert all("accepts" in field.metadata for field in dataclasses.fields(options))


def percent_to_sigma(percent: float) -> float:
    return 10.0 - 10.0 * percent


@pytest.mark.parametrize(("options", "window"), [
    (PAGOptions(), Window()),
    (PAGOptions(start_percent=0.2, end_percent=0.7), Window(8.0, 3.0)),
    (PAGOptions(start_sigma=9.0, end_sigma=1.0), Window(9.0, 1.0)),
    (PAGOptions(start_percent=0.2, start_sigma=9.0, end_sigma=1.0), Window(8.0, 1.0)),
    (PAGOptions(end_percent=0.7, start_sigma=MAX_SIGMA, end_sigma=1.0), Window(math.inf, 3.0)),
])
def test_percent_and_sigma_both_limit_the_window(options, window):
    found = options.window(percent_to_sigma)
    assert (found.sigma_start, found.sigma_end) == pytest.approx((window.sigma_start, window.sigma_end))
    assert found.is_full == window.is_full


def test_ranges_in_percent_and_sigma_that_never_meet_are_refused():
    options = PAGOptions(start_percent=0.5, start_sigma=9.0, end_sigma=6.0)
    with pytest.raises(SettingError, match="do not overlap"):
        PAGSettings(3.0, options=options).schedule(percent_to_sigma)


def test_the_schedule_is_what_the_settings_say():
    settings = PAGSettings(4.0, options=PAGOptions(start_percent=0.2, end_percent=0.6, schedule="linear"))
    schedule = settings.schedule(percent_to_sigma)
    assert [schedule.scale_at(percent_to_sigma(p)) for p in (0.1, 0.2, 0.4, 0.7)] == pytest.approx([0.0, 4.0, 2.0, 0.0],
                                                                                                  abs=1e-6)
    assert PAGSettings(4.0).schedule(percent_to_sigma).is_constant
    adaptive = PAGSettings(4.0, options=PAGOptions(schedule="adaptive_diffusers", adaptive_scale=0.002))
    assert adaptive.schedule(percent_to_sigma).scale_at(percent_to_sigma(0.5)) == pytest.approx(4.0 - 0.002 * 500.5)


def test_a_share_of_all_layers_is_refused_with_a_remedy():
    with pytest.raises(SettingError, match=r"^random_share is 1, .* Set it to 0 .* or lower it"):
        PAGOptions(random_share=1.0)


@pytest.mark.parametrize(("name", "value"), [
    ("schedule", "linear"), ("rescale", 0.5), ("reuse_every", 2), ("preview", "delta"), ("early_damping", 8.0),
    ("momentum", 0.5), ("coarse_scale", 0.5), ("tangential_scale", 1.2), ("scale_mask", torch.ones(1, 8, 8))])
def test_what_acts_on_a_push_of_its_own_is_refused_for_the_negatives_row(name, value):
    with pytest.raises(SettingError, match=rf"^row is negative, but {name} acts on .* or (set )?row to extra"):
        PAGOptions(row="negative", **{name: value})


def test_the_negatives_row_takes_everything_else():
    PAGOptions("skip_block", 0.5, row="negative", random_share=0.1, start_percent=0.2, end_sigma=0.1)
