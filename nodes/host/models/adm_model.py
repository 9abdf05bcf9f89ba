"""The ADM network as an ordinary MODEL of the host, so that every sampler, guider and U-Net patch works on it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from types import MappingProxyType

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_patcher
import comfy.patcher_extension
import comfy.supported_models_base
import torch
from comfy.ldm.modules.attention import SpatialTransformer, optimized_attention
from comfy.ldm.modules.diffusionmodules.openaimodel import TimestepBlock
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ....pag_core.adm import ADMConfig, ADMHooks, ADMUNet, AttentionBlock, Block, run_layer

_CLIP_KEY = "pag_clip_denoised"
_log = logging.getLogger(__name__)


def clip_denoised(patcher: comfy.model_patcher.ModelPatcher) -> None:
    """Clamp x̂0 in every run of this model: the wrapper stands before any other node's, hence around all guidance."""
    comfy.patcher_extension.add_wrapper_with_key(
        WrappersMP.PREDICT_NOISE, _CLIP_KEY, _clip_denoised, patcher.model_options, is_model_options=True)


def _clip_denoised(executor, x: Tensor, timestep: Tensor, model_options=None, seed=None) -> Tensor:
    """PREDICT_NOISE wrapper: x̂0 stays a picture, as in the authors' code, which clamps after guidance."""
    return executor(x, timestep, model_options or {}, seed).clamp(-1, 1)


def clips_denoised(model_options: dict) -> bool:
    """Whether a run with these options clamps x̂0."""
    return bool(comfy.patcher_extension.get_wrappers_with_key(
        WrappersMP.PREDICT_NOISE, _CLIP_KEY, model_options, is_model_options=True))


class _PixelSpace(comfy.latent_formats.LatentFormat):
    """Pictures in [-1, 1]; the preview shows them as they are."""

    latent_channels = 3
    spacial_downscale_ratio = 1

    def __init__(self):
        self.latent_rgb_factors = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]


class HostConfig(comfy.supported_models_base.BASE):
    unet_extra_config = MappingProxyType({})
    latent_format = _PixelSpace

    def __init__(self, config: ADMConfig, metadata: Mapping[str, str]):
        # in_channels and model_channels are what the host and its FreeU and HyperTile nodes look up.
        super().__init__(dict(image_model="adm", config=config, in_channels=3, model_channels=config.model_channels))
        self.metadata = metadata
        self.sampling_settings = {
            # guided-diffusion's "linear" is linear in beta; the host calls that sqrt_linear, its "linear" is LDM's.
            "beta_schedule": {"linear": "sqrt_linear", "cosine": "cosine"}[config.noise_schedule],
            "linear_start": 1e-4,
            "linear_end": 2e-2,
            "timesteps": 1000,
        }
        # OpenAI's 512 model was neither trained nor published for half precision.
        if config.image_size == 512:
            self.supported_inference_dtypes = [torch.float32]
        self.memory_usage_factor = config.model_channels / 256 * 0.4

    def get_model(self, state_dict, prefix="", device=None) -> ADMModel:
        return ADMModel(self, device)


class ADMModel(comfy.model_base.BaseModel):
    """An ADM between the host's samplers and `ADMNetwork`: noise prediction, pixel latents, class labels."""

    def __init__(self, host_config: HostConfig, device=None):
        super().__init__(host_config, comfy.model_base.ModelType.EPS, device=device, unet_model=ADMNetwork)
        self.adm_config: ADMConfig = host_config.unet_config["config"]
        self.diffusion_model.pag_layers = host_config.metadata.get("pag_layers")
        self.class_names, self.label_dropout = _read_labels(host_config.metadata)

    def check_label(self, label: int) -> None:
        """ValueError unless this model knows the label; a warning for -1 where it has not learnt to do without one."""
        count = self.adm_config.num_classes
        if not -1 <= label < count:
            names = "".join(f"\n{i}: {name}" for i, name in enumerate(self.class_names))
            known = f"-1 (unconditional) to {count - 1}" if count else "-1 only: the model is unconditional"
            raise ValueError(f"class label {label} is not among this model's labels, {known}{names}")
        if label == -1 and count and not self.label_dropout:
            _log.warning(
                "PAG: this ADM model is class-conditional and, according to its file, was not trained with label "
                "dropout. Without a class label (label -1, or a conditioning not made by PAG ADM Class Label), its "
                "output is poor."
            )

    def extra_conds(self, **kwargs) -> dict:
        """Called for each conditioning before sampling starts: the place for errors that only sampling can show."""
        channels = kwargs["noise"].shape[1]
        if channels != 3:
            raise ValueError(
                f"an ADM model samples images with 3 channels, but the latent has {channels}: use Empty Latent Image, "
                f"or encode an image with the VAE from PAG ADM Loader"
            )
        if kwargs.get("control") is not None:
            raise ValueError("ADM models do not support ControlNet: remove it from the conditioning")
        label = kwargs.get("class_label", -1)
        if not kwargs.get("cross_attn", torch.ones(1)).any():
            label = -1  # the host's ConditioningZeroOut was applied
        self.check_label(label)
        if not self.adm_config.num_classes:
            return {}
        return {"y": comfy.conds.CONDRegular(torch.tensor([label], device=kwargs["device"]))}


