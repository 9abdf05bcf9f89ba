"""PAG on a model, PAG in a guider, and the options that both share."""

from __future__ import annotations

from comfy_api.latest import io

from ..pag_core.guidance import RESCALE_MODES
from ..pag_core.settings import PAGOptions, PAGSettings
from . import inputs
from .host.guider import CFGWindowGuider
from .host.patching import attach


class PAGModelPatch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAGModelPatch",
            display_name="PAG Model Patch",
            category=inputs.CATEGORY,
            description="Perturbed-Attention Guidance for every sampler node: put it between the model and the "
                        "sampler. Works with and without a prompt, alone or together with CFG.",
            search_aliases=["perturbed attention guidance", "pag", "self-attention guidance"],
            inputs=[inputs.model(), inputs.scale("scale"), inputs.layers(), inputs.options()],
            outputs=[io.Model.Output(tooltip="The model, guided by PAG under any sampler.")],
        )

    @classmethod
    def execute(cls, model, scale: float, layers: str, options: PAGOptions | None = None) -> io.NodeOutput:
        return io.NodeOutput(attach(model, PAGSettings(scale, layers, options or PAGOptions())))


class PAGGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAGGuider",
            display_name="PAG Guider (CFG + PAG)",
            category=inputs.CATEGORY,
            description="CFG and Perturbed-Attention Guidance for SamplerCustomAdvanced, both from one batched call.",
            search_aliases=["perturbed attention guidance", "pag", "cfg guider"],
            inputs=[inputs.model(), inputs.conditioning("positive"), inputs.conditioning("negative"), inputs.cfg(),
                    inputs.scale("pag_scale"), inputs.layers(), *inputs.cfg_window(), inputs.options()],
            outputs=[io.Guider.Output(tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, model, positive, negative, cfg: float, pag_scale: float, layers: str,
                cfg_start_percent: float = 0.0, cfg_end_percent: float = 1.0,
                options: PAGOptions | None = None) -> io.NodeOutput:
        guided = attach(model, PAGSettings(pag_scale, layers, options or PAGOptions()))
        return io.NodeOutput(CFGWindowGuider(guided, positive, negative, cfg, cfg_start_percent, cfg_end_percent))


class PAGOptionsNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAGOptions",
            display_name="PAG Options",
            category=inputs.CATEGORY,
            description="Refinements for the PAG nodes. Every default is neutral: the paper's plain PAG.",
            search_aliases=["perturbed attention guidance options", "softpag", "pag rescale"],
            inputs=[
                io.Float.Input(
                    "strength", default=1.0, min=0.0, max=1.0, step=0.05, round=0.001,
                    tooltip="SoftPAG's u: the share of the attention map that is replaced. 1 (neutral) is the paper's "
                            "PAG; lower values change the picture more gently; 0 turns PAG off and costs nothing."),
                inputs.percent("start_percent", 0.0, "PAG acts from here on.", advanced=False),
                inputs.percent("end_percent", 1.0, "PAG acts up to here; later steps cost nothing extra.",
                               advanced=False),
                io.Float.Input(
                    "rescale", default=0.0, min=0.0, max=1.0, step=0.05, round=0.001,
                    tooltip="Keeps the contrast in check at high scales. 0 (neutral) is off, 1 matches the spread of "
                            "the unguided prediction fully; try 0.5 to 0.7 when colours burn."),
                io.Combo.Input(
                    "rescale_mode", options=list(RESCALE_MODES), default="full", advanced=True,
                    tooltip="What rescale measures and tames. full: PAG's push, by the contrast of the whole result. "
                            "partial: PAG's push, by the contrast that PAG alone would cause. total: the whole result, "
                            "CFG's part included. No effect while rescale is 0."),
                io.Boolean.Input(
                    "share_prefix", default=True, advanced=True,
                    tooltip="On (neutral): the perturbed pass starts at the first perturbed layer, for up to there it "
                            "equals the normal one; same picture, less time. Off: it runs in full, for comparison."),
            ],
            outputs=[inputs.PAGOptionsSocket.Output(display_name="options", tooltip="For the other PAG nodes.")],
        )

    @classmethod
    def execute(cls, strength: float, start_percent: float, end_percent: float, rescale: float,
                rescale_mode: str, share_prefix: bool = True) -> io.NodeOutput:
        return io.NodeOutput(PAGOptions(strength=strength, start_percent=start_percent, end_percent=end_percent,
                                        rescale=rescale, rescale_mode=rescale_mode, share_prefix=share_prefix))
