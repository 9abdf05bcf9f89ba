"""The transformer families: where each keeps its self-attention, and which tokens in it are the image's.

A family is recognised by the class of its network, and a subclass by its base. `*` in a path counts the blocks. U-Nets
and ADM name their layers by encoder, middle and decoder and are handled in `layers`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

import torch


class Tokens(Enum):
    """Where the image tokens stand in the sequence of an attention call."""

    IMAGE = "image only"
    TEXT_FIRST = "text, then image"
    IMAGE_FIRST = "image, then text"


@dataclass(frozen=True)
class Count:
    """Where the number of text or image tokens can be read while the network runs.

    Attributes:
        what: "text" or "image".
        name, position: the argument [B, tokens, C] of the group's modules that holds them.
    """

    what: str
    name: str
    position: int


@dataclass(frozen=True)
class Group:
    """Modules of one kind, inside each of which the attention call is self-attention.

    Attributes:
        name: the grammar's name, "double" or "single"; empty where the model has one kind only.
        path: where the modules are.
        heads: where, from there, the number of heads is.
        tokens: the order of the sequence.
        count: how many there are; None where an earlier group or the family's counter said so in the same forward.
    """

    name: str
    path: str
    heads: str
    tokens: Tokens = Tokens.IMAGE
    count: Count | None = None


@dataclass(frozen=True)
class Family:
    """One family of transformers.

    Attributes:
        name: for people.
        network: the host's class, "module.Class".
        groups: in the order in which the network runs them.
        counter: a module whose output [B, tokens, C] has as many tokens as the image, where no argument tells.
        auto: fraction of the depth at which "auto" lies.
        source: where that choice comes from.
        late_rows: whether the perturbed rows may join at the first perturbed block (see `late_blocks`); not where the
            network itself, outside its modules, combines the blocks' tokens with tensors from before the blocks.
        unbatched: arguments of the blocks whose first axis is neither the batch nor 1.
    """

    name: str
    network: str
    groups: tuple[Group, ...]
    counter: str | None = None
    auto: float = 0.5
    source: str = "the middle of the network, by analogy with PAG Table 10; not tuned"
    late_rows: bool = True
    unbatched: tuple[str, ...] = ()


_TXT = Count("text", "txt", 1)
_FLUX = (Group("double", "double_blocks.*", "num_heads", Tokens.TEXT_FIRST, _TXT),
         Group("single", "single_blocks.*", "num_heads", Tokens.TEXT_FIRST))

FAMILIES = (
    Family("SD3 / SD3.5", "comfy.ldm.modules.diffusionmodules.mmdit.MMDiT",
           (Group("", "joint_blocks.*", "x_block.attn.num_heads", Tokens.TEXT_FIRST, Count("text", "context", 0)),),
           auto=13 / 24, source="blocks.13 of 24, as in diffusers' SD3 PAG example"),
    Family("AuraFlow", "comfy.ldm.aura.mmdit.MMDiT",
           (Group("double", "double_layers.*.attn", "n_heads", Tokens.TEXT_FIRST, Count("text", "c", 0)),
            Group("single", "single_layers.*.attn", "n_heads", Tokens.TEXT_FIRST))),
    Family("Flux, Flux 2, LongCat", "comfy.ldm.flux.model.Flux", _FLUX),
    Family("Chroma, Chroma Radiance", "comfy.ldm.chroma.model.Chroma", _FLUX),
    Family("HunyuanVideo, HunyuanImage", "comfy.ldm.hunyuan_video.model.HunyuanVideo", _FLUX),
    Family("Hunyuan3D 2", "comfy.ldm.hunyuan3d.model.Hunyuan3Dv2", _FLUX),
    Family("Lumina 2, Z-Image", "comfy.ldm.lumina.model.NextDiT",
           (Group("", "layers.*.attention", "n_local_heads", Tokens.TEXT_FIRST),), counter="noise_refiner.-1"),
    Family("OmniGen2", "comfy.ldm.omnigen.omnigen2.OmniGen2Transformer2DModel",
           (Group("", "layers.*.attn", "heads", Tokens.TEXT_FIRST),), counter="img_patch_embed_and_refine"),
    Family("HiDream-I1", "comfy.ldm.hidream.model.HiDreamImageTransformer2DModel",
           (Group("double", "double_stream_blocks.*", "block.attn1.heads", Tokens.IMAGE_FIRST,
                  Count("image", "image_tokens", 0)),
            Group("single", "single_stream_blocks.*", "block.attn1.heads", Tokens.IMAGE_FIRST)),
           late_rows=False),
    Family("Qwen-Image", "comfy.ldm.qwen_image.model.QwenImageTransformer2DModel",
           (Group("", "transformer_blocks.*.attn", "heads", Tokens.TEXT_FIRST,
                  Count("text", "encoder_hidden_states", 1)),)),
    Family("Mochi", "comfy.ldm.genmo.joint_model.asymm_models_joint.AsymmDiTJoint",
           (Group("", "blocks.*.attn", "num_heads", Tokens.IMAGE_FIRST, Count("image", "x", 0)),),
           unbatched=("rope_cos", "rope_sin")),
    Family("Wan 2.1, Wan 2.2", "comfy.ldm.wan.model.WanModel", (Group("", "blocks.*.self_attn", "num_heads"),)),
    Family("LTX-Video", "comfy.ldm.lightricks.model.LTXVModel", (Group("", "transformer_blocks.*.attn1", "heads"),)),
    Family("Cosmos 1", "comfy.ldm.cosmos.model.GeneralDIT", (Group("", "blocks.block*.blocks.0", "block.attn.heads"),),
           late_rows=False),
    Family("Cosmos Predict 2, Anima", "comfy.ldm.cosmos.predict2.MiniTrainDIT",
           (Group("", "blocks.*.self_attn", "n_heads"),)),
    Family("Kandinsky 5", "comfy.ldm.kandinsky5.model.Kandinsky5",
           (Group("", "visual_transformer_blocks.*.self_attention", "num_heads"),)),
    Family("Stable Audio", "comfy.ldm.audio.dit.AudioDiffusionTransformer",
           (Group("", "transformer.layers.*.self_attn", "num_heads"),), unbatched=("rotary_pos_emb",)),
)


def family_of(network: torch.nn.Module) -> Family | None:
    """The family of a network, or None; by class name, so that no model code is imported that no one uses."""
    for cls in type(network).__mro__:
        for family in FAMILIES:
            if f"{cls.__module__}.{cls.__qualname__}" == family.network:
                return family
    return None


def group_modules(network: torch.nn.Module, group: Group) -> Iterator[torch.nn.Module]:
    """The modules of a group, in the order in which the network runs them."""
    index = 0
    while True:
        module: torch.nn.Module | None = network
        for name in group.path.replace("*", str(index)).split("."):
            children = dict(module.named_children())
            if name not in children:
                return
            module = children[name]
        yield module
        index += 1


def num_heads(module: torch.nn.Module, group: Group) -> int:
    """Number of attention heads of one of the group's modules."""
    value = module
    for name in group.heads.split("."):
        value = getattr(value, name)
    return int(value)
