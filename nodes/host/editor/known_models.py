"""Models as the editor's layer picker knows them: by the file that a loader names, or by a published family."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_base
import comfy.model_detection
import comfy.samplers
from torch.nn import Module

from ....pag_core.adm import ADMConfig
from ....pag_core.schedule import PercentToSigma
from ....pag_core.selection import Layer
from ..models.adm_files import FOLDER
from ..models.adm_model import HostConfig
from ..models.layers import ModelLayers, UnsupportedModelError, network_layers
from ..models.pass_cost import resampled, u_net_blocks
from .host_names import readable
from .meta_models import UnknownModelError, build, from_adm_header, from_header
from .model_files import ModelFileError, find_file, header_of
from .published import PUBLISHED


class UnknownFamilyError(ValueError):
    """A family that the chooser does not offer."""


@dataclass(frozen=True)
class KnownModel:
    """What is known of a model without its weights.

    Attributes:
        name: for people.
        layers: its self-attention layers and what they cost.
        model_sampling: the host's object of this name: its noise levels.
        levels: {layer: the share of the latent's width at which it runs, as 1, 2, 4 ...}, of U-Nets.
    """

    name: str
    layers: ModelLayers
    model_sampling: Any
    levels: Mapping[Layer, int]

    @functools.cached_property
    def percent_to_sigma(self) -> PercentToSigma:
        """Its map from the progress of a run to noise levels; one plot after another asks for the same points."""
        return functools.lru_cache(maxsize=1 << 12)(
            lambda percent: float(self.model_sampling.percent_to_sigma(percent)))

    def sigmas(self, steps: int, scheduler: str, denoise: float = 1.0) -> list[float]:
        """The noise levels of a run's steps, as the host's KSampler spaces them."""
        sampler = comfy.samplers.KSampler(self, steps, "cpu", "euler", scheduler, denoise)
        return sampler.sigmas[:-1].tolist()

    def get_model_object(self, name: str) -> object:
        """What the host's KSampler asks a ModelPatcher for."""
        return getattr(self, name)


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
    except UnsupportedModelError as error:
        raise ModelFileError(f"{path.name}: {error}") from None
    except UnknownModelError as error:
        raise ModelFileError(f"{path.name}: {error}. Choose the model's family by hand.") from None
    except Exception as error:  # the host's detection counts on whole files: a missing tensor is a KeyError, and so on
        raise ModelFileError(f"{path.name} contains no complete model that ComfyUI recognizes ({type(error).__name__}: "
                             f"{error}). Choose the model's family by hand.") from error


@functools.cache
def families() -> list[str]:
    """The families that this ComfyUI knows, of those that the chooser offers."""
    return [name for name, shape in PUBLISHED.items() if isinstance(shape, ADMConfig)
            or comfy.model_detection.model_config_from_unet_config(dict(shape)) is not None]


@functools.cache
def of_family(name: str) -> KnownModel:
    """A family that the chooser offers, at its published size."""
    if name not in families():
        raise UnknownFamilyError(f"There is no family {name!r}. The families are {', '.join(families())}.")
    shape = PUBLISHED[name]
    config = HostConfig(shape, {}) if isinstance(shape, ADMConfig) else \
        comfy.model_detection.model_config_from_unet_config(dict(shape))
    return _known(build(config, {}), name)


def _known(model: comfy.model_base.BaseModel, name: str | None = None) -> KnownModel:
    layers = network_layers(model.diffusion_model)
    # Its own may be on the meta device.
    sampling = comfy.model_base.model_sampling(model.model_config, model.model_type)
    return KnownModel(name or _name(model, layers), layers, sampling, _levels(model.diffusion_model, layers))


def _levels(network: Module, layers: ModelLayers) -> dict[Layer, int]:
    """What runs at the same resolution; a U-Net's encoder halves it, its decoder doubles it again."""
    if layers.family is not None:
        return {}
    level, of_block = 1, {}
    for block, parts in u_net_blocks(network):
        of_block[block] = level  # a block that has attention changes the resolution after it, if it does
        for part in parts:
            positions = resampled(part, 4)
            level = level * 2 if positions < 4 else level // 2 if positions > 4 else level
    return {layer: of_block[key[:2]] for layer, key in layers.layers.items()}


def _name(model: comfy.model_base.BaseModel, layers: ModelLayers) -> str:
    """Of the host's configuration, which says more than the family."""
    if layers.name == "ADM":
        return layers.name
    return readable(type(model.model_config).__name__)
