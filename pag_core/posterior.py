"""The formulas of posterior sampling: DPS (Chung et al. 2023, Algorithm 1) and PSLD (Rout et al. 2023, Algorithm 2).

Both take a step of DDPM or DDIM from the guided prediction, and then one down the gradient of an energy of the unguided
prediction x̂0 ("it is better to use unconditional score", PAG App. A.3; App. C.1). They are written for variance-
preserving latents, x_t = √ᾱ_t·x0 + √(1-ᾱ_t)·ε.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .inverse import Operator


def denoising_step(x: Tensor, x0: Tensor, alpha: float, next_alpha: float, eta: float, noise: Tensor) -> Tensor:
    """x_{t-1} from x_t and x̂0, all [B, C, H, W] and variance-preserving (DDIM, Song et al. 2021, Eq. 12 and 16).

    Args:
        alpha, next_alpha: ᾱ of x and of the result; more noise is a smaller ᾱ.
        eta: 0 is DDIM; 1 is DDPM with the posterior variance β̃.
    """
    variance = eta ** 2 * (1 - next_alpha) / (1 - alpha) * (1 - alpha / next_alpha)
    epsilon = (x - alpha ** 0.5 * x0) / (1 - alpha) ** 0.5
    direction = max(0.0, 1 - next_alpha - variance) ** 0.5
    return next_alpha ** 0.5 * x0 + direction * epsilon + variance ** 0.5 * noise


def norms(x: Tensor) -> Tensor:
    """‖x‖ of each sample: [B, ...] -> [B]. Its gradient at 0 is 0."""
    return torch.linalg.vector_norm(x.flatten(1), dim=1)


def measurement_error(operator: Operator, y: Tensor, picture: Tensor) -> Tensor:
    """‖y - A·x̂0‖ [B] (DPS Eq. 16). Its gradient is that of DPS's squared norm with the step size that DPS divides by
    the norm (App. C.2), but for the factor 2, as in its released code."""
    return norms(y - operator.forward(picture))


def gluing_error(operator: Operator, squared_norm: float, y: Tensor, latent: Tensor, picture: Tensor,
                 encode: Callable[[Tensor], Tensor]) -> Tensor:
    """‖ẑ0 - E(Aᵀ·y + (I - AᵀA)·D(ẑ0))‖ [B], PSLD's gluing term, which asks for latents that the encoder agrees with.

    PSLD takes AᵀA for a projection, which it is for masks; elsewhere A is scaled to norm 1.

    Args:
        squared_norm: ‖A‖².
        latent, picture: ẑ0 and D(ẑ0).
        encode: E.
    """
    glued = picture + operator.adjoint(y - operator.forward(picture)) / squared_norm
    return norms(latent - encode(glued))
