"""The refinements that the PAG nodes share."""

from __future__ import annotations

from dataclasses import fields

from comfy_api.latest import io

from ..pag_core.checks import check_choice, check_switch, check_whole
from ..pag_core.presets import CUSTOM, PRESETS, check_preset
from ..pag_core.settings import PAGOptions
from . import inputs

_FIELDS = {one.name: one for one in fields(PAGOptions)}


def _input(name: str, *, advanced: bool = True, **widget) -> io.Input:
    """The widget of a field of PAGOptions, with the field's own default and limits."""
    accepts = _FIELDS[name].metadata["accepts"]
    widget |= {"default": _FIELDS[name].default, "optional": True, "advanced": advanced or None}
    if accepts.check is check_choice:
        return io.Combo.Input(name, options=list(accepts.arguments[0]), **widget)
    if accepts.check is check_switch:
        return io.Boolean.Input(name, **widget)
    low, high = accepts.arguments
    return (io.Int if accepts.check is check_whole else io.Float).Input(name, min=low, max=high, **widget)


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
                _input(
                    "perturbation", advanced=False,
                    tooltip="How attention is perturbed in the selected layers. identity (neutral): PAG itself; each "
                            "token sees only itself. seg, seg_mean: SEG; queries are blurred with their neighbours', "
                            "or replaced by the average of all. tpg: queries are shuffled. temperature: attention "
                            "is flattened or sharpened. uniform: every token sees the average of all. random_mask, "
                            "random_off_diagonal_mask, noise, map_blur: the PAG paper's other attempts; it found "
                            "identity best. skip_attention: the layers' attention adds nothing. sinkhorn: ASAG; every "
                            "token attends to what it is least like. skip_block: the whole blocks that hold the layers "
                            "are skipped (SLG, STG), which saves time. shuffle: TPG; tokens are shuffled before these "
                            "blocks. Their settings are further down."),
                _input(
                    "strength", advanced=False, step=0.05, round=0.001,
                    tooltip="SoftPAG's u: the share of the attention map, or of the block, that is replaced. 1 "
                            "(neutral) is the paper's PAG; lower values change the image more gently; 0 turns PAG "
                            "off and costs nothing."),
                inputs.percent("start_percent", 0.0, "PAG acts from here on.", advanced=False),
                inputs.percent("end_percent", 1.0, "PAG acts up to here; later steps cost nothing extra.",
                               advanced=False),
                _input(
                    "schedule", advanced=False,
                    tooltip="How the scale runs from start to end. constant (neutral). linear, cosine: full at the "
                            "start, 0 at the end; PAG shapes the composition and leaves fine detail to the model. "
                            "linear_up, cosine_up: the reverse; the composition stays the model's, PAG works on "
                            "detail. adaptive_diffusers, adaptive_pamparamm: falling as in those tools, see "
                            "adaptive_scale."),
                _input(
                    "rescale", advanced=False, step=0.05, round=0.001,
                    tooltip="Keeps contrast and colours in check at high scales; rescale_mode says how. 0 (neutral) "
                            "is off, 1 the full correction. Try 0.5 to 0.7 where colours over-saturate; higher looks "
                            "calmer and flatter."),
                _input(
                    "rescale_mode", advanced=False,
                    tooltip="What rescale corrects. full: PAG's push, by the contrast of the whole result. partial: "
                            "PAG's push, by the contrast that PAG alone would cause. diffusers: the whole result, "
                            "CFG's part included, as guidance_rescale does there. snf: at each place the stronger of "
                            "CFG's and PAG's push instead of both. apg: the part of PAG's push that only brightens or "
                            "saturates. No effect while rescale is 0."),
                _input(
                    "perturbation_rate", step=0.05, round=0.001,
                    tooltip="For the random masks: the share of attention that is hidden, from 0 (none, PAG is off) "
                            "to 1 (all; off the diagonal, that is identity). Higher perturbs more. No effect on other "
                            "perturbations."),
                _input(
                    "perturbation_sigma", step=0.1, round=0.001,
                    tooltip="For seg and map_blur: how far the blur reaches, in tokens (a token is 16 pixels wide in "
                            "Flux, 64 in the middle block of SD 1.5). For noise: how much is added. Higher perturbs "
                            "more; 0 turns PAG off. seg_mean is seg with an infinite sigma. No effect on other "
                            "perturbations."),
                _input(
                    "perturbation_temperature", step=0.1, round=0.001,
                    tooltip="For temperature: what the attention's logits are divided by. 1 turns PAG off; above 1 "
                            "attention spreads, below 1 it narrows. No effect on other "
                            "perturbations."),
                _input(
                    "perturbation_seed",
                    tooltip="Seed of random_mask, random_off_diagonal_mask, noise, tpg, shuffle and random_share, "
                            "apart from the sampler's, so that one can change without the other. No effect on what "
                            "is not random."),
                _input(
                    "adaptive_scale", step=0.001, round=0.0001,
                    tooltip="For the adaptive schedules, which need more than 0 (neutral): how fast the scale falls "
                            "over the run, until it is 0. adaptive_diffusers: the scale falls by 1000 times this over "
                            "the run; 0.003 takes a scale of 3 to 0 at the end. adaptive_pamparamm: it falls by 1000 "
                            "times the fourth power of this, as a share; 0.18 takes any scale to 0 near the end. No "
                            "effect on other schedules."),
                _input(
                    "start_sigma", step=0.01, round=0.0001,
                    tooltip="PAG acts from this noise level (sigma) on, where start_percent is reached too. The "
                            "default is neutral, since no model starts higher. For those who know their model's "
                            "sigmas; percent means the same on every model."),
                _input(
                    "end_sigma", step=0.01, round=0.0001,
                    tooltip="PAG acts down to this noise level (sigma), where end_percent is not passed yet. 0 "
                            "(neutral): down to the finished image."),
                _input(
                    "reuse_every",
                    tooltip="PAG's push is computed in every n-th step and used again in those between. 1 (neutral): "
                            "in every step. 2 saves about half of what PAG costs; higher saves more and is less "
                            "exact."),
                _input(
                    "share_prefix",
                    tooltip="On (neutral): the perturbed pass starts at the first perturbed layer, since up to there "
                            "it equals the normal one; same image, less time. Off: it runs in full, for comparison."),
                _input(
                    "preview",
                    tooltip="What the preview shows while sampling. denoised (neutral): the image so far. delta: "
                            "where PAG changes it, bright where it changes most in this step, black where PAG does "
                            "not act. The result is the same."),
                _input(
                    "row",
                    tooltip="Which prediction is perturbed. extra (neutral): one of its own, for an extra pass. "
                            "negative: that of the negative prompt, at no extra cost; CFG then steers away from it, "
                            "and the scale only says whether it acts. Needs cfg above 1."),
                _input(
                    "random_share", step=0.05, round=0.001,
                    tooltip="S²: the share of the selected layers that is perturbed, drawn anew in every step from "
                            "perturbation_seed. 0 (neutral): all of them, always. 0.1 with layers all is the paper's. "
                            "1 is refused, since nothing would be random."),
                _input(
                    "early_damping", step=0.5, round=0.001,
                    tooltip="MAMBO-G: weakens PAG's push where it is large relative to the prediction, as it is in the "
                            "first steps. 0 (neutral) is off; 8 is the paper's; higher keeps early steps calmer."),
                _input(
                    "momentum", step=0.05, round=0.001,
                    tooltip="Adds how far the prediction has moved from its average over the earlier steps (Momentum "
                            "Guidance, HiGS): sharper detail at no cost. 0 (neutral) is off; try 0.3 to 0.5. Acts in "
                            "the steps in which PAG acts."),
                _input(
                    "coarse_scale", step=0.05, round=0.001,
                    tooltip="FDG: what the coarse part of PAG's push is multiplied by; the fine part stays. 1 "
                            "(neutral). Below 1: composition and colours stay the model's, detail is still pushed. "
                            "Above 1: the reverse."),
                _input(
                    "tangential_scale", step=0.05, round=0.001,
                    tooltip="TAG: what the part of PAG's push across the latent is multiplied by; the part along it, "
                            "which only makes it stronger or weaker, stays. 1 (neutral); try 1.1 to 1.3."),
                io.Mask.Input(
                    "scale_mask", optional=True, advanced=True,
                    tooltip="Where PAG acts: white fully, black not at all. One mask for all images, one for each of "
                            "the batch, or several spread over the frames of a video. Resized to the latent. Without "
                            "it: everywhere."),
                io.Combo.Input(
                    "preset", options=[CUSTOM, *PRESETS], default=CUSTOM, optional=True,
                    tooltip="Fills the other inputs; changing one of them returns to custom (neutral). "
                            + " ".join(f"{name}: {preset.note}." for name, preset in PRESETS.items())),
            ],
            outputs=[inputs.PAGOptionsSocket.Output(display_name="options", tooltip="For the other PAG nodes.")],
        )

    @classmethod
    def execute(cls, preset: str = CUSTOM, **values) -> io.NodeOutput:
        options = PAGOptions(**values)  # its fields are called as the inputs
        check_preset(preset, options)
        return io.NodeOutput(options)
