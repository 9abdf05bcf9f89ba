"""Restores images from incomplete, downscaled, blurred and noisy measurements (PAG App. A.3, C.1)."""

from __future__ import annotations

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ...pag_core.checks import check_choice, check_range, check_switch, check_whole
from ...pag_core.inverse import (
    DOWNSCALES,
    Blur,
    BoxInpainting,
    GaussianBlur,
    Inpainting,
    Operator,
    SuperResolution,
    is_masking,
    measure,
    motion_kernel,
)
from ...pag_core.perturbation import MAX_SEED
from .. import inputs
from ..host.research.posterior import DPS, PSLD, posterior_sampler
from ..host.sockets import check_operator, check_pixels

TASKS = ("box_inpainting", "mask_inpainting", "super_resolution", "gaussian_blur", "motion_blur")
OperatorSocket = io.Custom("PAG_OPERATOR")


class PAGMeasurement(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        def share(name: str, default: float, meaning: str) -> io.Float.Input:
            return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.05, round=0.001, optional=True,
                                  tooltip=f"For box_inpainting: {meaning}, as a fraction of the image's width or "
                                          f"height.")

        return io.Schema(
            node_id="PAGMeasurement",
            display_name="PAG Degradation",
            category=inputs.RESEARCH,
            description="Describes how an image was degraded: part of it is missing, it was downscaled, or it is "
                        "blurred. PAG DPS Sampler and PAG PSLD Sampler undo this, without a prompt.",
            search_aliases=["inverse problem", "measurement operator", "restoration", "inpainting",
                            "super resolution", "deblur"],
            inputs=[
                io.Combo.Input(
                    "task", options=list(TASKS), default="box_inpainting",
                    tooltip="How the image was degraded. box_inpainting: a box is missing. mask_inpainting: the masked "
                            "area is missing. super_resolution: it was downscaled. gaussian_blur: it is out of focus. "
                            "motion_blur: the camera shook. Each has its own settings below."),
                share("box_left", 0.25, "left edge of the missing box"),
                share("box_top", 0.25, "top edge of the missing box"),
                share("box_width", 0.5, "width of the missing box"),
                share("box_height", 0.5, "height of the missing box"),
                io.Mask.Input("mask", optional=True,
                              tooltip="For mask_inpainting: 1 (white) where the image is missing. Must match the image "
                                      "size."),
                io.Int.Input("factor", default=4, min=2, max=64, optional=True,
                             tooltip="For super_resolution: how many times smaller the degraded image is, per side. "
                                     "The paper uses 8; 2 to 8 is a sensible range."),
                io.Combo.Input("downscale", options=list(DOWNSCALES), default="bicubic", optional=True,
                               tooltip="For super_resolution: how the image was downscaled. bicubic: with a smooth "
                                       "filter, as most programs do. average: each pixel is the average of a square."),
                io.Float.Input("blur_sigma", default=3.0, min=0.1, max=1000.0, step=0.1, round=0.01, optional=True,
                               tooltip="For gaussian_blur: standard deviation of the blur, in pixels. The paper uses 3 "
                                       "for 256-pixel images; use less for smaller ones."),
                io.Image.Input("kernel", optional=True,
                               tooltip="For motion_blur: the path of the camera shake as a small image, bright on "
                                       "black. If not connected, a random path is drawn."),
                io.Int.Input("kernel_size", default=61, min=3, max=511, step=2, optional=True, advanced=True,
                             tooltip="For motion_blur without a kernel: size of the random kernel, in pixels; must be "
                                     "odd. The paper uses 61 for 256-pixel images; use about a quarter of the image "
                                     "width."),
                io.Float.Input("intensity", default=0.5, min=0.0, max=1.0, step=0.05, round=0.001, optional=True,
                               advanced=True,
                               tooltip="For motion_blur without a kernel: how much the path bends. 0 is a straight "
                                       "line; the paper uses 0.5."),
                io.Int.Input("kernel_seed", default=0, min=0, max=MAX_SEED, optional=True, advanced=True,
                             tooltip="For motion_blur without a kernel: the seed of the random path. The same seed "
                                     "gives the same path."),
            ],
            outputs=[OperatorSocket.Output(display_name="operator",
                                           tooltip="For PAG Degrade Image, PAG DPS Sampler and PAG PSLD Sampler.")],
        )

    @classmethod
    def execute(cls, task: str, box_left: float = 0.25, box_top: float = 0.25, box_width: float = 0.5,
                box_height: float = 0.5, mask=None, factor: int = 4, downscale: str = "bicubic",
                blur_sigma: float = 3.0, kernel=None, kernel_size: int = 61, intensity: float = 0.5,
                kernel_seed: int = 0) -> io.NodeOutput:
        check_choice("task", task, TASKS)
        kernel_seed = check_whole("kernel_seed", kernel_seed, 0, MAX_SEED)
        for kind, name, given, owner in (("MASK", "mask", mask, "mask_inpainting"),
                                         ("IMAGE", "kernel", kernel, "motion_blur")):
            if given is None:
                continue
            check_pixels(kind, name, given)
            if task != owner:
                raise ValueError(f"A {name} is connected, but the task {task} does not use it. Set the task to "
                                 f"{owner}, or disconnect it.")
        if task == "mask_inpainting" and mask is None:
            raise ValueError("mask_inpainting needs a mask. Connect one, or set the task to box_inpainting.")
        builders = {
            "box_inpainting": lambda: BoxInpainting(box_left, box_top, box_width, box_height),
            "mask_inpainting": lambda: Inpainting(mask),
            "super_resolution": lambda: SuperResolution(factor, downscale),
            "gaussian_blur": lambda: GaussianBlur(blur_sigma),
            "motion_blur": lambda: Blur(motion_kernel(kernel_size, intensity, kernel_seed) if kernel is None
                                        else brightness(kernel)),
        }
        return io.NodeOutput(builders[task]())


