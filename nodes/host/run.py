"""What one run of a guider remembers, and what it has to say at the end."""

from __future__ import annotations

import logging

import torch

_log = logging.getLogger(__name__)


class Run:
    """Made anew for every run, so that nothing is kept between runs."""

    def __init__(self) -> None:
        self.steps = 0
        self.largest_delta: torch.Tensor | None = None  # [] on the sampling device, so that no step waits for the GPU
        self.skipped: set[str] = set()  # layers whose attention was left alone
        self.declined: set[str] = set()  # why the prefix could not be shared
        self._predictions: tuple[torch.Tensor, torch.Tensor] | None = None
        self._sigma = 0.0
        self._age = 0

    def reusable(self, x: torch.Tensor, sigma: float, every: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The (cond, perturbed) predictions of an earlier step, where they may stand for this one's.

        None where they have to be computed: at the n-th step, and after a jump, when noise was added again (a restart,
        a second sampler) or the latent has another shape.
        """
        jump = self._predictions is None or self._predictions[0].shape != x.shape or sigma > self._sigma
        self._age = 0 if jump else self._age + 1
        self._sigma = sigma
        return None if jump or self._age % every == 0 else self._predictions

    def keep(self, cond: torch.Tensor, perturbed: torch.Tensor) -> None:
        """Keep this step's predictions for `reusable`."""
        self._predictions = cond, perturbed

    def record(self, delta: torch.Tensor) -> None:
        """Note what PAG added in one step."""
        self.steps += 1
        largest = delta.abs().amax()
        self.largest_delta = largest if self.largest_delta is None else torch.maximum(self.largest_delta, largest)

    def report(self) -> None:
        """Say in the log what a user would otherwise have to guess: that PAG did nothing, and why."""
        if self.skipped:
            _log.warning("PAG: left the self-attention of %s alone, because something (HyperTile, token merging, an "
                         "attention mask over parts of the image) changes its tokens there. Select other layers or "
                         "remove that patch.", ", ".join(sorted(self.skipped)))
        for reason in sorted(self.declined):
            _log.info("PAG: ran the perturbed pass from the first block (same result, slower): %s.", reason)
        if self.steps == 0:
            _log.warning("PAG: no sampled step lies between start_percent and end_percent, so it had no effect.")
        elif self.largest_delta == 0:
            _log.warning("PAG: the perturbed prediction equals the plain one in all %d steps, so it had no effect.",
                         self.steps)
