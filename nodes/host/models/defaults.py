"""What somebody has published for a model: which layers, how, how strongly, when. "auto" takes the layers from here.

A model is recognised by its network's class and size, so that it makes no difference where the weights come from.
Where nothing is published, the family's own default holds, and says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from ....pag_core.adm import ADMConfig


@dataclass(frozen=True)
class Published:
    """One published choice.

    Attributes:
        model: its name, for people.
        layers: in the layer grammar.
        source: who published it.
        perturbation: a key of `perturbation.KINDS`.
        scale: s in this pack's terms; None where the source has none.
        start_percent, end_percent: when it acts.
        strength: SoftPAG's u.
        rescale: see `guidance.guide`.
    """

    model: str
    layers: str
    source: str
    perturbation: str = "identity"
    scale: float | None = None
    start_percent: float = 0.0
    end_percent: float = 1.0
    strength: float = 1.0
    rescale: float = 0.0

    def __str__(self) -> str:
        parts = [self.perturbation]
        if self.scale is not None:
            parts.append(f"scale {self.scale:g}")
        if self.strength != 1.0:
            parts.append(f"strength {self.strength:g}")
        if self.rescale:
            parts.append(f"rescale {self.rescale:g}")
        if (self.start_percent, self.end_percent) != (0.0, 1.0):
            parts.append(f"from {self.start_percent:.0%} to {self.end_percent:.0%}")
        return f"{', '.join(parts)}: {self.source}"


def published_for(network: nn.Module) -> Published | None:
    """What is published for this network, which may be on the meta device; None where nothing is."""
    return next((published for fits, published in _DEFAULTS if fits(network)), None)


def _is(cls: str, blocks: str = "", count: int = 0, **attributes) -> Callable[[nn.Module], bool]:
    """Whether a network is of this class of the host itself, with so many of these blocks and such attributes."""
    def fits(network: nn.Module) -> bool:
        return (f"{type(network).__module__}.{type(network).__qualname__}" == f"comfy.ldm.{cls}"
                and (not blocks or len(getattr(network, blocks)) == count)
                and all(getattr(network, name, None) == value for name, value in attributes.items()))
    return fits


def _sees_itself_twice(network: nn.Module) -> bool:
    """SD3.5 medium, whose first blocks have a second self-attention."""
    return _SD3(network) and getattr(network.joint_blocks[0].x_block, "x_block_self_attn", False)


def _is_adm_256(network: nn.Module) -> bool:
    config = getattr(network, "config", None)
    return isinstance(config, ADMConfig) and config.image_size == 256 and config.num_classes == 1000


_SD3 = _is("modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper", "joint_blocks", 24)
_UNET = "modules.diffusionmodules.openaimodel.UNetModel"
_LIGHTRICKS = "Lightricks' pipelines for LTX-2"
_STG = "the authors of STG (arXiv 2411.18664)"

_DEFAULTS: tuple[tuple[Callable[[nn.Module], bool], Published], ...] = (
    (_sees_itself_twice, Published("SD3.5 medium", "7-9", "Stability AI's sd3_infer, with CFG 4", "skip_block", 2.5,
                                   0.01, 0.20)),
    (_SD3, Published("SD3 medium", "9", "HeadHunter (arXiv 2506.10978), its figures; 7 to 10 work as well", scale=3.0,
                      strength=0.5)),
    (_is("anima.model.Anima", "blocks", 28),
     Published("Anima", "18", "the anima-safe-pag nodes; 16 to 20 work as well", scale=4.0, end_percent=0.7,
               strength=0.75, rescale=0.2)),
    (_is("lightricks.av_model.LTXAVModel", "transformer_blocks", 48, cross_attention_adaln=True),
     Published("LTX-2.3 and later", "28,audio.28", _LIGHTRICKS, scale=1.0, rescale=0.7)),
    (_is("lightricks.av_model.LTXAVModel", "transformer_blocks", 48),
     Published("LTX-2.0", "29,audio.29", _LIGHTRICKS, scale=1.0, rescale=0.7)),
    (_is("lightricks.model.LTXVModel", "transformer_blocks", 28),
     Published("LTX-Video 2B", "19", "the configurations of LTX-Video", scale=1.0, rescale=0.7)),
    (_is("lightricks.model.LTXVModel", "transformer_blocks", 48),
     Published("LTX-Video 13B", "28", "the configurations of LTX-Video, which begin with 11, 25, 35, 39", scale=1.0,
               rescale=0.7)),
    (_is("wan.model.WanModel", "blocks", 40, dim=5120),
     Published("Wan 2.1 and 2.2, 14B", "2", f"{_STG}, for Wan 2.1", "skip_block", 2.0)),
    (_is("wan.model.WanModel", "blocks", 30, dim=1536),
     Published("Wan 2.1 1.3B", "2", f"{_STG}, for Wan 2.1", "skip_block", 2.0)),
    (_is("hunyuan_video.model.HunyuanVideo", "double_blocks", 20, hidden_size=3072),  # HunyuanImage 2.1 has 3584
     Published("HunyuanVideo", "double.2", _STG, "skip_block", 1.0)),
    (_is("genmo.joint_model.asymm_models_joint.AsymmDiTJoint", "blocks", 48),
     Published("Mochi", "34", _STG, "skip_block", 1.0)),
    (_is("cogvideo.model.CogVideoXTransformer3DModel", "blocks", 42),
     Published("CogVideoX-5B", "11", _STG, "skip_block", 1.0)),
    (_is("lumina.model.NextDiT", "layers", 30, dim=3840),
     Published("Z-Image", "10,15,20", "public experiments, without measurements", "skip_block", 2.8)),
    (_is(_UNET, in_channels=9, num_classes=None),  # not of SDXL, for which nothing is published
     Published("SD inpainting", "u0", "the PAG authors' repository", scale=3.0)),
    (_is(_UNET, in_channels=4, num_classes=None),
     Published("SD 1.x and 2.x", "m0", "the PAG authors' repository, with CFG 4; it uses 5 with a prompt alone and 4 "
               "with a ControlNet", scale=3.0)),
    (_is(_UNET, in_channels=7), Published("×4 upscaler", "u2", "the PAG authors' repository", scale=2.0)),
    (_is_adm_256, Published("ADM 256", "input.14,input.16,input.17,middle.0", "the PAG authors' repository",
                            scale=3.0)),
)
