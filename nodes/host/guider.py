"""A guider whose CFG acts on part of the run only; PAG itself rides on the model it is given."""

from __future__ import annotations

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher

from ...pag_core.checks import check_percent_range, check_range
from ...pag_core.schedule import Window, window_from_percent
from .patching import check_latent_channels


class CFGWindowGuider(comfy.samplers.CFGGuider):
    """The host's CFGGuider with a window; outside it the scale is 1, and the unconditional pass is not computed."""

    def __init__(self, model: ModelPatcher, positive, negative, cfg: float, start_percent: float = 0.0,
                 end_percent: float = 1.0) -> None:
        super().__init__(model)
        check_range("cfg", cfg, 0.0, 100.0)
        check_percent_range("cfg_start_percent", start_percent, "cfg_end_percent", end_percent)
        self.cfg_window: Window = window_from_percent(
            start_percent, end_percent, model.get_model_object("model_sampling").percent_to_sigma)
        for name, conditioning in (("positive", positive), ("negative", negative)):
            if not conditioning:  # the host would take an empty list for a prediction of zeros
                raise ValueError(f"The {name} conditioning is missing. Connect a CLIP Text Encode node (its text may "
                                 f"be empty) or, for an ADM model, a PAG ADM Class Label node.")
        self.set_conds(positive, negative)
        self.set_cfg(cfg)

    def sample(self, noise: torch.Tensor, *args, **kwargs):
        check_latent_channels(self.model_patcher, noise)
        return super().sample(noise, *args, **kwargs)

    def predict_noise(self, x: torch.Tensor, timestep: torch.Tensor, model_options: dict | None = None, seed=None):
        inside = self.cfg_window.is_full or float(timestep.max()) in self.cfg_window
        return comfy.samplers.sampling_function(
            self.inner_model, x, timestep, self.conds.get("negative"), self.conds.get("positive"),
            self.cfg if inside else 1.0, model_options=model_options or {}, seed=seed)
