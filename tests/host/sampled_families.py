"""Every family as a MODEL that samples, with the latents and conditionings that the host's own nodes make for it.

The networks are those of `family_models`, small and random; what a family's BaseModel takes besides the text
(references, keyframes, sound, masks) is put into the conditioning as the host's node for it does.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import comfy.clip_vision
import comfy.supported_models
import pytest
import torch
from comfy.ldm.audio.embedders import NumberConditioner
from comfy.model_patcher import ModelPatcher
from comfy.nested_tensor import NestedTensor

import nodes

from .family_models import CASES, TEXT, Case, fill
from .older import OLDER, VERSION, what_older_hosts_lack

Latent = Callable[[int], dict]  # batch -> LATENT
Extras = Callable[[int], dict]  # seed -> entries of a conditioning


@dataclass(frozen=True)
class Sampled:
    """One family as it is sampled.

    Attributes:
        name: for the test's id.
        case: the name of the case of `family_models` that its network and its layers are.
        config: the host's class in comfy.supported_models.
        latent: the host's empty latent.
        arguments: of the network, in place of the case's.
        image: image tokens, where there are others than the case has.
        calls: the case's `calls`, where they are others.
        extras: of the positive and the negative prompt.
        negative_extras: whether the negative prompt has them too.
        text: [tokens, channels] of the prompts; None for the case's.
        batches: sizes that the host itself can sample.
        weights: what a checkpoint brings besides the network's.
        not_in: versions of the host that have the family, but cannot sample it, or not in this way.
    """

    name: str
    case: str
    config: str
    latent: Latent
    arguments: dict = field(default_factory=dict)
    image: int | None = None
    calls: str | None = None
    extras: Extras = lambda seed: {}
    negative_extras: bool = True
    text: tuple[int, int] | None = None
    batches: tuple[int, ...] = (1, 2)
    weights: Callable[[], dict] = dict
    not_in: tuple[str, ...] = ()

    @functools.cached_property
    def reference(self) -> Case:
        """The case, as the reference has to know it."""
        case = next(case for case in CASES if case.name == self.case)
        changed = {"arguments": case.arguments | self.arguments}
        if self.image is not None:
            changed["image"] = self.image
        if self.calls is not None:
            changed["calls"] = self.calls
        return replace(case, **changed)

    def build(self) -> ModelPatcher:
        if VERSION in self.not_in:
            pytest.skip(f"ComfyUI {VERSION} does not sample it")
        with what_older_hosts_lack(AttributeError):
            family = getattr(comfy.supported_models, self.config)
        config = family(self.reference.arguments)
        config.unet_config.update(self.reference.arguments)  # over what the family has by default
        config.set_inference_dtype(torch.float32, None)
        with torch.inference_mode(False), what_older_hosts_lack(TypeError):
            model = config.get_model(self.weights(), "")
            fill(model.diffusion_model)
        cpu = torch.device("cpu")
        return ModelPatcher(model.eval(), load_device=cpu, offload_device=cpu)

    def prompts(self) -> dict[str, list]:
        """The positive and the negative CONDITIONING."""
        shape = self.text or self.reference.inputs.get("context") or (TEXT, 24)
        return {name: [[noise(seed, 1, *shape), {"pooled_output": noise(seed + 50, 1, 32),
                                                 **(self.extras(seed) if seed == 1 or self.negative_extras else {})}]]
                for seed, name in enumerate(("positive", "negative"), 1)}


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def node(path: str, **inputs) -> Latent:
    """The host's node "module.Class", whose first output is the latent."""
    module, _, name = path.rpartition(".")

    def latent(batch: int) -> dict:
        found = getattr(importlib.import_module(f"comfy_extras.nodes_{module}"), name)
        return found.execute(**inputs, batch_size=batch).result[0]
    return latent


def picture(width: int = 96, height: int = 64) -> Latent:
    return lambda batch: nodes.EmptyLatentImage().generate(width, height, batch)[0]


