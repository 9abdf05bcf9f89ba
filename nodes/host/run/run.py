"""What one run of a guider remembers, and what it has to say at the end."""

from __future__ import annotations

import logging

import torch

from ..messages import tell
from .predictions import Pair, Predictions

_log = logging.getLogger(__name__)


class Run:
    """Made anew for every run, so that nothing is kept between runs.

    Args:
        is_watched: whether somebody looks at the predictions of every step; see `observation`.
    """

    def __init__(self, is_watched: bool = False) -> None:
        self.is_watched = is_watched
        self.predictions: Predictions | None = None  # the latest, where the run is watched
        self.steps = 0
        self.largest_delta: torch.Tensor | None = None  # [] on the sampling device, so that no step waits for the GPU
        self.skipped: set[str] = set()  # layers whose attention was left alone
        self.declined: set[str] = set()  # why the prefix could not be shared
        self._pair: Pair | None = None
        self._sigma = 0.0
        self._age = 0

    def reusable(self, x: torch.Tensor, sigma: float, every: int) -> Pair | None:
        """The predictions of an earlier step, where they may stand for this one's.

        None where they have to be computed: at the n-th step, and after a jump, when noise was added again (a restart,
        a second sampler) or the latent has another shape.
        """
        jump = self._pair is None or self._pair.cond.shape != x.shape or sigma > self._sigma
        self._age = 0 if jump else self._age + 1
        self._sigma = sigma
        return None if jump or self._age % every == 0 else self._pair

    def keep(self, pair: Pair) -> None:
        """Keep these predictions for `reusable`."""
        self._pair = pair

    def record(self, delta: torch.Tensor) -> None:
        """Note what PAG added in one step."""
        self.steps += 1
        largest = delta.abs().amax()
        self.largest_delta = largest if self.largest_delta is None else torch.maximum(self.largest_delta, largest)

    def report(self) -> None:
        """Say what a user would otherwise have to guess: that PAG did nothing, and why."""
        if self.skipped:
            _tell(f"PAG: left the self-attention of {', '.join(sorted(self.skipped))} alone, because something "
                  f"(HyperTile, token merging, an attention mask over parts of the image) changes its tokens there. "
                  f"Select other layers or remove that patch.")
        for reason in sorted(self.declined):
            _log.info("PAG: ran the perturbed pass from the first block (same result, slower): %s.", reason)
        if self.steps == 0:
            _tell("PAG: no sampled step lies between start_percent and end_percent (or start_sigma and end_sigma), "
                  "so it had no effect. Widen the range.")
        elif not torch.isfinite(self.largest_delta):
            _tell("PAG: the model's predictions held values that are no numbers (NaN or infinite), so the picture is "
                  "of no use. Where the weights run in half precision, start ComfyUI with --force-fp32; else lower the "
                  "scales.")
        elif self.largest_delta == 0:
            _tell(f"PAG: the perturbed prediction equals the plain one in all {self.steps} steps, so it had no effect.")


def _tell(warning: str) -> None:
    """Warn in the log, and on the node where an editor watches."""
    _log.warning("%s", warning)
    tell(warning)
