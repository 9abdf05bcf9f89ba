"""What the steps of a run compute, and what that costs beside plain CFG."""

import pytest

from pag_core.checks import SettingError
from pag_core.cost import plan_run, relative_cost, run_cost
from pag_core.settings import PAGOptions, PAGSettings


def to_sigma(percent: float) -> float:
    return 1.0 - percent


SIGMAS = [to_sigma(step / 10) for step in range(11)]


def plan(scale=3.0, cfg=5.0, cfg_window=(0.0, 1.0), **options):
    return plan_run(SIGMAS, PAGSettings(scale, "auto", PAGOptions(**options)), to_sigma, cfg, *cfg_window)


@pytest.mark.parametrize(("share", "uncond", "perturbed", "cost"), [
    (1.0, 1.0, 0.0, 1.0),     # plain CFG
    (1.0, 1.0, 1.0, 1.5),     # three forwards for two
    (0.5, 1.0, 1.0, 1.25),
    (0.5, 0.0, 1.0, 0.75),    # PAG alone
    (0.5, 0.0, 0.0, 0.5),     # no guidance
    (0.6848, 0.6, 0.6, 1.00544),  # the README's schedule on SD 1.5
])
def test_relative_cost(share, uncond, perturbed, cost):
    assert relative_cost(share, uncond, perturbed) == pytest.approx(cost)


def test_every_step_by_default():
    steps = plan()
    assert [step.percent for step in steps] == [round(step / 10, 1) for step in range(11)]
    assert {(step.cfg, step.pag, step.runs_uncond, step.runs_perturbed) for step in steps} == {(5.0, 3.0, True, True)}
    assert run_cost(steps, 0.5) == 1.25


def test_windows_of_both():
    steps = plan(cfg_window=(0.0, 0.55), start_percent=0.35)
    assert [step.cfg for step in steps] == [5.0] * 6 + [1.0] * 5
    assert [step.runs_uncond for step in steps] == [True] * 6 + [False] * 5
    assert [step.pag for step in steps] == [0.0] * 4 + [3.0] * 7
    assert [step.runs_perturbed for step in steps] == [False] * 4 + [True] * 7
    assert run_cost(steps, 0.5) == pytest.approx((11 + 6 + 3.5) / 22)


def test_a_schedule_that_reaches_zero_costs_nothing_there():
    steps = plan(schedule="linear")
    assert [round(step.pag, 3) for step in steps] == [round(3 - 0.3 * step, 3) for step in range(11)]
    assert [step.runs_perturbed for step in steps] == [True] * 10 + [False]


def test_reuse_computes_every_nth_of_the_steps_in_which_it_acts():
    steps = plan(reuse_every=3, start_percent=0.15)
    assert [step.pag > 0 for step in steps] == [False] * 2 + [True] * 9
    assert [index for index, step in enumerate(steps) if step.runs_perturbed] == [2, 5, 8]


@pytest.mark.parametrize(("options", "scale"), [({}, 0.0), (dict(strength=0.0), 3.0)])
def test_off_is_free(options, scale):
    steps = plan(scale, **options)
    assert not any(step.pag or step.runs_perturbed for step in steps)
    assert run_cost(steps, 0.5) == 1.0


def test_cfg_1_runs_no_unconditional_pass():
    assert run_cost(plan(cfg=1.0), 0.5) == 0.75


def test_the_negatives_own_row_is_weak_only_where_there_is_a_negative():
    steps = plan(cfg_window=(0.0, 0.55), row="negative", perturbation="skip_block")
    assert [step.runs_perturbed for step in steps] == [True] * 6 + [False] * 5
    assert run_cost(steps, -0.5) == pytest.approx((11 + 6 - 3) / 22)
    with pytest.raises(SettingError, match="at cfg 1 there is no negative"):
        plan(cfg=1.0, row="negative")
    assert run_cost(plan(0.0, cfg=1.0, row="negative"), 0.5) == 0.5


def test_a_sampler_that_is_not_known_is_taken_to_use_cfg():
    steps = plan(cfg=None)
    assert {step.cfg for step in steps} == {None}
    assert run_cost(steps, 0.5) == 1.25


@pytest.mark.parametrize(("values", "quoted"), [
    (dict(cfg=-1.0), "cfg"), (dict(cfg_window=(0.6, 0.4)), "cfg_start_percent"), (dict(cfg=float("nan")), "cfg"),
    (dict(start_percent=0.9, start_sigma=0.5, end_sigma=0.3), "do not overlap"),
])
def test_what_the_nodes_refuse_is_refused(values, quoted):
    with pytest.raises(SettingError, match=quoted):
        plan(**values)
