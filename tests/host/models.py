"""Small random models of the host's own classes, one function a family, and conditionings and latents to go with them.

They have the families' structure (transformer depth, heads, prediction type, extra inputs) at a width that a CPU
samples in milliseconds. Weights depend on nothing but the family, and no layer is left at zero: networks start out so
that many layers are the identity, where a perturbation would show nothing. A model is built once and shared, so
tests must not change one; the nodes must not either.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import comfy.model_base
import comfy.model_patcher
import comfy.supported_models
import comfy.supported_models_base
import torch
from comfy.model_base import BaseModel, ModelType

torch.set_num_threads(1)  # layers this small lose more time in handing work to a second thread than they gain

CONTEXT = 32  # channels of a text token
POOLED = 32   # channels of the pooled text, which SDXL adds to its size embedding
SDXL_SIZES = 6 * 256  # height, width, crops, target height and width, each embedded in 256 channels


def fill_with_noise(network: torch.nn.Module, seed: int = 0) -> None:
    """Weights that keep the signal's magnitude from layer to layer; scales near 1, biases near 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.1 * noise + (0.0 if name.endswith("bias") else 1.0))


def model_patcher(config: comfy.supported_models_base.BASE, build: Callable[[], BaseModel],
                  weights: torch.dtype = torch.float32) -> comfy.model_patcher.ModelPatcher:
    """The model on the CPU, computed in fp32, as the host's loaders hand it to nodes."""
    config.set_inference_dtype(weights, None if weights == torch.float32 else torch.float32)
    with torch.inference_mode(False):
        model = build()
        fill_with_noise(model.diffusion_model)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def u_net(family: type[comfy.supported_models_base.BASE], *, depth: list[int], middle_depth: int = 1,
          model_type: ModelType = ModelType.EPS, model_class: type[BaseModel] = BaseModel,
          weights: torch.dtype = torch.float32, **options) -> comfy.model_patcher.ModelPatcher:
    """A U-Net of three levels with one residual block in each.

    Args:
        depth: transformer blocks in a level's attention, 0 for none; the decoder has one attention more per level.
        middle_depth: the same of the middle block; -1 for a middle block without attention, -2 for no middle block.
        weights: how they are stored.
        options: other arguments of the host's UNetModel, in place of the family's.
    """
    config = family({
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "channel_mult": [1, 2, 2],
        "num_res_blocks": [1, 1, 1], "transformer_depth": depth, "transformer_depth_middle": middle_depth,
        "transformer_depth_output": [d for d in depth for _ in range(2)], "use_spatial_transformer": True,
        "context_dim": CONTEXT, "legacy": False, "use_temporal_attention": False, "adm_in_channels": None})
    config.unet_config.update(use_linear_in_transformer=family.unet_config["use_linear_in_transformer"], **options)

    def build() -> BaseModel:
        model = model_class(config, model_type=model_type)
        if config.inpaint_model() and model_class is BaseModel:
            model.set_inpaint()
        return model

    return model_patcher(config, build, weights)


@functools.cache
def sd15() -> comfy.model_patcher.ModelPatcher:
    """One transformer block each; 4 heads; noise prediction."""
    return u_net(comfy.supported_models.SD15, depth=[1, 1, 0], num_heads=4)


@functools.cache
def sd15_stored_as(weights: torch.dtype) -> comfy.model_patcher.ModelPatcher:
    """Cast to fp32 by the host where they are used."""
    return u_net(comfy.supported_models.SD15, depth=[1, 1, 0], num_heads=4, weights=weights)


@functools.cache
def sd15_inpainting() -> comfy.model_patcher.ModelPatcher:
    """Nine input channels: the latent, the mask and the masked latent."""
    return u_net(comfy.supported_models.SD15, depth=[1, 1, 0], num_heads=4, in_channels=9)


@functools.cache
def sd2() -> comfy.model_patcher.ModelPatcher:
    """Linear projections, a fixed head width, velocity prediction."""
    return u_net(comfy.supported_models.SD20, depth=[1, 1, 0], num_head_channels=16,
                 model_type=ModelType.V_PREDICTION)


def _sdxl(model_type: ModelType) -> comfy.model_patcher.ModelPatcher:
    return u_net(comfy.supported_models.SDXL, depth=[0, 1, 2], middle_depth=2, num_head_channels=16,
                 adm_in_channels=SDXL_SIZES + POOLED, num_classes="sequential", model_class=comfy.model_base.SDXL,
                 model_type=model_type)


@functools.cache
def sdxl() -> comfy.model_patcher.ModelPatcher:
    """Several transformer blocks in the deep levels, none in the first, and a vector of pooled text and sizes."""
    return _sdxl(ModelType.EPS)


@functools.cache
def sdxl_v() -> comfy.model_patcher.ModelPatcher:
    """SDXL with velocity prediction, as some fine-tunes have."""
    return _sdxl(ModelType.V_PREDICTION)


@functools.cache
def no_middle_attention() -> comfy.model_patcher.ModelPatcher:
    """A distilled SDXL (SSD-1B): the middle block is one residual block."""
    return u_net(comfy.supported_models.SDXL, depth=[0, 1, 2], middle_depth=-1, num_head_channels=16,
                 adm_in_channels=SDXL_SIZES + POOLED, num_classes="sequential", model_class=comfy.model_base.SDXL)


