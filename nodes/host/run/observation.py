"""Looking at the predictions of every step while a run goes on."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .calls import WeakPass
from .neighbours import POST_CFG
from .predictions import Predictions
from .run import Run

Observer = Callable[[int, int, Predictions], None]
"""(index of the sampler's step, number of steps, the step's predictions), after every step."""


def watched_step(executor, x: torch.Tensor, timestep: torch.Tensor, model_options: dict, seed, run: Run,
                 step: WeakPass | None, has_weak_negative: bool = False) -> torch.Tensor:
    """The rest of a PREDICT_NOISE wrapper: the step, and its predictions left in `run`."""
    seen = {}

    def look(args: dict) -> torch.Tensor:
        seen.update(cond=args["cond_denoised"], uncond=args["uncond_denoised"] if args["uncond"] is not None else None)
        return args["denoised"]

    guided = executor(x, timestep, {**model_options, POST_CFG: [look, *model_options.get(POST_CFG, [])]}, seed)
    if seen:  # else the guider has no post-CFG functions
        run.predictions = Predictions(float(timestep.max()), step.scale if step else 0.0, pair=step and step.pair,
                                      guided=guided, has_weak_negative=has_weak_negative and seen["uncond"] is not None,
                                      **seen)
    return guided


def observed_callback(callback: Callable | None, run: Run, observer: Observer) -> Callable:
    """The host's sampling callback, which also shows the observer each step.

    Samplers that predict more than once in a step call it after one of them; that is the prediction of the step.
    """
    def both(step: int, x0: torch.Tensor, x: torch.Tensor, total: int) -> None:
        if run.predictions:
            observer(step, total, run.predictions)
        if callback:
            callback(step, x0, x, total)

    return both
