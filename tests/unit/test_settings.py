"""Settings refuse every bad value with an error that names it."""

import dataclasses
import math

import pytest

from pag_core.checks import SettingError, check_percent_range, check_range
from pag_core.guidance import RESCALE_MODES
from pag_core.settings import MAX_SCALE, PAGOptions, PAGSettings

NO_NUMBERS = [math.nan, math.inf, -math.inf, True, False, "0.5", None, [0.5], 0.5j]
SHARES = ["strength", "start_percent", "end_percent", "rescale"]


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


@pytest.mark.parametrize("mode", ["", "FULL", "half", None, 1, True, [], ("full",)])
def test_unknown_rescale_mode_is_refused_with_the_known_ones(mode):
    with pytest.raises(SettingError) as error:
        PAGOptions(rescale_mode=mode)
    assert str(error.value).startswith("rescale_mode must")
    assert repr(mode) in str(error.value)
    assert all(known in str(error.value) for known in RESCALE_MODES)


@pytest.mark.parametrize("mode", list(RESCALE_MODES))
def test_every_rescale_mode_is_accepted(mode):
    assert PAGOptions(rescale_mode=mode).rescale_mode == mode


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
    (PAGSettings(3.0), False),
    (PAGSettings(1e-6, options=PAGOptions(strength=1e-6)), False),
])
def test_off_means_scale_or_strength_0(settings, off):
    assert settings.is_off is off


@pytest.mark.parametrize("settings", [PAGSettings(3.0), PAGOptions()])
def test_settings_cannot_be_changed_after_the_check(settings):
    field = dataclasses.fields(settings)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(settings, field, -1.0)
