"""What the two networks of `encoders` compute for images: the features behind all distances, and the categories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from training.drawings import Drawings

from .classifier import Classifier
from .encoders import category_classifier, concept_encoder, encode

METRICS = {"fd": "category", "fd_concept": "concept"}  # Fréchet distances, and whose features they are of


@dataclass(frozen=True)
class Seen:
    """What the networks see in pictures: features [N, 64] by the metric that they are for, logits [N, categories];
    and the brightness and contrast [N] (mean and standard deviation of the pixels, 0 to 255)."""

    features: dict[str, Tensor]
    logits: Tensor
    brightness: Tensor
    contrast: Tensor


@dataclass(frozen=True)
class Networks:
    """The two networks.

    Attributes:
        categories: long [classes], where the classes of a model are among those that the first network knows.
        accuracy: of both, on held-out drawings.
    """

    category: Classifier
    concept: nn.Module
    categories: Tensor
    accuracy: tuple[float, float]

    @classmethod
    def load(cls, folder: Path, drawings: Drawings, classes: Sequence[str], device: str) -> Networks:
        """Trained, unless `folder` has them.

        Args:
            drawings: of all categories.
            classes: names of the model's.
        """
        (category, right), (concept, nearest) = (make(folder, drawings) for make in (category_classifier,
                                                                                     concept_encoder))
        places = torch.tensor([drawings.categories.index(name) for name in classes])
        return cls(category.to(device), concept.to(device), places, (right, nearest))

    def see(self, pictures: Tensor) -> Seen:
        """In pictures uint8 [N, 3, S, S]."""
        features, logits = encode(self.category, pictures)
        pixels = pictures.float().flatten(1)
        return Seen({"fd": features, "fd_concept": encode(self.concept, pictures)[0]}, logits, pixels.mean(1),
                    pixels.std(1))

    @torch.inference_mode()
    def distance(self, pictures: Tensor, others: Tensor) -> Tensor:
        """Perceptual distances [N] of pictures uint8 [N, 3, S, S] from others, as the category network sees them."""
        device = next(self.category.parameters()).device
        return torch.cat([perceptual_distance(*(self.category(batch.to(device).float().div(127.5).sub(1))[0]
                                                for batch in batches)).cpu()
                          for batches in zip(pictures.split(200), others.split(200), strict=True)])


def perceptual_distance(maps: list[Tensor], others: list[Tensor]) -> Tensor:
    """[N] LPIPS-like distances of pictures, of which `maps` and `others` hold each stage's maps [N, C, h, w]: at every
    place the squared distance of the unit-length channel vectors, averaged over the places and added over the stages
    (Zhang et al. 2018, without their learned weights)."""
    total = torch.zeros(len(maps[0]), device=maps[0].device)
    for stage, other in zip(maps, others, strict=True):
        a, b = (nn.functional.normalize(each, dim=1) for each in (stage, other))
        total += (a - b).square().sum(1).mean((1, 2))
    return total
