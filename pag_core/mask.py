"""Where guidance acts: a mask that weights the delta by position, by image of a batch, or by frame of a video."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .checks import SettingError, shown


def check_mask(name: str, mask: Tensor | None) -> Tensor | None:
    """The mask; SettingError unless it is None, or a mask of real numbers from 0 to 1 in one of the shapes that the
    host has for it: [H, W], [n, H, W], [n, 1, H, W], or [n, 1, T, H, W] of videos."""
    if mask is None:
        return None
    is_mask = isinstance(mask, Tensor) and 2 <= mask.ndim <= 5 and 0 not in mask.shape and not mask.is_complex()
    if not is_mask or (mask.ndim > 3 and mask.shape[1] != 1):
        what = "×".join(map(str, mask.shape)) if isinstance(mask, Tensor) else shown(mask)
        raise SettingError(f"{name} must be a mask for one or more images, got {what}. Connect a MASK output; an image "
                           f"becomes one with Convert Image to Mask.")
    if not bool(((mask >= 0) & (mask <= 1)).all()):
        raise SettingError(f"{name} must contain values from 0 to 1, got {mask.min():g} to {mask.max():g}.")
    return mask


def fit_mask(mask: Tensor, latent: tuple[int, ...]) -> Tensor:
    """The mask for a latent of this shape, broadcastable to it.

    One picture counts for all; for images [B, C, H, W] or [B, C, 1, H, W] else one for each of the batch; for videos
    [B, C, T, H, W] any number, spread over the frames, or a video [n, 1, T, H, W] for all or for each of the batch.

    Raises:
        SettingError: if the latent is not an image, or the mask and the batch differ in their number of images.
    """
    if len(latent) not in (4, 5):
        raise SettingError("scale_mask needs a latent of images or video; this one has no rows and columns. "
                           "Disconnect the mask.")
    is_video = len(latent) == 5 and latent[2] > 1
    size = mask.shape[-2:]
    mask = mask.float() if mask.ndim == 5 and is_video else mask.float().reshape(
        *((1, 1, -1) if is_video else (-1, 1, 1)), *size)
    if mask.shape[0] not in (1, latent[0]):
        raise SettingError(f"scale_mask has {mask.shape[0]} masks, but the batch has {latent[0]} images or videos. Use "
                           f"one mask for all, or one for each.")
    frames = latent[2] if is_video and mask.shape[2] > 1 else 1
    fitted = F.interpolate(mask, size=(frames, *latent[-2:]), mode="area")
    return fitted if len(latent) == 5 else fitted[:, :, 0]
