"""Latents made visible: through a VAE, or as the host's previews show them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TypeVar

import comfy.model_management
import comfy.utils
import latent_preview
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from PIL import Image

from ....pag_core.drawing import from_image
from ..sockets import check_latent, check_vae, check_vae_fits

Item = TypeVar("Item")


def with_progress(items: Collection[Item]) -> Iterator[Item]:
    """Each in turn, with the host's progress bar, until the user interrupts."""
    bar = comfy.utils.ProgressBar(max(1, len(items)))
    for item in items:
        comfy.model_management.throw_exception_if_processing_interrupted()
        yield item
        bar.update(1)


def check_is_picture(latent: dict) -> None:
    """Raise ValueError where a LATENT is no picture [B, C, H, W] and no video [B, C, T, H, W]."""
    check_latent(latent)
    samples = latent["samples"]
    if samples.is_nested or samples.ndim not in (4, 5):
        raise ValueError("This node shows images, or the first frame of videos, but the latent contains something "
                         "else, such as audio. Sample it with PAG KSampler.")


def still(latent: torch.Tensor) -> torch.Tensor:
    """The first frame of a video [B, C, T, H, W], as a video of one frame; a picture [B, C, H, W] as it is."""
    return latent[:, :, :1] if latent.ndim == 5 else latent


class Decoder:
    """Makes pictures of clean latents.

    Args:
        model: whose latents they are.
        vae: the VAE that belongs to it; None for the host's preview, which is coarse but takes no time.

    Raises:
        ValueError: where the VAE is none or another model's, or there is neither a VAE nor a preview of the host's.
    """

    def __init__(self, model: ModelPatcher, vae: VAE | None) -> None:
        self.model = model.model
        self.vae = vae
        form = model.get_model_object("latent_format")
        if vae is not None:
            check_vae(vae)
            check_vae_fits(vae, model)
            return
        self.previewer = latent_preview.get_previewer(model.load_device, form)
        if self.previewer is None and form.latent_rgb_factors is not None:  # the user has turned previews off
            self.previewer = latent_preview.Latent2RGBPreviewer(
                form.latent_rgb_factors, form.latent_rgb_factors_bias, form.latent_rgb_factors_reshape)
        if self.previewer is None:
            raise ValueError("ComfyUI has no preview for this kind of model. Connect its VAE.")

    def __call__(self, latents: torch.Tensor) -> list[Image.Image]:
        """One picture for each of [B, C, (T,) H, W], in the model's own scaling; of a video its first frame."""
        if self.vae is None:
            return [self.previewer.decode_latent_to_preview(latents[i:i + 1]) for i in range(len(latents))]
        return [from_image(image) for image in self.images(self.model.process_latent_out(still(latents).float()))]

    def images(self, samples: torch.Tensor) -> torch.Tensor:
        """What the VAE makes of a LATENT's samples [B, C, (T,) H, W]: [B, H, W, 3], of a video its first frame."""
        assert self.vae, "only a VAE gives an IMAGE"
        images = self.vae.decode(still(samples))
        return images[:, 0] if images.ndim == 5 else images
