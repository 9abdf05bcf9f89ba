"""Which self-attention layers a loaded model has, and what they are called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from comfy.ldm.modules.attention import BasicTransformerBlock, SpatialVideoTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from torch.nn import Module

from ...pag_core.selection import Layer
from .adm_model import ADMNetwork
from .families import FAMILIES, Family, family_of, group_blocks, group_modules, num_heads, refusal_of
from .prefix import block_order
from .transformers import TransformerKey
from .u_nets import UNetKey

_GROUPS = {"input": "d", "middle": "m", "output": "u"}


class UnsupportedModelError(ValueError):
    """A model whose self-attention cannot be perturbed; the message says why and what works."""


@dataclass(frozen=True)
class ModelLayers:
    """What PAG can act on in one model.

    Attributes:
        name: what to call the model's family in messages.
        layers: every self-attention layer, in the order in which the model runs them, with the host's key.
        auto: the selection that "auto" stands for.
        source: where that choice comes from.
        family: the transformer family; None for U-Nets and ADM.
    """

    name: str
    layers: dict[Layer, UNetKey] | dict[Layer, TransformerKey]
    auto: str
    source: str
    family: Family | None = None


def model_layers(model: ModelPatcher) -> ModelLayers:
    """List the self-attention layers of a model.

    Raises:
        UnsupportedModelError: if the model is of a family that has none we can reach.
    """
    network = model.get_model_object("diffusion_model")
    family, reason = family_of(network), refusal_of(network)
    if reason:
        raise UnsupportedModelError(f"Perturbed-Attention Guidance cannot work on this model: {reason}.")
    if isinstance(network, UNetModel):
        name, layers = "U-Net", _u_net_layers(_u_net_attentions(network))
    elif isinstance(network, ADMNetwork):
        name, layers = "ADM", _u_net_layers((*block, 0, heads) for block, heads in network.attention_layers())
    elif family:
        name, layers = family.name, _transformer_layers(network, family)
    else:
        raise UnsupportedModelError(
            f"Perturbed-Attention Guidance does not know the model {type(network).__name__}. It works on the U-Net "
            f"families (SD 1.x, SD 2.x, SDXL and what shares their U-Net), on ADM models from the PAG ADM Loader, and "
            f"on {', '.join(family.name for family in FAMILIES)}.")
    if not layers:
        raise UnsupportedModelError(f"This {name} model has no self-attention layer with a map that PAG could replace.")
    if isinstance(network, ADMNetwork) and network.pag_layers:
        auto, source = network.pag_layers, "the file's own recommendation"
    elif family:
        auto, source = list(layers)[min(int(len(layers) * family.auto), len(layers) - 1)].name, family.source
    else:
        auto, source = _nearest_to_the_bottleneck(layers), "the middle block, or what is nearest (PAG Table 2, 10)"
    return ModelLayers(name, layers, auto, source, family)


def recomputed_share(model: ModelPatcher, found: ModelLayers, chosen: Collection[Layer]) -> float:
    """The share of the network's blocks that the perturbed pass of these layers runs: those before it shares."""
    network = model.get_model_object("diffusion_model")
    keys = [found.layers[layer] for layer in chosen]
    # A video U-Net takes inputs that the prefix does not know how to divide into rows.
    is_video = any(isinstance(module, SpatialVideoTransformer) for module in network.modules())
    if is_video or (found.family and not found.family.late_rows):
        return 1.0
    if found.family:
        blocks = [(group.name, index) for group in found.family.groups
                  for index in range(len(group_blocks(network, group)))]
        first = min(map(blocks.index, keys))
    else:
        blocks = [("input", i) for i in range(len(network.input_blocks))]
        blocks += [("middle", 0)] * (network.middle_block is not None)
        blocks += [("output", i) for i in range(len(network.output_blocks))]
        first = blocks.index(min((key[:2] for key in keys), key=block_order))
    return 1 - first / len(blocks)


def _transformer_layers(network: Module, family: Family) -> dict[Layer, TransformerKey]:
    """Name a transformer's layers: 12 counts through all blocks, double.3 and single.10 within one kind."""
    layers: dict[Layer, TransformerKey] = {}
    for group in family.groups:
        for index, module in enumerate(group_modules(network, group)):
            addresses = {"": len(layers)} | ({f"{group.name}.": index} if group.name else {})
            name = f"{group.name}.{index}" if group.name else str(index)
            layers[Layer(name, addresses, num_heads(module, group))] = (group.name, index)
    return layers


def _u_net_attentions(network: UNetModel) -> Iterator[tuple[str, int, int, int]]:
    """(block kind, block number, transformer block, heads) of every self-attention of the host's U-Net."""
    blocks = [("input", i, block) for i, block in enumerate(network.input_blocks)]
    if network.middle_block is not None:  # distilled SDXL models drop it
        blocks.append(("middle", 0, network.middle_block))
    blocks += [("output", i, block) for i, block in enumerate(network.output_blocks)]
    for kind, number, block in blocks:
        for module in block:
            for index, transformer in enumerate(getattr(module, "transformer_blocks", ())):
                # With disable_self_attn (the x4 upscaler's outer levels) attn1 looks at the text.
                if isinstance(transformer, BasicTransformerBlock) and not transformer.disable_self_attn:
                    yield kind, number, index, transformer.n_heads


def _u_net_layers(attentions: Iterable[tuple[str, int, int, int]]) -> dict[Layer, UNetKey]:
    """Name a U-Net's layers: d0, m0, u3.1 count the blocks with self-attention; input.4 is the host's own count."""
    attentions = list(attentions)
    depth = Counter((kind, number) for kind, number, _, _ in attentions)
    counts: dict[str, dict[int, int]] = {kind: {} for kind in _GROUPS}
    layers: dict[Layer, UNetKey] = {}
    for kind, number, index, heads in attentions:
        group = _GROUPS[kind]
        counted = counts[kind].setdefault(number, len(counts[kind]))
        block = f"{group}{counted}"
        layer = Layer(name=block if depth[kind, number] == 1 else f"{block}.{index}", heads=heads, addresses={
            group: counted, f"{block}.": index, f"{kind}.": number, f"{kind}.{number}.": index})
        layers[layer] = (kind, number, index)
    return layers


def _nearest_to_the_bottleneck(layers: dict[Layer, UNetKey]) -> str:
    """The paper's choice, the middle block (PAG Table 2, 10); where it has no attention, the deepest encoder block."""
    by_kind = {kind: [layer for layer, key in layers.items() if key[0] == kind] for kind in _GROUPS}
    nearest = (by_kind["middle"] or by_kind["input"][-1:] or by_kind["output"])[0]
    return nearest.name.partition(".")[0]
