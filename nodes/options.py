"""The further settings that the PAG nodes share."""

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
    """Every input is optional, so that ComfyUI keeps their order. Saved workflows depend on it: add only at the end."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAGOptions",
            display_name="PAG Options",
            category=inputs.CATEGORY,
            description="Further settings for the PAG nodes. Every default is neutral: the paper's plain PAG.",
            search_aliases=["perturbed attention guidance options", "softpag", "pag rescale", "seg", "tpg",
                            "smoothed energy guidance", "token perturbation guidance", "slg", "stg", "skip layer",
                            "扰动", "교란"],
            inputs=[
                _input(
                    "perturbation", advanced=False,
                    tooltip="How attention is perturbed in the selected layers. identity (neutral): PAG; each token "
                            "attends only to itself. seg, seg_mean: SEG; queries are blurred with their neighbors, or "
                            "replaced by the mean of all queries. tpg: queries are shuffled. temperature: attention is "
                            "flattened or sharpened. uniform: every token attends equally to all. random_mask, "
                            "random_off_diagonal_mask, noise, map_blur: the PAG paper's other attempts; it found "
                            "identity best. skip_attention: the layers' attention contributes nothing. sinkhorn: ASAG; "
                            "every token attends to what it is least like. skip_block: the whole blocks that contain "
                            "the layers are skipped (SLG, STG), which saves time. shuffle: TPG; tokens are shuffled "
                            "before these blocks. The settings of these are further down."),
                _input(
                    "strength", advanced=False, step=0.05, round=0.001,
                    tooltip="SoftPAG's u: how much of the attention map, or of the block, is replaced. 1 (neutral) is "
                            "the paper's PAG; lower values have a milder effect; 0 turns PAG off at no cost."),
                inputs.percent("start_percent", 0.0, "PAG acts from here on. Higher: the composition stays the model's "
                               "own, and PAG works on detail.", advanced=False),
                inputs.percent("end_percent", 1.0, "PAG acts up to here; later steps cost nothing extra.",
                               advanced=False),
                _input(
                    "schedule", advanced=False,
                    tooltip="How the scale changes from start to end. constant (neutral). linear, cosine: full at the "
                            "start, 0 at the end; PAG shapes the composition and leaves fine detail to the model. "
                            "linear_up, cosine_up: the reverse; the model decides the composition and PAG works on "
                            "detail. adaptive_diffusers, adaptive_pamparamm: the scale falls as in those projects; see "
                            "adaptive_scale."),
                _input(
                    "rescale", advanced=False, step=0.05, round=0.001,
                    tooltip="Keeps contrast and colors in check at high scales; rescale_mode selects the method. 0 "
                            "(neutral) is off, 1 the full correction. Try 0.5 to 0.7 if colors over-saturate; higher "
                            "values look calmer and flatter."),
                _input(
                    "rescale_mode", advanced=False,
                    tooltip="What rescale corrects. full: shrinks PAG's push, measured by the contrast of the whole "
                            "result. partial: shrinks PAG's push, measured by the contrast that PAG alone would cause. "
                            "diffusers: shrinks the whole result, CFG's part included, like guidance_rescale in "
                            "diffusers. snf: at each position, uses the stronger of CFG's and PAG's push instead of "
                            "both. apg: removes the part of PAG's push that only brightens or saturates. No effect "
                            "while rescale is 0."),
                _input(
                    "perturbation_rate", step=0.05, round=0.001,
                    tooltip="For the random masks: the fraction of attention that is masked, from 0 (none; PAG is off) "
                            "to 1 (all; for random_off_diagonal_mask this equals identity). Higher values perturb "
                            "more. No effect on other perturbations."),
                _input(
                    "perturbation_sigma", step=0.1, round=0.001,
                    tooltip="For seg and map_blur: the width of the blur, in tokens (a token is 16 pixels wide in "
                            "Flux, 64 in the middle block of SD 1.5). For noise: how much is added. Higher values "
                            "perturb more; 0 turns PAG off. seg_mean is seg with an infinite sigma. No effect on other "
                            "perturbations."),
                _input(
                    "perturbation_temperature", step=0.1, round=0.001,
                    tooltip="For temperature: the attention logits are divided by this value. 1 turns PAG off; above 1 "
                            "attention spreads, below 1 it narrows. No effect on other perturbations."),
                _input(
                    "perturbation_seed",
                    tooltip="Seed of random_mask, random_off_diagonal_mask, noise, tpg, shuffle and random_share. It "
                            "is independent of the sampler's seed, so that you can change one and keep the other. No "
                            "effect where nothing is random."),
                _input(
                    "adaptive_scale", step=0.001, round=0.0001,
                    tooltip="For the adaptive schedules, which need a value above 0 (neutral): how fast the scale "
                            "falls over the run, until it reaches 0. adaptive_diffusers: the scale falls by 1000 times "
                            "this value over the run; 0.003 takes a scale of 3 to 0 at the end. adaptive_pamparamm: "
                            "the scale falls by a fraction of itself, 1000 times the fourth power of this value; 0.18 "
                            "takes any scale to 0 near the end. No effect on other schedules."),
                _input(
                    "start_sigma", step=0.01, round=0.0001,
                    tooltip="PAG starts at this noise level (sigma), once start_percent is reached too. The default is "
                            "neutral, since no model starts higher. For those who know their model's sigmas; percent "
                            "means the same on every model."),
                _input(
                    "end_sigma", step=0.01, round=0.0001,
                    tooltip="PAG stops at this noise level (sigma), or at end_percent if that comes first. 0 "
                            "(neutral): PAG acts to the end."),
                _input(
                    "reuse_every",
                    tooltip="PAG's push is computed every n-th step and reused in between. 1 (neutral): every step. 2 "
                            "saves about half of PAG's cost; higher values save more and are less exact."),
                _input(
                    "share_prefix",
                    tooltip="On (neutral): the perturbed pass starts at the first perturbed layer, since everything "
                            "before it equals the normal pass; same image, less time. Off: it runs in full, for "
                            "comparison."),
                _input(
                    "preview",
                    tooltip="What the live preview shows while sampling. denoised (neutral): the image so far. delta: "
                            "where PAG changes the image; bright where it changes most in this step, black where PAG "
                            "does not act. The result is the same."),
                _input(
                    "row",
                    tooltip="Which prediction is perturbed. extra (neutral): an additional one, at the cost of an "
                            "extra pass. negative: the prediction for the negative prompt, at no extra cost; CFG then "
                            "steers away from it, and the scale only turns PAG on or off. Needs cfg above 1."),
                _input(
                    "random_share", step=0.05, round=0.001,
                    tooltip="S²: the fraction of the selected layers that is perturbed, drawn anew in every step from "
                            "perturbation_seed. 0 (neutral): all of them, always. The paper uses 0.1 with layers set "
                            "to all. 1 is rejected, since nothing would be random."),
                _input(
                    "early_damping", step=0.5, round=0.001,
                    tooltip="MAMBO-G: weakens PAG's push where it is large relative to the prediction, as in the first "
                            "steps. 0 (neutral) is off; the paper uses 8; higher values make the early steps calmer."),
                _input(
                    "momentum", step=0.05, round=0.001,
                    tooltip="Momentum Guidance, HiGS: adds how far the prediction has moved from its average over the "
                            "earlier steps, which sharpens detail at no cost. 0 (neutral) is off; try 0.3 to 0.5. Acts "
                            "only in steps in which PAG acts."),
                _input(
                    "coarse_scale", step=0.05, round=0.001,
                    tooltip="FDG: multiplies the coarse (low-frequency) part of PAG's push; the fine part is "
                            "unchanged. 1 (neutral). Below 1: composition and colors stay the model's own, while "
                            "detail is still guided. Above 1: the reverse."),
                _input(
                    "tangential_scale", step=0.05, round=0.001,
                    tooltip="TAG: multiplies the part of PAG's push that is perpendicular to the latent; the parallel "
                            "part, which only makes the image stronger or weaker, is unchanged. 1 (neutral); try 1.1 "
                            "to 1.3."),
                io.Mask.Input(
                    "scale_mask", optional=True, advanced=True,
                    tooltip="Where PAG acts: fully where white, not at all where black. Use one mask for all images, "
                            "one for each image of the batch, or several spread over the frames of a video. Resized to "
                            "the latent. If not connected: everywhere."),
                io.Combo.Input(
                    "preset", options=[CUSTOM, *PRESETS], default=CUSTOM, optional=True,
                    tooltip="Fills in the other inputs; changing any of them returns to custom (neutral). "
                            + " ".join(f"{name}: {preset.note}." for name, preset in PRESETS.items())),
            ],
            outputs=[inputs.PAGOptionsSocket.Output(display_name="options", tooltip="For the other PAG nodes.")],
        )

    @classmethod
    def execute(cls, preset: str = CUSTOM, **values) -> io.NodeOutput:
        options = PAGOptions(**values)  # its fields have the names of the inputs
        check_preset(preset, options)
        return io.NodeOutput(options)
