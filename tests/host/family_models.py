"""The host's families, small and random, with inputs to run them on.

Each case says in its own words what the tests need to check the code against: which layer each attention call of a
forward belongs to, and how many image tokens its input has.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import comfy.ops
import torch

from .older import what_older_hosts_lack

torch.set_num_threads(1)  # layers this small lose more time in handing work to a second thread than they gain

ROWS = 2  # of a batch: a plain one and a perturbed one
TEXT = 7  # text tokens
OPTIONS = {"dtype": torch.float32, "device": "cpu", "operations": comfy.ops.disable_weight_init}


@dataclass(frozen=True)
class Case:
    """One network of one family.

    Attributes:
        name: for the table and the test's id.
        network: "module.Class" of the host, below comfy.ldm.
        arguments: for its constructor.
        inputs: {argument of forward: the shape of a random tensor without its batch axis, a list of such shapes, or a
            function of the number of rows}.
        calls: the layer that each attention call belongs to, in the order of the forward; "-" for none: refiners,
            cross-attention.
        image: image tokens; any other tokens of a call are text. None: all are the image's.
        image_first: whether the image comes before the text.
        heads: attention heads of every layer, or of each group.
        attention: the module whose attention function the reference takes over, where the host's override does not
            reach it.
        frames: how many pictures of the batch a row holds.
    """

    name: str
    network: str
    arguments: dict
    inputs: dict
    calls: str
    image: int | None
    image_first: bool = False
    heads: int = 4
    attention: str | None = None
    frames: int = 1

    @property
    def layers(self) -> list[str]:
        """The layers' names, in order."""
        return [name for name in dict.fromkeys(self.calls.split()) if name != "-"]

    def image_tokens(self, tokens: int) -> slice:
        """The image's tokens among those of an attention call."""
        image = tokens if self.image is None else self.image
        return slice(0, image) if self.image_first else slice(tokens - image, tokens)

    def build(self) -> torch.nn.Module:
        module, _, name = self.network.rpartition(".")
        cls = getattr(importlib.import_module(f"comfy.ldm.{module}"), name)
        with torch.inference_mode(False), what_older_hosts_lack(TypeError):
            network = cls(**self.arguments, **OPTIONS).eval()
            fill(network)
        return network

    def batch(self, rows: int = ROWS) -> dict:
        """Fresh arguments for `rows` different rows."""
        generator = torch.Generator().manual_seed(1)

        def value(given):
            if callable(given):
                return given(rows)
            if isinstance(given, list):
                return [value(shape) for shape in given]
            return torch.randn(rows * self.frames, *given, generator=generator)

        inputs = {name: value(given) for name, given in self.inputs.items()}
        return {"timesteps": torch.full((rows * self.frames,), 0.5), **inputs}

    def row(self, index: int) -> dict:
        """The arguments of one row of a batch."""
        def cut(value):
            if isinstance(value, list):
                return [cut(item) for item in value]
            batched = isinstance(value, torch.Tensor) and value.shape[0] in (ROWS, ROWS * self.frames)
            return value.chunk(ROWS)[index] if batched else value
        return {name: cut(value) for name, value in self.batch().items()}


def forward(network: torch.nn.Module, inputs: dict, transformer_options: dict) -> torch.Tensor:
    """The network as the host's BaseModel calls it: latent and timestep by position, all else by name."""
    inputs = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
    # What the host always sets, with a step in the middle of a run.
    options = {"sigmas": torch.tensor([1.0]), "sample_sigmas": torch.tensor([1.0, 0.5, 0.0]), **transformer_options}
    out = network(inputs.pop("x"), inputs.pop("timesteps"), **inputs, transformer_options=options)
    return out[0] if isinstance(out, (list, tuple)) else out


