"""The transformer families: where each keeps its self-attention, and which tokens in it are the image's.

A family is recognised by the class of its network, and a subclass by its base. `*` in a path matches the blocks, in the
order in which they are registered. U-Nets and ADM name their layers by encoder, middle and decoder and are handled in
`layers`. What is called image here is whatever the network denoises: video, sound and shapes too. Reference images
among those tokens count as image, every other token (text, registers, prepended conditions) as text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


class Tokens(Enum):
    """Where the image tokens stand in the sequence of an attention call."""

    IMAGE = "image only"
    TEXT_FIRST = "text, then image"
    IMAGE_FIRST = "image, then text"


@dataclass(frozen=True)
class Argument:
    """One argument of a module's forward."""

    name: str
    position: int


@dataclass(frozen=True)
class Group:
    """Modules of one kind, inside each of which the attention call is self-attention.

    Attributes:
        name: the grammar's name, "double" or "single"; empty where the model has one kind only.
        path: where the modules are.
        heads: where, from there, the number of heads is; empty where attention cannot be perturbed.
        tokens: the order of the sequence.
        image: the argument [B, image tokens, C] that tells how many tokens are the image's; None where an earlier group
            or the family's counter said so in the same forward.
        streams: what a block of the group hands on: the arguments, in the order in which it returns them; empty where
            that is its first argument alone. Mind that this is of the block, and `path` may lead further into it.
        image_stream: which of these the image tokens are in.
        channels: the axis of a stream's channels.
        by_shape: whether it is only known by the shapes which of a block's arguments it hands on.
        keeps: (the network's argument with the number of first tokens whose keys and values it keeps from call to call,
            the block's argument with what it kept). Where that holds nothing yet, the block also returns its own, so it
            runs, and these tokens stay as it makes them; later calls are without them.
        values: (what ends in V, what projects the attention's output), two linear layers of the module, where the
            network does not tell its attention which rows it holds; see `values`.
        beside: whether its modules lie in the blocks of the group before it, for tokens of another kind; then numbers
            alone are the other group's, and the tokens follow one another in time.
    """

    name: str
    path: str
    heads: str = ""
    tokens: Tokens = Tokens.IMAGE
    image: Argument | None = None
    streams: tuple[Argument, ...] = ()
    image_stream: int = 0
    channels: int = -1
    keeps: tuple[str, str] | None = None
    by_shape: bool = False
    values: tuple[str, str] | None = None
    beside: bool = False


@dataclass(frozen=True)
class Family:
    """One family of transformers.

    Attributes:
        name: for people.
        network: the host's class, "module.Class".
        groups: in the order in which the network runs them.
        counter: where no argument tells the number of tokens, ("text" or "image", a module) whose output
            [B, tokens, C] has as many.
        auto: fraction of the depth at which "auto" lies.
        source: where that choice comes from.
        even: whether all blocks do nearly the same work; if not, the perturbed pass is said to cost a whole one, which
            is more than it does.
        skips: whether a block's output is read again later than by the next block.
        axes: {argument of the blocks, by name or position, or RESULT: the axis that holds the batch, or a multiple of
            it; None for no axis; STACKED where the first holds it several times, one after the other}, where that is
            not the first or could be taken for something else.
        keeps_between_calls: whether the network keeps tensors of one call for the next and gives its blocks no
            transformer_options: then a call of its own runs every block.
        patch: how many of the latent's positions a token is wide: a number, or the network's attribute that says so;
            None where the tokens do not lie in a picture.
        blocks_only: why the family's attention cannot be perturbed, only whole blocks; empty where it can.
        packs_rows: whether the network lays out the rows of a batch in a way of its own, so that ours run apart.
        one_sample: whether it mixes up the samples of a batch that holds the rows of one conditioning only.
        one_row: conditions of the model with which the host's code takes a batch of one only.
        beside: path of its modules that run between the blocks and see nothing of them; see `units.Units`.
        is_exchange: whether its layers are the attentions by which two streams see each other; see `EXCHANGES`.
    """

    name: str
    network: str
    groups: tuple[Group, ...]
    counter: tuple[str, str] | None = None
    auto: float = 0.5
    source: str = "the middle of the network, by analogy with PAG Table 10; not tuned"
    even: bool = True
    skips: bool = False
    axes: Mapping[str | int, int | None] = field(default_factory=dict)
    keeps_between_calls: bool = False
    patch: int | str | None = "patch_size"
    blocks_only: str = ""
    packs_rows: bool = False
    one_sample: bool = False
    one_row: tuple[str, ...] = ()
    is_exchange: bool = False
    beside: str = ""

    @property
    def is_found(self) -> bool:
        """Whether it stands for a network that no table knows."""
        return any(group.by_shape for group in self.groups)


