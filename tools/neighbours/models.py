"""Small random models of the classes of ComfyUI that other packs support: SD 1.5 with all blocks, Flux, LTX-Video, Wan.

Needs ComfyUI in this process.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import comfy.cldm.cldm
import comfy.controlnet
import comfy.ldm.flux.controlnet
import comfy.model_base
import comfy.model_patcher
import comfy.ops
import comfy.supported_models
import torch
from comfy.model_patcher import ModelPatcher

TEXT = 77
CONTEXT = 32


@dataclass(frozen=True)
class Family:
    """A model, what it samples, and the layers that PAG perturbs in it.

    Attributes:
        layers: two, as PAG names them.
        places: where these are in the network: the host's key of an attn1 replacement, or a module's path.
        text: text tokens at the start of a joint sequence, before the image's.
        extras: what a prompt must bring besides the text.
        control: makes a ControlNet of the host's for it, where it has one.
    """

    build: Callable[[], ModelPatcher]
    latent: tuple[int, ...]
    layers: tuple[str, str]
    places: tuple
    text: int = 0
    flow: bool = True
    extras: dict = field(default_factory=dict)
    control: Callable[[], comfy.controlnet.ControlNet] | None = None


def _patcher(config, model_class: type[comfy.model_base.BaseModel], **options) -> ModelPatcher:
    config.set_inference_dtype(torch.float32, None)
    with torch.inference_mode(False), torch.no_grad():
        model = model_class(config, **options)
        generator = torch.Generator().manual_seed(0)
        for name, weight in model.diffusion_model.named_parameters():
            scale = weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.1
            weight.copy_(scale * torch.randn(weight.shape, generator=generator)
                         + (weight.ndim == 1 and not name.endswith("bias")))
    cpu = torch.device("cpu")
    return ModelPatcher(model.eval().requires_grad_(False), load_device=cpu, offload_device=cpu)


def sd15() -> ModelPatcher:
    config = comfy.supported_models.SD15({
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "channel_mult": [1, 2, 4, 4],
        "num_res_blocks": [2] * 4, "transformer_depth": [1] * 6 + [0] * 2, "transformer_depth_middle": 1,
        "transformer_depth_output": [1] * 9 + [0] * 3, "use_spatial_transformer": True, "context_dim": CONTEXT,
        "use_linear_in_transformer": False, "adm_in_channels": None, "use_temporal_attention": False, "legacy": False})
    config.unet_config["num_heads"] = 4
    return _patcher(config, comfy.model_base.BaseModel)


def _control_net(network: type[torch.nn.Module], config: dict, scale: float, **options) -> comfy.controlnet.ControlNet:
    with torch.inference_mode(False):
        made = network(**config, dtype=torch.float32, operations=comfy.ops.disable_weight_init).requires_grad_(False)
        for weight in made.parameters():
            weight.normal_(0.0, scale)
    return comfy.controlnet.ControlNet(made, load_device=torch.device("cpu"), **options)


def control_net() -> comfy.controlnet.ControlNet:
    """The host's ControlNet for `sd15`."""
    return _control_net(comfy.cldm.cldm.ControlNet, {
        "image_size": 32, "in_channels": 4, "model_channels": 32, "hint_channels": 3, "num_res_blocks": [2] * 4,
        "channel_mult": [1, 2, 4, 4], "transformer_depth": [1] * 6 + [0] * 2, "transformer_depth_middle": 1,
        "num_heads": 4, "context_dim": CONTEXT, "use_spatial_transformer": True, "legacy": False}, 0.02)


FLUX = {"in_channels": 16, "out_channels": 16, "vec_in_dim": CONTEXT, "context_in_dim": CONTEXT, "hidden_size": 256,
        "mlp_ratio": 4.0, "num_heads": 2, "depth": 2, "depth_single_blocks": 4, "axes_dim": [16, 56, 56],
        "theta": 10000, "patch_size": 2, "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": []}


def flux() -> ModelPatcher:
    return _patcher(comfy.supported_models.Flux({"image_model": "flux", **FLUX}), comfy.model_base.Flux)


def flux_control_net() -> comfy.controlnet.ControlNet:
    """The host's ControlNet for `flux`, after XLabs."""
    return _control_net(comfy.ldm.flux.controlnet.ControlNetFlux, {**FLUX, "depth": 1, "depth_single_blocks": 1}, 0.05,
                        extra_conds=["y", "guidance"])


def wan() -> ModelPatcher:
    config = comfy.supported_models.WAN21_T2V({
        "image_model": "wan2.1", "model_type": "t2v", "in_dim": 16, "dim": 96, "ffn_dim": 192, "freq_dim": 32,
        "text_dim": CONTEXT, "out_dim": 16, "num_heads": 4, "num_layers": 6})
    return _patcher(config, comfy.model_base.WAN21)


def ltx() -> ModelPatcher:
    config = comfy.supported_models.LTXV({
        "image_model": "ltxv", "in_channels": 128, "cross_attention_dim": 96, "attention_head_dim": 24,
        "num_attention_heads": 4, "caption_channels": CONTEXT, "num_layers": 6})
    return _patcher(config, comfy.model_base.LTXV)


