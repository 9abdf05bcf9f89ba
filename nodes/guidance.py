"""PAG on a model, PAG in a guider, and the options that both share."""

from __future__ import annotations

from comfy_api.latest import io

from ..pag_core.guidance import RESCALE_MODES
from ..pag_core.perturbation import KINDS, MAX_SEED
from ..pag_core.schedule import SCHEDULES
from ..pag_core.settings import MAX_SIGMA, PREVIEWS, PAGOptions, PAGSettings
from . import inputs
from .host.run.patching import attach
from .host.sampling.guider import CFGWindowGuider


class PAGModelPatch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAGModelPatch",
            display_name="PAG Model Patch",
            category=inputs.CATEGORY,
            description="Perturbed-Attention Guidance for every sampler node: put it between the model and the "
                        "sampler. Works with and without a prompt, alone or together with CFG.",
            search_aliases=["pag", *inputs.SEARCHED],
            inputs=[inputs.model(), inputs.scale("scale"), inputs.layers(), inputs.options()],
            outputs=[io.Model.Output(tooltip="The model, guided by PAG under any sampler.")],
        )

    @classmethod
    def execute(cls, model, scale: float, layers: str, options: PAGOptions | None = None) -> io.NodeOutput:
        return io.NodeOutput(attach(model, PAGSettings(scale, layers, PAGOptions() if options is None else options)))


class PAGGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAGGuider",
            display_name="PAG Guider (CFG + PAG)",
            category=inputs.CATEGORY,
            description="CFG and Perturbed-Attention Guidance for SamplerCustomAdvanced, both from one batched call.",
            search_aliases=["perturbed attention guidance", "cfg guider", "sampler custom", "引导器", "가이더"],
            inputs=[inputs.model(), inputs.conditioning("positive"), inputs.conditioning("negative"), inputs.cfg(),
                    inputs.scale("pag_scale"), inputs.layers(), *inputs.cfg_window(), inputs.options()],
            outputs=[io.Guider.Output(tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, model, positive, negative, cfg: float, pag_scale: float, layers: str,
                cfg_start_percent: float = 0.0, cfg_end_percent: float = 1.0,
                options: PAGOptions | None = None) -> io.NodeOutput:
        guided = attach(model, PAGSettings(pag_scale, layers, PAGOptions() if options is None else options))
        return io.NodeOutput(CFGWindowGuider(guided, positive, negative, cfg, cfg_start_percent, cfg_end_percent))


class PAGOptionsNode(io.ComfyNode):
    """Every input is optional, so that the host keeps their order. Saved workflows count on it: add only at the end."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAGOptions",
            display_name="PAG Options",
            category=inputs.CATEGORY,
            description="Refinements for the PAG nodes. Every default is neutral: the paper's plain PAG.",
            search_aliases=["perturbed attention guidance options", "softpag", "pag rescale", "seg", "tpg",
                            "smoothed energy guidance", "token perturbation guidance", "slg", "stg", "skip layer",
                            "扰动", "교란"],
            inputs=[
                io.Combo.Input(
                    "perturbation", options=list(KINDS)[:10], default="identity", optional=True,
                    tooltip="How the guess that PAG steers away from is spoiled, in the selected layers. identity "
                            "(neutral): PAG itself; no part of the picture sees another. seg, seg_mean: SEG; every "
                            "part looks around as the average of its surroundings, or of the whole picture, would. "
                            "tpg: every part gets what was meant for another. temperature: attention spreads. "
                            "uniform: every part sees the average of all. random_mask, random_off_diagonal_mask, "
                            "noise, map_blur: the PAG paper's other attempts; it found identity best. Their settings "
                            "are further down."),
                io.Float.Input(
                    "strength", default=1.0, min=0.0, max=1.0, step=0.05, round=0.001, optional=True,
                    tooltip="SoftPAG's u: the share of the attention map that is replaced. 1 (neutral) is the paper's "
                            "PAG; lower values change the picture more gently; 0 turns PAG off and costs nothing."),
                inputs.percent("start_percent", 0.0, "PAG acts from here on.", advanced=False),
                inputs.percent("end_percent", 1.0, "PAG acts up to here; later steps cost nothing extra.",
                               advanced=False),
                io.Combo.Input(
                    "schedule", options=list(SCHEDULES), default="constant", optional=True,
                    tooltip="How the scale runs from start to end. constant (neutral). linear, cosine: full at the "
                            "start, 0 at the end; PAG shapes the composition and leaves fine detail to the model. "
                            "linear_up, cosine_up: the reverse; the composition stays the model's, PAG works on "
                            "detail. adaptive_diffusers, adaptive_pamparamm: falling as in those tools, see "
                            "adaptive_scale."),
                io.Float.Input(
                    "rescale", default=0.0, min=0.0, max=1.0, step=0.05, round=0.001, optional=True,
                    tooltip="Keeps contrast and colours in check at high scales; rescale_mode says how. 0 (neutral) "
                            "is off, 1 the full correction. Try 0.5 to 0.7 when colours burn; higher looks calmer and "
                            "flatter."),
                io.Combo.Input(
                    "rescale_mode", options=list(RESCALE_MODES), default="full", optional=True,
                    tooltip="What rescale tames. full: PAG's push, by the contrast of the whole result. partial: "
                            "PAG's push, by the contrast that PAG alone would cause. diffusers: the whole result, "
                            "CFG's part included, as guidance_rescale does there. snf: at each place the stronger of "
                            "CFG's and PAG's push instead of both. apg: the part of PAG's push that only brightens or "
                            "saturates. No effect while rescale is 0."),
                io.Float.Input(
                    "perturbation_rate", default=0.5, min=0.0, max=1.0, step=0.05, round=0.001, optional=True,
                    advanced=True,
                    tooltip="For the random masks: the share of attention that is hidden, from 0 (none, PAG is off) "
                            "to 1 (all; off the diagonal, that is identity). Higher spoils more. No effect on other "
                            "perturbations."),
                io.Float.Input(
                    "perturbation_sigma", default=1.0, min=0.0, max=1000.0, step=0.1, round=0.001, optional=True,
                    advanced=True,
                    tooltip="For seg and map_blur: how far the blur reaches, in tokens (a token is 16 pixels wide in "
                            "Flux, 64 in the middle block of SD 1.5). For noise: how much is added. Higher spoils "
                            "more; 0 turns PAG off. seg_mean is seg with an endless sigma. No effect on other "
                            "perturbations."),
                io.Float.Input(
                    "perturbation_temperature", default=2.0, min=0.01, max=100.0, step=0.1, round=0.001, optional=True,
                    advanced=True,
                    tooltip="For temperature: what the attention's logits are divided by. 1 turns PAG off; above 1 "
                            "every part looks around more vaguely, below 1 more narrowly. No effect on other "
                            "perturbations."),
                io.Int.Input(
                    "perturbation_seed", default=0, min=0, max=MAX_SEED, optional=True, advanced=True,
                    tooltip="Seed of random_mask, random_off_diagonal_mask, noise and tpg, apart from the sampler's, "
                            "so that one can change without the other. No effect on other perturbations."),
                io.Float.Input(
                    "adaptive_scale", default=0.0, min=0.0, max=1.0, step=0.001, round=0.0001, optional=True,
                    advanced=True,
                    tooltip="For the adaptive schedules, which need more than 0 (neutral): how fast the scale falls "
                            "over the run, until it is 0. adaptive_diffusers: the scale falls by 1000 times this over "
                            "the run; 0.003 takes a scale of 3 to 0 at the end. adaptive_pamparamm: it falls by 1000 "
                            "times the fourth power of this, as a share; 0.18 takes any scale to 0 near the end. No "
                            "effect on other schedules."),
                io.Float.Input(
                    "start_sigma", default=MAX_SIGMA, min=0.0, max=MAX_SIGMA, step=0.01, round=0.0001, optional=True,
                    advanced=True,
                    tooltip="PAG acts from this noise level (sigma) on, where start_percent is reached too. The "
                            "default is neutral, for no model starts higher. For those who know their model's sigmas; "
                            "percent means the same on every model."),
                io.Float.Input(
                    "end_sigma", default=0.0, min=0.0, max=MAX_SIGMA, step=0.01, round=0.0001, optional=True,
                    advanced=True,
                    tooltip="PAG acts down to this noise level (sigma), where end_percent is not passed yet. 0 "
                            "(neutral): down to the finished picture."),
                io.Int.Input(
                    "reuse_every", default=1, min=1, max=1000, optional=True, advanced=True,
                    tooltip="PAG's push is computed in every n-th step and used again in those between. 1 (neutral): "
                            "in every step. 2 saves about half of what PAG costs; higher saves more and follows the "
                            "picture less well."),
                io.Boolean.Input(
                    "share_prefix", default=True, optional=True, advanced=True,
                    tooltip="On (neutral): the perturbed pass starts at the first perturbed layer, for up to there it "
                            "equals the normal one; same picture, less time. Off: it runs in full, for comparison."),
                io.Combo.Input(
                    "preview", options=list(PREVIEWS), default="denoised", optional=True, advanced=True,
                    tooltip="What the preview shows while sampling. denoised (neutral): the picture so far. delta: "
                            "where PAG changes it, bright where it changes most in this step, black where PAG does "
                            "not act. The result is the same."),
            ],
            outputs=[inputs.PAGOptionsSocket.Output(display_name="options", tooltip="For the other PAG nodes.")],
        )

    @classmethod
    def execute(cls, **options) -> io.NodeOutput:
        return io.NodeOutput(PAGOptions(**options))  # its fields are called as the inputs
