"""Named settings of PAG Options, each with its source. A preset fills in the inputs; only the inputs take effect.

Layers and scale are inputs of other nodes, so each preset's note gives them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from .checks import SettingError, check_choice
from .settings import PAGOptions


@dataclass(frozen=True)
class Preset:
    """Inputs of PAG Options that differ from their defaults, and what to set elsewhere.

    Attributes:
        values: {input: value}; every other input has its default.
        note: layers and scale, and where all of this comes from.
    """

    values: Mapping[str, object] = field(default_factory=dict)
    note: str = ""


CUSTOM = "custom"
PRESETS: dict[str, Preset] = {
    "paper": Preset(note="layers auto, scale 3 (PAG, Sec. 5)"),
    "sd3.5_slg": Preset({"perturbation": "skip_block", "start_percent": 0.01, "end_percent": 0.2},
                        "layers 7-9, scale 2.5, cfg 4 (Stability AI's sd3_infer)"),
    "stg_video": Preset({"perturbation": "skip_block", "rescale": 0.7, "rescale_mode": "diffusers"},
                        "layers auto, scale 1 (STG, arXiv 2411.18664)"),
    "s2": Preset({"perturbation": "skip_block", "random_share": 0.1, "start_percent": 0.1, "end_percent": 0.9},
                 "layers all except the first block, scale 0.25 (S², arXiv 2508.12880)"),
    "segmented": Preset({"start_percent": 0.5},
                        "layers auto; end CFG where PAG starts: cfg_end_percent 0.5 (SGG, arXiv 2603.20584)"),
    "negative_row": Preset({"perturbation": "skip_block", "row": "negative", "start_percent": 0.2},
                           "layers 10 on Wan 2.1, any scale above 0 (KJNodes)"),
    "hires_repair": Preset({"strength": 0.5, "rescale": 0.5}, "layers auto, scale 2, denoise below 0.5; not measured"),
}


def check_preset(preset: str, options: PAGOptions) -> None:
    """Raise SettingError for an unknown preset, or one that the inputs contradict: it is then unclear which is
    meant."""
    check_choice("preset", preset, (CUSTOM, *PRESETS))
    if preset == CUSTOM:
        return
    for one in fields(options):
        wanted = PRESETS[preset].values.get(one.name, one.default)
        value = getattr(options, one.name)
        if value is not wanted and value != wanted:
            raise SettingError(f"preset is {preset}, which sets {one.name} to {wanted}, but {one.name} is {value}. Set "
                               f"preset to custom, or {one.name} to {wanted}.")