SD3 = node("sd3.EmptySD3LatentImage", width=96, height=64)
FLUX2 = node("flux.EmptyFlux2LatentImage", width=96, height=64)
VIDEO = node("hunyuan.EmptyHunyuanLatentVideo", width=96, height=64, length=5)
PIXELS = node("chroma_radiance.EmptyChromaRadianceLatentImage", width=32, height=16)
STILL = node("hunyuan.EmptyHunyuanLatentVideo", width=96, height=64, length=1)


def with_first_frame(batch: int) -> dict:
    """As Wan22ImageToVideoLatent makes it with a start image: the first frame is given."""
    latent, mask = noise(40, 1, 48, 2, 8, 12), torch.ones(1, 1, 2, 8, 12)
    mask[:, :, :1] = 0.0
    return {"samples": latent.repeat(batch, 1, 1, 1, 1), "noise_mask": mask.repeat(batch, 1, 1, 1, 1)}


def with_keyframe(batch: int) -> dict:
    """As LTXVAddGuide makes it: the keyframe stands behind the video, and its noise is masked."""
    latent, mask = torch.zeros(batch, 128, 3, 4, 6), torch.ones(batch, 1, 3, 1, 1)
    latent[:, :, 2:] = noise(40, 1, 128, 1, 4, 6)
    mask[:, :, 2:] = 0.0
    return {"samples": latent, "noise_mask": mask}


def keyframe() -> dict:
    from comfy_extras.nodes_lt import LTXVAddGuide

    (_, entries), = LTXVAddGuide.add_keyframe_index([[None, {}]], 8, torch.zeros(1, 128, 1, 4, 6), (8, 32, 32))
    return entries


def with_sound(batch: int) -> dict:
    from comfy_extras.nodes_lt import EmptyLTXVLatentVideo, LTXVConcatAVLatent

    video = EmptyLTXVLatentVideo.execute(192, 128, 9, batch).result[0]
    sound = {"samples": torch.zeros(batch, 8, 5, 16)}  # as LTXVEmptyLatentAudio, which asks a VAE for these sizes
    return LTXVConcatAVLatent.execute(video, sound).result[0]


def splats(batch: int) -> dict:
    """As TripoSplatConditioning makes it, with fewer tokens: the shape, and the camera."""
    return {"samples": NestedTensor((torch.zeros(batch, 24, 16), torch.zeros(batch, 1, 5)))}


def cascade(stage: int) -> Latent:
    def latent(batch: int) -> dict:
        from comfy_extras.nodes_stable_cascade import StableCascade_EmptyLatentImage

        return StableCascade_EmptyLatentImage.execute(96, 64, 16, batch).result[stage]
    return latent


def sound(batch: int) -> dict:
    from comfy_extras.nodes_audio import EmptyLatentAudio

    return EmptyLatentAudio.execute(0.9288, batch).result[0]


def references(*shapes: tuple[int, ...], **method) -> Extras:
    """As ReferenceLatent."""
    return lambda seed: {"reference_latents": [noise(30 + i, 1, *shape) for i, shape in enumerate(shapes)], **method}


def vision(seed: int, tokens: int = 5) -> comfy.clip_vision.Output:
    output = comfy.clip_vision.Output()
    output["penultimate_hidden_states"] = output["last_hidden_state"] = noise(seed, 1, tokens, 1280)
    return output


def posed(seed: int, references: int = 1) -> dict:
    """As WanSCAILToVideo, with a pose of half the size."""
    return {"clip_vision_output": vision(40), "pose_video_latent": noise(41, 1, 16, 2, 4, 6),
            "reference_latents": [noise(42 + i, 1, 16, 1, 8, 12) for i in range(references)]}


def masked(seed: int) -> dict:
    return {"attention_mask": torch.tensor([[1] * 5 + [0] * 2])}


def unmasked(seed: int) -> dict:
    return {"attention_mask": torch.ones(1, TEXT, dtype=torch.long)}


def seconds() -> dict:
    """Stable Audio's embedders of a length."""
    embedder = NumberConditioner(768, min_val=0, max_val=512)
    return {f"conditioner.conditioners.{name}.{key}": noise(i, *value.shape) if value.is_floating_point() else value
            for i, name in enumerate(("seconds_start", "seconds_total"))
            for key, value in embedder.state_dict().items()}


