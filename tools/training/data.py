"""Pictures and labels as training takes them: drawn at random, mirrored and moved."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Data:
    """Pictures to learn from, and others to be judged by.

    Attributes:
        images: uint8 [N, 3, S, S].
        labels: long [N].
        held_out: images and labels that training never sees, if training watches them.
        flips: bool [N], whether a picture may be mirrored.
        shift: pixels by which a picture may move to any side; white comes in.
    """

    images: Tensor
    labels: Tensor
    held_out: tuple[Tensor, Tensor] | None = None
    flips: Tensor | None = None
    shift: int = 0

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
