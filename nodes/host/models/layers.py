"""Which self-attention layers a loaded model has, and what they are called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from comfy.model_patcher import ModelPatcher
from torch.nn import Module

from ....pag_core.selection import Layer, SelectionError, select
from ....pag_core.settings import PAGOptions
from ....pag_core.stages import Chosen, Stage, draw
from .adm_model import ADMNetwork
from .defaults import published_for
from .families import FAMILIES, Family
from .pass_cost import PassCost, pass_cost
from .structure import exchange_of, family_by_structure, family_of, group_modules, num_heads, unwrapped
from .units import LayerKey, TransformerKey, UNetKey, Units, is_u_net, u_net_blocks, units_of

_DRAWS = 32  # of a random share, over which its costs are averaged
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
        source: where that choice comes from, and what else belongs to it.
        cost: what perturbing them costs.
        family: the transformer family; None for U-Nets and ADM.
    """

    name: str
    layers: Mapping[Layer, LayerKey]
    auto: str
    source: str
    cost: PassCost
    family: Family | None = None

    @property
    def is_apart(self) -> bool:
        """Whether weak rows run in a call of their own, for the network lays out a batch in a way of its own."""
        return bool(self.family and self.family.packs_rows)

    @property
    def is_by_shape(self) -> bool:
        """Whether its blocks are known only by the shapes of what they take and return."""
        return bool(self.family and self.family.is_found)

    @property
    def one_row(self) -> tuple[str, ...]:
        """Conditions with which the host's code for this model takes a batch of one only."""
        return self.family.one_row if self.family else ()

    def units(self, network: Module) -> Units:
        """The units of a network of this kind."""
        return units_of(network, self.family)

    @property
    def shares_prefix(self) -> bool:
        """Whether the perturbed pass of this model can begin at the first perturbed layer."""
        return any(share < 1 for share in self.cost.from_here.values())

    def share(self, chosen: Mapping[Layer, frozenset[int] | None], **how: bool) -> float:
        """What the perturbed pass of these layers costs as a share of a whole forward; `how` as in `PassCost.share`."""
        return self.cost.share({self.layers[layer]: heads for layer, heads in chosen.items()}, **how)

    def drawn_from(self, stages: Iterable[Stage], options: PAGOptions) -> tuple[Stage, ...]:
        """The stages with the layers of which a random share is drawn: of a block that is skipped, one."""
        if not (options.random_share and options.skips_blocks):
            return tuple(stages)
        return tuple(replace(stage, chosen=self._one_a_block(stage.chosen)) for stage in stages)

    def _one_a_block(self, chosen: Chosen) -> Chosen:
        first = {}
        for layer in chosen:
            first.setdefault(self.cost.blocks[self.layers[layer]][0], layer)
        return {layer: chosen[layer] for layer in first.values()}

    def extra(self, stages: Iterable[Stage], options: PAGOptions, steps: Collection[float] | None = None) -> float:
        """What PAG's weak rows cost as a share of a whole forward, on average over some steps, by their progress from 0
        to 1; over a whole run where these are not given. Below 0 where the negative's own row is spared blocks."""
        how = {"needs_maps": options.needs_map, "shares_prefix": options.share_prefix,
               "skips_blocks": options.skips_blocks and not options.needs_map}
        if options.row == "negative":
            how["shares_prefix"] = False
        total = 0.0
        for stage in self.drawn_from(stages, options):
            draws = [draw(stage.chosen, options.random_share, options.perturbation_seed, float(step))
                     for step in range(_DRAWS)] if options.random_share else [stage.chosen]
            part = stage.end - stage.start if not steps else sum(
                stage.start < step <= stage.end or step == stage.start == 0 for step in steps) / len(steps)
            total += part * sum(self.share(chosen, **how) for chosen in draws) / len(draws)
        return total - 1.0 if options.row == "negative" else total


def model_layers(model: ModelPatcher) -> ModelLayers:
    """List the self-attention layers of a model; see `network_layers`."""
    return network_layers(unwrapped(model.get_model_object("diffusion_model")))


