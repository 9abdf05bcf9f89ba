"""Pictures that a long search keeps in ComfyUI's output folder, so that it goes on where it was cut short."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Hashable
from pathlib import Path

import folder_paths
import numpy as np
import torch
from comfy_api.latest import io, ui
from PIL import Image
from torch import Tensor

FOLDER = "pag_head_search"
_LONGEST = 80  # characters of a file's name, before the number that the host adds


def eight_bits(images: Tensor) -> Tensor:
    """Pictures [B, H, W, 3] as a PNG holds them, so that kept ones and new ones are alike."""
    return images.float().cpu().nan_to_num(0.0).clamp(0.0, 1.0).mul(255.0).round().div(255.0)


def check_can_keep() -> None:
    """Raise ValueError where no picture can be written to the output folder."""
    folder = Path(folder_paths.get_output_directory()) / FOLDER
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"PAG Head Search saves its images in {folder}, but {there} is no folder that can be written "
                         f"to. Make it one, or start ComfyUI with another --output-directory.")


class KeptPictures:
    """The pictures of one noise and prompt, by what was perturbed.

    What tells them from others is the picture without PAG: whatever changes the model, the prompt, the latent or the
    VAE changes it too, and no file has to be named for it.

    Args:
        plain: that picture, from `eight_bits`, [B, H, W, 3].
        settings: all that changes what PAG does to it.
    """

    def __init__(self, plain: Tensor, settings: Hashable) -> None:
        self.batch = len(plain)
        pixels = plain.mul(255.0).round().to(torch.uint8).numpy()
        key = hashlib.sha256(repr((settings, pixels.shape)).encode() + pixels.tobytes()).hexdigest()[:16]
        self.place = f"{FOLDER}/{key}"

    def find(self, layers: str) -> Tensor | None:
        """The pictures [B, H, W, 3] with these layers perturbed; None where there are none."""
        folder = Path(folder_paths.get_output_directory()) / self.place
        # The host adds _00001_; m0_h1_00001_.png is not of m0.
        for path in sorted(folder.glob(f"{_file_name(layers)}_[0-9]*_.png"), reverse=True):
            try:
                with Image.open(path) as file:
                    wide = np.array(file.convert("RGB"))
            except OSError:
                continue  # cut short while it was written
            if wide.shape[1] % self.batch == 0:
                return torch.cat(torch.from_numpy(wide)[None].float().div(255.0).chunk(self.batch, dim=2))
        return None

    def keep(self, layers: str, images: Tensor) -> None:
        """Write these pictures, [B, H, W, 3] from `eight_bits`, side by side into one file."""
        # The host cuts what is behind the point, so half a step is added.
        wide = torch.cat(list(images[..., :3]), dim=1)[None].mul(255.0).add(0.5).div(255.0)
        ui.ImageSaveHelper.save_images(wide, f"{self.place}/{_file_name(layers)}", io.FolderType.output, None)


def _file_name(layers: str) -> str:
    """m0:h1,u2 -> m0_h1+u2"""
    name = re.sub(r"[^a-z0-9.+!-]", "_", layers.replace(",", "+"))
    if len(name) <= _LONGEST:
        return name
    return f"{name[:_LONGEST - 17]}-{hashlib.sha256(layers.encode()).hexdigest()[:16]}"
