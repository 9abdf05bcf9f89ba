"""Which predictions each step of a run needs, and what the run costs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .checks import check_percent_range, check_range
from .schedule import PercentToSigma, percent_from_sigma, window_from_percent
from .settings import PAGSettings, check_has_negative


def relative_cost(share: float, uncond: float, perturbed: float, further: float = 0.0) -> float:
    """The cost of a run as a multiple of a plain CFG run with the same number of steps, at two forwards per step.

    Args:
        share: what one perturbed pass costs, as a share of a whole forward.
        uncond, perturbed: the shares of the steps in which the unconditional and the perturbed prediction are computed.
        further: whole forwards that every step takes besides.
    """
    return (1.0 + uncond + share * perturbed + further) / 2.0


@dataclass(frozen=True)
class Step:
    """One step of a run.

    Attributes:
        percent: its place in the run, 0 to 1.
        cfg: CFG's scale, 1 where CFG does not act; None where it is not known.
        pag: PAG's scale, 0 where PAG does not act.
        runs_uncond, runs_perturbed: whether the step computes these predictions besides the conditional one.
    """

    percent: float
    cfg: float | None
    pag: float
    runs_uncond: bool
    runs_perturbed: bool


def plan_run(sigmas: Iterable[float], settings: PAGSettings, percent_to_sigma: PercentToSigma,
             cfg: float | None = None, cfg_start_percent: float = 0.0, cfg_end_percent: float = 1.0) -> list[Step]:
    """What PAG and CFG do in each step of a run.

    Args:
        sigmas: the noise levels of the steps, falling.
        percent_to_sigma: the model's own map.
        cfg: CFG's scale; None where another node sets it, and then it is taken to act in every step.

    Raises:
        SettingError: for values that the nodes would refuse.
    """
    if cfg is not None:
        check_range("cfg", cfg, 0.0, 100.0)
    check_percent_range("cfg_start_percent", cfg_start_percent, "cfg_end_percent", cfg_end_percent)
    is_negative = settings.options.row == "negative" and not settings.is_off
    if is_negative:
        check_has_negative(cfg)
    cfg_window = window_from_percent(cfg_start_percent, cfg_end_percent, percent_to_sigma)
    schedule = settings.schedule(percent_to_sigma)
    steps: list[Step] = []
    acted = 0
    for sigma in sigmas:
        pag = 0.0 if settings.is_off else schedule.scale_at(sigma)
        scale = cfg if cfg is None or sigma in cfg_window else 1.0
        if is_negative and scale == 1.0:
            pag = 0.0  # there is no negative
        # As in a run: the delta is computed in every n-th of the steps in which PAG acts.
        computes = pag > 0.0 and acted % settings.options.reuse_every == 0
        acted += pag > 0.0
        percent = round(percent_from_sigma(sigma, percent_to_sigma), 6)
        steps.append(Step(percent, scale, pag, scale != 1.0, computes))
    return steps


def run_cost(steps: list[Step], share: float, further: float = 0.0) -> float:
    """`relative_cost` of these steps; there must be at least one."""
    return relative_cost(share, sum(step.runs_uncond for step in steps) / len(steps),
                         sum(step.runs_perturbed for step in steps) / len(steps), further)
