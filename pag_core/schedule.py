"""When guidance acts, and how strongly.

Progress is the host's `percent`: 0 where sampling starts from pure noise, 1 at the clean image. It means the same on
every model, where timesteps (of which a flow model has none) and noise levels sigma do not.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

from .checks import SettingError

ROUNDING = 1e-5  # of noise levels, relative; far below the distance of two steps
PercentToSigma = Callable[[float], float]
"""A model's own decreasing map from percent in (0, 1) to sigma."""


@dataclass(frozen=True)
class Window:
    """A closed range of noise levels: sigma_end <= sigma <= sigma_start."""

    sigma_start: float = math.inf
    sigma_end: float = 0.0

    @property
    def is_full(self) -> bool:
        """True if every step lies inside, so that sigma need not be read (a read waits for the GPU)."""
        return self.sigma_start == math.inf and self.sigma_end <= 0.0

    def __contains__(self, sigma: float) -> bool:
        """Both ends included: a sampler's sigma is rounded to fp32, the ends are not."""
        return self.sigma_end * (1 - ROUNDING) <= sigma <= self.sigma_start * (1 + ROUNDING)

    def intersection(self, other: Window) -> Window:
        """The noise levels in both; SettingError if there are none, which would silently turn the guidance off."""
        both = Window(min(self.sigma_start, other.sigma_start), max(self.sigma_end, other.sigma_end))
        if both.sigma_start < both.sigma_end:
            raise SettingError(f"The range in percent (sigma {self.sigma_start:g} to {self.sigma_end:g} on this model) "
                               f"and the range in sigma ({other.sigma_start:g} to {other.sigma_end:g}) do not overlap. "
                               f"Widen one of them, or set the scale to 0 to turn the guidance off.")
        return both


def window_from_percent(start_percent: float, end_percent: float, percent_to_sigma: PercentToSigma) -> Window:
    """The window between two fractions of the sampling process, both ends included.

    The outer ends are exact by construction: 0 admits the first step and 1 the last, whatever the model's own
    largest and smallest sigma are.
    """
    return Window(
        sigma_start=math.inf if start_percent <= 0.0 else float(percent_to_sigma(start_percent)),
        sigma_end=0.0 if end_percent >= 1.0 else float(percent_to_sigma(end_percent)),
    )


def percent_from_sigma(sigma: float, percent_to_sigma: PercentToSigma) -> float:
    """The progress in [0, 1] at which a model has this noise level, to 1e-9.

    The ends are exact: what lies at or above the model's largest sigma is 0, at or below its smallest 1. They are taken
    a hair inside, for at 0 and 1 themselves some models answer with numbers that no step has.
    """
    low, high = 1e-6, 1.0 - 1e-6
    if sigma >= float(percent_to_sigma(low)):
        return 0.0
    if sigma <= float(percent_to_sigma(high)):
        return 1.0
    parts = 2**30
    return bisect_left(range(parts), -sigma, int(low * parts), int(high * parts),
                       key=lambda part: -float(percent_to_sigma(part / parts))) / parts


def _timesteps_done(progress: float) -> float:
    """What a model of 1000 timesteps calls 1000 − t; the same share of the run on every other model."""
    return 1.0 + 999.0 * progress


_SHAPES: dict[str, Callable[[float], float]] = {
    # Position in the window, 0 to 1, -> share of the scale.
    "constant": lambda x: 1.0,
    "linear": lambda x: 1.0 - x,
    "cosine": lambda x: 0.5 + 0.5 * math.cos(math.pi * x),
    "linear_up": lambda x: x,
    "cosine_up": lambda x: 0.5 - 0.5 * math.cos(math.pi * x),
}
_ADAPTIVE: dict[str, Callable[[float, float, float], float]] = {
    # (scale, adaptive_scale, timesteps done) -> scale
    "adaptive_diffusers": lambda scale, a, done: scale - a * done,            # diffusers' pag_adaptive_scale
    "adaptive_pamparamm": lambda scale, a, done: scale - scale * a**4 * done,  # sd-perturbed-attention's adaptive_scale
}
ADAPTIVE_SCHEDULES = tuple(_ADAPTIVE)
SCHEDULES = (*_SHAPES, *ADAPTIVE_SCHEDULES)


def scale_at(scale: float, schedule: str, progress: float, *, start: float = 0.0, end: float = 1.0,
             adaptive_scale: float = 0.0) -> float:
    """PAG's scale at one point of the run, in [0, scale].

    Args:
        schedule: one of `SCHEDULES`. "constant"; "linear" and "cosine" fall from the scale at the window's start to 0
            at its end, "linear_up" and "cosine_up" rise the other way; the adaptive rules of diffusers and pamparamm
            fall with the whole run's progress and stay at 0 once there.
        progress: where in the run, 0 to 1.
        start, end: the window's ends, as progress.
        adaptive_scale: how fast the adaptive rules fall; at 0 they are constant.
    """
    if schedule in _ADAPTIVE:
        return max(0.0, _ADAPTIVE[schedule](scale, adaptive_scale, _timesteps_done(progress)))
    position = (progress - start) / (end - start) if end > start else 0.0
    return scale * _SHAPES[schedule](min(max(position, 0.0), 1.0))


class ScaleSchedule:
    """PAG's scale over the runs of one model.

    Args:
        scale, schedule, adaptive_scale: see `scale_at`.
        window: outside of it the scale is 0.
        percent_to_sigma: the model's own map.
    """

    def __init__(self, scale: float, window: Window, percent_to_sigma: PercentToSigma, schedule: str = "constant",
                 adaptive_scale: float = 0.0) -> None:
        self.scale = scale
        self.window = window
        self.schedule = schedule
        self.adaptive_scale = adaptive_scale
        self._percent_to_sigma = percent_to_sigma
        self._start = percent_from_sigma(window.sigma_start, percent_to_sigma)
        self._end = percent_from_sigma(window.sigma_end, percent_to_sigma)

    @property
    def is_constant(self) -> bool:
        """True if the scale is the same at every step, so that sigma need not be read (a read waits for the GPU)."""
        return self.window.is_full and (
            self.schedule == "constant" or (self.schedule in _ADAPTIVE and self.adaptive_scale == 0.0))

    def scale_at(self, sigma: float) -> float:
        """The scale at this noise level; 0 if the step needs no extra pass."""
        if sigma not in self.window:
            return 0.0
        if self.schedule == "constant":
            return self.scale
        return scale_at(self.scale, self.schedule, percent_from_sigma(sigma, self._percent_to_sigma),
                        start=self._start, end=self._end, adaptive_scale=self.adaptive_scale)
