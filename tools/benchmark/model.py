"""Wraps a network of any shape as a ComfyUI MODEL, so that ComfyUI's own sampling can be timed."""

from __future__ import annotations

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models_base
import torch
from pag_pack.nodes.research.adm import PAGADMClassLabel

from .networks import TrainedADM, trained_adm


class _Latent(comfy.latent_formats.LatentFormat):
    def __init__(self, channels: int) -> None:
        self.latent_channels = channels


class _Model(comfy.model_base.BaseModel):
    """Takes its conditioning as it stands: the network's arguments, by name."""

    def extra_conds(self, **kwargs) -> dict:
        conds = kwargs["network_inputs"]
        found = {"c_crossattn" if name == "context" else name: comfy.conds.CONDRegular(value)
                 for name, value in conds.items()}
        found["c_crossattn"] = comfy.conds.CONDCrossAttn(conds["context"])
        return found


def as_model(shape, device: str) -> comfy.model_patcher.ModelPatcher:
    """The shape's network, in fp32 on a CPU and in bf16 elsewhere; of the trained ADM, the file as it is."""
    if isinstance(shape, TrainedADM):
        return trained_adm()
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    config = comfy.supported_models_base.BASE({"disable_unet_model_creation": True})
    config.sampling_settings, config.latent_format = {}, _Latent(shape.latent[0])
    config.set_inference_dtype(dtype, None)
    with torch.inference_mode(False):
        model = _Model(config)
        model.diffusion_model = shape.build(device, dtype)
    where = torch.device(device)
    return comfy.model_patcher.ModelPatcher(model, load_device=where, offload_device=where)


def conditioning(shape, seed: int) -> list:
    if isinstance(shape, TrainedADM):
        return PAGADMClassLabel.execute(trained_adm(), seed).result[0]
    torch.manual_seed(seed)
    inputs = shape.inputs(1, "cpu", torch.float32)
    network_inputs = {name: value for name, value in inputs.items() if name not in ("x", "t")}
    return [[inputs["context"], {"network_inputs": network_inputs}]]