class PAGMeasure(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAGMeasure",
            display_name="PAG Degrade Image",
            category=inputs.RESEARCH,
            description="Degrades an image as described by PAG Degradation, and adds noise, to test restoration. "
                        "Images that are already degraded go straight to the samplers.",
            search_aliases=["measure", "downscale", "blur", "add noise", "inverse problem"],
            inputs=[
                io.Image.Input("image", tooltip="The image to degrade."),
                operator_input(),
                io.Float.Input("noise_sigma", default=0.05, min=0.0, max=100.0, step=0.01, round=0.0001,
                               tooltip="Standard deviation of the added noise, on a scale where black is -1 and white "
                                       "is 1. 0 (neutral): no noise. DPS uses 0.05."),
                io.Int.Input("seed", default=0, min=0, max=MAX_SEED, control_after_generate=True,
                             tooltip="The random seed of the noise. The same seed gives the same noise."),
            ],
            outputs=[
                io.Image.Output(display_name="measurement",
                                tooltip="The degraded image, for PAG DPS Sampler and PAG PSLD Sampler. Not clipped: "
                                        "the noise may exceed the range of an image."),
                io.Image.Output(display_name="picture",
                                tooltip="The same image for viewing, at the size of the input image."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, image: Tensor, operator: Operator, noise_sigma: float, seed: int) -> io.NodeOutput:
        x = to_signed("image", image)
        check_operator(operator)
        operator.measured_size(tuple(x.shape[-2:]))
        seed = check_whole("seed", seed, 0, MAX_SEED)
        y = measure(operator, x, noise_sigma, seed)
        shown = to_image(torch.nn.functional.interpolate(y, size=x.shape[-2:], mode="nearest")).clamp(0, 1)
        return io.NodeOutput(to_image(y), shown, ui=ui.PreviewImage(shown))


class PAGDPSSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAGDPSSampler",
            display_name="PAG DPS Sampler (restoration)",
            category=inputs.RESEARCH,
            description="Diffusion Posterior Sampling: samples an image that matches a degraded one, with a "
                        "pixel-space model such as PAG ADM Loader's. For SamplerCustomAdvanced with any guider. PAG "
                        "improves what the model fills in; no prompt is needed.",
            search_aliases=["diffusion posterior sampling", "dps", "restore", "inpainting", "super resolution",
                            "deblur", "inverse problem"],
            inputs=[
                measurement_input(),
                operator_input(),
                io.Float.Input(
                    "step_size", default=1.0, min=0.0, max=1000.0, step=0.05, round=0.0001,
                    tooltip="How strongly each step is pulled toward the degraded image (zeta in DPS; no unit). 0 "
                            "ignores it. The paper uses 1 with 1000 steps (ImageNet: 0.4 to 1); fewer steps need more. "
                            "Too low: the result does not match the degraded image. Too high: speckles."),
                eta_input(1.0, "The paper uses 1 for DPS."),
                checkpointing_input(),
            ],
            outputs=[sampler_output()],
        )

    @classmethod
    def execute(cls, measurement: Tensor, operator: Operator, step_size: float, eta: float = 1.0,
                checkpointing: bool = False) -> io.NodeOutput:
        step_size = check_range("step_size", step_size, 0.0, 1000.0)
        eta, checkpointing = check_range("eta", eta, 0.0, 1.0), check_switch("checkpointing", checkpointing)
        return io.NodeOutput(posterior_sampler(DPS(operator, measured(measurement, operator), step_size), eta,
                                               checkpointing))


class PAGPSLDSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAGPSLDSampler",
            display_name="PAG PSLD Sampler (restoration)",
            category=inputs.RESEARCH,
            description="Posterior Sampling with Latent Diffusion: DPS for models with a VAE, such as SD 1.5. Samples "
                        "an image that matches a degraded one. For SamplerCustomAdvanced with any guider; the prompt "
                        "may be empty.",
            search_aliases=["posterior sampling latent diffusion", "psld", "restore", "inpainting", "super resolution",
                            "deblur", "inverse problem"],
            inputs=[
                measurement_input(),
                operator_input(),
                inputs.vae(False, "The VAE that belongs to the model. The gradient runs through its decoder and "
                                  "encoder too, which takes memory; see checkpointing."),
                io.Float.Input(
                    "step_size", default=0.15, min=0.0, max=1000.0, step=0.05, round=0.0001,
                    tooltip="How strongly each step is pulled toward the degraded image (eta in the PAG paper, omega "
                            "in PSLD's code; no unit). 0 ignores it. The paper uses 0.15 for inpainting and motion "
                            "blur, 0.7 for super-resolution, 0.1 for Gaussian blur."),
                io.Float.Input(
                    "gluing", default=0.015, min=0.0, max=1000.0, step=0.005, round=0.0001,
                    tooltip="How strongly each step is pulled toward latents that the VAE would give for the restored "
                            "image (gamma; no unit). 0 skips this term, and the encoder with it. The paper uses a "
                            "tenth of step_size."),
                eta_input(0.0, "The paper uses 0 for PSLD."),
                checkpointing_input(),
            ],
            outputs=[sampler_output()],
        )

    @classmethod
    def execute(cls, measurement: Tensor, operator: Operator, vae, step_size: float, gluing: float, eta: float = 0.0,
                checkpointing: bool = False) -> io.NodeOutput:
        step_size, gluing = (check_range(name, value, 0.0, 1000.0)
                             for name, value in (("step_size", step_size), ("gluing", gluing)))
        eta, checkpointing = check_range("eta", eta, 0.0, 1.0), check_switch("checkpointing", checkpointing)
        guide = PSLD(operator, measured(measurement, operator), vae, step_size, gluing)
        return io.NodeOutput(posterior_sampler(guide, eta, checkpointing))


