"""Checks of node inputs before anything runs.

The editor links only sockets of the same type, but an API client can send anything, and any node can pass on an empty
tensor or one with NaN. ComfyUI would sample it and return a black image without an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE

from ...pag_core.checks import shown
from ...pag_core.inverse import Operator

DIMENSIONS = {"IMAGE": (4,), "MASK": (2, 3, 4)}  # [B, H, W, C]; [H, W], [B, H, W] or [B, 1, H, W]


def shape_text(tensor: torch.Tensor) -> str:
    """A tensor's shape for messages: 1 × 4 × 64 × 64."""
    return " × ".join(map(str, tensor.shape))


def check_model(model: object) -> None:
    """Raise ValueError unless this is a MODEL."""
    if not isinstance(getattr(model, "model_options", None), dict):
        raise ValueError(f"model is {shown(model)}, expected the MODEL output of a loader.")


def check_conditioning(name: str, conditioning: object) -> None:
    """Raise ValueError unless this is a CONDITIONING with finite values."""
    is_list = isinstance(conditioning, (list, tuple))
    if conditioning is None or (is_list and not conditioning):  # ComfyUI would take no entries for a prediction of 0
        raise ValueError(f"The {name} conditioning is missing. Connect a CLIP Text Encode node (its text may be empty) "
                         f"or, for an ADM model, a PAG ADM Class Label node.")
    if not is_list or not all(isinstance(entry, (list, tuple)) and len(entry) > 1 and isinstance(entry[1], dict)
                              for entry in conditioning):
        raise ValueError(f"{name} is {shown(conditioning)}, expected the CONDITIONING output of a node.")
    for embedding, *_ in conditioning:
        if embedding is not None and not isinstance(embedding, torch.Tensor):  # None is for models without text
            raise ValueError(f"The {name} conditioning contains {shown(embedding)} in the place of an encoded text. "
                             f"Check the nodes that produce it.")
        if embedding is None:
            continue
        if embedding.numel() == 0:
            raise ValueError(f"The {name} conditioning is empty: its shape is {shape_text(embedding)}. Check the nodes "
                             f"that produce it.")
        if not all_finite(embedding):
            raise ValueError(f"The {name} conditioning contains NaN or infinity and cannot be sampled. Check the nodes "
                             f"that produce it.")


def check_latent(latent: object, name: str = "latent_image") -> None:
    """Raise ValueError unless this is a LATENT with samples."""
    given = latent if isinstance(latent, dict) else {}
    samples, mask = _parts(given.get("samples")), _parts(given.get("noise_mask"))
    if not samples or not all(isinstance(part, torch.Tensor) for part in [*samples, *mask]) or samples[0].ndim < 3:
        raise ValueError(f"{name} is {shown(latent)}, expected the LATENT output of a node.")
    for part in mask:
        if part.ndim < 2 or part.is_complex():
            raise ValueError(f"The noise mask of {name} has the shape {shape_text(part)} and holds {part.dtype}; "
                             f"expected the MASK output of a node.")
    if not all(map(all_finite, mask)):
        raise ValueError(f"The noise mask of {name} contains NaN or infinity. Check the nodes that produce it.")
    indices = given.get("batch_index")
    if indices is not None and not _are_indices(indices):
        raise ValueError(f"batch_index of {name} is {shown(indices)}, expected a whole number from 0 on for each "
                         f"image, from which its noise is drawn. Check the nodes that produce the latent.")


def _are_indices(values: Any) -> bool:
    values = values.tolist() if hasattr(values, "tolist") else values
    return isinstance(values, (list, tuple, range)) and len(values) > 0 and all(
        hasattr(value, "__index__") and value >= 0 for value in values)


def check_pixels(kind: str, name: str, pixels: Any) -> None:
    """Raise ValueError unless this is an IMAGE or a MASK, as `kind` says, that is not empty and has finite values."""
    if not isinstance(pixels, torch.Tensor) or pixels.ndim not in DIMENSIONS[kind]:
        raise ValueError(f"{name} is {shown(pixels)}, expected the {kind} output of a node.")
    if pixels.numel() == 0:
        raise ValueError(f"The {name} is empty: its shape is {shape_text(pixels)}.")
    if not all_finite(pixels):
        raise ValueError(f"The {name} contains NaN or infinity. Check the nodes that produce it.")


def check_operator(operator: object) -> None:
    """Raise ValueError unless this is a PAG_OPERATOR."""
    if not isinstance(operator, Operator):
        raise ValueError(f"operator is {shown(operator)}, expected the output of a PAG Degradation node.")


def check_vae(vae: object) -> None:
    """Raise ValueError unless this is a VAE."""
    if not hasattr(vae, "latent_channels"):
        raise ValueError(f"vae is {shown(vae)}, expected the VAE output of a node.")


def check_vae_fits(vae: VAE, model: ModelPatcher) -> None:
    """Raise ValueError unless this VAE's latents have as many channels as the model's."""
    channels = model.get_model_object("latent_format").latent_channels
    if vae.latent_channels != channels:
        raise ValueError(f"The VAE decodes latents with {vae.latent_channels} channels, but this model's latents have "
                         f"{channels}. Connect the VAE that belongs to the model.")


def check_guider(guider: object) -> None:
    """Raise ValueError unless this is a GUIDER."""
    if not callable(getattr(guider, "sample", None)) or not hasattr(guider, "model_patcher"):
        raise ValueError(f"guider is {shown(guider)}, expected the GUIDER output of a node such as PAG Guider.")


def check_samples(model: ModelPatcher, noise: torch.Tensor, samples: torch.Tensor | None,
                  latent_shapes: Sequence[Sequence[int]] | None = None) -> None:
    """Raise ValueError where a latent [B, C, ...] is empty or not finite, or has other channels than `model` denoises.

    Args:
        noise: as many values as there are to sample.
        samples: what the sampling starts from; None for nothing.
        latent_shapes: of the latents that the host has packed into one [B, 1, N], such as video and sound. No model
            says how many channels each of those has.
    """
    several = noise.is_nested or len(latent_shapes or ()) > 1
    for part in _parts(noise):
        if part.numel() == 0:
            raise ValueError(f"The latent is empty: its shape is {shape_text(part)}. Set its size and batch size to at "
                             f"least 1.")
        if part.is_complex():
            raise ValueError(f"The latent holds complex numbers ({part.dtype}) and cannot be sampled. Check the nodes "
                             f"that produce it.")
    latent_format = model.get_model_object("latent_format")
    least = 3 if getattr(latent_format, "latent_dimensions", 1) == 1 else 4
    if not several and not least <= noise.ndim <= 5:
        raise ValueError(f"The latent has {noise.ndim} dimensions ({shape_text(noise)}), but this model samples "
                         f"latents with {least} to 5. Connect the empty latent node or the VAE of this model.")
    expected = latent_format.latent_channels
    if not several and noise.shape[1] != expected:
        raise ValueError(f"The latent has {noise.shape[1]} channels, but this model expects {expected}. Encode the "
                         f"image with the VAE that belongs to this model, or start from an empty latent.")
    if not all(map(all_finite, _parts(samples))):
        raise ValueError("The latent contains NaN or infinity and cannot be sampled. Check the nodes that produce it; "
                         "a VAE in half precision is a frequent cause.")


def _parts(value: Any) -> list:
    """The tensors that the host has nested into one, as of video and sound; a value by itself; nothing of None."""
    return [] if value is None else list(value.unbind()) if getattr(value, "is_nested", False) else [value]


def all_finite(values: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite."""
    return bool(torch.isfinite(values).all())