def network_layers(network: Module) -> ModelLayers:
    """List the self-attention layers of a network, whose weights may be on any device, the meta device too.

    Raises:
        UnsupportedModelError: if the network is of a family that has none we can reach.
    """
    family = None if is_u_net(network) else family_of(network) or family_by_structure(network)
    if isinstance(network, ADMNetwork):
        name, layers = "ADM", _u_net_layers((*block, 0, heads) for block, heads in network.attention_layers())
    elif is_u_net(network):
        name, layers = "U-Net", _u_net_layers(_u_net_attentions(network))
    elif family:
        name, layers = family.name, _transformer_layers(network, family)
    else:
        raise UnsupportedModelError(
            f"Perturbed-Attention Guidance does not support the model {type(network).__name__}. It supports the U-Net "
            f"families (SD 1.x, SD 2.x, SDXL and models that share their U-Net), ADM models from PAG ADM Loader, and "
            f"{', '.join(family.name for family in FAMILIES)}.")
    if not layers:
        raise UnsupportedModelError(f"This {name} model has no self-attention layer whose attention map PAG could "
                                    f"replace.")
    published = published_for(network)
    if isinstance(network, ADMNetwork) and network.pag_layers:
        auto, source = network.pag_layers, "the file's own recommendation"
    elif published and _has(layers, published.layers):
        auto, source = published.layers, str(published)
    elif family:
        auto, source = _at(layers, family.auto), family.source
    else:
        auto, source = _nearest_to_the_bottleneck(layers), ("the middle block, or the nearest one with attention (PAG "
                                                            "Table 2, 10)")
    return ModelLayers(name, layers, auto, source, pass_cost(network, layers.values(), family), family)


def exchange_layers(model: ModelPatcher) -> ModelLayers:
    """The attentions by which a model's video and sound see each other.

    Raises:
        UnsupportedModelError: if it has none.
    """
    network = unwrapped(model.get_model_object("diffusion_model"))
    family = exchange_of(network)
    if family is None:
        raise UnsupportedModelError(f"PAG AV Guider is for models that generate video and audio together (LTX-2), "
                                    f"which {type(network).__name__} does not. Use PAG Guider.")
    layers = _transformer_layers(network, family)
    return ModelLayers(family.name, layers, "all", "", pass_cost(network, layers.values(), family), family)


def _at(layers: Mapping[Layer, LayerKey], depth: float) -> str:
    """What lies at this fraction of a transformer's depth, with what lies beside it in the same block."""
    blocks = [layer for layer in layers if "" in layer.addresses]
    chosen = blocks[min(int(len(blocks) * depth), len(blocks) - 1)]
    beside = [layer for layer, (_, index) in layers.items()
              if "" not in layer.addresses and index == layers[chosen][1]]
    return ",".join(layer.name for layer in (chosen, *beside))


def _has(layers: Iterable[Layer], selection: str) -> bool:
    """Whether a selection made for a model of the published size fits this one."""
    try:
        return bool(select(selection, tuple(layers), ""))
    except SelectionError:
        return False


def _transformer_layers(network: Module, family: Family) -> dict[Layer, TransformerKey]:
    """Name a transformer's layers: 12 counts through all blocks, double.3, single.10 and audio.2 within one kind."""
    layers: dict[Layer, TransformerKey] = {}
    for group in family.groups:
        for index, module in enumerate(group_modules(network, group)):
            addresses = {} if group.beside else {"": len(layers)}
            if group.name:
                addresses[f"{group.name}."] = index
            name = f"{group.name}.{index}" if group.name else str(index)
            layers[Layer(name, addresses, num_heads(module, group))] = (group.name, index)
    return layers


def _u_net_attentions(network: Module) -> Iterator[tuple[str, int, int, int]]:
    """(block kind, block number, transformer block, heads) of every self-attention of the host's U-Net."""
    for block, layers in u_net_blocks(network):
        for module in layers:
            for index, transformer in enumerate(getattr(module, "transformer_blocks", ())):
                # With disable_self_attn (the x4 upscaler's outer levels) attn1 looks at the text.
                if not getattr(transformer, "disable_self_attn", True):
                    yield *block, index, transformer.n_heads


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


def _nearest_to_the_bottleneck(layers: Mapping[Layer, LayerKey]) -> str:
    """The paper's choice, the middle block (PAG Table 2, 10); where it has no attention, the deepest encoder block."""
    by_kind = {kind: [layer for layer, key in layers.items() if key[0] == kind] for kind in _GROUPS}
    nearest = (by_kind["middle"] or by_kind["input"][-1:] or by_kind["output"])[0]
    return nearest.name.partition(".")[0]
