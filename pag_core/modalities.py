"""Lightricks' guidance for multimodal models, such as LTX-2, which generates video and audio.

For each of them, with scales of its own (`MultiModalGuider.calculate` in ltx-core, Lightricks/LTX-2):

    total  = c + (cfg - 1)·(c - n) + pag·(c - w) + (modality - 1)·(c - i)
    result = total·(rescale·std(c)/std(total) + 1 - rescale)

with the predictions c for the prompt, n for the negative, w of the weak self (self-attention of some layers as the
identity, which Lightricks calls STG) and i of the isolated one (no block lets video and sound see each other).
"""

from __future__ import annotations

from dataclasses import dataclass

from .checks import check_range


@dataclass(frozen=True)
class ModalityScales:
    """How strongly one modality is guided; the neutral values are cfg 1, pag 0, modality 1, rescale 0.

    Attributes:
        name: "video" or "audio"; before "_cfg" and so on, what the inputs are called.
        cfg, pag, modality: scales of the three terms, 0 to 100.
        rescale: 0 to 1.
    """

    name: str
    cfg: float
    pag: float
    modality: float
    rescale: float

    def __post_init__(self) -> None:
        for scale, most in (("cfg", 100.0), ("pag", 100.0), ("modality", 100.0), ("rescale", 1.0)):
            value = check_range(f"{self.name}_{scale}", getattr(self, scale), 0.0, most)
            object.__setattr__(self, scale, value)