def fill(network: torch.nn.Module, seed: int = 0) -> None:
    """Everything that a checkpoint would bring, drawn so that the signal keeps its magnitude from layer to layer."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in network.state_dict().items():
            if not weight.is_floating_point():
                continue
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim >= 2:
                weight.copy_(noise / weight[0].numel() ** 0.5)
            else:
                weight.copy_(0.1 * noise + (0.0 if name.endswith("bias") else 1.0))


def _ones(*shape: int) -> Callable[[int], torch.Tensor]:
    return lambda rows: torch.ones(rows, *shape)


def _same(value) -> Callable[[int], object]:
    return lambda rows: value


_MASK = torch.tensor([1] * 5 + [0] * 2)  # the last two text tokens are padding


def _mask(rows: int) -> torch.Tensor:
    return _MASK.expand(rows, -1).clone()


def _half(rows: int) -> torch.Tensor:
    """A guidance embedding's scale."""
    return torch.full((rows,), 0.5)


_U_NET = {"image_size": 8, "model_channels": 32, "out_channels": 4, "num_res_blocks": [1, 1], "channel_mult": (1, 2),
          "use_spatial_transformer": True, "context_dim": 16}
_SDXL = _U_NET | {"num_heads": -1, "num_head_channels": 16, "use_linear_in_transformer": True,
                  "num_classes": "sequential", "adm_in_channels": 24}
_FLUX = {"in_channels": 16, "out_channels": 16, "context_in_dim": 24, "hidden_size": 64, "mlp_ratio": 2.0,
         "num_heads": 4, "depth": 2, "depth_single_blocks": 2, "axes_dim": [4, 6, 6], "theta": 10000, "patch_size": 2,
         "qkv_bias": True}
_FLUX_1 = _FLUX | {"vec_in_dim": 32, "guidance_embed": True, "txt_ids_dims": []}
_FLUX_1_INPUTS = {"x": (16, 8, 12), "context": (TEXT, 24), "y": (32,), "guidance": _half}
_FLUX_CALLS = "double.0 double.1 single.0 single.1"
_CHROMA = _FLUX | {"in_dim": 64, "hidden_dim": 32, "n_layers": 1, "vec_in_dim": 32, "txt_ids_dims": []}
_VIDEO = {"vec_in_dim": 32, "axes_dim": [4, 6, 6], "theta": 256, "patch_size": [1, 2, 2], "guidance_embed": True,
          "byt5": False, "meanflow": False, "use_cond_type_embedding": False, "vision_in_dim": None,
          "meanflow_sum": False}
_NEXT_DIT = {"patch_size": 2, "in_channels": 16, "cap_feat_dim": 24, "n_layers": 2, "n_heads": 4, "qk_norm": True}
_WAN = {"in_dim": 16, "dim": 96, "ffn_dim": 64, "freq_dim": 32, "text_dim": 24, "out_dim": 16, "num_heads": 4,
        "num_layers": 2}
_LTX = {"in_channels": 16, "cross_attention_dim": 64, "attention_head_dim": 16, "num_attention_heads": 4,
        "caption_channels": 24, "num_layers": 2}
_COSMOS = {"max_img_h": 32, "max_img_w": 32, "max_frames": 8, "in_channels": 16, "out_channels": 16, "patch_spatial": 2,
           "patch_temporal": 1, "model_channels": 64, "num_blocks": 2, "num_heads": 4, "crossattn_emb_channels": 24,
           "pos_emb_cls": "rope3d", "use_adaln_lora": True, "adaln_lora_dim": 16}
_OMNIGEN = {"patch_size": 2, "in_channels": 16, "hidden_size": 96, "num_layers": 2, "num_attention_heads": 4,
            "num_kv_heads": 2, "multiple_of": 16, "axes_dim_rope": (8, 8, 8), "axes_lens": (64, 64, 64)}
_QWEN = {"num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 4, "joint_attention_dim": 24,
         "axes_dims_rope": (4, 6, 6)}

