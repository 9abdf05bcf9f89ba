"""The ADM (guided-diffusion) U-Net of Dhariwal & Nichol 2021, with the state-dict names of its published files.

PAG's pixel-space experiments (PAG Tables 1, 7, 8, 9 and 10) run on this network. It knows no sampler and no host: its
layers come from an `operations` namespace, and whatever a caller wants to see or change during a forward goes through
`ADMHooks`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Block = tuple[str, int]
"""Where a layer sits: ("input", i), ("middle", 0) or ("output", i). `input_blocks.14.1` belongs to ("input", 14)."""

QKV_ORDERS = ("legacy", "new")
NOISE_SCHEDULES = ("linear", "cosine")
GROUPS = 32  # guided-diffusion's GroupNorm32


@dataclass(frozen=True)
class ADMConfig:
    """The shape of an ADM network, and the three facts that its weights do not reveal.

    `attention_levels` counts resolutions from 0 (full size); level n works at 1 / 2^n of the image. `num_heads` 0 means
    channels / `head_channels` heads; another value is a fixed number of heads, as in OpenAI's 128×128 model.
    `qkv_order` "legacy" keeps q, k and v of one head together, "new" all heads of q together. `image_size` 0: unknown.
    """

    model_channels: int
    channel_mult: tuple[float, ...]
    num_res_blocks: int
    attention_levels: tuple[int, ...]
    num_classes: int = 0
    in_channels: int = 3
    out_channels: int = 6
    scale_shift_norm: bool = True
    resblock_updown: bool = True
    head_channels: int = 64
    num_heads: int = 0
    qkv_order: str = "legacy"
    noise_schedule: str = "linear"
    image_size: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (("qkv_order", QKV_ORDERS), ("noise_schedule", NOISE_SCHEDULES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(allowed)}")
        for channels in self.attention_channels():
            self.heads(channels)

    def level_channels(self, level: int) -> int:
        """Channels at a level, 0 for full size."""
        return round(self.channel_mult[level] * self.model_channels)

    def attention_channels(self) -> list[int]:
        """Channels of every resolution with self-attention, the middle block's last."""
        return [self.level_channels(level) for level in (*self.attention_levels, len(self.channel_mult) - 1)]

    def heads(self, channels: int) -> int:
        """Number of attention heads in a layer with this many channels; ValueError if they do not divide evenly."""
        if self.num_heads:
            if channels % self.num_heads:
                raise ValueError(f"num_heads {self.num_heads} does not divide this model's {channels} channels evenly")
            return self.num_heads
        if self.head_channels < 1 or channels % self.head_channels:
            fits = [n for n in range(8, channels + 1) if all(c % n == 0 for c in self.attention_channels())]
            raise ValueError(
                f"head_channels {self.head_channels} does not divide this model's {channels} attention channels "
                f"evenly; possible values: {', '.join(map(str, fits))}"
            )
        return channels // self.head_channels


