"""The host's model of a file or a family without its weights, on torch's meta device.

It goes the way the host's own loaders go: the same detection, on tensors that have a shape and a type and no content,
and the same classes. What is read off such a network is therefore what the nodes find on the loaded one.
"""

from __future__ import annotations

import re

import comfy.model_detection
import comfy.ops
import comfy.supported_models_base
import comfy.utils
import torch
from comfy.model_base import BaseModel, ModelType

from ....pag_core.adm_config import read_config
from ..models.adm_model import HostConfig
from .headers import Header

_TYPES = {"BOOL": "bool", "U8": "uint8", "I8": "int8", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
          "F8_E8M0": "float8_e8m0fnu", "I16": "int16", "U16": "uint16", "F16": "float16", "BF16": "bfloat16",
          "I32": "int32", "U32": "uint32", "F32": "float32", "I64": "int64", "U64": "uint64", "F64": "float64",
          "C64": "complex64", "F4": "uint8"}


_MAX_BLOCKS = 1000  # of one kind; the deepest networks have about a hundred


class UnknownModelError(ValueError):
    """A file whose model is not recognised; the message says what is missing."""


def from_header(header: Header) -> BaseModel:
    """The model that the host would load from a checkpoint or a diffusion model with this header."""
    unknown = {tensor.dtype for tensor in header.tensors.values()} - _TYPES.keys()
    if unknown:
        raise UnknownModelError(f"it contains tensors of type {min(unknown)}, which ComfyUI does not load")
    weights = {name: torch.empty(tensor.shape, dtype=getattr(torch, _TYPES[tensor.dtype]), device="meta")
               for name, tensor in header.tensors.items()}
    prefix = comfy.model_detection.unet_prefix_from_state_dict(weights)
    config = comfy.model_detection.model_config_from_unet(weights, prefix, metadata=header.metadata)
    if config is None:
        stripped = comfy.utils.state_dict_prefix_replace(weights, {prefix: ""}, filter_keys=True)
        config, weights = _from_diffusion_model(stripped or weights, header.metadata)
        prefix = ""
    if config is None:
        raise UnknownModelError("ComfyUI does not recognize a diffusion model in it")
    return build(config, weights, prefix)


def _from_diffusion_model(weights: dict, metadata: dict):
    """As the host's load_diffusion_model_state_dict: its own layout, then diffusers' transformers, then its U-Nets."""
    config = comfy.model_detection.model_config_from_unet(weights, "", metadata=metadata)
    if config is None:
        converted = comfy.model_detection.convert_diffusers_mmdit(weights, "")
        if converted is not None:
            return comfy.model_detection.model_config_from_unet(converted, ""), converted
        config = comfy.model_detection.model_config_from_diffusers_unet(weights)
    return config, weights


def from_adm_header(header: Header) -> BaseModel:
    """The model that the PAG ADM Loader would load from a file with this header, its other inputs left alone."""
    try:
        config = read_config({name: tensor.shape for name, tensor in header.tensors.items()}, header.metadata)
    except ValueError as error:
        raise UnknownModelError(str(error)) from error
    return build(HostConfig(config, header.metadata), {}, "")


def build(config: comfy.supported_models_base.BASE, weights: dict, prefix: str = "") -> BaseModel:
    """The host's model of this configuration, on the meta device; `weights` are meta tensors.

    Raises:
        UnknownModelError: for more blocks than any model has, for a configuration may stand in a file's metadata.
    """
    if _has_too_many_blocks(config.unet_config):
        raise UnknownModelError(f"it claims more than {_MAX_BLOCKS} blocks of one kind")
    config.custom_operations = comfy.ops.disable_weight_init
    config.set_inference_dtype(torch.float32, None)
    try:
        model_type = config.model_type(weights, prefix)
    except (RuntimeError, NotImplementedError):
        model_type = ModelType.EPS  # the host looks at weights to tell v-prediction from it; the layers are the same
    config.model_type = lambda *_: model_type
    try:
        return config.get_model(weights, prefix, device="meta")
    except (RuntimeError, NotImplementedError):  # a few load some weights at once, into what the device is not told of
        with torch.device("meta"):
            return config.get_model(weights, prefix, device="meta")


def _has_too_many_blocks(config: dict) -> bool:
    def largest(value) -> float:
        if isinstance(value, (list, tuple)):
            return max(map(largest, value), default=0)
        return value if isinstance(value, (int, float)) else 0

    return any(_has_too_many_blocks(value) if isinstance(value, dict) else
               largest(value) > _MAX_BLOCKS and re.search("depth|layers|blocks", key) for key, value in config.items())
