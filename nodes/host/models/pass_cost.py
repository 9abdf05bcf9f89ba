"""What the perturbed pass of a selection costs, in FLOPs, as a share of a whole forward.

The pass begins where its rows join (see `units`), and a layer whose whole map becomes the identity
never computes it. U-Nets and ADM are counted layer by layer, at the picture size they were made for. Of a transformer
every block counts the same, for the blocks of a network do nearly the same work (a double block of Flux spends on two
streams what a single block spends on one), and what lies outside them next to nothing. Where the blocks are not
even, the whole pass is counted, which is more than it costs, but for blocks that are skipped in a network that no table
knows: these count by their weights.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from comfy.ldm.modules.diffusionmodules import openaimodel
from torch import nn

from ....pag_core import adm
from .adm_model import ADMNetwork
from .families import Family
from .structure import group_modules, weights_of
from .units import LayerKey, transformer_blocks, u_net_blocks, units_of

_TEXT_TOKENS = 77  # of a prompt that a U-Net looks at
_IMAGE_TOKENS = 4096  # of a transformer at 1024² pixels; videos have more, and then the maps that are saved weigh more
_DOWN = (openaimodel.Downsample, adm.Downsample)
_UP = (openaimodel.Upsample, adm.Upsample)


@dataclass(frozen=True)
class PassCost:
    """The costs of one network's perturbed pass.

    Attributes:
        from_here: {layer's key: the share of a forward from where the rows join if this is the first layer}.
        maps: {layer's key: the share of its image tokens' attention map}; 0 where it is computed all the same.
        blocks: {layer's key: (the block that holds it, the block's share)}; 0 where this is not known.
    """

    from_here: Mapping[LayerKey, float]
    maps: Mapping[LayerKey, float]
    blocks: Mapping[LayerKey, tuple[LayerKey, float]]

    def share(self, chosen: Mapping[LayerKey, frozenset[int] | None], *, shares_prefix: bool = True,
              needs_maps: bool = False, skips_blocks: bool = False) -> float:
        """What the pass costs as a share of a whole forward, 0 to 1.

        Args:
            chosen: {layer's key: its perturbed heads, None for all}, as `selection.select` returns them.
            shares_prefix: whether the pass begins at the first of these layers.
            needs_maps: whether it computes the attention maps, as every perturbation but the full identity does.
            skips_blocks: whether it leaves out the whole blocks that hold these layers.
        """
        if skips_blocks:
            saved = sum(dict(self.blocks[key] for key in chosen).values())  # each block once
        else:
            saved = 0.0 if needs_maps else sum(self.maps[key] for key, heads in chosen.items() if heads is None)
        return (max(self.from_here[key] for key in chosen) if shares_prefix else 1.0) - saved


def pass_cost(network: nn.Module, keys: Collection[LayerKey], family: Family | None) -> PassCost:
    """The costs of a network whose self-attention layers have these keys; `family` as in `layers.ModelLayers`."""
    if family:
        return _of_transformer(network, keys, family)
    return _of_u_net(network, keys)


def _of_transformer(network: nn.Module, keys, family: Family) -> PassCost:
    modules = [(group, module) for group in family.groups for module in group_modules(network, group)]
    if not family.even:
        size = weights_of(network) if family.is_found else 1
        shares = [weights_of(module) / size if family.is_found else 0.0 for _, module in modules]
        return PassCost(dict.fromkeys(keys, 1.0), dict.fromkeys(keys, 0.0),
                        {key: (key, share) for key, share in zip(keys, shares, strict=True)})
    units = units_of(network, family)
    from_here, maps, blocks = {}, {}, {}
    for key, (group, module) in zip(keys, modules, strict=True):
        place, count = units.places[key], len(units.modules) + len(units.beside)
        from_here[key] = (len(units.modules) - place) / count
        # 4·N²·C of the map against 24·N·C² of the linear layers, for a block's twelve C × C matrices. Sound has few
        # tokens beside the video's.
        width = None if group.values or group.beside else _width(module)
        maps[key] = _IMAGE_TOKENS / (_IMAGE_TOKENS + 6 * width) / count if width else 0.0
        blocks[key] = place, 1 / count
    return PassCost(from_here, maps, blocks)


def _width(module: nn.Module) -> int | None:
    """Channels of a token: the smaller side of the largest linear layer; None where none is to be seen."""
    linear = [(part.in_features, part.out_features) for part in module.modules() if _is_linear(part)]
    return min(max(linear, key=math.prod)) if linear else None


def _is_linear(module: nn.Module) -> bool:
    """Quantised linear layers, the host's own too, are none of torch's."""
    return hasattr(module, "in_features") and hasattr(module, "out_features")


def _of_u_net(network: nn.Module, keys) -> PassCost:
    done, joins, maps, blocks = 0.0, {}, {}, {}
    positions = _native_positions(network)
    for block, layers in u_net_blocks(network):
        for layer in layers:
            positions = resampled(layer, positions)
            if parts := transformer_blocks(layer):
                joins[block] = done
                maps |= {(*block, index): flops for index, flops in enumerate(_maps(layer, positions))}
                for index, part in enumerate(parts):
                    blocks[(*block, index)] = _flops(part, positions) + maps[(*block, index)]
            done += _flops(layer, positions) + sum(_maps(layer, positions))
    done += _flops(network.out, positions)
    return PassCost({key: 1 - joins[key[:2]] / done for key in keys},
                    {key: maps[key] / done for key in keys}, {key: (key, blocks[key] / done) for key in keys})


def _native_positions(network: nn.Module) -> int:
    """Pixels of the latent at the size that a network was made for."""
    if isinstance(network, ADMNetwork):
        config = network.config
        attends_first = (*config.attention_levels, len(config.channel_mult) - 1)[0]  # the middle block always does
        return (config.image_size or 32 << attends_first) ** 2
    # SD 1.x and 2.x attend at all levels but the last; SDXL, at twice the size, not at the first.
    attends_first = any(map(transformer_blocks, network.input_blocks[1]))
    return (64 if attends_first else 128) ** 2


def resampled(layer: nn.Module, positions: int) -> int:
    """How many positions of the latent there are after a layer of a U-Net or an ADM."""
    what, direction = getattr(layer, "h_upd", layer), getattr(layer, "direction", None)
    if isinstance(what, _DOWN) or direction == "down":
        return positions // 4
    return positions * 4 if isinstance(what, _UP) or direction == "up" else positions


def _flops(layer: nn.Module, positions: int) -> float:
    """Of a layer's matrices and convolutions, and of its attention to the text."""
    total = 0.0
    for name, module in layer.named_modules():
        tokens = 1 if "emb_layers" in name else _TEXT_TOKENS if name.endswith(("attn2.to_k", "attn2.to_v")) else \
            positions
        if _is_linear(module):
            total += 2 * module.in_features * module.out_features * tokens
        elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            total += 2 * module.in_channels * module.out_channels * math.prod(module.kernel_size) * tokens
        elif hasattr(module, "disable_self_attn"):  # a transformer block
            total += 4 * positions * _TEXT_TOKENS * module.n_heads * module.d_head
    return total


def _maps(layer: nn.Module, positions: int) -> list[float]:
    """FLOPs of QKᵀ and A·V of each self-attention in a layer."""
    if isinstance(layer, adm.AttentionBlock):
        return [4.0 * positions**2 * layer.proj_out.in_channels]
    return [0.0 if block.disable_self_attn else 4.0 * positions**2 * block.n_heads * block.d_head
            for block in getattr(layer, "transformer_blocks", ())]
