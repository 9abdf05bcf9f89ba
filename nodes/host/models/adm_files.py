"""ADM files: where they lie, and how one becomes a MODEL of the host."""

from __future__ import annotations

import zipfile
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.utils
import folder_paths
import torch
from torch import Tensor

from ....pag_core.adm_config import read_config
from ....pag_core.checks import shown
from . import adm_model

FOLDER = "pag_adm"  # the host's name for the folders below


def register_folder() -> None:
    """Tell the host where ADM files are: this pack's own, `models/adm`, and wherever models of the host may lie."""
    folders = [str(Path(__file__).resolve().parents[3] / "models"), str(Path(folder_paths.models_dir) / "adm")]
    for kind in ("checkpoints", "diffusion_models"):
        folders += folder_paths.get_folder_paths(kind)
    for folder in folders:
        folder_paths.add_model_folder_path(FOLDER, folder)
    folder_paths.folder_names_and_paths[FOLDER][1].update({".safetensors", ".pt"})


def adm_files() -> list[str]:
    """The ADM files that the host finds, as the loader lists them."""
    return folder_paths.get_filename_list(FOLDER)


def load_adm_file(name: str, *settings) -> comfy.model_patcher.ModelPatcher:
    """`load_adm` for a file as the loader lists it; ValueError where it is gone."""
    path = folder_paths.get_full_path(FOLDER, name)
    if path is None:
        raise ValueError(f"ckpt_name is {shown(name)}, but there is no such file in "
                         f"{', '.join(folder_paths.get_folder_paths(FOLDER))}. Copy it into one of these folders, or "
                         f"choose another.")
    return load_adm(path, *settings)


def pixel_vae() -> comfy.sd.VAE:
    """The host's VAE of models that sample pixels: it changes the range and nothing else."""
    return comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})


def load_adm(
    path: str,
    head_channels: int = 0,
    qkv_order: str = "auto",
    noise_schedule: str = "auto",
    clip_denoised: bool = True,
    disable_dynamic: bool = False,
) -> comfy.model_patcher.ModelPatcher:
    """Load an ADM file as a MODEL. The signature follows the host's loaders, which it calls for fresh copies.

    Raises ValueError with the path, what was expected, what was found and what to do about it.
    """
    weights, metadata = _read_file(path)
    try:
        config = read_config({name: w.shape for name, w in weights.items()}, metadata,
                             head_channels=head_channels, qkv_order=qkv_order, noise_schedule=noise_schedule)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error

    host_config = adm_model.HostConfig(config, metadata)
    load_device = comfy.model_management.get_torch_device()
    dtypes = host_config.supported_inference_dtypes
    dtype = comfy.model_management.unet_dtype(
        model_params=comfy.utils.calculate_parameters(weights),
        supported_dtypes=dtypes,
        weight_dtype=comfy.utils.weight_dtype(weights),
    )
    host_config.set_inference_dtype(dtype, comfy.model_management.unet_manual_cast(dtype, load_device, dtypes))
    model = host_config.get_model(weights)
    offload_device = comfy.model_management.unet_offload_device()
    patcher_class = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = patcher_class(model, load_device=load_device, offload_device=offload_device)
    if not comfy.model_management.is_device_cpu(offload_device):
        model.to(offload_device)
    model.load_model_weights(weights, "", assign=patcher.is_dynamic())
    patcher.cached_patcher_init = (load_adm, (path, head_channels, qkv_order, noise_schedule, clip_denoised))
    if clip_denoised:
        adm_model.clip_denoised(patcher)
    return patcher


def _read_file(path: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        _check_unpacked_size(path)
        weights, metadata = comfy.utils.load_torch_file(path, safe_load=True, return_metadata=True)
    except Exception as error:
        raise ValueError(
            f"{path}: expected a complete .safetensors file, or a .pt file that contains only weights; reading it "
            f"failed with {type(error).__name__}: {error}. If the file is incomplete, download or copy it again."
        ) from error
    if not isinstance(weights, dict) or not all(isinstance(w, Tensor) for w in weights.values()):
        raise ValueError(f"{path}: expected a state dict (names and tensors), found {type(weights).__name__} with "
                         f"other content")
    claimed, size = sum(w.numel() * w.element_size() for w in weights.values()), Path(path).stat().st_size
    if claimed > size:  # a .pt file can stretch one number into a tensor of any size, and the network would be as large
        raise ValueError(f"{path}: its tensors claim {claimed} bytes, but the file has {size}, so it is not a model")
    return weights, metadata or {}


def _check_unpacked_size(path: str) -> None:
    """Raise ValueError for a .pt file, which is a zip archive, that would unpack to more than it is."""
    if path.lower().endswith((".safetensors", ".sft")) or not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > Path(path).stat().st_size:
        raise ValueError(f"it would unpack to {unpacked} bytes, but torch stores weights uncompressed")