SAMPLED = [
    Sampled("SD 1.5", "SD 1.5", "SD15", picture()),
    Sampled("SDXL", "SDXL", "SDXL", picture(), {"adm_in_channels": 6 * 256 + 32}),
    Sampled("SVD", "SVD (the layers within a frame)", "SVD_img2vid", lambda batch: picture()(3),
            {"adm_in_channels": 3 * 256}, batches=(1,), text=(1, 16),
            extras=lambda seed: {"concat_latent_image": noise(40, 1, 4, 8, 12)}),
    Sampled("SD3.5 medium", "SD3.5 medium (extra self-attention)", "SD3", SD3),
    Sampled("AuraFlow", "AuraFlow", "AuraFlow", picture()),
    Sampled("HunyuanDiT", "HunyuanDiT", "HunyuanDiT", picture(), extras=lambda seed: {
        "attention_mask": torch.ones(1, TEXT), "conditioning_mt5xl": noise(seed + 7, 1, 9, 32),
        "attention_mask_mt5xl": torch.ones(1, 9)}),
    Sampled("PixArt", "PixArt", "PixArtSigma", picture(320, 256)),
    Sampled("Flux", "Flux", "Flux", SD3),
    Sampled("Flux Kontext, two references", "Flux Kontext", "Flux", SD3, image=24 + 4 + 6,
            extras=references((16, 4, 4), (16, 4, 6))),
    Sampled("Flux 2", "Flux 2", "Flux2", FLUX2, {"in_channels": 128, "out_channels": 128}, batches=(1,)),
    Sampled("Flux 2, two references", "Flux 2", "Flux2", FLUX2, {"in_channels": 128, "out_channels": 128},
            image=24 + 4 + 6, extras=references((128, 2, 2), (128, 2, 3))),
    Sampled("Chroma", "Chroma", "Chroma", SD3),
    Sampled("Chroma Radiance", "Chroma Radiance", "ChromaRadiance", PIXELS, image=128),
    Sampled("HunyuanVideo", "HunyuanVideo (text mask)", "HunyuanVideo", VIDEO),
    Sampled("HunyuanVideo, text mask", "HunyuanVideo (text mask)", "HunyuanVideo", VIDEO, extras=masked,
            negative_extras=False, batches=(1,)),
    Sampled("HunyuanVideo, first frame", "HunyuanVideo (text mask)", "HunyuanVideo", VIDEO,
            extras=lambda seed: {"guiding_frame_index": 0}, negative_extras=False,
            batches=(1,) if OLDER else (1, 2)),  # older hosts cannot multiply a first frame's modulation by a batch
    Sampled("HunyuanVideo, reference", "HunyuanVideo (text mask)", "HunyuanVideo", VIDEO, image=48 + 24,
            extras=lambda seed: {"ref_latent": noise(40, 1, 16, 1, 8, 12)}, negative_extras=False, batches=(1,)),
    Sampled("Hunyuan3D 2", "Hunyuan3D 2", "Hunyuan3Dv2",
            node("hunyuan3d.EmptyLatentHunyuan3Dv2", resolution=20), {"in_channels": 64}),
    Sampled("Lumina 2", "Lumina 2 (text mask)", "Lumina2", SD3, extras=masked),
    Sampled("Z-Image", "Z-Image (padding to 32)", "ZImage", SD3),
    Sampled("Z-Image in pixel space", "Z-Image (padding to 32)", "ZImagePixelSpace", PIXELS,
            {"in_channels": 3, "decoder_hidden_size": 32, "decoder_num_res_blocks": 1}, image=128),
    Sampled("OmniGen2, a reference", "OmniGen2 (grouped queries, reference)", "Omnigen2", SD3,
            extras=lambda seed: unmasked(seed) | references((16, 4, 4))(seed)),
    Sampled("Boogu", "Boogu", "Boogu", SD3, extras=unmasked),
    Sampled("HiDream-I1", "HiDream-I1", "HiDream", SD3,
            extras=lambda seed: {"conditioning_llama3": noise(seed + 7, 1, 2, 5, 28)}),
    Sampled("Qwen-Image", "Qwen-Image (reference)", "QwenImage", SD3, image=24),
    Sampled("Qwen-Image-Edit, a reference", "Qwen-Image (reference)", "QwenImage", SD3,
            extras=references((16, 1, 4, 4))),
    Sampled("Qwen-Image-Edit 2511, two references at timestep zero", "Qwen-Image (reference)", "QwenImage", SD3,
            {"default_ref_method": "index_timestep_zero"}, image=24 + 4 + 6,
            extras=references((16, 1, 4, 4), (16, 1, 4, 6))),
    Sampled("Mage-Flow", "Mage-Flow (text mask)", "MageFlow", FLUX2, {"in_channels": 128, "out_channels": 128},
            extras=masked),
    Sampled("Krea 2", "Krea 2", "Krea2", SD3),
    Sampled("Krea 2, a reference at timestep zero", "Krea 2", "Krea2", SD3, image=24 + 4,
            extras=references((16, 1, 4, 4), reference_latents_method="index_timestep_zero"),
            not_in=("0.27.0",)),
    Sampled("Ideogram 4", "Ideogram 4 (text mask)", "Ideogram4", FLUX2, {"in_channels": 128},
            extras=lambda seed: {"attention_mask": torch.tensor([[0] * 2 + [1] * 5])}),
    Sampled("JoyImage", "JoyImage", "JoyImage", SD3),
    Sampled("Lens", "Lens (text mask)", "Lens", FLUX2, {"in_channels": 128, "out_channels": 32}, extras=masked),
    Sampled("PixelDiT", "PixelDiT", "PixelDiTT2I", PIXELS, image=32),
    Sampled("PiD, a picture to enlarge", "PixelDiT", "PiD", PIXELS,
            {"lq_hidden_dim": 32, "lq_num_res_blocks": 1, "latent_spatial_down_factor": 4}, image=32,
            extras=lambda seed: {"lq_latent": noise(40, 1, 16, 1, 2), "degrade_sigma": torch.tensor([0.3])}),
    Sampled("CogVideoX", "CogVideoX", "CogVideoX_T2V", VIDEO),
    Sampled("Mochi", "Mochi", "GenmoMochi", node("mochi.EmptyMochiLatentVideo", width=48, height=32, length=1),
            batches=(2,), text=(16, 24),
            extras=lambda seed: {"attention_mask": torch.tensor([[1] * TEXT + [0] * (16 - TEXT)])}),
    Sampled("Wan, text to video", "Wan, text to video", "WAN21_T2V", VIDEO),
    Sampled("Wan, image to video", "Wan, image to video", "WAN21_I2V", VIDEO, {"in_dim": 36},
            extras=lambda seed: {"clip_vision_output": vision(40), "concat_latent_image": noise(41, 1, 16, 2, 8, 12),
                                 "concat_mask": torch.ones(1, 1, 2, 8, 12)}),
    Sampled("Wan 2.2, 5B, a first frame", "Wan, text to video", "WAN22_T2V",
            with_first_frame,
            {"in_dim": 48, "out_dim": 48}),
    Sampled("Wan VACE", "Wan VACE", "WAN21_Vace", VIDEO,
            extras=lambda seed: {"vace_frames": [noise(40, 1, 32, 2, 8, 12)], "vace_strength": [1.0],
                                 "vace_mask": [torch.ones(1, 64, 2, 8, 12)]}),
    Sampled("Wan VACE, two controls", "Wan VACE", "WAN21_Vace", VIDEO, calls="0 - - - - - 1 - - - - -",
            extras=lambda seed: {"vace_frames": [noise(seed, 1, 32, 2, 8, 12) for seed in (40, 41)],
                                 "vace_strength": [1.0, 0.7], "vace_mask": 2 * [torch.ones(1, 64, 2, 8, 12)]}),
    Sampled("Wan S2V", "Wan S2V", "WAN22_S2V", VIDEO, extras=lambda seed: {"audio_embed": noise(40, 1, 25, 16, 8)}),
    Sampled("Wan S2V, a reference", "Wan S2V", "WAN22_S2V", VIDEO, image=48 + 24, extras=lambda seed: {
        "audio_embed": noise(40, 1, 25, 16, 8), "reference_latents": [noise(41, 1, 16, 1, 8, 12)]}),
    Sampled("Wan Animate", "Wan Animate", "WAN22_Animate", VIDEO, {"in_dim": 36},
            extras=lambda seed: {"clip_vision_output": vision(40), "pose_video_latent": noise(41, 1, 16, 1, 8, 12)}),
    Sampled("Wan Camera", "Wan, text to video", "WAN22_Camera", VIDEO, {"model_type": "camera_2.2", "in_dim": 36}),
    Sampled("SCAIL, a reference and a pose", "Wan, image to video", "WAN21_SCAIL", VIDEO,
            {"model_type": "scail", "in_dim": 20}, image=48 + 24 + 12, extras=posed),
    Sampled("SCAIL 2, two references and a pose", "Wan, image to video", "WAN21_SCAIL2", VIDEO,
            {"model_type": "scail2", "in_dim": 20}, image=48 + 2 * 24 + 12, extras=lambda seed: posed(seed, 2) | {
                "driving_mask_28ch": noise(45, 1, 2, 28, 4, 6), "ref_mask_28ch": noise(46, 1, 4, 28, 8, 12),
                "ref_mask_flag": False}),
    Sampled("HuMo", "Wan, text to video", "WAN21_HuMo", VIDEO, {"model_type": "humo", "in_dim": 36}),
    Sampled("WanDancer", "WanDancer", "WAN22_WanDancer", VIDEO, {"in_dim": 36},
            extras=lambda seed: {"clip_vision_output": vision(40), "audio_embed": noise(41, 1, 9, 35)}),
    Sampled("LTX-Video", "LTX-Video", "LTXV", node("lt.EmptyLTXVLatentVideo", width=192, height=128, length=9),
            {"in_channels": 128}, extras=unmasked),
    Sampled("LTX-Video, a keyframe", "LTX-Video", "LTXV", with_keyframe, {"in_channels": 128}, image=72,
            extras=lambda seed: unmasked(seed) | keyframe(), batches=(1,)),
    Sampled("LTX-Video with sound", "LTX-Video with sound", "LTXAV", with_sound, {"in_channels": 128}),
    Sampled("Cosmos 1", "Cosmos 1", "CosmosT2V", node("cosmos.EmptyCosmosLatentVideo", width=96, height=64, length=9)),
    Sampled("Cosmos Predict 2", "Cosmos Predict 2", "CosmosT2IPredict2", STILL),
    Sampled("Anima", "Cosmos Predict 2", "Anima", STILL),
    Sampled("Kandinsky 5", "Kandinsky 5", "Kandinsky5", VIDEO, {"visual_embed_dim": 132}),
    Sampled("Kandinsky 5, one image", "Kandinsky 5", "Kandinsky5Image", STILL, image=24),
    Sampled("Stable Cascade C", "Stable Cascade C", "Stable_Cascade_C", cascade(0), {"c_clip_img": 768},
            extras=lambda seed: {"pooled_output": noise(seed + 50, 1, 24)}),
    Sampled("Stable Cascade B", "Stable Cascade B (its up.0 runs twice)", "Stable_Cascade_B", cascade(1),
            extras=lambda seed: {"pooled_output": noise(seed + 50, 1, 24),
                                 "stable_cascade_prior": noise(40, 1, 16, 4, 6)}),
    Sampled("Stable Audio", "Stable Audio (prepended condition)", "StableAudio", sound,
            {"io_channels": 64, "cond_token_dim": 768, "project_cond_tokens": True,
             "global_cond_dim": 2 * 768}, text=(TEXT, 768), weights=seconds),
    Sampled("TripoSplat", "TripoSplat", "TripoSplat", splats),
    Sampled("HiDream-O1", "HiDream-O1", "HiDreamO1",
            node("hidream_o1.EmptyHiDreamO1LatentImage", width=192, height=128),
            extras=lambda seed: {"text_input_ids": torch.arange(TEXT)[None]}, not_in=("0.27.0",)),
]
