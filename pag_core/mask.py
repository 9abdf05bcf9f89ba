"""Where guidance acts: a mask that weights the delta by position, by image of a batch, or by frame of a video."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .checks import SettingError


def check_mask(name: str, mask: Tensor | None) -> None:
    """Raise SettingError unless `mask` is None, or a mask as the host has it: [n, H, W] or [H, W], values 0 to 1."""
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 3) or 0 in mask.shape:
        shape = "×".join(map(str, mask.shape)) if isinstance(mask, Tensor) else repr(mask)
        raise SettingError(f"{name} must be a mask for one or more images, got {shape}.")
    if not bool(((mask >= 0) & (mask <= 1)).all()):
        raise SettingError(f"{name} must contain values from 0 to 1, got {mask.min():g} to {mask.max():g}.")


def fit_mask(mask: Tensor, latent: tuple[int, ...]) -> Tensor:
    """The mask for a latent of this shape, broadcastable to it.

    One picture counts for all; for images [B, C, H, W] or [B, C, 1, H, W] else one for each of the batch; for videos
    [B, C, T, H, W] any number, spread over the frames.

    Raises:
        SettingError: if the latent is not an image, or the mask and the batch differ in their number of images.
    """
    mask = mask[None] if mask.ndim == 2 else mask
    if len(latent) == 5 and latent[2] > 1:
        return F.interpolate(mask[None, None].float(), size=latent[2:] if mask.shape[0] > 1 else (1, *latent[3:]),
                             mode="area")
    if len(latent) not in (4, 5):
        raise SettingError("scale_mask needs a latent of images or video; this one has no rows and columns. "
                           "Disconnect the mask.")
    if mask.shape[0] not in (1, latent[0]):
        raise SettingError(f"scale_mask has {mask.shape[0]} images, but the batch has {latent[0]}. Use one mask "
                           f"for all, or one for each image.")
    fitted = F.interpolate(mask[:, None].float(), size=latent[-2:], mode="area")
    return fitted if len(latent) == 4 else fitted[:, :, None]