CASES = [
    Case("SD 1.5", "modules.diffusionmodules.openaimodel.UNetModel",
         _U_NET | {"in_channels": 4, "num_heads": 4, "transformer_depth": [1, 1],
                   "transformer_depth_output": [1, 1, 1, 1], "transformer_depth_middle": 1},
         {"x": (4, 8, 12), "context": (TEXT, 16)}, "d0 - d1 - m0 - u0 - u1 - u2 - u3 -", image=None),
    Case("SDXL", "modules.diffusionmodules.openaimodel.UNetModel",
         _SDXL | {"in_channels": 4, "transformer_depth": [0, 2], "transformer_depth_output": [0, 0, 2, 2],
                  "transformer_depth_middle": 2},
         {"x": (4, 8, 12), "context": (TEXT, 16), "y": (24,)},
         "d0.0 - d0.1 - m0.0 - m0.1 - u0.0 - u0.1 - u1.0 - u1.1 -", image=None),
    Case("SVD (the layers within a frame)", "modules.diffusionmodules.openaimodel.UNetModel",
         _SDXL | {"in_channels": 8, "transformer_depth": [0, 1], "transformer_depth_output": [0, 0, 1, 1],
                  "transformer_depth_middle": 1, "extra_ff_mix_layer": True, "use_spatial_context": True,
                  "merge_strategy": "learned_with_images", "merge_factor": 0.5, "use_temporal_resblock": True,
                  "use_temporal_attention": True, "video_kernel_size": [3, 1, 1]},
         {"x": (8, 8, 12), "context": (1, 16), "y": (24,), "num_video_frames": _same(3)},
         "d0 - - - m0 - - - u0 - - - u1 - - -", image=None, frames=3),
    Case("SD3.5 medium (extra self-attention)", "modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper",
         {"input_size": None, "patch_size": 2, "in_channels": 16, "depth": 2, "num_blocks": 3, "adm_in_channels": 32,
          "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 24, "out_features": 128}},
          "pos_embed_max_size": 16, "num_patches": 256, "qk_norm": "rms", "x_block_self_attn_layers": [0]},
         {"x": (16, 8, 12), "context": (TEXT, 24), "y": (32,)}, "0 0 1 2", image=24, heads=2),
    Case("AuraFlow", "aura.mmdit.MMDiT",
         {"in_channels": 4, "out_channels": 4, "patch_size": 2, "dim": 64, "n_layers": 4, "n_double_layers": 2,
          "n_heads": 4, "global_conddim": 64, "cond_seq_dim": 24, "max_seq": 64},
         {"x": (4, 8, 12), "context": (TEXT, 24)}, _FLUX_CALLS, image=24),
    Case("HunyuanDiT", "hydit.models.HunYuanDiT",
         {"input_size": None, "patch_size": 2, "in_channels": 4, "hidden_size": 64, "depth": 4, "num_heads": 4,
          "text_states_dim": 24, "text_states_dim_t5": 32, "text_len": TEXT, "text_len_t5": 9, "size_cond": True,
          "use_style_cond": False, "qk_norm": True},
         {"x": (4, 8, 12), "context": (TEXT, 24), "text_embedding_mask": _ones(TEXT),
          "encoder_hidden_states_t5": (9, 32), "text_embedding_mask_t5": _ones(9), "image_meta_size": _ones(6)},
         "0 - 1 - 2 - 3 -", image=24, attention="hydit.attn_layers"),
    Case("PixArt", "pixart.pixartms.PixArtMS",
         {"input_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 48, "depth": 2, "num_heads": 4,
          "caption_channels": 24, "model_max_length": TEXT, "micro_condition": False, "pe_interpolation": 1},
         {"x": (4, 32, 40), "context": (TEXT, 24)}, "0 - 1 -", image=320, attention="pixart.blocks"),
    Case("Flux", "flux.model.Flux", _FLUX_1, _FLUX_1_INPUTS, _FLUX_CALLS, image=24),
    Case("Flux Kontext", "flux.model.Flux", _FLUX_1, _FLUX_1_INPUTS | {"ref_latents": [(16, 4, 4)]}, _FLUX_CALLS,
         image=24 + 4),
    Case("Flux 2", "flux.model.Flux",
         _FLUX | {"vec_in_dim": None, "guidance_embed": True, "axes_dim": [4, 4, 4, 4], "patch_size": 1,
                  "global_modulation": True, "mlp_silu_act": True, "ops_bias": False, "qkv_bias": False,
                  "txt_ids_dims": [3], "default_ref_method": "index", "ref_index_scale": 10.0},
         {"x": (16, 4, 6), "context": (TEXT, 24), "guidance": _half}, _FLUX_CALLS, image=24),
    Case("Chroma", "chroma.model.Chroma", _CHROMA | {"in_channels": 64, "out_channels": 64, "out_dim": 64},
         {"x": (16, 8, 12), "context": (TEXT, 24), "guidance": _half}, _FLUX_CALLS, image=24),
    Case("Chroma Radiance", "chroma_radiance.model.ChromaRadiance",
         _CHROMA | {"in_channels": 3, "out_channels": 3, "out_dim": 64, "nerf_hidden_size": 16, "nerf_mlp_ratio": 2,
                    "nerf_depth": 1, "nerf_max_freqs": 4, "nerf_tile_size": 0, "nerf_final_head_type": "conv",
                    "nerf_embedder_dtype": None, "use_x0": False, "use_sequential_txt_ids": False},
         {"x": (3, 8, 12), "context": (TEXT, 24), "guidance": _half}, _FLUX_CALLS, image=24),
    Case("HunyuanVideo (text mask)", "hunyuan_video.model.HunyuanVideo", _FLUX | _VIDEO,
         {"x": (16, 2, 8, 12), "context": (TEXT, 24), "y": (32,), "guidance": _half,
          "attention_mask": _same(_MASK[None])},  # the host takes one mask for the whole batch
         f"- - {_FLUX_CALLS}", image=48),
    Case("Hunyuan3D 2", "hunyuan3d.model.Hunyuan3Dv2",
         {"in_channels": 16, "context_in_dim": 24, "hidden_size": 64, "mlp_ratio": 2.0, "num_heads": 4, "depth": 2,
          "depth_single_blocks": 2}, {"x": (16, 20), "context": (TEXT, 24)}, _FLUX_CALLS, image=20),
    Case("Lumina 2 (text mask)", "lumina.model.NextDiT",
         _NEXT_DIT | {"dim": 96, "n_refiner_layers": 1, "n_kv_heads": 2, "axes_dims": [8, 8, 8],
                      "axes_lens": [300, 512, 512]},
         {"x": (16, 8, 12), "context": (TEXT, 24), "num_tokens": _same(TEXT),
          "attention_mask": _mask}, "- - 0 1", image=24),
    Case("Z-Image (padding to 32)", "lumina.model.NextDiT",
         _NEXT_DIT | {"dim": 256, "n_refiner_layers": 2, "n_kv_heads": 4, "axes_dims": [16, 24, 24],
                      "axes_lens": [300, 512, 512], "rope_theta": 256.0, "z_image_modulation": True,
                      "time_scale": 1000.0, "pad_tokens_multiple": 32, "ffn_dim_multiplier": 8 / 3},
         {"x": (16, 8, 12), "context": (TEXT, 24), "num_tokens": _same(TEXT)}, "- - - - 0 1", image=32),
    Case("OmniGen2 (grouped queries, reference)", "omnigen.omnigen2.OmniGen2Transformer2DModel",
         _OMNIGEN | {"num_refiner_layers": 1, "text_feat_dim": 24},
         {"x": (16, 8, 12), "context": (TEXT, 24), "num_tokens": _same(TEXT), "ref_latents": [(16, 4, 4)]},
         "- - - 0 1", image=24 + 4),
    Case("Boogu", "boogu.model.BooguTransformer2DModel",
         _OMNIGEN | {"num_refiner_layers": 1, "num_double_stream_layers": 2, "instruction_feat_dim": 24},
         {"x": (16, 8, 12), "context": (TEXT, 24), "num_tokens": _same(TEXT)},
         "- - double.0 double.0 double.1 double.1 single.0 single.1", image=24),
    Case("HiDream-I1", "hidream.model.HiDreamImageTransformer2DModel",
         {"patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 2, "num_single_layers": 2,
          "attention_head_dim": 16, "num_attention_heads": 4, "caption_channels": [24, 28], "text_emb_dim": 32,
          "num_routed_experts": 2, "num_activated_experts": 1, "axes_dims_rope": [8, 4, 4], "max_resolution": [16, 16],
          "llama_layers": [0, 1, 0, 1]},
         {"x": (16, 8, 12), "y": (32,), "context": (TEXT, 24), "encoder_hidden_states_llama3": (2, 5, 28)},
         _FLUX_CALLS, image=24, image_first=True),
    Case("Qwen-Image (reference)", "qwen_image.model.QwenImageTransformer2DModel",
         _QWEN | {"patch_size": 2, "in_channels": 64, "out_channels": 16, "pooled_projection_dim": 16},
         {"x": (16, 1, 8, 12), "context": (TEXT, 24), "ref_latents": [(16, 1, 4, 4)]}, "0 1", image=24 + 4),
    Case("Mage-Flow (text mask)", "mage_flow.model.MageFlowTransformer2DModel",
         _QWEN | {"in_channels": 16, "out_channels": 16},
         {"x": (16, 4, 6), "context": (TEXT, 24),
          "attention_mask": _mask}, "0 1", image=24),
    Case("Krea 2", "krea2.model.SingleStreamDiT",
         {"features": 128, "tdim": 32, "txtdim": 12, "heads": 4, "kvheads": 2, "multiplier": 2, "layers": 2, "patch": 2,
          "channels": 16, "txtlayers": 2, "txtheads": 2, "txtkvheads": 2},
         {"x": (16, 8, 12), "context": (TEXT, 24)}, "- - - - 0 1", image=24),
    Case("Ideogram 4 (text mask)", "ideogram4.model.Ideogram4Transformer2DModel",
         {"in_channels": 16, "num_layers": 2, "num_attention_heads": 4, "attention_head_dim": 32,
          "intermediate_size": 64, "adaln_dim": 32, "llm_features_dim": 24, "mrope_section": (8, 4, 4)},
         {"x": (16, 4, 6), "context": (TEXT, 24),
          "attention_mask": lambda rows: torch.tensor([[0] * 2 + [1] * 5] * rows)}, "0 1", image=24),
    Case("JoyImage", "joyimage.model.JoyImageTransformer3DModel",
         {"in_channels": 16, "hidden_size": 96, "num_attention_heads": 4, "text_dim": 24, "num_layers": 2,
          "rope_dim_list": [8, 8, 8]},
         {"x": (16, 1, 8, 12), "context": (TEXT, 24)}, "0 1", image=24, image_first=True),
    Case("Lens (text mask)", "lens.model.LensTransformer2DModel",
         {"in_channels": 16, "out_channels": 4, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 4,
          "enc_hidden_dim": 12, "selected_layer_index": (0, 1), "axes_dims_rope": (4, 6, 6)},
         {"x": (16, 4, 6), "context": (TEXT, 24),
          "attention_mask": _mask}, "0 1", image=24, image_first=True),
    Case("PixelDiT", "pixeldit.model.PixDiT_T2I",
         {"num_groups": 4, "hidden_size": 64, "pixel_hidden_size": 8, "pixel_attn_hidden_size": 64,
          "pixel_num_groups": 4, "patch_depth": 2, "pixel_depth": 2, "patch_size": 4, "txt_embed_dim": 24,
          "txt_max_length": 16}, {"x": (3, 16, 24), "context": (TEXT, 24)}, "patch.0 patch.1 pixel.0 pixel.1",
         image=24),
    Case("CogVideoX", "cogvideo.model.CogVideoXTransformer3DModel",
         {"num_attention_heads": 4, "attention_head_dim": 16, "time_embed_dim": 32, "text_embed_dim": 24,
          "num_layers": 2, "sample_width": 12, "sample_height": 8, "sample_frames": 5, "max_text_seq_length": TEXT,
          "use_rotary_positional_embeddings": True}, {"x": (16, 2, 8, 12), "context": (TEXT, 24)}, "0 1", image=48),
    Case("Mochi", "genmo.joint_model.asymm_models_joint.AsymmDiTJoint",
         {"depth": 2, "patch_size": 2, "num_heads": 12, "hidden_size_x": 1536, "hidden_size_y": 64, "mlp_ratio_x": 8.0,
          "mlp_ratio_y": 2.0, "learn_sigma": False, "in_channels": 12, "qk_norm": True, "qkv_bias": False,
          "out_bias": True, "patch_embed_bias": True, "timestep_mlp_bias": True, "timestep_scale": 1000.0,
          "t5_feat_dim": 24, "t5_token_length": 16, "use_t5": True, "rope_theta": 10000.0},
         {"x": (12, 1, 4, 6), "context": (16, 24), "attention_mask": _ones(16), "num_tokens": _same(TEXT)},
         "0 1", image=6, image_first=True, heads=12),
    Case("Wan, text to video", "wan.model.WanModel", _WAN | {"model_type": "t2v"},
         {"x": (16, 2, 8, 12), "context": (TEXT, 24)}, "0 - 1 -", image=48),
    Case("Wan, image to video", "wan.model.WanModel", _WAN | {"model_type": "i2v"},
         {"x": (16, 2, 8, 12), "context": (TEXT, 24), "clip_fea": (5, 1280)}, "0 - - 1 - -", image=48),
    Case("Wan VACE", "wan.model.VaceWanModel", _WAN | {"vace_layers": 2, "vace_in_dim": 96},
         {"x": (16, 2, 8, 12), "context": (TEXT, 24), "vace_context": (1, 96, 2, 8, 12), "vace_strength": _same([1.0])},
         "0 - - - 1 - - -", image=48),
    Case("Wan S2V", "wan.model.WanModel_S2V",
         _WAN | {"audio_dim": 16, "num_audio_token": 2, "audio_inject_layers": [0, 1]},
         {"x": (16, 2, 8, 12), "context": (TEXT, 24), "audio_embed": (25, 16, 8)}, "0 - 1 -", image=48),
    Case("Wan Animate", "wan.model_animate.AnimateWanModel", _WAN | {"num_layers": 5},
         {"x": (16, 2, 8, 12), "context": (TEXT, 24), "clip_fea": (5, 1280), "pose_latents": (16, 1, 8, 12)},
         "0 - - 1 - - 2 - - 3 - - 4 - -", image=48),
    Case("WanDancer", "wan.model_wandancer.WanDancerModel",
         _WAN | {"audio_inject_layers": [0, 1], "music_dim": 32, "music_latent_dim": 32},
         {"x": (16, 2, 8, 12), "context": (TEXT, 24), "clip_fea": (5, 1280), "audio_embed": (9, 35)},
         "0 - - 1 - -", image=48),
    Case("LTX-Video", "lightricks.model.LTXVModel", _LTX,
         {"x": (16, 2, 4, 6), "context": (TEXT, 24), "attention_mask": _same(None)}, "0 - 1 -", image=48),
    Case("LTX-Video with sound", "lightricks.av_model.LTXAVModel",
         _LTX | {"audio_in_channels": 128, "audio_cross_attention_dim": 32, "audio_attention_head_dim": 8,
                 "audio_num_attention_heads": 4, "connector_attention_head_dim": 8, "connector_num_attention_heads": 2},
         {"x": [(16, 2, 4, 6), (8, 5, 16)], "context": (TEXT, 48), "attention_mask": _same(None)},
         "0 - audio.0 - - - 1 - audio.1 - - -", image=None),
    Case("Cosmos 1", "cosmos.model.GeneralDIT",
         _COSMOS | {"block_x_format": "THWBD", "affline_emb_norm": True, "extra_per_block_abs_pos_emb": True,
                    "extra_per_block_abs_pos_emb_type": "learnable"},
         {"x": (16, 2, 8, 12), "context": (TEXT, 24), "fps": _same(torch.tensor([24.0])),
          "padding_mask": lambda rows: torch.zeros(rows, 1, 8, 12)}, "0 - 1 -", image=48),
    Case("Cosmos Predict 2", "cosmos.predict2.MiniTrainDIT", _COSMOS,
         {"x": (16, 1, 8, 12), "context": (TEXT, 24), "padding_mask": lambda rows: torch.zeros(rows, 1, 8, 12)},
         "0 - 1 -", image=24),
    Case("Kandinsky 5", "kandinsky5.model.Kandinsky5",
         {"in_visual_dim": 16, "out_visual_dim": 16, "in_text_dim": 24, "in_text_dim2": 32, "time_dim": 64,
          "model_dim": 96, "ff_dim": 64, "visual_embed_dim": 64, "num_text_blocks": 1, "num_visual_blocks": 2,
          "axes_dims": (8, 8, 8)}, {"x": (16, 2, 8, 12), "context": (TEXT, 24), "y": (32,)}, "- 0 - 1 -", image=48),
    Case("Stable Cascade C", "cascade.stage_c.StageC",
         {"c_cond": 64, "c_hidden": [64, 64], "nhead": [4, 4], "blocks": [[1, 1], [1, 1]], "c_clip_text": 24,
          "c_clip_text_pooled": 24, "c_clip_img": 24},
         {"x": (16, 4, 6), "clip_text": (TEXT, 24), "clip_text_pooled": (1, 24), "clip_img": (1, 24)},
         "down.0 down.1 up.0 up.1", image=24, image_first=True),
    Case("Stable Cascade B (its up.0 runs twice)", "cascade.stage_b.StageB",
         {"c_cond": 64, "c_hidden": [32, 64], "nhead": [-1, 4], "blocks": [[1, 1], [1, 1]],
          "block_repeat": [[1, 1], [2, 1]], "level_config": ["CT", "CTA"], "c_clip": 24, "dropout": [0, 0]},
         {"x": (4, 16, 24), "effnet": (16, 4, 6), "clip": (1, 24)}, "down.0 up.0 up.0", image=24, image_first=True),
    Case("Stable Audio (prepended condition)", "audio.dit.AudioDiffusionTransformer",
         {"io_channels": 8, "embed_dim": 128, "cond_token_dim": 64, "project_cond_tokens": False,
          "global_cond_dim": 32, "depth": 2, "num_heads": 2},
         {"x": (8, 20), "context": (TEXT, 64), "global_embed": (32,)}, "0 - 1 -", image=20, heads=2),
    Case("TripoSplat", "triposplat.model.LatentSeqMMFlowModel",
         {"q_token_length": 24, "in_channels": 16, "model_channels": 192, "cond_channels": 24, "num_blocks": 2,
          "num_refiner_blocks": 1, "num_head_channels": 48, "cond2_channels": None},
         {"x": [(24, 16), (1, 5)], "context": (TEXT, 24)}, "- - 0 1", image=24, image_first=True),
    Case("HiDream-O1", "hidream_o1.model.HiDreamO1Transformer",
         {"text_config_overrides": {"vocab_size": 16, "hidden_size": 64, "intermediate_size": 64,
                                    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                                    "head_dim": 16, "rope_dims": [4, 2, 2]},
          "vision_config_overrides": {"hidden_size": 32, "num_heads": 2, "intermediate_size": 32, "depth": 1,
                                      "num_position_embeddings": 16}},
         {"x": (3, 128, 192), "timesteps": lambda rows: torch.full((rows,), 500.0),
          "input_ids": lambda rows: torch.arange(TEXT).expand(rows, -1),
          "position_ids": lambda rows: torch.arange(TEXT + 24).expand(rows, 3, -1), "ar_len": _same(TEXT - 1)},
         "0 1", image=24),
]
