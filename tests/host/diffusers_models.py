"""diffusers' PAG pipelines on small random networks, and the same weights in the host's classes.

The host's own tables of names carry the weights over, and none may be left behind on either side. The runs start from
the same noise and take the same steps: four of DDIM, or of Euler, at the timesteps that SD's configuration gives (the
host's "ddim_uniform"), and for SD3 at even times before the shift (the host's "simple").
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from unittest import mock

import comfy.model_base
import comfy.model_detection
import comfy.sample
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import torch
from comfy.model_base import BaseModel, ModelType
from comfy.model_patcher import ModelPatcher
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PixArtSigmaPAGPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3PAGPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionXLPAGPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import JointAttnProcessor2_0
from diffusers.utils import logging
from torch.nn import functional

from .models import CONTEXT, POOLED, SDXL_SIZES, conditioning, fill_with_noise, model_patcher, u_net
from .runs import Run

logging.set_verbosity_error()

HEIGHT, WIDTH = 8, 12  # of the latent
STEPS = 4
# SD's configuration, but for the last step: the host goes to the clean image, SD's DDIM stops at the first timestep.
SD_STEPS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
            "timestep_spacing": "leading"}
# Which SDXL is told with the prompt.
SIZES = {"height": 8 * HEIGHT, "width": 8 * WIDTH}


@dataclass(frozen=True)
class Pair:
    """One network, twice: under diffusers' pipeline and as a MODEL of the host.

    Attributes:
        pipeline: diffusers' class.
        parts: what it is made of.
        scheduler: the host's name for the pipeline's steps.
        size: of the latent, (H, W).
    """

    pipeline: type[DiffusionPipeline]
    parts: dict
    model: ModelPatcher
    scheduler: str
    size: tuple[int, int] = (HEIGHT, WIDTH)

    def run(self, **values) -> Run:
        """What both sides are to sample; prompts of one length, for diffusers needs that."""
        channels = self.model.get_model_object("latent_format").latent_channels
        latent = {"samples": torch.zeros(1, channels, *self.size)}
        return Run(**{"steps": STEPS, "scheduler": self.scheduler, "positive": conditioning(1, **SIZES),
                      "negative": conditioning(2, **SIZES), "latent": latent, **values})

    def reference(self, run: Run, scale: float, layers: str | list[str] = "mid", processors: tuple | None = None,
                  **options) -> torch.Tensor:
        """The pipeline's latent [B, C, H, W].

        Args:
            scale: of PAG; at 0 the pipeline is the plain one of its family.
            processors: (with CFG, without CFG) in place of the pipeline's own perturbation.
            options: other arguments of the pipeline.
        """
        pipeline = self.pipeline(**self.parts, pag_applied_layers=layers)
        pipeline.set_progress_bar_config(disable=True)
        if processors:
            pipeline.set_pag_applied_layers(layers, processors)
        noise = comfy.sample.prepare_noise(run.latent["samples"], run.seed)
        if self.pipeline is StableDiffusion3PAGPipeline:
            options["sigmas"] = [1 - step / STEPS for step in range(STEPS)]  # before the shift
        else:
            # These pipelines take x_t with unit variance; the host starts from noise·σ.
            pipeline.scheduler.set_timesteps(STEPS)
            noise = noise * (1 - pipeline.scheduler.alphas_cumprod[int(pipeline.scheduler.timesteps[0])]) ** 0.5
        for prefix, ((text, extra),) in (("", run.positive), ("negative_", run.negative)):
            options[f"{prefix}prompt_embeds"] = text.repeat(len(noise), 1, 1)
            if self.pipeline in (StableDiffusionXLPAGPipeline, StableDiffusion3PAGPipeline):
                options[f"{prefix}pooled_prompt_embeds"] = extra["pooled_output"].repeat(len(noise), 1)
            if self.pipeline is PixArtSigmaPAGPipeline:
                options[f"{prefix}prompt_attention_mask"] = torch.ones(len(noise), text.shape[1])
                options.update(negative_prompt=None, use_resolution_binning=False)
        network = pipeline.components.get("unet") or pipeline.components["transformer"]
        unperturbed = network.attn_processors
        try:
            return pipeline(latents=noise, guidance_scale=run.cfg, num_inference_steps=STEPS, pag_scale=scale,
                            output_type="latent", height=8 * self.size[0], width=8 * self.size[1], **options).images
        finally:
            network.set_attn_processor(unperturbed)  # a pipeline that fails leaves its own behind

    def to_model(self, samples: torch.Tensor) -> torch.Tensor:
        """The host's LATENT as its model has it, where the pipelines leave theirs."""
        return self.model.model.process_latent_in(samples)


