"""Score distillation (SDS, DreamFusion: Poole et al. 2023) with a guided prediction (PAG App. C.3).

A picture x, or what a renderer makes of a scene, is noised to x_t = a·x + b·ε. How the model's guided guess ε̂ of the
noise differs from ε says where x should go so that the model finds it likely: ∇ = w(t)·(ε̂ − ε).
"""

from __future__ import annotations

import random
from collections.abc import Callable

from torch import Tensor

from .checks import SettingError, check_choice, check_range

WEIGHTINGS: dict[str, Callable[[float, float], float]] = {  # w(t) by a and b
    "sigma_squared": lambda a, b: b * b / (a * a + b * b),  # DreamFusion's σ_t²
    "uniform": lambda a, b: 1.0,
}
ORDERS = ("annealed", "random")
LEAST, MOST = 0.001, 0.999  # at 0 there is no noise to guess, at 1 nothing of the picture is left


def distillation_gradient(x: Tensor, x0: Tensor, a: float, b: float, weighting: str) -> Tensor:
    """w(t)·(ε̂ − ε), [B, ...] (DreamFusion Eq. 3), with respect to x and in its scaling.

    With ε̂ = (x_t − a·x̂0) / b, whatever the model itself predicts, ε̂ − ε is (a / b)·(x − x̂0).

    Args:
        x, x0: what is optimised, and the guided prediction of it from x_t, [B, ...].
        a, b: what the picture and the noise weigh in x_t.
        weighting: w(t), one of `WEIGHTINGS`.
    """
    if not (a > 0.0 and b > 0.0):
        raise ValueError("This model does not add noise to its latents, so there is no noise to predict. Score "
                         "distillation needs a diffusion or flow model.")
    return (WEIGHTINGS[weighting](a, b) * a / b) * (x - x0)


def noise_levels(steps: int, least: float, most: float, order: str, seed: int) -> list[float]:
    """The noise level of each step, as a fraction of the timesteps: near 0 is the clean image, near 1 pure noise.

    Args:
        order: "random", uniformly drawn (DreamFusion); "annealed", evenly from `most` down to `least`, so that the
            composition comes first and details come last (as in DreamTime, Huang et al. 2024).
        seed: of the draw.
    """
    check_range("min_step_percent", least, LEAST, MOST)
    check_range("max_step_percent", most, LEAST, MOST)
    check_choice("order", order, ORDERS)
    if least > most:
        raise SettingError(f"min_step_percent ({least:g}) must not exceed max_step_percent ({most:g}).")
    if order == "random":
        draw = random.Random(seed)  # another stream than the noise, which torch draws from the same seed
        return [draw.uniform(least, most) for _ in range(steps)]
    return [most + (least - most) * i / max(1, steps - 1) for i in range(steps)]