RESULT = "return"  # in `Family.axes`: what a block returns


def result_axis(axes: Mapping[str | int, int | None]) -> int:
    """Which axis of a block's output holds the batch."""
    return axes.get(RESULT) or 0


STACKED = -1  # in `Family.axes`

_LDM = "comfy.ldm"
_FLUX = (Group("double", "double_blocks.*", "num_heads", Tokens.TEXT_FIRST, Argument("img", 0),
               (Argument("img", 0), Argument("txt", 1))),
         Group("single", "single_blocks.*", "num_heads", Tokens.TEXT_FIRST))
_TEXT_THEN_IMAGE = (Argument("encoder_hidden_states", 1), Argument("hidden_states", 0))
_IMAGE_THEN_TEXT = (Argument("hidden_states", 0), Argument("encoder_hidden_states", 1))
_QWEN = (Group("", "transformer_blocks.*.attn", "heads", Tokens.TEXT_FIRST, Argument("hidden_states", 0),
               _TEXT_THEN_IMAGE, 1),)
_CASCADE = tuple(Group(name, f"{name}_blocks.*.*.attention.attn", "heads", Tokens.IMAGE_FIRST, Argument("q", 0),
                       channels=1) for name in ("down", "up"))
_WAN = (Group("", "blocks.*.self_attn", "num_heads"),)
_LTX = (Group("", "transformer_blocks.*.attn1", "heads"),)

