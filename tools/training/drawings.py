"""Emoji drawings as images with labels: how they are selected, rendered and held out."""

from __future__ import annotations

import hashlib
import io
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness.errors import HarnessError
from harness.whole_files import written_whole
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from .packages import PACKAGES, Package, archive, read_json

CATEGORIES = {  # ours: the packages'; the order is that of the labels
    "Smileys": "Smileys & Emotion",
    "Animals": "Animals & Nature",
    "Food": "Food & Drink",
    "People": "People & Body",
    "Travel": "Travel & Places",
    "Activities": "Activities",
    "Objects": "Objects",
    "Symbols": "Symbols",
}
TONE = r"-(medium-light|medium-dark|light|medium|dark){}(?=-|$)"
HELD_OUT = 0.15  # share of the concepts
MARGIN = 1 / 16  # white on every side, as a share of the picture
OVERSAMPLING = 4  # rendered so much larger, then averaged: fine lines keep their weight


@dataclass(frozen=True)
class Drawing:
    concept: str  # what it shows; the same name in every style
    style: str
    category: str
    svg: str


@dataclass(frozen=True)
class Drawings:
    """Rendered drawings.

    Attributes:
        images: uint8 [N, 3, S, S], on white.
        labels: long [N], index into `categories`.
        held_out: bool [N]; all drawings of a concept are on the same side.
        concepts, styles: N names.
    """

    images: Tensor
    labels: Tensor
    held_out: Tensor
    concepts: list[str]
    styles: list[str]
    categories: tuple[str, ...]

    def part(self, held_out: bool) -> tuple[Tensor, Tensor]:
        """Images and labels of one side of the split."""
        rows = self.held_out == held_out
        return self.images[rows], self.labels[rows]

    def only(self, categories: Sequence[str]) -> Drawings:
        """The drawings of some categories, labelled in the order given."""
        if unknown := [name for name in categories if name not in self.categories]:
            raise HarnessError(f"categories {', '.join(unknown)}: expected names from {', '.join(self.categories)}")
        new = torch.full([len(self.categories)], -1)
        for label, name in enumerate(categories):
            new[self.categories.index(name)] = label
        labels = new[self.labels]
        rows = labels >= 0
        return Drawings(self.images[rows], labels[rows], self.held_out[rows],
                        [name for name, row in zip(self.concepts, rows, strict=True) if row],
                        [name for name, row in zip(self.styles, rows, strict=True) if row], tuple(categories))


def is_held_out(concept: str) -> bool:
    """By the concept's name alone, so that no later choice of drawings moves one to the other side."""
    return int.from_bytes(hashlib.sha256(concept.encode()).digest()[:4], "big") < HELD_OUT * 2**32


def select(package: Package, icons: dict[str, Any], categories: dict[str, list[str]]) -> Iterator[Drawing]:
    """The labelled drawings of a package, without flags, hidden ones and skin tones.

    Args:
        icons: the package's icons.json.
        categories: {category: names} of its metadata.json.
    """
    ours = {theirs: name for name, theirs in CATEGORIES.items()}
    category = {name: ours[group] for group, names in categories.items() if group in ours for name in names}
    tone = re.compile(TONE.format(package.tones))
    width, height = icons.get("width", 16), icons.get("height", 16)  # 16 is Iconify's default
    for name, icon in icons["icons"].items():
        plain = tone.sub("", name)
        # "Light" is a tone where the same drawing exists without it, and a lamp elsewhere.
        if icon.get("hidden") or name not in category or (plain != name and (package.tones or plain in icons["icons"])):
            continue
        box = [icon.get(key, default) for key, default in (("left", 0), ("top", 0), ("width", width),
                                                           ("height", height))]
        svg = (f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
               f'viewBox="{" ".join(map(str, box))}">{icon["body"]}</svg>')
        yield Drawing(name, package.style, category[name], svg)


def render(svg: str, size: int) -> np.ndarray:
    """uint8 [3, size, size] on white, with a margin."""
    import resvg_py

    inner = round(size * (1 - 2 * MARGIN)) * OVERSAMPLING
    drawn = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=inner, height=inner))))
    page = Image.new("RGBA", (size * OVERSAMPLING,) * 2, "white")
    page.alpha_composite(drawn.convert("RGBA"), tuple((page.width - side) // 2 for side in drawn.size))
    return np.ascontiguousarray(np.asarray(page.convert("RGB").reduce(OVERSAMPLING)).transpose(2, 0, 1))


def get_drawings(size: int, cache: Path, packages: Sequence[Package] = PACKAGES) -> Drawings:
    """All drawings at size × size pixels, rendered once and kept in `cache`, where the packages are kept too."""
    path = rendered(size, cache, packages)
    if not path.is_file():
        save(path, size, list(read(cache, packages)), packages)
    with safe_open(path, "pt") as file:
        facts = file.metadata()
        concepts = json.loads(facts["concepts"])
        return Drawings(file.get_tensor("images"), file.get_tensor("labels"),
                        torch.tensor([is_held_out(concept) for concept in concepts]), concepts,
                        json.loads(facts["styles"]), tuple(CATEGORIES))


def rendered(size: int, cache: Path, packages: Sequence[Package] = PACKAGES) -> Path:
    """Where they are kept; another file for every way to choose and render them."""
    recipe = repr((size, MARGIN, OVERSAMPLING, TONE, CATEGORIES, [package.integrity for package in packages]))
    return cache / f"drawings-{size}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.safetensors"


def read(cache: Path, packages: Sequence[Package]) -> Iterator[Drawing]:
    """The chosen drawings of all packages, in the order of the packages and their files."""
    archives = {package.style: archive(package, cache) for package in packages}
    for package in packages:
        labels = read_json(archives[package.categories_of or package.style], "metadata.json")["categories"]
        yield from select(package, read_json(archives[package.style], "icons.json"), labels)


def save(path: Path, size: int, drawings: list[Drawing], packages: Sequence[Package] = PACKAGES) -> None:
    """Render drawings into one file, with what each of them is and who made them."""
    images = np.stack([render(drawing.svg, size) for drawing in tqdm(drawings, desc=f"rendering at {size}×{size}",
                                                                     disable=not sys.stderr.isatty())])
    labels = torch.tensor([list(CATEGORIES).index(drawing.category) for drawing in drawings])
    facts = {"concepts": json.dumps([drawing.concept for drawing in drawings]),
             "styles": json.dumps([drawing.style for drawing in drawings]),
             "attribution": "; ".join(package.attribution for package in packages)}
    with written_whole(path) as partial:
        save_file({"images": torch.from_numpy(images), "labels": labels}, partial, facts)
