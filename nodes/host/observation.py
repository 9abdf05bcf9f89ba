"""Looking at the predictions of every step while a run goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .calls import PerturbedPass
    from .run import Pair, Run


@dataclass(frozen=True, eq=False)
class Predictions:
    """What the model predicted in one step: clean latents x̂0, [B, C, ...], in the model's own scaling.

    Attributes:
        sigma: the noise level.
        scale: PAG's scale in this step; 0 where nothing of PAG is added.
        cond: the plain prediction, which CFG and PAG start from.
        uncond: the one that CFG pushes away from; None where CFG has no part in the step.
        pair: the predictions whose difference PAG adds, made in this step or, with reuse_every, in an earlier one; None
            where there is no perturbed prediction.
        guided: what CFG, PAG and other guidance make of them.
    """

    sigma: float
    scale: float
    cond: torch.Tensor
    uncond: torch.Tensor | None
    pair: Pair | None
    guided: torch.Tensor


Observer = Callable[[int, int, Predictions], None]
"""(index of the sampler's step, number of steps, the step's predictions), after every step."""


def watched_step(executor, x: torch.Tensor, timestep: torch.Tensor, model_options: dict, seed, run: Run,
                 step: PerturbedPass | None) -> torch.Tensor:
    """The rest of a PREDICT_NOISE wrapper: the step, and its predictions left in `run`."""
    seen = {}

    def look(args: dict) -> torch.Tensor:
        seen.update(cond=args["cond_denoised"], uncond=args["uncond_denoised"] if args["uncond"] is not None else None)
        return args["denoised"]

    post_cfg = "sampler_post_cfg_function"
    guided = executor(x, timestep, {**model_options, post_cfg: [look, *model_options.get(post_cfg, [])]}, seed)
    if seen:  # else the guider has no post-CFG functions
        run.predictions = Predictions(float(timestep.max()), step.scale if step else 0.0, pair=step and step.pair,
                                      guided=guided, **seen)
    return guided


def observed_callback(callback: Callable | None, run: Run, observer: Observer) -> Callable:
    """The host's sampling callback, which also shows the observer each step.

    Samplers that predict more than once in a step call it after one of them; that is the prediction of the step.
    """
    def both(step: int, x0: torch.Tensor, x: torch.Tensor, total: int) -> None:
        observer(step, total, run.predictions)
        if callback:
            callback(step, x0, x, total)

    return both
