"""PAG Options: its inputs are the settings, in an order on which saved workflows count."""

import dataclasses

import pytest
from pag_pack.nodes.guidance import PAGOptionsNode
from pag_pack.pag_core.checks import SettingError
from pag_pack.pag_core.settings import PAGOptions

INPUTS = ["perturbation", "strength", "start_percent", "end_percent", "schedule", "rescale", "rescale_mode",
          "perturbation_rate", "perturbation_sigma", "perturbation_temperature", "perturbation_seed", "adaptive_scale",
          "start_sigma", "end_sigma", "reuse_every", "share_prefix", "preview"]
ADVANCED = INPUTS[INPUTS.index("rescale_mode") + 1:]


def inputs() -> dict[str, tuple]:
    return PAGOptionsNode.INPUT_TYPES()["optional"]


def test_inputs_keep_their_order():
    assert list(inputs()) == INPUTS  # append to this list; never sort it, never take anything out
    assert not PAGOptionsNode.INPUT_TYPES()["required"], "the host sorts required inputs before the optional ones"


def test_what_few_need_is_folded_away():
    assert [name for name, (_, details) in inputs().items() if details.get("advanced")] == ADVANCED


@pytest.mark.parametrize("field", dataclasses.fields(PAGOptions), ids=lambda field: field.name)
def test_every_setting_has_an_input_with_its_default(field):
    assert inputs()[field.name][1]["default"] == field.default


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
        if not name.startswith(("start_", "end_")):  # which also have to fit each other
            PAGOptions(**{name: limit})
        with pytest.raises(SettingError, match=f"^{name} must"):
            PAGOptions(**{name: beyond})


def test_without_any_input_the_node_gives_the_papers_pag():
    assert PAGOptionsNode.execute().result == (PAGOptions(),)
