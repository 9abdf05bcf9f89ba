"""How well pictures fit a prompt or another picture, by the host's CLIP models."""

from __future__ import annotations

from collections.abc import Callable

import comfy.model_management
import comfy.utils
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..sockets import check_pixels

SCORES = ("eye", "prompt", "reference", "pixels")


class UnfitModelError(ValueError):
    """CLIP models that do not belong together, or give no embedding; the message says what to load."""


def likeness_of(score: str, clip_vision, clip, prompts: list[str], reference, batch: int
                ) -> Callable[[int, Tensor], Tensor] | None:
    """(group, [B, H, W, 3]) -> [B], higher is better; None for the user's eye. `prompts`: one for each group."""
    if score == "eye":
        return None
    if score in ("reference", "pixels"):
        check_reference(reference)
    if score == "pixels":
        return PixelLikeness(reference, len(prompts) * batch, batch)
    check_clip_vision(clip_vision)
    if score == "reference":
        return PictureLikeness(clip_vision, reference)
    check_clip(clip)
    if not all(text.strip() for text in prompts):
        raise ValueError("prompt is empty. Enter what the images should show, or choose another score.")
    return PromptLikeness(clip_vision, clip, prompts)


class PromptLikeness:
    """The CLIP score: the cosine between the embeddings of a picture and of its prompt (arXiv 2104.08718, without its
    factor).

    Args:
        clip_vision: the host's CLIP_VISION.
        clip: the host's CLIP that was trained with it.
        prompts: one for each group of pictures.
    """

    def __init__(self, clip_vision, clip, prompts: list[str]) -> None:
        self.vision = clip_vision
        width = picture_embeddings(clip_vision, torch.zeros(1, 64, 64, 3)).shape[-1]
        known = {prompt: text_embedding(clip, prompt, width) for prompt in dict.fromkeys(prompts)}
        self.wanted = [known[prompt] for prompt in prompts]

    def __call__(self, group: int, images: Tensor) -> Tensor:
        """[B], -1 to 1, of pictures [B, H, W, 3] of that group."""
        return F.cosine_similarity(picture_embeddings(self.vision, images), self.wanted[group])


class PictureLikeness:
    """The cosine between the embeddings of a picture and of references, averaged over these.

    Args:
        clip_vision: the host's CLIP_VISION.
        references: [n, H, W, 3].
    """

    def __init__(self, clip_vision, references: Tensor) -> None:
        self.vision = clip_vision
        self.wanted = picture_embeddings(clip_vision, references)

    def __call__(self, group: int, images: Tensor) -> Tensor:
        """[B], -1 to 1, of pictures [B, H, W, 3]."""
        found = picture_embeddings(self.vision, images)
        return F.cosine_similarity(found[:, None], self.wanted[None], dim=-1).mean(1)


class PixelLikeness:
    """Minus the root mean square difference from a reference, pixel by pixel.

    Args:
        references: [n, H, W, 3], one for all pictures, or one for each of them, group after group.
        pictures: how many there are.
        batch: how many of them are in a group.
    """

    def __init__(self, references: Tensor, pictures: int, batch: int) -> None:
        if len(references) not in (1, pictures):
            raise ValueError(f"reference has {len(references)} images; the score pixels needs one, or one for each of "
                             f"the {pictures} images of prompts, seeds and batch, in that order.")
        self.references = references[..., :3].float().cpu()
        self.batch = batch

    def __call__(self, group: int, images: Tensor) -> Tensor:
        """[B], -1 to 0, of pictures [B, H, W, 3] of that group."""
        wanted = self.references
        if len(wanted) > 1:
            wanted = wanted[group * self.batch:(group + 1) * self.batch]
        if wanted.shape[1:3] != images.shape[1:3]:
            wanted = comfy.utils.common_upscale(wanted.movedim(-1, 1), images.shape[2], images.shape[1], "area",
                                                "center").movedim(1, -1)
        return -(images - wanted).square().flatten(1).mean(1).sqrt()


def check_clip_vision(clip_vision: object) -> None:
    """Raise ValueError unless this is a CLIP_VISION."""
    if not callable(getattr(clip_vision, "encode_image", None)):
        raise ValueError("The CLIP vision model is missing. Connect a Load CLIP Vision node.")


def check_clip(clip: object) -> None:
    """Raise ValueError unless this is a CLIP."""
    if not callable(getattr(clip, "encode_from_tokens", None)):
        raise ValueError("The CLIP is missing. Connect a Load CLIP node with the text model that belongs to the CLIP "
                         "vision model.")


def check_reference(reference: object) -> None:
    """Raise ValueError unless this is an IMAGE."""
    if reference is None:
        raise ValueError("The reference is missing. Connect the image to compare with.")
    check_pixels("IMAGE", "reference", reference)


def picture_embeddings(clip_vision, images: Tensor) -> Tensor:
    """[B, D] on the CPU, of pictures [B, H, W, 3]; where a model has none for whole pictures, its tokens' average."""
    comfy.model_management.throw_exception_if_processing_interrupted()
    found = clip_vision.encode_image(images[..., :3])["image_embeds"].float().cpu()
    return found.mean(1) if found.ndim == 3 else found


def text_embedding(clip, prompt: str, width: int) -> Tensor:
    """[1, width] on the CPU, in the space that texts and pictures share.

    The text encoders of most diffusion models stop before the projection into that space, so it is applied here.

    Raises:
        UnfitModelError: where the CLIP has none of this width.
    """
    pooled = clip.encode_from_tokens(clip.tokenize(prompt), return_pooled="unprojected")[1]
    projection = None if pooled is None else _projection(clip.cond_stage_model, pooled.shape[-1])
    if projection is None:
        raise UnfitModelError("This CLIP has no embedding that can be compared with images. Load a single CLIP text "
                              "model, such as clip_l or clip_g, with Load CLIP.")
    weight = projection.weight
    if weight is None or not weight.any() or torch.equal(weight.float().cpu(), torch.eye(len(weight))):
        raise UnfitModelError("This CLIP lacks the projection needed to compare its embeddings with images, as in many "
                              "checkpoints. Load the complete CLIP text model, such as clip_l or clip_g, with Load "
                              "CLIP.")
    if projection.out_features != width:
        raise UnfitModelError(f"CLIP and CLIP vision do not match: text embeddings have {projection.out_features} "
                              f"dimensions, image embeddings {width}. CLIP ViT-L (768) goes with clip_l, ViT-bigG "
                              f"(1280) with clip_g, ViT-H (1024) with SD 2's.")
    found = projection(pooled).float().cpu()
    if not found.isfinite().all():
        raise UnfitModelError("This CLIP's embedding of the prompt contains NaN or infinity. Load another file.")
    return found


def _projection(model: nn.Module, width: int) -> nn.Linear | None:
    """The layer that brings a text encoder's output of this width into the shared space."""
    return next((module for name, module in model.named_modules() if name.endswith("text_projection")
                 and isinstance(module, nn.Linear) and module.in_features == width), None)
