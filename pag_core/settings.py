"""What the user asked for, checked once, before any long work starts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

from torch import Tensor

from .checks import (
    Accepts,
    SettingError,
    check_fields,
    check_percent_range,
    check_range,
    choice,
    number,
    shown,
    switch,
    whole,
)
from .delta import DeltaRules
from .guidance import RESCALE_MODES
from .mask import check_mask
from .perturbation import Perturbation
from .schedule import ADAPTIVE_SCHEDULES, SCHEDULES, PercentToSigma, ScaleSchedule, Window, window_from_percent

MAX_SCALE = 1000.0  # the paper goes to 100 (score distillation, App. C.3)
PREVIEWS = ("denoised", "delta")
ROWS = ("extra", "negative")
_ON_THE_DELTA = ("schedule", "rescale", "reuse_every", "preview", "scale_mask",
                 *(one.name for one in fields(DeltaRules)))
MAX_SIGMA = 10000.0  # above every model's largest noise level, so that it stands for no limit


class NoNegativeError(SettingError):
    """The negative prediction is to be perturbed, but CFG is off."""


def check_has_negative(cfg: float | None) -> None:
    """Raise NoNegativeError if CFG at this scale computes no negative prediction to perturb."""
    if cfg == 1.0:
        raise NoNegativeError("row is negative, but at cfg 1 there is no negative prediction to perturb. Raise cfg, or "
                              "set row to extra in PAG Options.")


@dataclass(frozen=True)
class PAGOptions(DeltaRules, Perturbation):
    """The further settings of PAG; the defaults are the paper's plain PAG. The base classes hold how the layers are
    perturbed and how the delta is changed.

    Attributes:
        start_percent, end_percent: shares of the sampling process between which PAG acts, 0 to 1, both ends included.
        schedule: one of `schedule.SCHEDULES`, how the scale runs between them.
        rescale: 0 (off) to 1; see `guidance.guide`.
        rescale_mode: a key of `guidance.RESCALE_MODES`.
        adaptive_scale: how fast the adaptive schedules fall, 0 to 1; see `schedule.scale_at`.
        start_sigma, end_sigma: noise levels between which PAG acts, besides the range in percent.
        reuse_every: PAG's delta is computed in every n-th step and used again in those between.
        share_prefix: whether the perturbed rows skip the blocks before the first perturbed layer; same result.
        preview: one of `PREVIEWS`, what the picture during sampling shows: x̂0, or what PAG changes (PAG Fig. 3).
        row: one of `ROWS`, which row is weak: one more, or the negative's own, at no extra cost; then CFG alone steers
            away from it and the scale says only whether it is weak.
        random_share: the share of the selected layers that is drawn anew in every step (S², arXiv 2508.12880); 0 for
            all of them.
        scale_mask: where PAG acts, 0 to 1; its shapes are those of `mask.fit_mask`. None for everywhere.
    """

    start_percent: float = number(0.0)
    end_percent: float = number(1.0)
    schedule: str = choice("constant", SCHEDULES)
    rescale: float = number(0.0)
    rescale_mode: str = choice("full", tuple(RESCALE_MODES))
    adaptive_scale: float = number(0.0)
    start_sigma: float = number(MAX_SIGMA, 0.0, MAX_SIGMA)
    end_sigma: float = number(0.0, 0.0, MAX_SIGMA)
    reuse_every: int = whole(1, 1, 1000)
    share_prefix: bool = switch(True)
    preview: str = choice("denoised", PREVIEWS)
    row: str = choice("extra", ROWS)
    random_share: float = number(0.0)
    scale_mask: Tensor | None = field(default=None, compare=False, repr=False,
                                      metadata={"accepts": Accepts(check_mask, ())})

    def __post_init__(self) -> None:
        check_fields(self)
        check_percent_range("start_percent", self.start_percent, "end_percent", self.end_percent)
        if self.schedule in ADAPTIVE_SCHEDULES and self.adaptive_scale == 0.0:
            raise SettingError(f"schedule is {self.schedule}, but adaptive_scale is 0, so the scale would not fall. "
                               f"Raise adaptive_scale, or set schedule to constant.")
        if self.start_sigma <= self.end_sigma:
            raise SettingError(f"start_sigma ({self.start_sigma:g}) must be larger than end_sigma "
                               f"({self.end_sigma:g}), because sampling goes from high noise to low. Set the scale to "
                               f"0 to turn the guidance off.")
        if self.random_share == 1.0:
            raise SettingError("random_share is 1, so nothing would be drawn at random. Set it to 0 to perturb all "
                               "selected layers in every step, or lower it.")
        if self.row == "negative":
            self._check_that_no_delta_is_asked_for()

    def _check_that_no_delta_is_asked_for(self) -> None:
        for one in fields(self):
            if one.name in _ON_THE_DELTA and getattr(self, one.name) is not one.default and \
                    getattr(self, one.name) != one.default:
                if one.default is None:
                    raise SettingError(f"row is negative, but {one.name} acts on PAG's push, which exists only when "
                                       "row is extra. Disconnect it, or set row to extra.")
                raise SettingError(f"row is negative, but {one.name} acts on PAG's push, which exists only when row is "
                                   f"extra. Set {one.name} back to {one.default}, or row to extra.")

    def window(self, percent_to_sigma: PercentToSigma) -> Window:
        """Where PAG acts on a model with this map; SettingError if the two ranges do not overlap."""
        in_sigma = Window(math.inf if self.start_sigma == MAX_SIGMA else self.start_sigma, self.end_sigma)
        return window_from_percent(self.start_percent, self.end_percent, percent_to_sigma).intersection(in_sigma)


def check_options(options: object) -> None:
    """Raise SettingError unless these are PAGOptions."""
    if not isinstance(options, PAGOptions):
        raise SettingError(f"options must come from a PAG Options node, got {shown(options)}.")


@dataclass(frozen=True)
class PAGSettings:
    """One PAG: how strongly, in which layers, and the further settings.

    Attributes:
        scale: s of PAG Eq. 10; 0 is off.
        layers: the layer selection, see `selection.select`.
    """

    scale: float
    layers: str = "auto"
    options: PAGOptions = PAGOptions()

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", check_range("PAG scale", self.scale, 0.0, MAX_SCALE))
        check_options(self.options)

    @property
    def is_off(self) -> bool:
        """True if the guided prediction equals the unguided one by definition."""
        return self.scale == 0.0 or self.options.is_off

    def schedule(self, percent_to_sigma: PercentToSigma) -> ScaleSchedule:
        """When and how strongly PAG acts on a model with this map; SettingError if it never would."""
        return ScaleSchedule(self.scale, self.options.window(percent_to_sigma), percent_to_sigma, self.options.schedule,
                             self.options.adaptive_scale)
