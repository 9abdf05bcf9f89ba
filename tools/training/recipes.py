"""What `nox -s train` can train: a network's shape, its data, and what a reader of the file should know of both."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from pag_core.adm import ADMConfig

from . import drawings, fashion
from .packages import PACKAGES

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "perturbed-attention-guidance" / "train"


@dataclass(frozen=True)
class Data:
    """Pictures to learn from, and others to be judged by.

    Attributes:
        images: uint8 [N, 3, S, S].
        labels: long [N].
        held_out: images and labels that training never sees; none where a recipe has none.
        flips: bool [N], whether a picture may be mirrored.
        shift: pixels by which a picture may move to any side; white comes in.
    """

    images: Tensor
    labels: Tensor
    held_out: tuple[Tensor, Tensor] | None = None
    flips: Tensor | None = None
    shift: int = 0

    @classmethod
    def of_grey(cls, images: Tensor, labels: Tensor, held_out: tuple[Tensor, Tensor] | None = None) -> Data:
        """Of grey images uint8 [N, S, S], neither moved nor mirrored."""
        def rgb(grey: Tensor) -> Tensor:
            return grey[:, None].expand(-1, 3, -1, -1)

        return cls(rgb(images), labels, held_out and (rgb(held_out[0]), held_out[1]))

    def to(self, device: torch.device) -> Data:
        return replace(self, images=self.images.to(device), labels=self.labels.to(device),
                       flips=None if self.flips is None else self.flips.to(device))

    def draw(self, rows: Tensor, **rand) -> Tensor:
        """The pictures of these rows in [-1, 1], float [B, 3, S, S], each moved and mirrored at random."""
        images = self.images[rows]
        if self.flips is not None:
            mirrored = (torch.rand(len(rows), **rand) < 0.5) & self.flips[rows]
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        if self.shift:
            size = images.shape[-1]
            padded = torch.nn.functional.pad(images, [self.shift] * 4, value=255)
            down, right = torch.randint(2 * self.shift + 1, (2, len(rows)), **rand)
            along = torch.arange(size, device=images.device)
            batch = torch.arange(len(rows), device=images.device)[:, None, None]
            images = padded[batch, :, (down[:, None] + along)[:, :, None], (right[:, None] + along)[:, None, :]]
            images = images.permute(0, 3, 1, 2)
        return images.float().div(127.5).sub(1)


@dataclass(frozen=True)
class Recipe:
    """A model to train.

    Attributes:
        name: of the file: adm-NAME-SIZE.safetensors.
        pag_layers: what "auto" stands for on this model, or empty where nobody has looked yet.
        facts: metadata of the data: its text, its licences.
        load: the data, from a folder or None for the usual one.
        encoders: the networks by whose features samples are compared with held-out pictures; none where training does
            not watch that. The first call trains them.
    """

    name: str
    title: str
    config: ADMConfig
    class_names: tuple[str, ...]
    pag_layers: str
    ema_decay: float
    facts: dict[str, str]
    load: Callable[[Path | None], Data] = field(repr=False)
    encoders: Callable[[Path | None], dict[str, nn.Module]] = field(repr=False)

    @property
    def file(self) -> str:
        return f"adm-{self.name}-{self.config.image_size}"


ATTENTION_SIZE = 16  # of the largest maps with self-attention, in pixels of either side
# Three channels out: no learned sigma. In every network the full size has 64 channels or more. With 32, each of the 32
# groups of a norm would hold one channel and remove its mean: the network could not tell how bright x_t is, and
# pictures would get a colour cast.
_COMMON = dict(model_channels=32, out_channels=3, head_channels=32, qkv_order="new", noise_schedule="linear")


def _fashion(folder: Path | None) -> Data:
    return Data.of_grey(*(fashion.read_data(folder or fashion.DATA)), fashion.read_data(folder or fashion.DATA, "t10k"))


FASHION = Recipe(
    "fashion", "ADM Fashion-MNIST 32",
    ADMConfig(channel_mult=(2, 2, 3), num_res_blocks=2, attention_levels=(1, 2), num_classes=10, image_size=32,
              **_COMMON),
    ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    pag_layers="d2-3",  # best of all layers and sets in the evaluation
    ema_decay=0.999,
    facts={
        "license": "MIT",
        "data": "Fashion-MNIST, 60,000 training images (Zalando SE, MIT), Debian package dataset-fashion-mnist",
    },
    load=_fashion,
    encoders=lambda folder: {},
)


def emoji(categories: tuple[str, ...], size: int) -> Recipe:
    """Emoji drawings of some categories, at a size that is a multiple of 8."""
    def load(folder: Path | None) -> Data:
        chosen = drawings.get_drawings(size, folder or CACHE).only(categories)
        images, labels = chosen.part(held_out=False)
        # A mirrored letter or arrow is another one.
        mirrors = torch.tensor([name != "Symbols" for name in categories])
        return Data(images, labels, chosen.part(held_out=True), mirrors[labels], shift=max(1, size // 32))

    def encoders(folder: Path | None) -> dict[str, nn.Module]:
        from evaluation.encoders import category_classifier, concept_encoder

        everything = drawings.get_drawings(size, folder or CACHE)
        return {"category": category_classifier(folder or CACHE, everything)[0],
                "concept": concept_encoder(folder or CACHE, everything)[0]}

    return Recipe(
        "emoji", f"ADM Emoji {size}",
        # One block a level, plain up- and downsampling, and most weights at the lowest resolutions: by far the fastest
        # to train of those tried.
        ADMConfig(channel_mult=(2, 3, 4, 5), num_res_blocks=1,
                  attention_levels=tuple(level for level in range(4) if size >> level <= ATTENTION_SIZE),
                  resblock_updown=False, num_classes=len(categories), image_size=size, **_COMMON),
        categories, pag_layers="m0", ema_decay=0.9995,
        facts={
            "license": "MIT",
            "data": f"emoji drawings of the categories {', '.join(categories)}, rendered on white, without flags and "
                    f"skin tones; {1 - drawings.HELD_OUT:.0%} of the concepts, the others held out",
            "data_licenses": "; ".join(package.attribution for package in PACKAGES),
        },
        load=load, encoders=encoders,
    )
