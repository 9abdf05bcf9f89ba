"""Layers that change during a run: `60%: m0; 100%: u0-2`, some layers up to 60% of the run, then others to the end.

    layers = selection | stage {";" stage}
    stage  = percent "%" ":" selection         each stage ends later than the one before, the last at 100 %
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch

from .attention import seeded
from .checks import SettingError
from .schedule import PercentToSigma, window_from_percent
from .selection import Layer, SelectionError, check_length, meant, select

_STAGE = re.compile(r"\s*(\d{1,3}(?:\.\d{1,6})?)\s*%\s*:(.*)", re.ASCII | re.DOTALL)
T = TypeVar("T")
Chosen = dict[Layer, "frozenset[int] | None"]


@dataclass(frozen=True, eq=False)
class Stage:
    """The layers of one part of a run.

    Attributes:
        start, end: its progress, 0 to 1.
        chosen: as `selection.select` returns them.
    """

    start: float
    end: float
    chosen: Chosen


def select_stages(text: str, layers: tuple[Layer, ...], auto: str) -> tuple[Stage, ...]:
    """Resolve a text of layers, with or without stages, against a model's layers; arguments as `selection.select`.

    Raises:
        SelectionError: as `selection.select` does, and for stages that overlap or leave a gap.
    """
    if not isinstance(text, str) or not (";" in text or "%" in text):
        return (Stage(0.0, 1.0, select(text, layers, auto)),)
    stages, start = [], 0.0
    for part in text.split(";"):
        check_length(part)
        match = _STAGE.fullmatch(part)
        if not match:
            plain = None if "%" in text else meant(text, layers, auto)
            raise SelectionError(f"layers: cannot read the stage {part.strip()!r}; write where it ends and its layers, "
                                 f"for example 60%: {auto}; 100%: all{f' (or {plain})' if plain else ''}.")
        end = float(match[1]) / 100.0
        if end > 1.0:
            raise SelectionError(f"layers: the stage {part.strip()!r} ends after 100% of the run.")
        if end == 0.0:
            raise SelectionError(f"layers: the stage {part.strip()!r} ends where the run begins; each stage must end "
                                 f"later than 0%.")
        if end <= start:
            raise SelectionError(f"layers: the stage {part.strip()!r} overlaps the previous one, which ends at "
                                 f"{start * 100:g}%; each stage must end later than the one before.")
        stages.append(Stage(start, end, select(match[2], layers, auto)))
        start = end
    if start < 1.0:
        raise SelectionError(f"layers: the stages leave a gap from {start * 100:g}% to 100%. Let the last one end at "
                             f"100%, and use end_percent in PAG Options to stop earlier.")
    return tuple(stages)


def all_layers(stages: Iterable[Stage]) -> Chosen:
    """Every layer that some stage selects, with all heads that some stage perturbs there."""
    found: dict[Layer, frozenset[int] | None] = {}
    for stage in stages:
        for layer, heads in stage.chosen.items():
            before = found.get(layer, frozenset())
            found[layer] = None if heads is None or before is None else heads | before
    return found


def _drawn(layers: int, share: float) -> int:
    """How many of this many layers are drawn, at least one."""
    return max(1, round(share * layers))


def check_draws(stages: Iterable[Stage], share: float) -> None:
    """Raise SettingError if the fraction of a stage's layers comes to all of them, so that nothing would be random."""
    for stage in stages:
        count = len(stage.chosen)
        if share and _drawn(count, share) == count:
            raise SettingError(f"random_share is {share:g}, but of {count} selected it draws {count}, so nothing is "
                               f"random. Select more layers (for example all), lower random_share, or set it to 0 to "
                               f"perturb them all.")


def draw(chosen: Mapping[Layer, T], share: float, seed: int, sigma: float | None) -> dict[Layer, T]:
    """A random fraction of the chosen layers, in their order (S², arXiv 2508.12880).

    Drawn by seed and noise level alone, so that neither the batch nor how the host splits it matters.
    """
    count = _drawn(len(chosen), share)
    numbers = set(torch.randperm(len(chosen), generator=seeded("random_share", seed, sigma))[:count].tolist())
    return {layer: heads for number, (layer, heads) in enumerate(chosen.items()) if number in numbers}


class LayerPlan:
    """Which layers are perturbed in each step of the runs of one model.

    Args:
        stages: from `select_stages`.
        percent_to_sigma: the model's own map.
        random_share: the share of a stage's layers that is drawn anew in every step; 0 for all of them.
        seed: of the draw.
    """

    def __init__(self, stages: tuple[Stage, ...], percent_to_sigma: PercentToSigma, random_share: float = 0.0,
                 seed: int = 0) -> None:
        self.windows = [(window_from_percent(stage.start, stage.end, percent_to_sigma), stage) for stage in stages]
        self.random_share = random_share
        self.seed = seed

    @property
    def is_constant(self) -> bool:
        """True if every step has the same layers, so that sigma need not be read (a read waits for the GPU)."""
        return len(self.windows) == 1 and self.random_share == 0.0

    def at(self, sigma: float | None) -> Chosen:
        """The layers at this noise level, which may be None where they never change."""
        # A level on the border of two stages belongs to the earlier one.
        chosen = next(stage.chosen for window, stage in self.windows if sigma is None or sigma in window)
        return draw(chosen, self.random_share, self.seed, sigma) if self.random_share else chosen
