"""What `nox -s train` trains: the network's shape, its data, and the metadata of both."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from pag_core.adm import ADMConfig

from . import drawings
from .data import Data
from .packages import PACKAGES

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "perturbed-attention-guidance" / "train"


@dataclass(frozen=True)
class Recipe:
    """A model to train.

    Attributes:
        name: of the file: adm-NAME-SIZE.safetensors.
        pag_layers: what "auto" stands for on this model, or empty where nobody has looked yet.
        facts: metadata of the data: its text, its licences.
        load: the data, from a folder or None for the usual one.
        encoders: the networks by whose features samples are compared with held-out pictures. The first call trains
            them.
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
        # to train of those tried. Three channels out: no learned sigma. The full size has 64 channels: with 32, each of
        # the 32 groups of a norm would hold one channel and remove its mean, so that the network could not tell how
        # bright x_t is, and pictures would get a colour cast.
        ADMConfig(model_channels=32, channel_mult=(2, 3, 4, 5), num_res_blocks=1, out_channels=3,
                  attention_levels=tuple(level for level in range(4) if size >> level <= ATTENTION_SIZE),
                  resblock_updown=False, head_channels=32, num_classes=len(categories), image_size=size,
                  qkv_order="new", noise_schedule="linear"),
        categories, pag_layers="u1", ema_decay=0.9995,
        facts={
            "license": "MIT",
            "data": f"emoji drawings of the categories {', '.join(categories)}, rendered on white, without flags and "
                    f"skin tones; {1 - drawings.HELD_OUT:.0%} of the concepts, the others held out",
            "data_licenses": "; ".join(package.attribution for package in PACKAGES),
        },
        load=load, encoders=encoders,
    )