def _same_weights(patcher: ModelPatcher, network: torch.nn.Module) -> None:
    """The U-Net's weights under the host's names."""
    weights = network.state_dict()
    names = comfy.utils.unet_to_diffusers(patcher.model.model_config.unet_config)
    assert weights.keys() <= names.keys(), weights.keys() - names.keys()
    patcher.model.diffusion_model.load_state_dict({names[name]: weight for name, weight in weights.items()})


def _u_net_pair(pipeline: type, scheduler: object, family: type[comfy.supported_models_base.BASE], *, depth: list[int],
                middle_depth: int = 1, heads: int | tuple[int, ...] = (2, 4, 4), host: dict, **options) -> Pair:
    """A U-Net as `models.u_net` builds it."""
    with torch.inference_mode(False):
        down = ["CrossAttnDownBlock2D" if blocks else "DownBlock2D" for blocks in depth]
        up = ["CrossAttnUpBlock2D" if blocks else "UpBlock2D" for blocks in reversed(depth)]
        network = UNet2DConditionModel(
            sample_size=HEIGHT, block_out_channels=(32, 64, 64), layers_per_block=1, down_block_types=down,
            up_block_types=up, transformer_layers_per_block=[max(blocks, 1) for blocks in depth],
            mid_block_type="UNetMidBlock2DCrossAttn", attention_head_dim=heads, cross_attention_dim=CONTEXT, **options)
        fill_with_noise(network)
    patcher = u_net(family, depth=depth, middle_depth=middle_depth, **host)
    _same_weights(patcher, network)
    parts = {"vae": None, "text_encoder": None, "tokenizer": None, "unet": network, "scheduler": scheduler}
    if pipeline is StableDiffusionXLPAGPipeline:
        parts.update(text_encoder_2=None, tokenizer_2=None, add_watermarker=False)
    else:
        parts.update(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    return Pair(pipeline, parts, patcher, "ddim_uniform")


@functools.cache
def sd15() -> Pair:
    """SD 1.5 with DDIM."""
    return _u_net_pair(
        StableDiffusionPAGPipeline, DDIMScheduler(**SD_STEPS, clip_sample=False, set_alpha_to_one=True),
        comfy.supported_models.SD15, depth=[1, 1, 0], heads=4, host={"num_heads": 4})


@functools.cache
def sd2() -> Pair:
    """SD 2 with velocity prediction."""
    return _u_net_pair(
        StableDiffusionPAGPipeline, EulerDiscreteScheduler(**SD_STEPS, prediction_type="v_prediction"),
        comfy.supported_models.SD20, depth=[1, 1, 0], use_linear_projection=True,
        host={"num_head_channels": 16, "model_type": ModelType.V_PREDICTION})


@functools.cache
def sdxl() -> Pair:
    """SDXL, with Euler as it is released."""
    return _u_net_pair(
        StableDiffusionXLPAGPipeline, EulerDiscreteScheduler(**SD_STEPS), comfy.supported_models.SDXL, depth=[0, 1, 2],
        middle_depth=2, use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=SDXL_SIZES + POOLED,
        host={"num_head_channels": 16, "adm_in_channels": SDXL_SIZES + POOLED, "num_classes": "sequential",
              "model_class": comfy.model_base.SDXL})


@functools.cache
def sd3(blocks: int = 3, heads: int = 3, qk_norm: str | None = None, dual_attention: tuple[int, ...] = ()) -> Pair:
    """SD3, whose blocks each have one joint attention; SD3.5 with `qk_norm`, SD3.5 medium with `dual_attention` too."""
    with torch.inference_mode(False):
        network = SD3Transformer2DModel(
            sample_size=HEIGHT, num_layers=blocks, num_attention_heads=heads, attention_head_dim=64,
            caption_projection_dim=64 * heads, joint_attention_dim=CONTEXT, pooled_projection_dim=POOLED,
            pos_embed_max_size=10, qk_norm=qk_norm, dual_attention_layers=dual_attention)
        fill_with_noise(network)
    weights = {name: weight.clone() for name, weight in network.state_dict().items()}
    converted = comfy.model_detection.convert_diffusers_mmdit(weights)
    assert not weights, f"the host's table leaves out {list(weights)}"
    if blocks != heads:
        # The host's table takes the width for the depth, and one block for the last, which has scale and shift swapped.
        for name in (f"joint_blocks.{block}.context_block.adaLN_modulation.1.{part}"
                     for block in (heads - 1, blocks - 1) for part in ("weight", "bias")):
            converted[name] = comfy.utils.swap_scale_shift(converted[name])
    config = comfy.model_detection.model_config_from_unet(converted, "")
    config.unet_config["num_blocks"] = blocks

    def build() -> BaseModel:
        return config.get_model(converted, "")

    patcher = model_patcher(config, build)
    patcher.model.diffusion_model.load_state_dict(converted)
    parts = {"transformer": network, "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0), "vae": None,
             **{f"{part}{number}": None for part in ("text_encoder", "tokenizer") for number in ("", "_2", "_3")}}
    return Pair(StableDiffusion3PAGPipeline, parts, patcher, "simple")


@functools.cache
def pixart() -> Pair:
    """PixArt-Sigma, whose attention maps the host shows no one. Smaller latents have no place for each token there."""
    width, heads, blocks = 48, 4, 3
    with torch.inference_mode(False):
        network = PixArtTransformer2DModel(
            sample_size=64, num_layers=blocks, num_attention_heads=heads, attention_head_dim=width // heads,
            cross_attention_dim=width, caption_channels=CONTEXT)
        fill_with_noise(network)
    weights = {name: weight.clone() for name, weight in network.state_dict().items()}
    names = comfy.utils.pixart_to_diffusers({"depth": blocks, "hidden_size": width})
    with mock.patch.object(comfy.utils, "pixart_to_diffusers", lambda *_, **__: names):  # made for one width only
        converted = comfy.model_detection.convert_diffusers_mmdit(weights)
    assert not weights, f"the host's table leaves out {list(weights)}"
    config = comfy.supported_models.PixArtSigma({
        "image_model": "pixart_sigma", "in_channels": 4, "hidden_size": width, "depth": blocks, "num_heads": heads,
        "caption_channels": CONTEXT, "micro_condition": False, "pe_interpolation": 1})
    patcher = model_patcher(config, lambda: comfy.model_base.PixArt(config))
    converted["y_embedder.y_embedding"] = patcher.model.diffusion_model.y_embedder.y_embedding  # of training only
    patcher.model.diffusion_model.load_state_dict(converted)
    steps = {**SD_STEPS, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
    parts = {"transformer": network, "scheduler": EulerDiscreteScheduler(**steps), "vae": None, "text_encoder": None,
             "tokenizer": None}
    return Pair(PixArtSigmaPAGPipeline, parts, patcher, "ddim_uniform", (32, 40))


class MaskedAttention:
    """PAG on SD3 by diffusers' own plain attention: its last third (half without CFG) of rows under an identity mask.

    It follows the network where the pipeline's own processors don't: QK norms, and attention among image tokens alone.
    """

    def __init__(self, parts: int) -> None:
        self.parts = parts  # 3 with CFG, 2 without
        self.plain = JointAttnProcessor2_0()

    def __call__(self, attn, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor | None = None,
                 attention_mask: None = None):
        """[parts·B, N, C] image tokens and [parts·B, T, C] text tokens, or None; returns what the attention makes."""
        perturbed, tokens = hidden_states.shape[0] // self.parts, hidden_states.shape[1]
        attend = functional.scaled_dot_product_attention

        def masked(query, key, value, **options):
            hidden = torch.zeros(query.shape[2], key.shape[2], dtype=torch.bool)
            hidden[:tokens, :tokens] = ~torch.eye(tokens, dtype=torch.bool)
            return attend(query, key, value, attn_mask=~hidden, **options)

        def rows(part: slice):
            text = None if encoder_hidden_states is None else encoder_hidden_states[part]
            return self.plain(attn, hidden_states[part], text)

        unmasked = rows(slice(0, -perturbed))
        with mock.patch.object(functional, "scaled_dot_product_attention", masked):
            masked_rows = rows(slice(-perturbed, None))
        if encoder_hidden_states is None:
            return torch.cat((unmasked, masked_rows))
        return tuple(torch.cat(both) for both in zip(unmasked, masked_rows, strict=True))
