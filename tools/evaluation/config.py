"""One sampling configuration, and the key that identifies it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace

STEPS = 25  # DDIM, as in the paper's ablations


@dataclass(frozen=True)
class Config:
    """What the nodes are set to. Two configurations that sample the same are equal, so nothing is sampled twice.

    Attributes:
        conditional: every sample has a label (its id modulo the model's classes); else none has.
        cfg: ComfyUI's cfg, that is 1 + w of PAG Eq. 7; 1 is off.
        cfg_end: share of the run up to which CFG acts.
        scale, layers: PAG's s (PAG Eq. 10) and its layers.
        options: inputs of PAG Options that are not at their default, as sorted pairs.
        sag, sag_sigma: scale and blur of the host's Self-Attention Guidance.
    """

    conditional: bool = False
    cfg: float = 1.0
    cfg_end: float = 1.0
    scale: float = 0.0
    layers: str = ""
    options: tuple[tuple[str, float | int | str], ...] = ()
    sag: float = 0.0
    sag_sigma: float = 0.0

    def __post_init__(self) -> None:
        if self.scale == 0.0 and (self.layers or self.options):
            object.__setattr__(self, "layers", "")
            object.__setattr__(self, "options", ())
        for name in (field.name for field in fields(self) if field.type == "float"):
            object.__setattr__(self, name, float(getattr(self, name)))

    def but(self, **changes) -> Config:
        """The same with some values changed; `options` may be a dict."""
        if isinstance(changes.get("options"), dict):
            changes["options"] = tuple(sorted(changes["options"].items()))
        return replace(self, **changes)

    @property
    def key(self) -> str:
        """A short name for this configuration, the same on every machine."""
        text = json.dumps({**asdict(self), "steps": STEPS}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def settings(self) -> str:
        """The settings that differ from plain sampling, for tables: "cfg 3, s 2, u2-5"."""
        parts = []
        if self.cfg != 1.0:
            parts.append(f"cfg {self.cfg:g}" + (f" to {self.cfg_end:.0%}" if self.cfg_end < 1.0 else ""))
        if self.scale:
            parts += [f"s {self.scale:g}", self.layers, *(f"{name} {value}" for name, value in self.options)]
        if self.sag:
            parts.append(f"s {self.sag:g}, blur {self.sag_sigma:g}")
        return ", ".join(parts)

    def label(self, sample: int, classes: int) -> int:
        """The class label of a sample of a model of so many; -1 is none."""
        return sample % classes if self.conditional else -1


def pag(scale: float, layers: str, conditional: bool = False, **options) -> Config:
    """PAG alone; `options` are inputs of PAG Options."""
    return Config(conditional, scale=scale, layers=layers, options=tuple(sorted(options.items())))