@functools.cache
def no_middle_block() -> comfy.model_patcher.ModelPatcher:
    """A distilled SDXL (KOALA): no middle block at all."""
    return u_net(comfy.supported_models.SDXL, depth=[0, 1, 2], middle_depth=-2, num_head_channels=16,
                 adm_in_channels=SDXL_SIZES + POOLED, num_classes="sequential", model_class=comfy.model_base.SDXL)


@functools.cache
def x4_upscaler() -> comfy.model_patcher.ModelPatcher:
    """attn1 looks at the text, not at the image, in all levels but the deepest; a noise level for a class."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the host's class copies a tensor unusually
        return u_net(comfy.supported_models.SD_X4Upscaler, depth=[0, 1, 1], num_heads=4, in_channels=7,
                     disable_self_attentions=[True, True, False], model_class=comfy.model_base.SD_X4Upscaler,
                     model_type=ModelType.V_PREDICTION)


@functools.cache
def flux() -> comfy.model_patcher.ModelPatcher:
    """A transformer: two double and three single blocks, flow matching."""
    config = comfy.supported_models.Flux({
        "image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": POOLED,
        "context_in_dim": CONTEXT, "hidden_size": 64, "mlp_ratio": 2.0, "num_heads": 4, "depth": 2,
        "depth_single_blocks": 3, "axes_dim": [4, 6, 6], "theta": 10000, "qkv_bias": True, "guidance_embed": True,
        "txt_ids_dims": []})
    return model_patcher(config, lambda: comfy.model_base.Flux(config))


def sd3(depth: int = 2) -> comfy.model_patcher.ModelPatcher:
    """Of so many blocks, and heads."""
    config = comfy.supported_models.SD3({
        "in_channels": 16, "input_size": None, "patch_size": 2, "depth": depth, "num_blocks": depth,
        "adm_in_channels": POOLED, "pos_embed_max_size": 16, "num_patches": 256, "qk_norm": "rms",
        "context_embedder_config": {"target": "torch.nn.Linear",
                                    "params": {"in_features": CONTEXT, "out_features": 64 * depth}}})

    def build() -> comfy.model_base.SD3:
        model = comfy.model_base.SD3(config)
        with torch.no_grad():
            model.diffusion_model.pos_embed.fill_(0.1)  # a buffer that a checkpoint would bring
        return model

    return model_patcher(config, build)


def wan() -> comfy.model_patcher.ModelPatcher:
    config = comfy.supported_models.WAN21_T2V({
        "image_model": "wan2.1", "model_type": "t2v", "in_dim": 16, "dim": 96, "ffn_dim": 64, "freq_dim": 32,
        "text_dim": CONTEXT, "out_dim": 16, "num_heads": 4, "num_layers": 2})
    return model_patcher(config, lambda: comfy.model_base.WAN21(config))


def pixart() -> comfy.model_patcher.ModelPatcher:
    config = comfy.supported_models.PixArtSigma({
        "image_model": "pixart_sigma", "in_channels": 4, "hidden_size": 48, "depth": 2, "num_heads": 4,
        "caption_channels": CONTEXT, "model_max_length": 7, "micro_condition": False, "input_size": 8,
        "patch_size": 2, "pe_interpolation": 1})
    return model_patcher(config, lambda: comfy.model_base.PixArt(config))


class StrangeNetwork(torch.nn.Module):
    """No family that anyone knows; it predicts no noise at all."""

    dtype = torch.float32

    def __init__(self, **_) -> None:
        super().__init__()

    def forward(self, x, timesteps=None, **_) -> torch.Tensor:
        return torch.zeros_like(x)


@functools.cache
def strange() -> comfy.model_patcher.ModelPatcher:
    """A model that samples, with a network that this pack has never heard of."""
    config = comfy.supported_models.SD15({"in_channels": 4})
    return model_patcher(config, lambda: BaseModel(config, unet_model=StrangeNetwork))


def conditioning(seed: int, tokens: int = 7, **extra) -> list:
    """The host's CONDITIONING: one prompt of [1, tokens, 32] with its pooled text [1, 32]."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(1, tokens, CONTEXT, generator=generator)
    return [[text, {"pooled_output": torch.randn(1, POOLED, generator=generator), **extra}]]


def empty_conditioning() -> list:
    """What ConditioningZeroOut makes of a prompt."""
    return [[torch.zeros(1, 7, CONTEXT), {"pooled_output": torch.zeros(1, POOLED)}]]


def empty_latent(batch: int = 1, height: int = 8, width: int = 12) -> dict:
    """As EmptyLatentImage: four channels of zeros, which the host fits to the model."""
    return {"samples": torch.zeros(batch, 4, height, width)}


def picture_latent(batch: int = 1, height: int = 8, width: int = 12, channels: int = 4, **extra) -> dict:
    """An encoded picture."""
    generator = torch.Generator().manual_seed(99)
    return {"samples": torch.randn(batch, channels, height, width, generator=generator), **extra}


def half_mask(batch: int = 1, height: int = 8, width: int = 12) -> torch.Tensor:
    """[B, 8·H, 8·W], as from a picture: 1 where the left half is painted anew."""
    mask = torch.zeros(batch, 8 * height, 8 * width)
    mask[..., :4 * width] = 1.0
    return mask
