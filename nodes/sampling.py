"""KSampler with CFG and PAG."""

from __future__ import annotations

from comfy_api.latest import io

from ..pag_core.settings import PAGOptions, PAGSettings
from . import inputs
from .host.run.patching import attach
from .host.sampling.guider import CFGWindowGuider
from .host.sampling.sampling import sample_latent


class PAGKSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAGKSampler",
            display_name="PAG KSampler (CFG + PAG)",
            category=inputs.CATEGORY,
            description="KSampler with CFG and Perturbed-Attention Guidance, computed in one batched model call.",
            search_aliases=["perturbed attention guidance", "ksampler", "sampler", "采样器", "샘플러"],
            inputs=inputs.sampling(inputs.scale("pag_scale"), inputs.layers()),
            outputs=[io.Latent.Output(tooltip="The denoised latent.")],
        )

    @classmethod
    def execute(cls, model, seed: int, steps: int, cfg: float, pag_scale: float, layers: str, sampler_name: str,
                scheduler: str, positive, negative, latent_image, denoise: float = 1.0,
                cfg_start_percent: float = 0.0, cfg_end_percent: float = 1.0,
                options: PAGOptions | None = None) -> io.NodeOutput:
        guided = attach(model, PAGSettings(pag_scale, layers, PAGOptions() if options is None else options))
        guider = CFGWindowGuider(guided, positive, negative, cfg, cfg_start_percent, cfg_end_percent)
        return io.NodeOutput(sample_latent(guider, latent_image, seed, steps, sampler_name, scheduler, denoise))