def ltx_2() -> ModelPatcher:
    config = comfy.supported_models.LTXAV({
        "image_model": "ltxav", "in_channels": 128, "cross_attention_dim": 96, "attention_head_dim": 24,
        "num_attention_heads": 4, "caption_channels": CONTEXT // 2, "num_layers": 6, "audio_in_channels": 128,
        "audio_cross_attention_dim": 48, "audio_attention_head_dim": 12, "audio_num_attention_heads": 4,
        "connector_attention_head_dim": 8, "connector_num_attention_heads": 2})
    return _patcher(config, comfy.model_base.LTXAV)


@functools.cache
def _built(build: Callable[[], ModelPatcher]) -> ModelPatcher:
    return build()


def fresh(family: Family) -> ModelPatcher:
    """A model that no one has touched, since some packs change the network itself; its weights are shared."""
    built = _built(family.build)
    shared = {id(part): part for part in (*built.model.parameters(), *built.model.buffers(), built.model.model_config)}
    return ModelPatcher(copy.deepcopy(built.model, shared), load_device=built.load_device,
                        offload_device=built.offload_device)


FAMILIES = {
    "SD 1.5": Family(sd15, (4, 16, 24), ("m0", "output.5"), (("middle", 0, 0), ("output", 5, 0)), flow=False,
                     control=control_net),
    "Flux": Family(flux, (16, 16, 24), ("single.1", "single.2"), ("single_blocks.1", "single_blocks.2"), TEXT,
                   control=flux_control_net),
    "Flux, a reference": Family(flux, (16, 16, 24), ("single.1", "single.2"), ("single_blocks.1", "single_blocks.2"),
                                TEXT, extras={"reference_latents": [
                                    torch.randn(1, 16, 16, 24, generator=torch.Generator().manual_seed(3))]},
                                control=flux_control_net),
    "LTX-Video": Family(ltx, (128, 2, 8, 12), ("3", "4"), ("transformer_blocks.3.attn1", "transformer_blocks.4.attn1"),
                        extras={"attention_mask": torch.ones(1, TEXT, dtype=torch.long)}),
    "LTX-2": Family(ltx_2, (128, 2, 8, 12), ("3", "4"), ("transformer_blocks.3.attn1", "transformer_blocks.4.attn1"),
                    extras={"attention_mask": torch.ones(1, TEXT, dtype=torch.long)}),
    "Wan": Family(wan, (16, 2, 8, 12), ("3", "4"), ("blocks.3.self_attn", "blocks.4.self_attn")),
}


def prompt(seed: int, **extra) -> list:
    """CONDITIONING."""
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(1, TEXT, CONTEXT, generator=generator),
             {"pooled_output": torch.randn(1, CONTEXT, generator=generator), **extra}]]


@contextmanager
def perturbed(family: Family, model, options: dict, index: int, may_rest: bool = False):
    """One layer perturbed in every row of the calls made inside, by no code of the pack.

    Args:
        model: the host's BaseModel.
        options: model_options of those calls, the caller's own copy.
        index: of the layer, in `family.places`.
        may_rest: whether a call may be answered without the layer, from a cache say.
    """
    place = family.places[index]
    if not family.flow:
        comfy.model_patcher.set_model_options_patch_replace(options, lambda q, k, v, extra_options: v, "attn1", *place)
        yield
        return
    inside = {"layer": False, "seen": 0}
    others = options["transformer_options"].get("optimized_attention_override")

    def attention(func, q, k, v, heads, mask=None, *args, skip_reshape=False, skip_output_reshape=False, **kwargs):
        if not inside["layer"]:
            call = func if others is None else (lambda *a, **b: others(func, *a, **b))
            return call(q, k, v, heads, mask, *args, skip_reshape=skip_reshape,
                        skip_output_reshape=skip_output_reshape, **kwargs)
        inside["seen"] += 1
        if not skip_reshape:
            q, k, v = (t.flatten(2).unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        hidden = torch.zeros(q.shape[2], q.shape[2])
        hidden[family.text:, family.text:] = float("-inf")
        hidden.fill_diagonal_(0.0)
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=hidden)
        return out if skip_output_reshape else out.transpose(1, 2).flatten(2)

    def enter(module, args, kwargs):
        inside["layer"] = True
        if not accepts or any(isinstance(value, dict) for value in args):
            return None
        return args, {**kwargs, name: {**kwargs.get(name, {}), "optimized_attention_override": attention}}

    def leave(*_) -> None:
        inside["layer"] = False

    options["transformer_options"]["optimized_attention_override"] = attention
    layer = model.diffusion_model.get_submodule(place)
    # Some packs' forwards do not hand the options on.
    name = "transformer_options"
    accepts = name in inspect.signature(layer.forward).parameters
    with ExitStack() as stack:
        stack.callback(layer.register_forward_pre_hook(enter, with_kwargs=True).remove)
        stack.callback(layer.register_forward_hook(leave, always_call=True).remove)
        yield
    if not inside["seen"] and not may_rest:
        raise RuntimeError("the layer of the reference was not run")
