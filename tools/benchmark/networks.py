"""Networks with the shapes of well-known models and random weights (only cost is measured), and inputs for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import comfy.ops
import folder_paths
import torch
from comfy.ldm.flux.model import Flux
from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.ldm.wan.model import WanModel
from pag_pack.nodes.host.models.adm_files import FOLDER, load_adm
from pag_pack.nodes.host.models.adm_model import ADMNetwork
from pag_pack.nodes.research.adm import SHIPPED

_U_NET = dict(image_size=32, in_channels=4, out_channels=4, model_channels=320, use_spatial_transformer=True)
_SD15 = dict(_U_NET, num_res_blocks=[2] * 4, channel_mult=(1, 2, 4, 4), num_heads=8, context_dim=768,
             transformer_depth=[1] * 6 + [0] * 2, transformer_depth_output=[1] * 9 + [0] * 3,
             transformer_depth_middle=1)
_SDXL = dict(_U_NET, num_res_blocks=[2] * 3, channel_mult=(1, 2, 4), num_heads=-1, num_head_channels=64,
             use_linear_in_transformer=True, context_dim=2048, transformer_depth=[0, 0, 2, 2, 10, 10],
             transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10], transformer_depth_middle=10,
             num_classes="sequential", adm_in_channels=2816)
_FLUX = dict(in_channels=16, out_channels=16, vec_in_dim=768, context_in_dim=4096, mlp_ratio=4.0, theta=10000,
             axes_dim=[16, 56, 56], patch_size=2, qkv_bias=True, guidance_embed=True, txt_ids_dims=[],
             hidden_size=3072, num_heads=24, depth=19, depth_single_blocks=38)
_WAN = dict(model_type="t2v", in_dim=16, out_dim=16, freq_dim=256)


def _sd3(depth: int) -> dict:
    return dict(input_size=None, patch_size=2, in_channels=16, depth=depth, num_blocks=24, adm_in_channels=2048,
                context_embedder_config={"target": "torch.nn.Linear",
                                         "params": {"in_features": 4096, "out_features": 64 * depth}},
                pos_embed_max_size=192, num_patches=192 * 192)


@dataclass(frozen=True)
class Shape:
    """A model's shape and the size it is measured at.

    Attributes:
        latent: [C, H, W], or [C, T, H, W], of one sample.
        context: [tokens, channels] of the text.
        vector: channels of the pooled input `y`; 0 for none.
        layers: the selection that is measured; None for the family's `auto`.
        guidance: whether the network takes a distilled guidance value.
        batch: pictures in a run.
    """

    name: str
    network: Callable[..., torch.nn.Module]
    options: dict
    latent: tuple[int, ...]
    context: tuple[int, int]
    vector: int = 0
    layers: str = "auto"
    guidance: bool = False
    batch: int = 1

    @property
    def has_host_pag(self) -> bool:
        """Whether the host's own PAG node acts on this model; on transformers it does nothing."""
        return self.network is UNetModel

    def build(self, device: str, dtype: torch.dtype) -> torch.nn.Module:
        with torch.device(device):
            network = self.network(**self.options, dtype=dtype, device=device, operations=comfy.ops.disable_weight_init)
        if device != "meta":
            generator = torch.Generator(device).manual_seed(0)
            for tensor in (*network.parameters(), *network.buffers()):
                if tensor.is_floating_point():
                    scale = max(tensor[0].numel(), 1) ** -0.5 if tensor.ndim > 1 else 0.1
                    tensor.data.normal_(0.0, scale, generator=generator)
        return network.eval().requires_grad_(False)

    def inputs(self, rows: int, device: str, dtype: torch.dtype) -> dict:
        """Arguments of the network's forward for so many rows of one sample each."""
        def noise(*shape: int) -> torch.Tensor:
            return torch.randn(rows, *shape, device=device, dtype=dtype)

        inputs = {"x": noise(*self.latent), "t": torch.full((rows,), 0.5, device=device, dtype=dtype),
                  "context": noise(*self.context)}
        if self.vector:
            inputs["y"] = noise(self.vector)
        if self.guidance:
            inputs["guidance"] = torch.full((rows,), 3.5, device=device, dtype=dtype)
        return inputs


