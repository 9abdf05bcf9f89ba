"""What the user asked for, checked once, before any long work starts."""

from __future__ import annotations

from dataclasses import dataclass

from .checks import SettingError as SettingError
from .checks import check_choice, check_percent_range, check_range
from .guidance import RESCALE_MODES


@dataclass(frozen=True)
class PAGOptions:
    """The refinements of PAG; the defaults are the paper's plain PAG.

    Attributes:
        strength: SoftPAG's u in [0, 1] (arXiv 2506.10978): the share of the attention map replaced by the identity.
        start_percent: share of the sampling process at which PAG starts, 0 to 1.
        end_percent: share at which it ends, 0 to 1; both ends are included.
        rescale: 0 (off) to 1; see `guidance.guide`.
        rescale_mode: a key of `guidance.RESCALE_MODES`.
        share_prefix: whether the perturbed rows skip the blocks before the first perturbed layer; the result is the same.
    """

    strength: float = 1.0
    start_percent: float = 0.0
    end_percent: float = 1.0
    rescale: float = 0.0
    rescale_mode: str = "full"
    share_prefix: bool = True

    def __post_init__(self) -> None:
        check_range("strength", self.strength, 0.0, 1.0)
        check_percent_range("start_percent", self.start_percent, "end_percent", self.end_percent)
        check_range("rescale", self.rescale, 0.0, 1.0)
        check_choice("rescale_mode", self.rescale_mode, tuple(RESCALE_MODES))


MAX_SCALE = 1000.0  # the paper goes to 100 (score distillation, App. C.3)


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

    @property
    def is_off(self) -> bool:
        """True where the guided prediction equals the unguided one by definition."""
        return self.scale == 0.0 or self.options.strength == 0.0
