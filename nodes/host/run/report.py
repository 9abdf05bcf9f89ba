"""What a user would otherwise have to guess after a run: that PAG did nothing or was slow, and why."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from ..messages import begin, tell
from .neighbours import name_of

_log = logging.getLogger(__name__)


class Report:
    """What was seen in one run.

    Attributes:
        calls: of PAG, by the guider.
        wanted: evaluations in which it was to add something.
        steps: in which it added something.
        is_faded: whether the schedule had a scale of 0 in an evaluation within the range.
        selected: names of the layers that some step was to perturb.
        skipped: of those whose attention was left alone.
        declined: why the prefix could not be shared.
        declined_joint: why the weak rows ran in a call of their own.
        is_late: whether others' code mixed rows, and that was seen only when a block's turn had come.
        is_negative: whether the negative's own row was to be weak.
        weak_negatives: forwards in which it was.
        is_negative_asked: whether other nodes' calls were to compute the negative.
        kept, dropped: steps that were followed and returned PAG's part, or did not.
        dropper: the last function that returned something without it; None where it was the guider, or a node around
            it.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.wanted = 0
        self.steps = 0
        self.is_faded = False
        self.selected: set[str] = set()
        self.skipped: set[str] = set()
        self.declined: set[str] = set()
        self.declined_joint: set[str] = set()
        self.is_late = False
        self.is_negative = False
        self.weak_negatives = 0
        self.is_negative_asked = False
        self.kept = self.dropped = 0
        self.dropper: Callable | None = None
        self._largest_delta: torch.Tensor | None = None  # [] on the sampling device, so that no step waits for the GPU

    def record(self, delta: torch.Tensor) -> None:
        """Note what PAG added in one step."""
        self.steps += 1
        largest = delta.abs().amax()
        self._largest_delta = largest if self._largest_delta is None else torch.maximum(self._largest_delta, largest)

    def tell(self, guider: str, schedule: str, has_steps: bool, is_masked: bool) -> None:
        """Say it, in the log and in the node's panel.

        Args:
            guider: its class.
            schedule: the name of PAG's.
            has_steps: whether the sampler was given any.
            is_masked: whether the scale mask is black everywhere.
        """
        begin()
        if self.skipped:
            _tell(f"PAG: left the self-attention of {', '.join(sorted(self.skipped))} unperturbed, because another "
                  f"patch (HyperTile, token merging, an attention mask over parts of the image) changes its tokens. "
                  f"Select other layers or remove that patch.")
        for reason in sorted(self.declined_joint):
            _log.info("PAG: computed the perturbed prediction in a separate call (same result): %s.", reason)
        for reason in sorted(self.declined):
            _log.info("PAG: ran the perturbed pass from the first block (same result, slower): %s.", reason)
        if self.is_late:
            _tell("PAG: in the middle of this run another node began to mix the rows of a batch in one block, which is "
                  "checked in one block per step. Some steps before may be inexact. For an exact result set "
                  "share_prefix to false in PAG Options.")
        if without_effect := self._why_without_effect(guider, schedule, has_steps, is_masked):
            _tell(without_effect)

    def _why_without_effect(self, guider: str, schedule: str, has_steps: bool, is_masked: bool) -> str | None:
        """Why PAG changed nothing, or spoiled everything; None where it worked."""
        if self.calls == 0 and not has_steps:
            return ("PAG had no effect: this run has no steps, since it was given fewer than two sigmas. Check the "
                    "node that makes or splits the sigmas.")
        if self.calls == 0:
            return (f"PAG had no effect: the guider of this run ({guider}) bypasses ComfyUI's PREDICT_NOISE wrappers, "
                    f"which PAG needs. Use another guider or sampler node, for example PAG Guider.")
        if self.is_negative:
            return self._why_negative_was_plain()
        if self.wanted and self.steps == 0:
            return (f"PAG had no effect: the guider of this run ({guider}) runs no post-CFG functions, which PAG "
                    f"needs. Raise its cfg above 1, or use another guider, for example PAG Guider.")
        if self.steps == 0 and self.is_faded:
            return (f"PAG had no effect: schedule is {schedule}, and the scale is 0 in every sampled step within its "
                    f"range. Use more steps, or set schedule to constant.")
        if self._largest_delta is None:
            return ("PAG: no sampled step lies between start_percent and end_percent (or start_sigma and end_sigma), "
                    "so it had no effect. Widen the range.")
        if not torch.isfinite(self._largest_delta):
            return ("PAG: the model returned NaN or infinite values, so the image is unusable. If the model runs in "
                    "half precision, start ComfyUI with --force-fp32; otherwise lower the scales.")
        if is_masked:
            return "PAG had no effect: scale_mask is black everywhere."
        if self._largest_delta == 0 or self.skipped >= self.selected:
            return f"PAG: the perturbed prediction equals the plain one in all {self.steps} steps, so it had no effect."
        return self._why_dropped(guider) if self.dropped else None

    def _why_dropped(self, guider: str) -> str:
        if self.kept and self.dropper:
            return (f"PAG had no effect in some steps: another node's function ({name_of(self.dropper)}) runs after "
                    f"PAG and did not use the prediction that contains PAG's part there. If that is not what you "
                    f"want, remove that node, or PAG.")
        if self.kept:
            return (f"PAG had no effect in some steps: the guider of this run ({guider}), or a node around it, did not "
                    f"use the prediction that contains PAG's part there. If that is not what you want, use another "
                    f"guider, for example PAG Guider.")
        if self.dropper:
            return (f"PAG had no effect: another node's function ({name_of(self.dropper)}) runs after PAG and does not "
                    f"use the prediction that contains PAG's part. Remove that node, or PAG.")
        return (f"PAG had no effect: the guider of this run ({guider}), or a node around it, does not use the "
                f"prediction that contains PAG's part. Use another guider, for example PAG Guider.")

    def _why_negative_was_plain(self) -> str | None:
        if self.weak_negatives:
            return None
        if self.is_negative_asked:
            return ("PAG had no effect: row is negative, but another node calls the model itself without saying which "
                    "rows are the negative's. Remove that node, or set row to extra in PAG Options.")
        return ("PAG had no effect: row is negative, but no step of this run computed the negative prediction (CFG was "
                "off). Raise cfg, or set row to extra in PAG Options.")


def _tell(warning: str) -> None:
    """Warn in the log, and on the node where an editor watches."""
    _log.warning("%s", warning)
    tell(warning)