def operator_input() -> io.Input:
    return OperatorSocket.Input("operator", tooltip="How the image was degraded, from PAG Degradation.")


def measurement_input() -> io.Image.Input:
    return io.Image.Input("measurement", tooltip="The image to restore: masked, downscaled or blurred. One for all "
                                                 "latents, or one for each.")


def eta_input(default: float, recommendation: str) -> io.Float.Input:
    return io.Float.Input("eta", default=default, min=0.0, max=1.0, step=0.05, round=0.001, optional=True,
                          tooltip="How much new noise each step adds (no unit). 1 is DDPM; 0 is DDIM, which adds none. "
                                  + recommendation)


def checkpointing_input() -> io.Boolean.Input:
    return io.Boolean.Input("checkpointing", default=False, optional=True, advanced=True,
                            tooltip="Saves memory: only the input of each block of the model is kept, and the rest is "
                                    "recomputed for the gradient, which takes longer. The result is the same. Off is "
                                    "neutral; turn it on if memory runs out.")


def sampler_output() -> io.Sampler.Output:
    return io.Sampler.Output(tooltip="For SamplerCustomAdvanced, with any guider. The gradient is computed from the "
                                     "positive conditioning alone; the step uses all guidance.")


def to_signed(name: str, image: Tensor) -> Tensor:
    """The host's IMAGE [B, H, W, 3] in [0, 1] -> [B, 3, H, W] in [-1, 1]."""
    check_pixels("IMAGE", name, image)
    if image.shape[-1] != 3:
        raise ValueError(f"The {name} has {image.shape[-1]} channels, expected 3 (red, green, blue). Remove its alpha "
                         f"channel.")
    return image.movedim(-1, 1) * 2 - 1


def to_image(x: Tensor) -> Tensor:
    """The way back: [B, 3, H, W] in [-1, 1] -> [B, H, W, 3] in [0, 1]."""
    return (x.movedim(1, -1) + 1) / 2


def measured(measurement: Tensor, operator: Operator) -> Tensor:
    """A measurement [B, 3, H, W] in [-1, 1] that matches the operator; masked pixels are 0, whatever their values."""
    y = to_signed("measurement", measurement)
    check_operator(operator)
    operator.picture_size(tuple(y.shape[-2:]))
    return operator.forward(y) if is_masking(operator) else y


def brightness(image: Tensor) -> Tensor:
    """[H, W] of the one image of [1, H, W, C]; ValueError for several."""
    if len(image) != 1:
        raise ValueError(f"The kernel must be one image, got {len(image)}.")
    return image[0, ..., :3].mean(-1)
