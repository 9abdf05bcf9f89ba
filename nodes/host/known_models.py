"""Models as the editor's layer picker knows them: by the file that a loader names, or by a published family."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import comfy.model_base
import comfy.model_detection
import comfy.supported_models

from ...pag_core.adm import ADMConfig
from ...pag_core.schedule import PercentToSigma
from .adm_model import FOLDER, HostConfig
from .layers import ModelLayers, UnsupportedModelError, network_layers
from .meta_models import UnknownModelError, build, from_adm_header, from_header
from .model_files import ModelFileError, find_file, header_of

_U_NET = dict(image_size=32, out_channels=4, use_spatial_transformer=True, legacy=False, in_channels=4,
              model_channels=320, use_temporal_resblock=False, use_temporal_attention=False)
_SD = dict(_U_NET, adm_in_channels=None, num_res_blocks=[2] * 4, channel_mult=[1, 2, 4, 4],
           transformer_depth=[1] * 6 + [0] * 2, transformer_depth_middle=1,
           transformer_depth_output=[1] * 9 + [0] * 3)
_SDXL = dict(_U_NET, num_classes="sequential", adm_in_channels=2816, context_dim=2048, use_linear_in_transformer=True,
             num_res_blocks=[2] * 3, channel_mult=[1, 2, 4], transformer_depth=[0, 0, 2, 2, 10, 10],
             transformer_depth_middle=10, transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10])
_FLUX = dict(image_model="flux", in_channels=16, out_channels=16, patch_size=2, vec_in_dim=768, context_in_dim=4096,
             hidden_size=3072, mlp_ratio=4.0, num_heads=24, depth=19, depth_single_blocks=38, axes_dim=[16, 56, 56],
             theta=10000, qkv_bias=True, guidance_embed=True, txt_ids_dims=[])


def _sd3(depth: int, **more) -> dict:
    return dict(in_channels=16, patch_size=2, out_channels=16, depth=depth, num_blocks=depth, input_size=None,
                adm_in_channels=2048, pos_embed_scaling_factor=None, x_block_self_attn_layers=[],
                context_embedder_config={"target": "torch.nn.Linear",
                                         "params": {"in_features": 4096, "out_features": 64 * depth}}, **more)


_ADM_256 = ADMConfig(model_channels=256, channel_mult=(1, 1, 2, 2, 4, 4), num_res_blocks=2, attention_levels=(3, 4, 5),
                     num_classes=1000, image_size=256)
# {what the chooser offers: the shape that was published, as the host's own detection describes it}
FAMILIES: Mapping[str, dict | ADMConfig] = {
    "SD 1.5": dict(_SD, context_dim=768, use_linear_in_transformer=False),
    "SD 2.1": dict(_SD, context_dim=1024, use_linear_in_transformer=True),
    "SDXL": _SDXL,
    "SD3 medium": _sd3(24, num_patches=36864, pos_embed_max_size=192),
    "SD3.5 large": _sd3(38, num_patches=36864, pos_embed_max_size=192, qk_norm="rms"),
    "Flux": _FLUX,
    "ADM 256": _ADM_256,
}


class UnknownFamilyError(ValueError):
    """A family that the chooser does not offer."""


@dataclass(frozen=True)
class KnownModel:
    """What is known of a model without its weights.

    Attributes:
        name: for people.
        layers: its self-attention layers and what they cost.
        percent_to_sigma: its map from the progress of a run to noise levels.
    """

    name: str
    layers: ModelLayers
    percent_to_sigma: PercentToSigma


def of_loader(loader: dict) -> KnownModel:
    """The model that a loader node would load; see `model_files.find_file`.

    Raises:
        ModelFileError: naming the value and the remedy.
    """
    path, status, kind = find_file(loader)
    return _of_file(path, status.st_mtime_ns, status.st_size, kind)


@functools.lru_cache(maxsize=32)
def _of_file(path: Path, mtime_ns: int, size: int, kind: str) -> KnownModel:
    header = header_of(path)
    try:
        return _known(from_adm_header(header) if kind == FOLDER else from_header(header))
    except (UnknownModelError, UnsupportedModelError) as error:
        raise ModelFileError(f"{path.name}: {error}.") from None
    except Exception as error:  # the host's detection counts on whole files: a missing tensor is a KeyError, and so on
        raise ModelFileError(f"{path.name} has the tensors of no whole model that ComfyUI knows "
                             f"({type(error).__name__}: {error}). Choose the model's family by hand.") from error


@functools.cache
def of_family(name: str) -> KnownModel:
    """A family that the chooser offers, at its published size."""
    if name not in FAMILIES:
        raise UnknownFamilyError(f"There is no family {name!r}. The families are {', '.join(FAMILIES)}.")
    shape = FAMILIES[name]
    config = HostConfig(shape, {}) if isinstance(shape, ADMConfig) else \
        comfy.model_detection.model_config_from_unet_config(dict(shape))
    return _known(build(config, {}), name)


def _known(model: comfy.model_base.BaseModel, name: str | None = None) -> KnownModel:
    layers = network_layers(model.diffusion_model)
    # Its own is on the meta device with the rest of it.
    sampling = comfy.model_base.model_sampling(model.model_config, model.model_type)
    return KnownModel(name or _name(model, layers), layers, sampling.percent_to_sigma)


def _name(model: comfy.model_base.BaseModel, layers: ModelLayers) -> str:
    """The host's name of the configuration where it says more than the family's."""
    if layers.name != "U-Net":
        return layers.name
    host_name = type(model.model_config).__name__
    return {"SD15": "SD 1.5", "SD20": "SD 2.x"}.get(host_name, host_name.replace("_", " "))