FAMILIES = (
    Family("SD3 / SD3.5", f"{_LDM}.modules.diffusionmodules.mmdit.MMDiT",
           (Group("", "joint_blocks.*", "x_block.attn.num_heads", Tokens.TEXT_FIRST, Argument("x", 1),
                  (Argument("context", 0), Argument("x", 1)), 1),),
           auto=13 / 24, source="blocks.13 of 24, as in diffusers' SD3 PAG example"),
    Family("AuraFlow", f"{_LDM}.aura.mmdit.MMDiT",
           (Group("double", "double_layers.*", "attn.n_heads", Tokens.TEXT_FIRST, Argument("x", 1),
                  (Argument("c", 0), Argument("x", 1)), 1),
            Group("single", "single_layers.*.attn", "n_heads", Tokens.TEXT_FIRST))),
    Family("HunyuanDiT", f"{_LDM}.hydit.models.HunYuanDiT",
           (Group("", "blocks.*.attn1", "num_heads", values=("Wqkv", "out_proj")),),
           auto=14 / 40, source="layer 14 of 40, as in diffusers' HunyuanDiT PAG example", skips=True, axes={3: None}),
    Family("PixArt", f"{_LDM}.pixart.pixartms.PixArtMS",
           (Group("", "blocks.*.attn", "num_heads", values=("qkv", "proj")),),
           auto=14 / 28, source="blocks.14 of 28, as in diffusers' PixArt-Sigma PAG example",
           axes={1: 1}),  # the prompts of all rows stand one after the other in one sequence
    Family("Flux, Flux 2, LongCat", f"{_LDM}.flux.model.Flux", _FLUX),
    Family("Chroma, Chroma Radiance", f"{_LDM}.chroma.model.Chroma", _FLUX),
    Family("HunyuanVideo, HunyuanImage", f"{_LDM}.hunyuan_video.model.HunyuanVideo", _FLUX,
           one_row=("attention_mask", "ref_latent", "guiding_frame_index")),
    Family("Hunyuan3D 2", f"{_LDM}.hunyuan3d.model.Hunyuan3Dv2", _FLUX, patch=None),
    Family("Lumina 2, Z-Image", f"{_LDM}.lumina.model.NextDiT",
           (Group("", "layers.*.attention", "n_local_heads", Tokens.TEXT_FIRST),),
           counter=("image", "noise_refiner.-1")),
    Family("OmniGen2", f"{_LDM}.omnigen.omnigen2.OmniGen2Transformer2DModel",
           (Group("", "layers.*.attn", "heads", Tokens.TEXT_FIRST),), counter=("text", "context_refiner.-1")),
    Family("Boogu", f"{_LDM}.boogu.model.BooguTransformer2DModel",
           (Group("double", "double_stream_layers.*", "img_instruct_attn.heads", Tokens.TEXT_FIRST,
                  Argument("img_hidden_states", 0),
                  (Argument("img_hidden_states", 0), Argument("instruct_hidden_states", 1))),
            Group("single", "single_stream_layers.*.attn", "heads", Tokens.TEXT_FIRST))),
    Family("HiDream-I1", f"{_LDM}.hidream.model.HiDreamImageTransformer2DModel",
           (Group("double", "double_stream_blocks.*", "block.attn1.heads", Tokens.IMAGE_FIRST,
                  Argument("image_tokens", 0), (Argument("image_tokens", 0), Argument("text_tokens", 2))),
            Group("single", "single_stream_blocks.*", "block.attn1.heads", Tokens.IMAGE_FIRST))),
    Family("HiDream-O1", f"{_LDM}.hidream_o1.model.HiDreamO1Transformer",
           (Group("", "language_model.layers.*.self_attn", "num_heads", Tokens.TEXT_FIRST,
                  streams=(Argument("x", 0),), keeps=("ar_len", "past_key_value")),),
           counter=("image", "x_embedder"), keeps_between_calls=True),
    Family("Qwen-Image", f"{_LDM}.qwen_image.model.QwenImageTransformer2DModel", _QWEN,
           axes={"temb": STACKED}),  # with references at timestep zero
    Family("Mage-Flow", f"{_LDM}.mage_flow.model.MageFlowTransformer2DModel", _QWEN),
    Family("Krea 2", f"{_LDM}.krea2.model.SingleStreamDiT",
           (Group("", "blocks.*.attn", "heads", Tokens.TEXT_FIRST),), counter=("image", "first"),
           patch="patch", axes={1: STACKED}),
    Family("Ideogram 4", f"{_LDM}.ideogram4.model.Ideogram4Transformer2DModel",
           (Group("", "layers.*.attention", "num_heads", Tokens.TEXT_FIRST),), counter=("text", "llm_cond_proj"),
           patch=1),
    Family("JoyImage", f"{_LDM}.joyimage.model.JoyImageTransformer3DModel",
           (Group("", "double_blocks.*.attn", "num_attention_heads", Tokens.IMAGE_FIRST, Argument("img", 0),
                  _IMAGE_THEN_TEXT),)),
    Family("Lens", f"{_LDM}.lens.model.LensTransformer2DModel",
           (Group("", "transformer_blocks.*.attn", "heads", Tokens.IMAGE_FIRST, Argument("hidden_states", 0),
                  _TEXT_THEN_IMAGE, 1),), patch=1),
    Family("PixelDiT", f"{_LDM}.pixeldit.model.PixDiT_T2I",
           (Group("patch", "patch_blocks.*.attn", "num_heads", Tokens.TEXT_FIRST, Argument("x", 0),
                  (Argument("x", 0), Argument("y", 1))),
            Group("pixel", "pixel_blocks.*.attn", "num_heads")),
           skips=True, axes={0: 0, 1: 0, 3: None, 4: None}),  # positions; a pixel block takes each patch as a sample
    Family("CogVideoX", f"{_LDM}.cogvideo.model.CogVideoXTransformer3DModel",
           (Group("", "blocks.*", "num_heads", Tokens.TEXT_FIRST, Argument("hidden_states", 0), _IMAGE_THEN_TEXT),),
           axes={"image_rotary_emb": None}),
    Family("Mochi", f"{_LDM}.genmo.joint_model.asymm_models_joint.AsymmDiTJoint",
           (Group("", "blocks.*.attn", "num_heads", Tokens.IMAGE_FIRST, Argument("x", 0),
                  (Argument("x", 0), Argument("y", 2))),),
           axes={"rope_cos": None, "rope_sin": None}),
    Family("Wan 2.1, Wan 2.2", f"{_LDM}.wan.model.WanModel", _WAN),
    Family("Wan VACE", f"{_LDM}.wan.model.VaceWanModel", _WAN, beside="vace_blocks.*"),
    Family("Wan S2V", f"{_LDM}.wan.model.WanModel_S2V", _WAN),
    Family("Wan Animate", f"{_LDM}.wan.model_animate.AnimateWanModel", _WAN),
    Family("WanDancer", f"{_LDM}.wan.model_wandancer.WanDancerModel", _WAN),
    Family("LTX-Video", f"{_LDM}.lightricks.model.LTXVModel", _LTX, patch=1),
    Family("LTX-Video with sound", f"{_LDM}.lightricks.av_model.LTXAVModel",
           (*_LTX, Group("audio", "transformer_blocks.*.audio_attn1", "heads", image_stream=1, beside=True)),
           patch=1),
    Family("Cosmos 1", f"{_LDM}.cosmos.model.GeneralDIT", (Group("", "blocks.*.blocks.0", "block.attn.heads"),),
           axes={0: 3, 2: 1, "rope_emb_L_1_1_D": None, RESULT: 3},  # tokens T, H, W, B, C; text M, B, C
           patch="patch_spatial"),
    Family("Cosmos Predict 2, Anima", f"{_LDM}.cosmos.predict2.MiniTrainDIT",
           (Group("", "blocks.*.self_attn", "n_heads"),), patch="patch_spatial"),
    Family("Kandinsky 5", f"{_LDM}.kandinsky5.model.Kandinsky5",
           (Group("", "visual_transformer_blocks.*.self_attention", "num_heads"),)),
    Family("Stable Cascade, stage C", f"{_LDM}.cascade.stage_c.StageC", _CASCADE, even=False, skips=True, patch=None),
    Family("Stable Cascade, stage B", f"{_LDM}.cascade.stage_b.StageB", _CASCADE, even=False, skips=True, patch=None),
    Family("Stable Audio", f"{_LDM}.audio.dit.AudioDiffusionTransformer",
           (Group("", "transformer.layers.*.self_attn", "num_heads", Tokens.TEXT_FIRST),),
           counter=("image", "transformer.project_in"), axes={"rotary_pos_emb": None},
           patch=None),
    Family("TripoSplat", f"{_LDM}.triposplat.model.LatentSeqMMFlowModel",
           (Group("", "blocks.*.attn", "num_heads", Tokens.IMAGE_FIRST),), counter=("image", "input_layer"),
           patch=None),
)

