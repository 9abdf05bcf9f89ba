"""The units of a network: the modules that it runs one after another, each of which hands on the whole state.

What comes after a unit depends on what came before it only through what the units returned. So a pass can begin at any
of them, given what those before it returned: transformers keep the last one's output, U-Nets their skips as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ....pag_core import adm
from .families import Family
from .structure import group_units, matching

UNetKey = tuple[str, int, int]  # (block kind, block number, transformer block inside), as in patches_replace
TransformerKey = tuple[str, int]  # (group, index)
LayerKey = tuple[Any, ...]  # either of them


@dataclass(frozen=True)
class Units:
    """The units of one network, in the order in which it runs them.

    Attributes:
        modules: the units.
        places: {a layer's key: the index of the unit that holds it}.
        skips: indices of units whose output is read again later than by the next unit.
        axes: which axis of a unit's arguments and output holds the batch; see `Family.axes`.
        beside: modules between the units that are given nothing of what the units return, so that what they return is
            the same in a weak row: (what is added to the state, what the next of them is given).
        is_stateless: whether nothing is kept from call to call, so that a call may leave units out.
    """

    modules: tuple[nn.Module, ...]
    places: Mapping[LayerKey, int]
    skips: frozenset[int] = frozenset()
    axes: Mapping[str | int, int | None] = field(default_factory=dict)
    is_stateless: bool = True
    beside: tuple[nn.Module, ...] = ()


def units_of(network: nn.Module, family: Family | None) -> Units:
    """The units of a transformer of this family, or of a U-Net or an ADM (None)."""
    return _of_transformer(network, family) if family else _of_u_net(network)


def u_net_blocks(network: nn.Module) -> Iterator[tuple[tuple[str, int], nn.Module]]:
    """((kind, number), layers) of every block of a U-Net or an ADM, in the order in which they run."""
    yield from (((("input", number)), block) for number, block in enumerate(network.input_blocks))
    if network.middle_block is not None:  # distilled SDXL models drop it
        yield ("middle", 0), network.middle_block
    yield from (((("output", number)), block) for number, block in enumerate(network.output_blocks))


def is_u_net(network: nn.Module) -> bool:
    """Whether a network is built as the host's U-Net. Told by its parts: nodes give it and these classes of their own
    for a run."""
    return all(hasattr(network, blocks) for blocks in ("input_blocks", "middle_block", "output_blocks"))


def transformer_blocks(layer: nn.Module) -> Iterable[nn.Module]:
    """Those in a layer of a U-Net; an ADM's attention is its own."""
    return getattr(layer, "transformer_blocks", (layer,) if isinstance(layer, adm.AttentionBlock) else ())


def _of_u_net(network: nn.Module) -> Units:
    modules, places, skips = [], {}, set()
    for block, layers in u_net_blocks(network):
        for layer in layers:
            places |= {(*block, index): len(modules) for index, _ in enumerate(transformer_blocks(layer))}
            modules.append(layer)
        if block[0] == "input":
            skips.add(len(modules) - 1)
    return Units(tuple(modules), places, frozenset(skips))


def _of_transformer(network: nn.Module, family: Family) -> Units:
    modules, places = [], {}
    for group in family.groups:
        count = 0
        for unit, layers in group_units(network, group):
            if not group.beside:
                modules.append(unit)
            for _ in layers:
                places[group.name, count] = modules.index(unit) if group.beside else len(modules) - 1
                count += 1
    skips = frozenset(range(len(modules))) if family.skips else frozenset()
    beside = tuple(matching(network, family.beside)) if family.beside else ()
    return Units(tuple(modules), places, skips, family.axes, not family.keeps_between_calls, beside)
