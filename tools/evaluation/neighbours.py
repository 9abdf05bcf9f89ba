"""Finds the nearest training drawings of samples, to tell drawing from memorization."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pictures.comparison import Block, Row, comparison
from PIL import Image
from torch import Tensor, nn

from .encoders import encode
from .metrics import Value, mean

STRICT = 0.01  # share of the held-out drawings that this calls copies too


@dataclass(frozen=True)
class Nearest:
    """Of each of N pictures the nearest training drawing: its row [N], and how far away it is [N]."""

    rows: Tensor
    distances: Tensor


def nearest_pixels(pictures: Tensor, training: Tensor) -> Nearest:
    """By the root mean square difference of the pixels, 0 to 255; pictures uint8 [N, 3, S, S]. A drawing counts
    mirrored too, as training saw it."""
    both = torch.cat([training, training.flip(3)]).flatten(1).float()
    found = [torch.cdist(batch.flatten(1).float(), both).min(1) for batch in pictures.split(64)]
    distances = torch.cat([each.values for each in found]) / both.shape[1] ** 0.5
    return Nearest(torch.cat([each.indices for each in found]) % len(training), distances)


def nearest_features(pictures: Tensor, training: Tensor, encoder: nn.Module) -> Nearest:
    """By the angle of an encoder's features: 1 - cosine."""
    a, b = (nn.functional.normalize(encode(encoder, each)[0], dim=1) for each in (pictures, training))
    found = (1 - a @ b.T).min(1)
    return Nearest(found.indices, found.values)


def copies(samples: Nearest, held_out: Nearest) -> Value:
    """The share of the samples that lie nearer to a training drawing than all but `STRICT` of the held-out drawings do.

    Drawings of other concepts resemble each other too, so that is what a model that repeats nothing should reach.
    """
    return mean((samples.distances < held_out.distances.quantile(STRICT)).float())


def neighbours_sheet(pictures: Tensor, training: Tensor, found: dict[str, Nearest]) -> Image.Image:
    """Pictures, and below each the nearest training drawing by every measure {name: nearest}."""
    rows = [Row("samples", "not chosen", images_of(pictures))]
    rows += [Row("nearest drawing", name, images_of(training[nearest.rows])) for name, nearest in found.items()]
    return comparison("Is it drawn or repeated?", "Every sample, and the training drawings nearest to it.",
                      [Block("", rows)])


def images_of(pictures: Tensor) -> list[Image.Image]:
    return [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in pictures]
