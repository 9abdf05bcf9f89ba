"""Selections worth a click: each promises something, and says who published it."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass

from ....pag_core.selection import SelectionError, select
from ..models.layers import ModelLayers

_AUTHORS = "the PAG authors' repository"


@dataclass(frozen=True)
class Preset:
    """A button of the layer picker; `about` says what it is good for and where that comes from."""

    title: str
    layers: str
    about: str = ""


_SD = (
    Preset("composition", "m0", "the middle block, at the lowest resolution: where things are placed. PAG Table 2"),
    Preset("structure", "u0", f"the first decoder block: shapes that fit their surroundings. {_AUTHORS}, inpainting"),
    Preset("detail", "u2", f"the decoder, one level finer: texture and edges. {_AUTHORS}, upscaling"),
)
_SDXL = (
    Preset("composition", "m0", "the middle block, at the lowest resolution: where things are placed. diffusers' "
                                "example for SDXL"),
    Preset("structure", "d3,u1", "the last encoder block and the second decoder block: shapes. diffusers' example for "
                                 "Kolors"),
)
_ADM = (
    Preset("the paper's, with class labels (Table 1)", "input.14"),
    Preset("the paper's, without class labels (Table 1)", "input.14,input.16-17,m0"),
    Preset("restoration", "input.8", "image restoration. PAG Tables 4 and 5"),
)


def presets(found: ModelLayers) -> list[dict[str, str]]:
    """The presets of a model, as JSON: those whose layers it has."""
    layers = tuple(found.layers)
    third = sum("" in layer.addresses for layer in layers) // 3
    if found.family is not None:
        offered = [Preset("the middle third", f"{third}-{2 * third}")] if third else []
    elif found.name == "ADM":
        offered = _ADM
    else:
        offered = _SDXL if max(key[-1] for key in found.layers.values()) else _SD
    return [asdict(preset) for preset in (Preset("auto", "auto", found.source), *offered, Preset("all", "all"))
            if _fits(preset, layers, found.auto)]


def _fits(preset: Preset, layers: tuple, auto: str) -> bool:
    with contextlib.suppress(SelectionError):
        return bool(select(preset.layers, layers, auto))
    return False