# Families whose attention cannot be perturbed, and why. Whole blocks can: their rows run in a call of their own, in
# which no one has to know how the network lays them out.
BLOCKS_ONLY = (
    Family("Causal Wan", f"{_LDM}.wan.ar_model.CausalWanModel", (Group("", "blocks.*"),), patch=None,
           keeps_between_calls=True,
           blocks_only="causal Wan also attends to earlier frames, through keys and values that it caches between "
                       "calls"),
    Family("ACE-Step 1", f"{_LDM}.ace.model.ACEStepTransformer2DModel", (Group("", "transformer_blocks.*"),),
           patch=None,
           blocks_only="ACE-Step 1's self-attention is linear: it never forms the attention map that PAG replaces"),
    Family("ACE-Step 1.5", f"{_LDM}.ace.ace_step15.AceStepConditionGenerationModel", (Group("", "decoder.layers.*"),),
           packs_rows=True, patch=None,
           blocks_only="ACE-Step 1.5's timbre encoder mixes the conditionings of a batch, so a perturbed one would "
                       "change the others"),
    Family("Ernie-Image", f"{_LDM}.ernie.model.ErnieImageModel", (Group("", "layers.*"),),
           patch=None,
           blocks_only="ComfyUI offers no way to change Ernie-Image's joint attention of text and image"),
    Family("Hunyuan3D 2.1", f"{_LDM}.hunyuan3dv2_1.hunyuandit.HunYuanDiTPlain", (Group("", "blocks.*"),), skips=True,
           packs_rows=True, one_sample=True, patch=None,
           blocks_only="ComfyUI offers no way to change Hunyuan3D 2.1's attention"),
    Family("MiniMax H3", f"{_LDM}.minimax.model.MiniMaxH3Model", (Group("", "blocks.*"),), packs_rows=True,
           patch=None,
           blocks_only="MiniMax H3 packs text, references, video and audio into one sequence without marking which "
                       "token is which"),
    Family("SeedVR", f"{_LDM}.seedvr.model.NaDiT",
           (Group("", "blocks.*", streams=tuple(Argument(name, place) for place, name in enumerate(
               ("vid", "txt", "vid_shape", "txt_shape")))),), packs_rows=True, patch=None,
           blocks_only="SeedVR attends within windows of different sizes, packed into one sequence"),
)

# The attentions by which the two streams of a network see each other. They are no layers that a user selects; what can
# be done to them is to leave them out.
EXCHANGES = (
    Family("LTX-Video's exchange of video and sound", f"{_LDM}.lightricks.av_model.LTXAVModel",
           (Group("to_video", "transformer_blocks.*.audio_to_video_attn", "heads"),
            Group("to_audio", "transformer_blocks.*.video_to_audio_attn", "heads", beside=True)), is_exchange=True),
)
