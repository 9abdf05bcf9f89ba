"""What the host's noise levels mean, for models of every kind."""

from __future__ import annotations

import copy

from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....pag_core.schedule import PercentToSigma


def percent_to_sigma(model: ModelPatcher) -> PercentToSigma:
    """The model's map from the progress of a run to noise levels, on the CPU: many models look them up in a table, and
    where that lies on the GPU every answer is waited for."""
    sampling = copy.copy(model.get_model_object("model_sampling"))
    sampling._buffers = {name: table.cpu() for name, table in sampling.named_buffers(recurse=False)}
    return sampling.percent_to_sigma


def mixing(model: BaseModel, sigma: Tensor) -> tuple[float, float]:
    """a and b of the host's latents x_t = a·x0 + b·ε at this level (noise and v-prediction: 1 and σ; flow: 1 - σ and
    σ)."""
    zero, one = sigma.new_zeros([1, 1]), sigma.new_ones([1, 1])
    scaled = model.model_sampling.noise_scaling
    return float(scaled(sigma.reshape(1), zero.clone(), one)), float(scaled(sigma.reshape(1), one.clone(), zero))
