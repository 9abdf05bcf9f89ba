"""Runs an example workflow in this process, with something small in the place of every file that its loaders name.

Models are small random networks of the model's own class. VAEs are small ones of their class too, but for those of
Flux 2 and LTX, which cannot be made small: a stand-in takes their place, and another that of LTX's sound. No text
encoder can: prompts become conditionings of the right shape, which depend on the text alone.
"""

from __future__ import annotations

import asyncio
import functools
import json
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import comfy.model_base
import comfy.sd
import comfy.supported_models
import pytest
import torch
from comfy.ldm.wan.vae import WanVAE
from comfy.model_base import ModelType
from comfy.model_patcher import ModelPatcher
from examples.build import definitions
from harness import workflow
from harness.errors import HarnessError

import nodes

from . import models
from .older import what_older_hosts_lack
from .sampled_families import SAMPLED, SD3, Sampled, noise
from .test_psld import vae

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
SMALLER = 8  # of what `PIXELS` names
PIXELS = ("width", "height", "x", "y")
FEWER = {"length": 5, "frames_number": 9}  # frames
STEPS = 2


@dataclass(frozen=True)
class Stage:
    """What stands for the files of one example.

    Attributes:
        model: builds it.
        text: [tokens, channels] of a prompt.
        vae: builds it.
        pooled: channels of the pooled text.
    """

    model: Callable[[], ModelPatcher]
    text: tuple[int, int] = (7, 24)
    vae: Callable[[], object] = lambda: vae(16)
    pooled: int = 32


class Text:
    """In the place of a CLIP."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    def clone(self) -> Text:
        return self

    def set_tokenizer_option(self, name: str, value) -> None:
        pass

    def tokenize(self, text: str, **_) -> str:
        return text

    def encode_from_tokens_scheduled(self, tokens: str) -> list:
        if not tokens and self.stage.text == (7, models.CONTEXT):
            return models.empty_conditioning()
        seed = zlib.crc32(tokens.encode())
        return [[noise(seed, 1, *self.stage.text), {"pooled_output": noise(seed + 1, 1, self.stage.pooled)}]]


class StandIn:
    """In the place of a VAE that has no small form: every latent pixel becomes one of the picture."""

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        return samples[:, :3].movedim(1, -1).sigmoid()


@dataclass(frozen=True)
class OfSmallPictures:
    """A VAE that is given an eighth of a picture: a node that asks for a megapixel gets by with less."""

    vae: comfy.sd.VAE

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.vae.encode(pixels[:, ::SMALLER, ::SMALLER])


def wan_vae() -> comfy.sd.VAE:
    """Also Qwen-Image's, Krea 2's and Anima's."""
    network = WanVAE(dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[],
                     temperal_downsample=[False, True, True], image_channels=3, conv_out_channels=3, dropout=0.0)
    models.fill_with_noise(network)
    return comfy.sd.VAE(sd=network.state_dict(), dtype=torch.float32)


def family(name: str, **arguments) -> Callable[[], ModelPatcher]:
    """One of `sampled_families`, with other arguments for its network."""
    (found,) = [sampled for sampled in SAMPLED if sampled.name == name]
    return replace(found, arguments=found.arguments | arguments).build


