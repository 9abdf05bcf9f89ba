"""Layers that change during a run, and a share of them drawn in every step."""

import pytest

from pag_core.selection import Layer, SelectionError, select
from pag_core.stages import LayerPlan, all_layers, draw, select_stages

LAYERS = tuple(Layer(str(n), {"": n}, 4) for n in range(12))


def percent_to_sigma(percent: float) -> float:
    return 10.0 - 10.0 * percent


def stages(text: str):
    return select_stages(text, LAYERS, "6")


def names(chosen) -> list[str]:
    return [layer.name for layer in chosen]


@pytest.mark.parametrize("text", ["auto", "3-5", "all,!2", "4:h0+2"])
def test_a_text_without_stages_is_one_stage_of_the_whole_run(text):
    (stage,) = stages(text)
    assert (stage.start, stage.end) == (0.0, 1.0)
    assert stage.chosen == select(text, LAYERS, "6")


@pytest.mark.parametrize("text", ["30%: 1:h0-1; 62.5%: 1:h2,4-5; 100%: auto",
                                  "30 % :1:h0-1;62.5%:1:h2 , 4-5;100%:auto",
                                  "\n30%: 1:h0-1;\n62.5%: 1:h2,4-5;\n100%: auto"])
def test_stages_are_read_in_order_with_their_heads(text):
    found = stages(text)
    assert [(stage.start, stage.end) for stage in found] == [(0.0, 0.3), (0.3, 0.625), (0.625, 1.0)]
    assert [names(stage.chosen) for stage in found] == [["1"], ["1", "4", "5"], ["6"]]
    assert all_layers(found) == {LAYERS[1]: frozenset({0, 1, 2}), LAYERS[4]: None, LAYERS[5]: None, LAYERS[6]: None}


@pytest.mark.parametrize(("text", "complaint"), [
    ("60%: 1; 50%: 2; 100%: 3", r"'50%: 2' overlaps .* ends at 60%"),
    ("60%: 1; 60%: 2; 100%: 3", r"'60%: 2' overlaps"),
    ("0%: 1; 100%: 3", r"'0%: 1' ends where the run begins"),
    ("60%: 1; 90%: 2", r"a gap from 90% to 100%"),
    ("60%: 1", r"a gap from 60%"),
    ("60%: 1; 120%: 2", r"'120%: 2' ends after 100%"),
    ("1; 2", r"cannot read the stage '1'"),
    ("60%: 1; ", r"cannot read the stage ''"),
    ("60: 1; 100: 2", r"cannot read the stage '60: 1'"),
    ("-5%: 1; 100%: 2", r"cannot read the stage '-5%: 1'"),
    ("60%: ; 100%: 2", r"has an empty term"),
    ("60%: 99; 100%: 2", r"no self-attention layer '99'"),
    ("60%: 1:h9; 100%: 2", r"asks for h9"),
    ("60%: 1; " + "x" * 9000, r"^layers has 9001 characters; the limit is 8000\.$"),
])
def test_bad_stages_are_refused_with_the_stage_quoted(text, complaint):
    with pytest.raises(SelectionError, match=complaint):
        stages(text)


@pytest.mark.parametrize("text", [None, 3, ""])
def test_errors_of_plain_selections_stay(text):
    with pytest.raises(SelectionError, match=r"^layers"):
        stages(text)


def test_the_layers_of_each_noise_level():
    plan = LayerPlan(stages("30%: 1; 60%: 2; 100%: 3"), percent_to_sigma)
    assert not plan.is_constant
    assert [names(plan.at(sigma)) for sigma in (1e9, 10.0, 7.5, 7.0, 6.9, 4.0, 3.9, 0.0)] == [
        ["1"], ["1"], ["1"], ["1"], ["2"], ["2"], ["3"], ["3"]]
    whole = LayerPlan(stages("1"), percent_to_sigma)
    assert whole.is_constant
    assert names(whole.at(None)) == ["1"]


def test_a_share_is_drawn_anew_at_every_noise_level_and_repeats():
    chosen = select("all", LAYERS, "6")
    drawn = [names(draw(chosen, 0.25, 7, sigma)) for sigma in (9.0, 8.0, 7.0, 6.0)]
    assert all(len(some) == 3 and some == sorted(some, key=int) for some in drawn)
    assert len({tuple(some) for some in drawn}) > 1
    assert drawn == [names(draw(chosen, 0.25, 7, sigma)) for sigma in (9.0, 8.0, 7.0, 6.0)]
    assert drawn != [names(draw(chosen, 0.25, 8, sigma)) for sigma in (9.0, 8.0, 7.0, 6.0)]
    assert set.union(*(set(names(draw(chosen, 0.25, 7, sigma / 10))) for sigma in range(100))) == set(names(chosen))


@pytest.mark.parametrize(("share", "count"), [(0.01, 1), (0.1, 1), (0.13, 2), (0.5, 6), (0.99, 12)])
def test_a_share_is_rounded_and_one_layer_at_least(share, count):
    assert len(draw(select("all", LAYERS, "6"), share, 0, 1.0)) == count


def test_a_plan_draws_among_the_layers_of_its_stage_and_keeps_their_heads():
    plan = LayerPlan(stages("50%: 0-3:h1; 100%: 4-11"), percent_to_sigma, 0.5, 3)
    assert not plan.is_constant
    early, late = plan.at(9.0), plan.at(1.0)
    assert len(early) == 2 and set(names(early)) <= {"0", "1", "2", "3"} and set(early.values()) == {frozenset({1})}
    assert len(late) == 4 and set(names(late)) <= {str(n) for n in range(4, 12)}
