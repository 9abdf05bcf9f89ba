"""ADM (guided-diffusion) models: PAG's pixel-space experiments in ComfyUI."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ...pag_core.adm import NOISE_SCHEDULES, QKV_ORDERS
from ...pag_core.checks import check_switch, check_text, check_whole
from .. import inputs
from ..host.models.adm_files import adm_files, load_adm_file, pixel_vae, register_folder
from ..host.models.adm_model import ADMModel
from ..host.sockets import check_model

SHIPPED = "adm-emoji-64.safetensors"
MAX_HEAD_CHANNELS, MAX_LABEL = 1024, 2**31 - 1
register_folder()


class PAGADMLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        files = adm_files()
        return io.Schema(
            node_id="PAGADMLoader",
            display_name="PAG ADM Loader",
            category=inputs.RESEARCH,
            description="Loads an ADM (guided-diffusion) model, the pixel-space kind used in the PAG paper's "
                        "experiments, as an ordinary MODEL with its VAE.",
            search_aliases=["adm", "guided-diffusion", "ablated diffusion model", "load checkpoint"],
            inputs=[
                io.Combo.Input(
                    "ckpt_name", options=files, default=SHIPPED if SHIPPED in files else None,
                    tooltip="An ADM file (.safetensors or .pt) in models/adm, models/checkpoints or "
                            f"models/diffusion_models. {SHIPPED} comes with this pack: emoji, 64 × 64 pixels."),
                io.Int.Input(
                    "head_channels", default=0, min=0, max=MAX_HEAD_CHANNELS, optional=True, advanced=True,
                    tooltip="Channels per attention head; the weights do not reveal it. 0 (neutral): taken from the "
                            "file's metadata, known for OpenAI's published files, otherwise 64. Set it only if the "
                            "model's documentation gives a value; a wrong one produces noise."),
                io.Combo.Input(
                    "qkv_order", options=["auto", *QKV_ORDERS], default="auto", optional=True, advanced=True,
                    tooltip="Layout of the attention weights; they do not reveal it. auto (neutral): taken from the "
                            "file's metadata, known for OpenAI's published files, otherwise legacy. new: for models "
                            "trained with use_new_attention_order."),
                io.Combo.Input(
                    "noise_schedule", options=["auto", *NOISE_SCHEDULES], default="auto", optional=True, advanced=True,
                    tooltip="The noise schedule that the model was trained with. auto (neutral): taken from the file's "
                            "metadata, known for OpenAI's published files, otherwise linear."),
                io.Boolean.Input(
                    "clip_denoised", default=True, optional=True, advanced=True,
                    tooltip="Clamps the prediction of every step to the value range of an image, after all guidance, "
                            "as the paper's code does. On is recommended: without it, pixel-space models "
                            "over-saturate. Off is neutral: the sampler gets the prediction unchanged."),
            ],
            outputs=[
                io.Model.Output(tooltip="For any sampler or guidance node."),
                io.Vae.Output(tooltip="Encodes and decodes images for this model, without loss."),
            ],
        )

    @classmethod
    def execute(cls, ckpt_name: str, head_channels: int = 0, qkv_order: str = "auto", noise_schedule: str = "auto",
                clip_denoised: bool = True) -> io.NodeOutput:
        head_channels = check_whole("head_channels", head_channels, 0, MAX_HEAD_CHANNELS)
        clip_denoised = check_switch("clip_denoised", clip_denoised)
        model = load_adm_file(check_text("ckpt_name", ckpt_name), head_channels, qkv_order, noise_schedule,
                              clip_denoised)
        return io.NodeOutput(model, pixel_vae())


class PAGADMClassLabel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAGADMClassLabel",
            display_name="PAG ADM Class Label",
            category=inputs.RESEARCH,
            description="Selects the class that an ADM model generates, as a prompt would.",
            search_aliases=["adm class", "class conditioning", "imagenet label"],
            inputs=[
                io.Model.Input("model", tooltip="The model from PAG ADM Loader. The label is checked against its "
                                                "classes."),
                io.Int.Input(
                    "label", default=-1, min=-1, max=MAX_LABEL,
                    tooltip="Index of the class, counted from 0. -1 (neutral): no class, the unconditional prediction; "
                            "use it as the negative for CFG, and for PAG without any condition."),
            ],
            outputs=[io.Conditioning.Output(tooltip="For the positive or negative input of a sampler or guider.")],
        )

    @classmethod
    def execute(cls, model, label: int) -> io.NodeOutput:
        check_model(model)
        if not isinstance(model.model, ADMModel):
            raise ValueError(f"expected a model from PAG ADM Loader, found {type(model.model).__name__}: for other "
                             f"models use CLIP Text Encode")
        label = check_whole("label", label, -MAX_LABEL, MAX_LABEL)
        model.model.check_label(label)
        # Ones, for nodes that calculate with the tensor: ConditioningZeroOut then means "no label".
        return io.NodeOutput([[torch.ones(1, 1, 1), {"class_label": label}]])
