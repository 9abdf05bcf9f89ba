"""An ADM network's configuration: its shape from the weights, the rest from metadata or published values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from .adm import ADMConfig, ADMUNet

# OpenAI's published files (guided-diffusion's README and model card): what their weights show, and what they do not.
# The unconditional 256 model and the three LSUN models share the 256 entry.
_OPENAI_FILES = (
    (dict(model_channels=192, channel_mult=(1, 2, 3, 4), num_res_blocks=3, attention_levels=(1, 2, 3)),
     dict(head_channels=64, qkv_order="new", noise_schedule="cosine", image_size=64)),
    (dict(model_channels=256, channel_mult=(1, 1, 2, 3, 4), num_res_blocks=2, attention_levels=(2, 3, 4)),
     dict(num_heads=4, qkv_order="legacy", noise_schedule="linear", image_size=128)),
    (dict(model_channels=256, channel_mult=(1, 1, 2, 2, 4, 4), num_res_blocks=2, attention_levels=(3, 4, 5)),
     dict(head_channels=64, qkv_order="legacy", noise_schedule="linear", image_size=256)),
    (dict(model_channels=256, channel_mult=(0.5, 1, 1, 2, 2, 4, 4), num_res_blocks=2, attention_levels=(4, 5, 6)),
     dict(head_channels=64, qkv_order="legacy", noise_schedule="linear", image_size=512)),
)  # fmt: skip


def read_config(
    shapes: Mapping[str, Sequence[int]],
    metadata: Mapping[str, str] | None = None,
    *,
    head_channels: int = 0,
    qkv_order: str = "auto",
    noise_schedule: str = "auto",
) -> ADMConfig:
    """The configuration of the ADM network whose state dict has these shapes.

    What weights cannot show is taken from, in this order: the arguments (0 and "auto" mean: not given), the safetensors
    `metadata`, OpenAI's published files recognised by shape, and last the defaults of `ADMConfig`, which are those of
    the paper's ImageNet 256 and FFHQ models. Raises ValueError saying what was expected and what was found.
    """
    config = _read_shapes(shapes)
    seen = {name: getattr(config, name) for name in _OPENAI_FILES[0][0]}
    unseen = {"num_heads": 0} | next((facts for shape, facts in _OPENAI_FILES if shape == seen), {})
    metadata = metadata or {}
    unseen |= {name: metadata[name] for name in ("qkv_order", "noise_schedule") if name in metadata}
    unseen |= {name: _as_int(metadata, name) for name in ("head_channels", "image_size") if name in metadata}
    if head_channels:
        unseen["head_channels"] = head_channels
    if head_channels or "head_channels" in metadata:
        unseen["num_heads"] = 0
    unseen |= {
        name: value
        for name, value in (("qkv_order", qkv_order), ("noise_schedule", noise_schedule))
        if value != "auto"
    }
    return replace(config, **unseen)


def _as_int(metadata: Mapping[str, str], name: str) -> int:
    try:
        return int(metadata[name])
    except ValueError:
        raise ValueError(f"the file's metadata says {name} = {metadata[name]!r}, expected a whole number") from None


def _read_shapes(shapes: Mapping[str, Sequence[int]]) -> ADMConfig:
    def shape(name: str, dims: int) -> Sequence[int]:
        if name not in shapes:
            raise _not_adm(f"no {name}", shapes)
        if len(shapes[name]) != dims:
            raise _not_adm(f"{name} of shape {list(shapes[name])}", shapes)
        return shapes[name]

    def blocks(side: str) -> int:
        found = {int(m[1]) for m in (re.match(rf"{side}_blocks\.(\d+)\.", name) for name in shapes) if m}
        if found != set(range(len(found))):
            raise _not_adm(f"gaps in {side}_blocks", shapes)
        return len(found)

    first, last = shape("input_blocks.0.0.weight", 4), shape("out.2.weight", 4)
    if first[1] != 3:
        raise _not_adm(f"{first[1]} input channels (6: a super-resolution model; 4: a latent-space model)", shapes)
    if last[0] not in (3, 6):
        raise _not_adm(f"{last[0]} output channels", shapes)
    model_channels = shape("time_embed.0.weight", 2)[1]
    outputs = blocks("output")
    ups = [re.match(r"output_blocks\.\d+\.[12]\.(in_layers\.0|conv)\.weight", name) for name in shapes]
    ups = [m[1] for m in ups if m]
    levels = len(ups) + 1
    if not outputs or outputs % levels or blocks("input") != outputs or len(set(ups)) > 1:
        raise _not_adm(f"{blocks('input')} input blocks, {outputs} output blocks and {len(ups)} upsamplers", shapes)
    per_level = outputs // levels
    # The first input block is the stem; each level then has its residual blocks and, but for the last, a downsampler.
    heads_of_levels = [1 + level * per_level for level in range(levels)]
    config = ADMConfig(
        model_channels=model_channels,
        channel_mult=tuple(
            shape(f"input_blocks.{i}.0.out_layers.3.weight", 4)[0] / model_channels for i in heads_of_levels
        ),
        num_res_blocks=per_level - 1,
        attention_levels=tuple(n for n, i in enumerate(heads_of_levels) if f"input_blocks.{i}.1.qkv.weight" in shapes),
        num_classes=shapes["label_emb.weight"][0] if "label_emb.weight" in shapes else 0,
        out_channels=last[0],
        scale_shift_norm=shape("input_blocks.1.0.emb_layers.1.weight", 2)[0]
        == 2 * shape("input_blocks.1.0.out_layers.3.weight", 4)[0],
        resblock_updown="conv" not in ups,
        num_heads=1,  # divides everything; `read_config` fills in what weights cannot show
    )
    with torch.device("meta"):
        expected = {name: tuple(value.shape) for name, value in ADMUNet(config).state_dict().items()}
    found = {name: tuple(value) for name, value in shapes.items()}
    if wrong := sorted(expected.keys() ^ found.keys()) or [n for n in expected if expected[n] != found[n]]:
        name = wrong[0]
        raise _not_adm(
            f"{len(wrong)} tensors that do not fit the rest, first {name}: "
            f"expected {expected.get(name, 'none')}, found {found.get(name, 'none')}",
            shapes,
        )
    return config


def _not_adm(found: str, shapes: Mapping[str, Sequence[int]]) -> ValueError:
    return ValueError(
        "not an ADM (guided-diffusion) image model: expected input_blocks, middle_block, output_blocks, time_embed and "
        f"out of one U-Net with 3 input and 3 or 6 output channels; found {found} among {len(shapes)} tensors "
        f"({', '.join(sorted(shapes)[:3])}, ...)"
    )
