"""A guider whose CFG acts on part of the run only; PAG itself rides on the model it is given."""

from __future__ import annotations

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher

from ....pag_core.checks import check_percent_range, check_range
from ....pag_core.schedule import Window, window_from_percent
from ..models.levels import percent_to_sigma
from ..sockets import check_conditioning, check_samples


class CFGWindowGuider(comfy.samplers.CFGGuider):
    """The host's CFGGuider with a window; outside it the scale is 1, and the unconditional pass is not computed."""

    def __init__(self, model: ModelPatcher, positive, negative, cfg: float, start_percent: float = 0.0,
                 end_percent: float = 1.0) -> None:
        super().__init__(model)
        cfg = check_range("cfg", cfg, 0.0, 100.0)
        start_percent, end_percent = check_percent_range("cfg_start_percent", start_percent, "cfg_end_percent",
                                                         end_percent)
        self.cfg_window: Window = window_from_percent(start_percent, end_percent, percent_to_sigma(model))
        for name, conditioning in (("positive", positive), ("negative", negative)):
            check_conditioning(name, conditioning)
        self.set_conds(positive, negative)
        self.set_cfg(cfg)

    def sample(self, noise: torch.Tensor, latent_image: torch.Tensor, *args, **kwargs):
        check_samples(self.model_patcher, noise, latent_image)
        return super().sample(noise, latent_image, *args, **kwargs)

    def predict_noise(self, x: torch.Tensor, timestep: torch.Tensor, model_options: dict | None = None, seed=None):
        inside = self.cfg_window.is_full or float(timestep.max()) in self.cfg_window
        return comfy.samplers.sampling_function(
            self.inner_model, x, timestep, self.conds.get("negative"), self.conds.get("positive"),
            self.cfg if inside else 1.0, model_options=model_options or {}, seed=seed)