@cache
def trained_adm():
    return load_adm(folder_paths.get_full_path_or_raise(FOLDER, SHIPPED))


@dataclass(frozen=True)
class TrainedADM:
    """The ADM that comes with this pack, with the interface of a `Shape`."""

    name: str = "the shipped ADM, 8 pictures of 64²"
    latent: tuple[int, int, int] = (3, 64, 64)
    layers: str = "auto"
    batch: int = 8
    has_host_pag: bool = False

    def build(self, device: str, dtype: torch.dtype) -> torch.nn.Module:
        model = trained_adm().model
        with torch.device(device):
            network = ADMNetwork(model.adm_config, dtype, device, comfy.ops.disable_weight_init)
        network.pag_layers = model.diffusion_model.pag_layers
        return network

    def inputs(self, rows: int, device: str, dtype: torch.dtype) -> dict:
        return {"x": torch.zeros(rows, *self.latent, device=device, dtype=dtype),
                "t": torch.full((rows,), 500.0, device=device), "y": torch.zeros(rows, dtype=torch.long, device=device)}


FULL = (
    Shape("SD 1.5, 512²", UNetModel, _SD15, (4, 64, 64), (77, 768)),
    Shape("SDXL, 1024²", UNetModel, _SDXL, (4, 128, 128), (77, 2048), vector=2816),
    Shape("SD3 medium, 1024²", OpenAISignatureMMDITWrapper, _sd3(24), (16, 128, 128), (154, 4096), vector=2048),
    Shape("Flux, 1024²", Flux, _FLUX, (16, 128, 128), (512, 4096), vector=768, guidance=True),
    TrainedADM(),
)
# Small enough for a CPU to time within minutes: the same depth, with smaller pictures or narrower layers, as named.
SCALED = (
    Shape("SD 1.5, full width, 256²", UNetModel, _SD15, (4, 32, 32), (77, 768)),
    Shape("SDXL, a fifth of the width, 512²", UNetModel,
          dict(_SDXL, model_channels=64, num_head_channels=32, context_dim=256, adm_in_channels=256),
          (4, 64, 64), (77, 256), vector=256),
    Shape("SD3-like, 24 blocks of width 512, 256²", OpenAISignatureMMDITWrapper,
          dict(_sd3(8), num_blocks=24, context_embedder_config={
              "target": "torch.nn.Linear", "params": {"in_features": 256, "out_features": 512}}, adm_in_channels=256),
          (16, 32, 32), (77, 256), vector=256),
    Shape("Flux-like, 6 + 12 blocks of width 512, 256²", Flux,
          dict(_FLUX, hidden_size=512, num_heads=4, depth=6, depth_single_blocks=12, context_in_dim=256,
               vec_in_dim=256),
          (16, 32, 32), (77, 256), vector=256, guidance=True),
    Shape("Wan-like, 12 blocks of width 384, 9 frames of 256²", WanModel,
          dict(_WAN, dim=384, ffn_dim=1536, text_dim=256, num_heads=6, num_layers=12), (16, 3, 32, 32), (77, 256)),
    # As on a fast GPU, where what the CPU takes to queue a step decides.
    Shape("SDXL's blocks, a tenth of the width, 64²", UNetModel,
          dict(_SDXL, model_channels=32, num_head_channels=32, context_dim=32, adm_in_channels=32),
          (4, 8, 8), (77, 32), vector=32),
    TrainedADM(),
)
# All of SD 1.5's blocks with hardly any arithmetic in them: what a step takes here is Python, hooks and dispatch.
NARROW = Shape("SD 1.5's blocks, a tenth of the width, 64²", UNetModel, dict(_SD15, model_channels=32, context_dim=32),
               (4, 8, 8), (77, 32))
