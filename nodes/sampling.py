"""KSampler with CFG and PAG in one."""

from __future__ import annotations

from comfy_api.latest import io

from ..pag_core.settings import PAGOptions, PAGSettings
from . import inputs
from .host.guider import CFGWindowGuider
from .host.patching import attach
from .host.sampling import SAMPLERS, SCHEDULERS, sample_latent


class PAGKSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAGKSampler",
            display_name="PAG KSampler (CFG + PAG)",
            category=inputs.CATEGORY,
            description="KSampler with CFG and Perturbed-Attention Guidance, both from one batched call.",
            search_aliases=["perturbed attention guidance", "pag", "ksampler"],
            inputs=[
                inputs.model(),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True,
                             tooltip="The random seed of the noise. The same seed gives the same picture."),
                io.Int.Input("steps", default=25, min=1, max=10000,
                             tooltip="Number of denoising steps. 20 to 30 suits most samplers."),
                inputs.cfg(),
                inputs.scale("pag_scale"),
                inputs.layers(),
                io.Combo.Input("sampler_name", options=SAMPLERS, default="euler",
                               tooltip="The algorithm that takes the steps. The paper uses ddim."),
                io.Combo.Input("scheduler", options=SCHEDULERS, default="normal",
                               tooltip="How the noise levels are spread over the steps."),
                inputs.conditioning("positive"),
                inputs.conditioning("negative"),
                io.Latent.Input("latent_image", tooltip="The latent to denoise: empty for a new picture, or an encoded "
                                                        "image, with a mask for inpainting."),
                io.Float.Input("denoise", default=1.0, min=0.0, max=1.0, step=0.01, round=0.001,
                               tooltip="Share of the noise that is put in and taken out. 1 starts from pure noise; "
                                       "lower values keep more of the given image."),
                *inputs.cfg_window(),
                inputs.options(),
            ],
            outputs=[io.Latent.Output(tooltip="The denoised latent.")],
        )

    @classmethod
    def execute(cls, model, seed: int, steps: int, cfg: float, pag_scale: float, layers: str, sampler_name: str,
                scheduler: str, positive, negative, latent_image, denoise: float = 1.0,
                cfg_start_percent: float = 0.0, cfg_end_percent: float = 1.0,
                options: PAGOptions | None = None) -> io.NodeOutput:
        guided = attach(model, PAGSettings(pag_scale, layers, options or PAGOptions()))
        guider = CFGWindowGuider(guided, positive, negative, cfg, cfg_start_percent, cfg_end_percent)
        return io.NodeOutput(sample_latent(guider, latent_image, seed, steps, sampler_name, scheduler, denoise))
