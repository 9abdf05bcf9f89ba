"""PAG Options: its inputs are the settings, in an order on which saved workflows count."""

import dataclasses

import pytest
from pag_pack.nodes.options import PAGOptionsNode
from pag_pack.pag_core.checks import SettingError
from pag_pack.pag_core.presets import PRESETS
from pag_pack.pag_core.settings import PAGOptions

INPUTS = ["perturbation", "strength", "start_percent", "end_percent", "schedule", "rescale", "rescale_mode",
          "perturbation_rate", "perturbation_sigma", "perturbation_temperature", "perturbation_seed", "adaptive_scale",
          "start_sigma", "end_sigma", "reuse_every", "share_prefix", "preview", "row", "random_share", "early_damping",
          "momentum", "coarse_scale", "tangential_scale", "scale_mask", "preset"]
ADVANCED = [name for name in INPUTS[INPUTS.index("rescale_mode") + 1:] if name != "preset"]  # that fills the others


def inputs() -> dict[str, tuple]:
    return PAGOptionsNode.INPUT_TYPES()["optional"]


def test_inputs_keep_their_order():
    assert list(inputs()) == INPUTS  # append to this list; never sort it, never take anything out
    assert not PAGOptionsNode.INPUT_TYPES()["required"], "the host sorts required inputs before the optional ones"


def test_what_few_need_is_folded_away():
    assert [name for name, (_, details) in inputs().items() if details.get("advanced")] == ADVANCED


@pytest.mark.parametrize("field", dataclasses.fields(PAGOptions), ids=lambda field: field.name)
def test_every_setting_has_an_input_with_its_default(field):
    assert inputs()[field.name][1].get("default") == field.default


@pytest.mark.parametrize("name", INPUTS)
def test_every_input_is_explained(name):
    kind, details = inputs()[name]
    assert len(details["tooltip"]) > 40
    if kind == "COMBO":
        assert all(option in details["tooltip"] for option in details["options"])


@pytest.mark.parametrize("name", [name for name in INPUTS if "min" in inputs()[name][1]])
def test_the_widgets_range_is_the_settings_own(name):
    details = inputs()[name][1]
    for limit, beyond in ((details["min"], details["min"] - 1), (details["max"], details["max"] + 1)):
        # The ends of ranges also have to fit each other, and a share of 1 would draw nothing.
        if not name.startswith(("start_", "end_")) and (name, limit) != ("random_share", 1.0):
            PAGOptions(**{name: limit})
        with pytest.raises(SettingError, match=f"^{name} must"):
            PAGOptions(**{name: beyond})


def test_without_any_input_the_node_gives_the_papers_pag():
    assert PAGOptionsNode.execute().result == (PAGOptions(),)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_whose_values_the_inputs_hold_is_those_values(name):
    values = dict(PRESETS[name].values)
    assert PAGOptionsNode.execute(preset=name, **values).result == (PAGOptions(**values),)
    assert PRESETS[name].note in inputs()["preset"][1]["tooltip"]


@pytest.mark.parametrize(("preset", "values", "complaint"), [
    ("s2", {}, "preset is s2, which sets perturbation to skip_block, but perturbation is identity"),
    ("paper", {"rescale": 0.5}, "preset is paper, which sets rescale to 0.0, but rescale is 0.5"),
    ("best", {}, "preset must be one of custom, paper"),
])
def test_a_preset_that_the_inputs_do_not_follow_is_refused(preset, values, complaint):
    with pytest.raises(SettingError, match=complaint):
        PAGOptionsNode.execute(preset=preset, **values)