class ADMHooks:
    """What a caller may see and change during one forward. This base class changes nothing.

    Shapes: h, skip [B, C, H, W]; tokens, q, k, v and an attention's result [B, H·W, C].
    """

    def enter(self, block: Block) -> None:
        """Called when the forward pass reaches a block, before anything else in it."""

    def layer(self, layer: nn.Module, h: Tensor, emb: Tensor, size: torch.Size | None) -> Tensor:
        """One layer of a block. `size` is the height and width that an upsampler has to reach."""
        return run_layer(layer, h, emb, size, self)

    def self_attention(self, layer: AttentionBlock, tokens: Tensor, shape: torch.Size) -> Tensor:
        """One self-attention with its projections; `tokens` are the normalized features of `shape` [B, C, H, W]."""
        return layer.project_out(self.attention(*layer.project_qkv(tokens), layer.heads, layer.block))

    def attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int, block: Block) -> Tensor:
        """softmax(QKᵀ/√d)·V, PAG Eq. 12."""
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def after_embedding(self, emb: Tensor) -> Tensor:
        """The time embedding [B, 4·model_channels], before the label's is added."""
        return emb

    def after_input(self, h: Tensor) -> Tensor:
        """After an input block; the result is also what the skip connection keeps."""
        return h

    def after_skip(self, h: Tensor) -> Tensor:
        """After an input block, once the skip connection has its copy."""
        return h

    def after_middle(self, h: Tensor, emb: Tensor) -> Tensor:
        """After the middle block; `emb` [B, 4·model_channels] with the label's part."""
        return h

    def before_output(self, h: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """Before an output block concatenates the two."""
        return h, skip


def run_layer(layer: nn.Module, h: Tensor, emb: Tensor, size: torch.Size | None, hooks: ADMHooks) -> Tensor:
    """One layer of whatever kind, with what of these arguments it takes; [B, C, H, W] to [B, C', H', W']."""
    if isinstance(layer, ResBlock):
        return layer(h, emb, size)
    if isinstance(layer, AttentionBlock):
        return layer(h, hooks)
    if isinstance(layer, Upsample):
        return layer(h, size)
    return layer(h)


def _resample(x: Tensor, direction: str | None, size: torch.Size | None) -> Tensor:
    if direction == "down":
        return F.avg_pool2d(x, 2)
    # Without a skip connection to match, twice the size; with one of odd size, that size.
    return F.interpolate(x, size=size or [2 * n for n in x.shape[2:]], mode="nearest") if direction == "up" else x


class ResBlock(nn.Module):
    """Two convolutions around the embedding [B, 4·model_channels]; `direction` "up" or "down" also changes the size."""

    def __init__(self, channels, out_channels, emb_channels, scale_shift_norm, direction, operations, **factory):
        super().__init__()
        self.scale_shift_norm, self.direction = scale_shift_norm, direction
        self.in_layers = nn.Sequential(
            operations.GroupNorm(GROUPS, channels, **factory),
            nn.SiLU(),
            operations.Conv2d(channels, out_channels, 3, padding=1, **factory),
        )
        emb_out = out_channels * (2 if scale_shift_norm else 1)
        self.emb_layers = nn.Sequential(nn.SiLU(), operations.Linear(emb_channels, emb_out, **factory))
        self.out_layers = nn.Sequential(
            operations.GroupNorm(GROUPS, out_channels, **factory),
            nn.SiLU(),
            nn.Identity(),  # guided-diffusion's dropout: it keeps the convolution's index, 3
            operations.Conv2d(out_channels, out_channels, 3, padding=1, **factory),
        )
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else operations.Conv2d(channels, out_channels, 1, **factory)

    def forward(self, x: Tensor, emb: Tensor, size: torch.Size | None) -> Tensor:
        norm, act, conv = self.in_layers
        h = conv(_resample(act(norm(x)), self.direction, size))
        x = _resample(x, self.direction, size)
        emb = self.emb_layers(emb)[..., None, None]
        if self.scale_shift_norm:
            scale, shift = emb.chunk(2, dim=1)
            h = torch.addcmul(shift, self.out_layers[0](h), 1 + scale)
            h = self.out_layers[1:](h)
        else:
            h = self.out_layers(h + emb)
        return self.skip_connection(x) + h


class AttentionBlock(nn.Module):
    """Self-attention over all pixels. `block` says where in the network it sits."""

    def __init__(self, channels, heads, qkv_order, block, operations, **factory):
        super().__init__()
        self.heads, self.qkv_order, self.block = heads, qkv_order, block
        self.norm = operations.GroupNorm(GROUPS, channels, **factory)
        self.qkv = operations.Conv1d(channels, channels * 3, 1, **factory)
        self.proj_out = operations.Conv1d(channels, channels, 1, **factory)

    def forward(self, x: Tensor, hooks: ADMHooks) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        return x + hooks.self_attention(self, tokens, x.shape).transpose(1, 2).reshape(x.shape)

    def project_qkv(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v [B, N, C] of tokens [B, N, C], the heads one after the other in C."""
        qkv = self.qkv(tokens.transpose(1, 2))
        if self.qkv_order == "legacy":
            qkv = qkv.unflatten(1, (self.heads, 3, -1)).permute(2, 0, 4, 1, 3)
        else:
            qkv = qkv.unflatten(1, (3, self.heads, -1)).permute(1, 0, 4, 2, 3)
        # One copy for all three: attention kernels want the channels of a token side by side.
        return qkv.flatten(3).contiguous().unbind()

    def project_out(self, tokens: Tensor) -> Tensor:
        """[B, N, C] of an attention's result [B, N, C]."""
        return self.proj_out(tokens.transpose(1, 2)).transpose(1, 2)


class Downsample(nn.Module):
    """Half the size, by a convolution with stride 2."""

    def __init__(self, channels, operations, **factory):
        super().__init__()
        self.op = operations.Conv2d(channels, channels, 3, stride=2, padding=1, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Nearest neighbours up to `size`, or twice the size, and a convolution."""

    def __init__(self, channels, operations, **factory):
        super().__init__()
        self.conv = operations.Conv2d(channels, channels, 3, padding=1, **factory)

    def forward(self, x: Tensor, size: torch.Size | None) -> Tensor:
        return self.conv(_resample(x, "up", size))


class ADMUNet(nn.Module):
    """The network. `operations` provides Conv1d, Conv2d, Linear, Embedding and GroupNorm, as `torch.nn` does."""

    def __init__(self, config: ADMConfig, operations=nn, dtype: torch.dtype | None = None, device=None):
        super().__init__()
        self.config = config
        factory = dict(operations=operations, dtype=dtype, device=device)
        plain = dict(dtype=dtype, device=device)
        emb = config.model_channels * 4

        def res(channels: int, out_channels: int, direction: str | None = None) -> ResBlock:
            return ResBlock(channels, out_channels, emb, config.scale_shift_norm, direction, **factory)

        def attention(channels: int, *block) -> AttentionBlock:
            return AttentionBlock(channels, config.heads(channels), config.qkv_order, block, **factory)

        self.time_embed = nn.Sequential(
            operations.Linear(config.model_channels, emb, **plain), nn.SiLU(), operations.Linear(emb, emb, **plain)
        )
        if config.num_classes:
            self.label_emb = operations.Embedding(config.num_classes, emb, **plain)

        levels = range(len(config.channel_mult))
        stem = ch = config.level_channels(0)
        blocks = [[operations.Conv2d(config.in_channels, ch, 3, padding=1, **plain)]]
        skips = [ch]
        for level in levels:
            for _ in range(config.num_res_blocks):
                layers = [res(ch, config.level_channels(level))]
                ch = config.level_channels(level)
                if level in config.attention_levels:
                    layers.append(attention(ch, "input", len(blocks)))
                blocks.append(layers)
                skips.append(ch)
            if level != levels[-1]:
                blocks.append([res(ch, ch, "down") if config.resblock_updown else Downsample(ch, **factory)])
                skips.append(ch)
        self.input_blocks = nn.ModuleList(map(nn.ModuleList, blocks))
        self.middle_block = nn.ModuleList([res(ch, ch), attention(ch, "middle", 0), res(ch, ch)])

        blocks = []
        for level in reversed(levels):
            for i in range(config.num_res_blocks + 1):
                layers = [res(ch + skips.pop(), config.level_channels(level))]
                ch = config.level_channels(level)
                if level in config.attention_levels:
                    layers.append(attention(ch, "output", len(blocks)))
                if level and i == config.num_res_blocks:
                    layers.append(res(ch, ch, "up") if config.resblock_updown else Upsample(ch, **factory))
                blocks.append(layers)
        self.output_blocks = nn.ModuleList(map(nn.ModuleList, blocks))
        self.out = nn.Sequential(
            operations.GroupNorm(GROUPS, ch, **plain),
            nn.SiLU(),
            operations.Conv2d(stem, config.out_channels, 3, padding=1, **plain),
        )

    def forward(self, x: Tensor, timesteps: Tensor, y: Tensor | None = None, hooks: ADMHooks | None = None) -> Tensor:
        """Predicted noise (and learned sigma, if any) [B, out_channels, H, W] for noisy images x [B, 3, H, W].

        `timesteps` [B], 0 to 999, may be fractional. `y` [B] long holds class labels; None, or a row of -1, adds no
        label embedding: the unconditional estimate of a model trained with label dropout.
        """
        hooks = hooks or ADMHooks()
        emb = self.time_embed(timestep_embedding(timesteps, self.config.model_channels).to(x.dtype))
        emb = hooks.after_embedding(emb)
        if y is not None and self.config.num_classes:
            label = self.label_emb(y.clamp(min=0)).to(emb.dtype)
            emb = emb + label * (y >= 0).to(emb.dtype)[:, None]
        h, skips = x, []
        for i, layers in enumerate(self.input_blocks):
            hooks.enter(("input", i))
            h = hooks.after_input(self._run(layers, h, emb, hooks))
            skips.append(h)
            h = hooks.after_skip(h)
        hooks.enter(("middle", 0))
        h = hooks.after_middle(self._run(self.middle_block, h, emb, hooks), emb)
        for i, layers in enumerate(self.output_blocks):
            hooks.enter(("output", i))
            h = torch.cat(hooks.before_output(h, skips.pop()), dim=1)
            h = self._run(layers, h, emb, hooks, skips[-1].shape[2:] if skips else None)
        return self.out(h)

    @staticmethod
    def _run(layers: nn.ModuleList, h: Tensor, emb: Tensor, hooks: ADMHooks, size: torch.Size | None = None) -> Tensor:
        for layer in layers:
            h = hooks.layer(layer, h, emb, size)
        return h

    def attention_layers(self) -> Iterator[tuple[Block, int]]:
        """(block, heads) of every self-attention, in the order in which the network runs them."""
        for module in self.modules():
            if isinstance(module, AttentionBlock):
                yield module.block, module.heads


def timestep_embedding(timesteps: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding [B, dim] in float32, cosines first."""
    half = dim // 2
    freqs = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=timesteps.device) / half)
    args = timesteps[:, None].float() * freqs[None]
    return torch.cat([torch.cos(args), torch.sin(args)], dim=-1)