def x4_upscaler() -> ModelPatcher:
    """Two residual blocks in a level, as the real one has: its decoder then has the layer that is published for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the host's class copies a tensor unusually
        return models.u_net(
            comfy.supported_models.SD_X4Upscaler, depth=[0, 1, 1], num_res_blocks=[2, 2, 2], num_heads=4,
            transformer_depth=[0, 0, 1, 1, 1, 1], transformer_depth_output=[0, 0, 0, 1, 1, 1, 1, 1, 1], in_channels=7,
            disable_self_attentions=[True, True, False], model_class=comfy.model_base.SD_X4Upscaler,
            model_type=ModelType.V_PREDICTION)


def anima() -> ModelPatcher:
    """Without the adapter of its text encoder, which alone is larger than the rest."""
    from comfy.ldm.anima import model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "LLMAdapter", lambda **_: torch.nn.Identity())
        return Sampled("Anima", "Cosmos Predict 2", "Anima", SD3, {"num_blocks": 28}).build()


SD = {"text": (7, models.CONTEXT), "vae": vae}
STAGES = {
    "SD 1.5 ControlNet with an empty prompt": Stage(models.sd15, **SD),
    "SD 2 inpainting with an empty prompt": Stage(models.sd15_inpainting, **SD),
    "SD x4 upscaler with an empty prompt": Stage(x4_upscaler, **SD),
    "SD 1.5 with PAG KSampler": Stage(models.sd15, **SD),
    "SD 1.5 with PAG Model Patch": Stage(models.sd15, **SD),
    "SDXL with PAG KSampler": Stage(models.sdxl, **SD),
    "SDXL hires pass with PAG": Stage(models.sdxl, **SD),
    "Z-Image-Turbo with PAG at cfg 1": Stage(family("Z-Image")),
    "Krea 2 Turbo with PAG at cfg 1": Stage(family("Krea 2"), vae=wan_vae),
    "Z-Image with CFG and PAG": Stage(family("Z-Image", n_layers=30)),
    "Qwen-Image with CFG and PAG": Stage(family("Qwen-Image"), vae=wan_vae),
    "Qwen-Image-Edit with CFG and PAG": Stage(family("Qwen-Image-Edit, a reference"), vae=wan_vae),
    "Flux.1 dev with one head perturbed": Stage(family(
        "Flux", depth=19, depth_single_blocks=38, num_heads=24, hidden_size=192, axes_dim=[2, 2, 4])),
    "Flux.2 dev with PAG": Stage(family("Flux 2"), vae=StandIn),
    "Anima with CFG and PAG": Stage(anima, vae=wan_vae),
    "SD 3.5 Large with CFG and PAG": Stage(family("SD3.5 medium", num_blocks=38)),
    "Chroma with CFG and PAG": Stage(family("Chroma")),
    "Wan 2.2 text to video with PAG": Stage(family("Wan, text to video", num_layers=40), vae=wan_vae),
    "Wan 2.2 image to video with PAG": Stage(family("Wan, image to video", num_layers=40), vae=wan_vae),
    "Wan 2.1 text to video with skipped blocks": Stage(family("Wan, text to video", num_layers=30), vae=wan_vae),
    "Wan 2.2 in four steps at cfg 1 with skipped blocks": Stage(
        family("Wan, text to video", num_layers=40), vae=wan_vae),
    "LTX-2.3 text to video with PAG": Stage(family("LTX-Video with sound", num_layers=48), (7, 48), StandIn),
}


@functools.cache
def known() -> dict[str, dict]:
    return definitions()


def run(name: str, **changed) -> list[torch.Tensor]:
    """What the example saves, in order: IMAGE [B, H, W, 3]. `changed` are inputs in place of the workflow's."""
    stage = STAGES[name]
    built = {kind: functools.cache(build) for kind, build in (("model", stage.model), ("vae", stage.vae))}
    with what_older_hosts_lack(HarnessError):
        prompt = workflow.load(WORKFLOWS / f"{name}.json", known())
    done: dict[str, tuple] = {}
    saved: list[torch.Tensor] = []

    def outputs(node_id: str) -> tuple:
        if node_id not in done:
            kind, inputs = prompt[node_id]["class_type"], dict(prompt[node_id]["inputs"])
            for given, value in inputs.items():
                inputs[given] = outputs(value[0])[value[1]] if isinstance(value, list) else smaller(
                    given, value, prompt[node_id]["inputs"].get("steps"))
            done[node_id] = execute(kind, inputs | {key: value for key, value in changed.items() if key in inputs})
        return done[node_id]

    def execute(kind: str, inputs: dict) -> tuple:
        if kind in ("CheckpointLoaderSimple", "UNETLoader"):
            with what_older_hosts_lack(AttributeError):
                return built["model"](), Text(stage), built["vae"]()
        if kind in ("CLIPLoader", "DualCLIPLoader", "LTXAVTextEncoderLoader"):
            return (Text(stage),)
        if kind in ("VAELoader", "LTXVAudioVAELoader"):
            return (built["vae"](),)
        if kind == "LoraLoaderModelOnly":
            return (inputs["model"],)
        if kind == "ControlNetLoader":
            from .test_without_prompt import control_net

            return (control_net(),)
        if kind == "LTXVEmptyLatentAudio":
            return ({"samples": torch.zeros(1, 8, 5, 16), "type": "audio"},)
        if kind == "LTXVAudioVAEDecode":
            return ({"waveform": torch.zeros(1, 2, 16000), "sample_rate": 16000},)
        if kind == "FluxKontextImageScale":
            return execute("ImageScale", inputs | {"upscale_method": "area", "width": 128, "height": 96,
                                                   "crop": "center"})
        if kind == "TextEncodeQwenImageEditPlus":
            inputs["vae"] = OfSmallPictures(inputs["vae"])
        if kind == "SaveImage":
            saved.append(inputs["images"])
            return ()
        if kind == "SaveVideo":
            saved.append(inputs["video"].get_components().images)
            return ()
        if kind == "PreviewImage":
            return ()
        node = node_class(kind)
        if hasattr(node, "GET_NODE_INFO_V1"):
            return node.execute(**inputs).result
        return getattr(node(), node.FUNCTION)(**inputs)

    for node_id in prompt:
        outputs(node_id)
    return saved


def smaller(name: str, value, steps: int | None):
    """The same for a CPU: fewer pixels, frames and steps. `steps`: how many the node was to take."""
    if name in PIXELS:
        return value // SMALLER
    if name == "steps":
        return STEPS
    if name in ("start_at_step", "end_at_step"):
        return value * STEPS // steps
    return FEWER.get(name, value)


@functools.cache
def ours() -> dict[str, type]:
    import pag_pack

    extension = asyncio.run(pag_pack.comfy_entrypoint())
    return {node.GET_SCHEMA().node_id: node for node in asyncio.run(extension.get_node_list())}


def node_class(name: str) -> type:
    return ours().get(name) or nodes.NODE_CLASS_MAPPINGS[name]


def content(name: str) -> dict:
    return json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
