"""What the user asked for, checked once, before any long work starts."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .checks import SettingError, check_choice, check_percent_range, check_range, check_switch, check_whole
from .guidance import RESCALE_MODES
from .perturbation import Perturbation
from .schedule import ADAPTIVE_SCHEDULES, SCHEDULES, PercentToSigma, ScaleSchedule, Window, window_from_percent

MAX_SCALE = 1000.0  # the paper goes to 100 (score distillation, App. C.3)
PREVIEWS = ("denoised", "delta")
MAX_SIGMA = 10000.0  # above every model's largest noise level, so that it stands for no limit


@dataclass(frozen=True)
class PAGOptions:
    """The refinements of PAG; the defaults are the paper's plain PAG.

    Attributes:
        perturbation: a key of `perturbation.KINDS`.
        strength: SoftPAG's u in [0, 1] (arXiv 2506.10978): the share of the attention map that is replaced.
        start_percent, end_percent: shares of the sampling process between which PAG acts, 0 to 1, both ends included.
        schedule: one of `schedule.SCHEDULES`, how the scale runs between them.
        rescale: 0 (off) to 1; see `guidance.guide`.
        rescale_mode: a key of `guidance.RESCALE_MODES`.
        perturbation_rate, perturbation_sigma, perturbation_temperature, perturbation_seed: see `Perturbation`.
        adaptive_scale: how fast the adaptive schedules fall, 0 to 1; see `schedule.scale_at`.
        start_sigma, end_sigma: noise levels between which PAG acts, besides the range in percent.
        reuse_every: PAG's delta is computed in every n-th step and used again in those between.
        share_prefix: whether the perturbed rows skip the blocks before the first perturbed layer; same result.
        preview: one of `PREVIEWS`, what the picture during sampling shows: x̂0, or what PAG changes (PAG Fig. 3).
    """

    perturbation: str = Perturbation.kind
    strength: float = Perturbation.strength
    start_percent: float = 0.0
    end_percent: float = 1.0
    schedule: str = "constant"
    rescale: float = 0.0
    rescale_mode: str = "full"
    perturbation_rate: float = Perturbation.rate
    perturbation_sigma: float = Perturbation.sigma
    perturbation_temperature: float = Perturbation.temperature
    perturbation_seed: int = Perturbation.seed
    adaptive_scale: float = 0.0
    start_sigma: float = MAX_SIGMA
    end_sigma: float = 0.0
    reuse_every: int = 1
    share_prefix: bool = True
    preview: str = "denoised"

    def __post_init__(self) -> None:
        _ = self.attention_perturbation  # checks the values that are its own
        check_percent_range("start_percent", self.start_percent, "end_percent", self.end_percent)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_range("rescale", self.rescale, 0.0, 1.0)
        check_choice("rescale_mode", self.rescale_mode, tuple(RESCALE_MODES))
        check_range("adaptive_scale", self.adaptive_scale, 0.0, 1.0)
        if self.schedule in ADAPTIVE_SCHEDULES and self.adaptive_scale == 0.0:
            raise SettingError(f"schedule is {self.schedule}, but adaptive_scale is 0, at which it does not fall. "
                               f"Raise adaptive_scale, or set schedule to constant.")
        check_range("start_sigma", self.start_sigma, 0.0, MAX_SIGMA)
        check_range("end_sigma", self.end_sigma, 0.0, MAX_SIGMA)
        if self.start_sigma <= self.end_sigma:
            raise SettingError(f"start_sigma ({self.start_sigma:g}) must be larger than end_sigma "
                               f"({self.end_sigma:g}), for sampling goes from much noise to little; "
                               f"set the scale to 0 to turn the guidance off.")
        check_whole("reuse_every", self.reuse_every, 1, 1000)
        check_switch("share_prefix", self.share_prefix)
        check_choice("preview", self.preview, PREVIEWS)

    @property
    def attention_perturbation(self) -> Perturbation:
        """What is done to the selected layers."""
        return Perturbation(self.perturbation, self.strength, self.perturbation_rate, self.perturbation_sigma,
                            self.perturbation_temperature, self.perturbation_seed)

    def window(self, percent_to_sigma: PercentToSigma) -> Window:
        """Where PAG acts on a model with this map; SettingError where the two ranges have nothing in common."""
        in_sigma = Window(math.inf if self.start_sigma == MAX_SIGMA else self.start_sigma, self.end_sigma)
        return window_from_percent(self.start_percent, self.end_percent, percent_to_sigma).intersection(in_sigma)


@dataclass(frozen=True)
class PAGSettings:
    """One PAG: how strongly, in which layers, and the refinements.

    Attributes:
        scale: s of PAG Eq. 10; 0 is off.
        layers: the layer selection, see `selection.select`.
    """

    scale: float
    layers: str = "auto"
    options: PAGOptions = PAGOptions()

    def __post_init__(self) -> None:
        check_range("PAG scale", self.scale, 0.0, MAX_SCALE)
        if not isinstance(self.options, PAGOptions):
            raise SettingError(f"options must come from a PAG Options node, got {self.options!r}.")

    @property
    def is_off(self) -> bool:
        """True where the guided prediction equals the unguided one by definition."""
        return self.scale == 0.0 or self.options.attention_perturbation.is_off

    def schedule(self, percent_to_sigma: PercentToSigma) -> ScaleSchedule:
        """When and how strongly PAG acts on a model with this map; SettingError where it never would."""
        return ScaleSchedule(self.scale, self.options.window(percent_to_sigma), percent_to_sigma, self.options.schedule,
                             self.options.adaptive_scale)
