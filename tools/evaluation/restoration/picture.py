"""Draws the degraded images, the restorations and the true images."""

from __future__ import annotations

from pictures.comparison import Block, Row, comparison
from PIL import Image
from torch import Tensor

from ..store import Store
from .plan import TASKS, Pair
from .restorer import Restorer

SHOWN = 2  # pictures of each task


def restorations(restorer: Restorer, store: Store, pairs: list[Pair]) -> Image.Image:
    """A row for each task, of the table's first pictures."""
    rows, method = [], restorer.experiment.method
    for both in pairs:
        _, _, measured = restorer.measure(both.task, list(range(restorer.batch)))
        made = [store.load(config, range(SHOWN)) for config in (both.plain, both.guided)]
        columns = [measured.movedim(-1, 1).mul(255).round().byte(), *made, restorer.truths[range(SHOWN)]]
        images = [image(column[i]) for i in range(SHOWN) for column in columns]
        rows.append(Row(TASKS[both.task].name, both.guided.settings, images))
    subtitle = f"The first {SHOWN} held-out pictures, not chosen; the same noise with and without PAG."
    return comparison(f"Restoration: {method} with and without PAG", subtitle, [Block("", rows)],
                      ("measured", method, f"{method} + PAG", "truth") * SHOWN)


def image(picture: Tensor) -> Image.Image:
    """Of uint8 [3, H, W]."""
    return Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
