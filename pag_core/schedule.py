"""When guidance acts. Progress is the host's `percent`: 0 where sampling starts from pure noise, 1 at the clean image."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """A closed range of noise levels: sigma_end <= sigma <= sigma_start."""

    sigma_start: float = math.inf
    sigma_end: float = 0.0

    @property
    def is_full(self) -> bool:
        """True where every step lies inside, so that sigma need not be read (a read waits for the GPU)."""
        return self.sigma_start == math.inf and self.sigma_end <= 0.0

    def __contains__(self, sigma: float) -> bool:
        return self.sigma_end <= sigma <= self.sigma_start


def window_from_percent(start_percent: float, end_percent: float, percent_to_sigma: Callable[[float], float]) -> Window:
    """The window between two shares of the sampling process, both ends included.

    The outer ends are exact by construction: 0 admits the first step and 1 the last, whatever the model's own
    largest and smallest sigma are.

    Args:
        percent_to_sigma: the model's own decreasing map from percent in (0, 1) to sigma.
    """
    return Window(
        sigma_start=math.inf if start_percent <= 0.0 else float(percent_to_sigma(start_percent)),
        sigma_end=0.0 if end_percent >= 1.0 else float(percent_to_sigma(end_percent)),
    )