def _read_labels(metadata: Mapping[str, str]) -> tuple[list[str], float]:
    """Class names and share of label dropout as the file gives them; none and 0 where it does not."""
    try:
        return list(map(str, json.loads(metadata.get("class_names", "[]")))), float(metadata.get("label_dropout", 0))
    except (ValueError, TypeError) as error:
        _log.warning("PAG: ignoring this ADM file's class_names and label_dropout: %s", error)
        return [], 0.0


class ADMNetwork(ADMUNet):
    """The network with the signature and the patches of the host's own U-Net."""

    def __init__(self, config: ADMConfig, dtype=None, device=None, operations=None, **_):
        super().__init__(config, operations, dtype, device)
        self.dtype = dtype
        self.pag_layers: str | None = None  # the selection that the file recommends, in its metadata

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]: as the host calls its networks
            self, x, timesteps, context=None, y=None, control=None, transformer_options=None, **kwargs):
        options = {} if transformer_options is None else transformer_options
        wrappers = comfy.patcher_extension.get_all_wrappers(WrappersMP.DIFFUSION_MODEL, options)
        executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(self._forward, self, wrappers)
        return executor.execute(x, timesteps, context, y, control, options, **kwargs)

    def _forward(self, x, timesteps, context=None, y=None, control=None, transformer_options=None, **kwargs):
        inputs = dict(x=x, timesteps=timesteps, context=context, y=y)
        hooks = _HostPatches(transformer_options or {}, self.config.model_channels, inputs)
        return super().forward(x, timesteps, y, hooks)[:, :3]  # the rest is the learned sigma


class _HostPatches(ADMHooks):
    """One forward under the host's `transformer_options`, with the meaning that they have in the host's U-Net."""

    def __init__(self, options: dict, model_channels: int, inputs: dict):
        self.options, self.model_channels, self.inputs = options, model_channels, inputs
        self.patches = options.get("patches", {})
        self.replacements = options.get("patches_replace", {}).get("attn1", {})
        options |= dict(original_shape=list(inputs["x"].shape), transformer_index=0, block_index=0)

    def enter(self, block: Block) -> None:
        self.options["block"] = block

    def layer(self, layer, h, emb, size):
        for kind, handler in self.patches.get("forward_timestep_embed_patch", ()):
            stand_in = (_AttentionLayer if isinstance(layer, AttentionBlock) else _Layer)(layer, self, size)
            if isinstance(stand_in, kind):
                return handler(stand_in, h, emb, self.inputs["context"], self.options, size, None, None, None)
        h = run_layer(layer, h, emb, size, self)
        if isinstance(layer, AttentionBlock):
            self.options["transformer_index"] += 1
        return h

    def self_attention(self, layer, tokens, shape):
        self.options["activations_shape"] = list(shape)
        extra = {name: value for name, value in self.options.items() if name not in ("patches", "patches_replace")}
        extra |= dict(n_heads=layer.heads, dim_head=shape[1] // layer.heads, attn_precision=None)
        q, k, v = self._project(layer, tokens, extra)
        replacement = self.replacements.get((*layer.block, 0)) or self.replacements.get(layer.block)
        if replacement is not None:
            out = replacement(q, k, v, extra)
        else:
            out = optimized_attention(q, k, v, layer.heads, transformer_options=self.options)
        out = layer.project_out(out)
        for patch in self.patches.get("attn1_output_patch", ()):
            out = patch(out, extra)
        return out

    def _project(self, layer, tokens, extra):
        if not self.patches.get("attn1_patch"):
            return layer.project_qkv(tokens)
        query = context = value = tokens
        for patch in self.patches["attn1_patch"]:
            query, context, value = patch(query, context, value, extra)
        # The projection makes q, k and v together; patched inputs need one of each.
        return tuple(layer.project_qkv(part)[i] for i, part in enumerate((query, context, value)))

    def after_embedding(self, emb):
        for patch in self.patches.get("emb_patch", ()):
            emb = patch(emb, self.model_channels, self.options)
        return emb

    def after_input(self, h):
        return self._patched("input_block_patch", h)

    def after_skip(self, h):
        return self._patched("input_block_patch_after_skip", h)

    def _patched(self, name: str, h):
        for patch in self.patches.get(name, ()):
            h = patch(h, self.options)
        return h

    def after_middle(self, h, emb):
        for patch in self.patches.get("middle_block_after_patch", ()):
            h = patch({**self.inputs, "h": h, "emb": emb, "transformer_options": self.options})["h"]
        return h

    def before_output(self, h, skip):
        for patch in self.patches.get("output_block_patch", ()):
            h, skip = patch(h, skip, self.options)
        return h, skip


class _Layer(TimestepBlock):
    """What a forward_timestep_embed_patch gets for a layer: it looks and is called as the host's own kind is."""

    def __init__(self, layer, hooks: _HostPatches, size):
        torch.nn.Module.__init__(self)
        self.run = lambda h, emb: run_layer(layer, h, emb, size, hooks)

    def forward(self, x, emb):
        return self.run(x, emb)


class _AttentionLayer(SpatialTransformer):
    def __init__(self, layer, hooks: _HostPatches, size):
        torch.nn.Module.__init__(self)
        self.run = lambda h: run_layer(layer, h, None, size, hooks)

    def forward(self, x, context=None, transformer_options=None):
        return self.run(x)
