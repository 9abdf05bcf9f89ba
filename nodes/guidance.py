"""PAG on a model, and PAG in guiders."""

from __future__ import annotations

from comfy_api.latest import io

from ..pag_core.modalities import ModalityScales
from ..pag_core.settings import PAGOptions, PAGSettings
from . import inputs
from .host.run.modalities import attach_modalities
from .host.run.patching import attach
from .host.sampling.guider import CFGWindowGuider


class PAGModelPatch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAGModelPatch",
            display_name="PAG Model Patch",
            category=inputs.CATEGORY,
            description="Adds Perturbed-Attention Guidance to a model, for any sampler node: place it between the "
                        "model and the sampler. Works with or without a prompt, alone or together with CFG.",
            search_aliases=["pag", *inputs.SEARCHED],
            inputs=[inputs.model(), inputs.scale("scale"), inputs.layers(), inputs.options()],
            outputs=[io.Model.Output(tooltip="The model with PAG, for any sampler.")],
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
            description="CFG and Perturbed-Attention Guidance for SamplerCustomAdvanced, computed in one batched model "
                        "call.",
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


class PAGAVGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAGAVGuider",
            display_name="PAG AV Guider (LTX-2)",
            category=inputs.CATEGORY,
            description="For models that generate video and audio together (LTX-2): CFG, PAG and modality guidance, "
                        "with separate scales for video and audio, combined as in Lightricks' pipelines. All in one "
                        "batched model call.",
            search_aliases=["perturbed attention guidance", "ltx-2", "ltxv", "multimodal guider", "audio", "sound",
                            "stg", "modality", "视频", "声音", "引导器", "비디오", "소리", "가이더"],
            inputs=[inputs.model(), inputs.conditioning("positive"), inputs.conditioning("negative"),
                    *(one for modality in ("video", "audio") for one in inputs.modality(modality)),
                    inputs.layers(), inputs.options()],
            outputs=[io.Guider.Output(tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, model, positive, negative, video_cfg: float, video_pag: float, video_modality: float,
                video_rescale: float, audio_cfg: float, audio_pag: float, audio_modality: float,
                audio_rescale: float, layers: str, options: PAGOptions | None = None) -> io.NodeOutput:
        scales = (ModalityScales("video", video_cfg, video_pag, video_modality, video_rescale),
                  ModalityScales("audio", audio_cfg, audio_pag, audio_modality, audio_rescale))
        guided = attach_modalities(model, scales, layers, PAGOptions() if options is None else options)
        cfg = next((one.cfg for one in scales if one.cfg != 1.0), 1.0)  # whether the negative is computed
        return io.NodeOutput(CFGWindowGuider(guided, positive, negative, cfg))
