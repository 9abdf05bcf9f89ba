"""What one run knows of the networks that it runs: one on each device."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from ..hooks.compiled import CompiledUnits, swapped_in
from ..models.layers import ModelLayers
from ..models.structure import parts_of, unwrapped
from ..models.units import LayerKey, Units
from .neighbours import other_code, other_forwards, others_act_in, others_in_network


@dataclass
class _Network:
    """What is known of one.

    Attributes:
        units: as it was loaded.
        replaced: of each unit the modules in which another node's forward runs.
        others: which code of another pack runs in it; None for none.
        is_mixed: whether another node has put code of its own into it.
        outside: its modules that are no part of a unit.
        swapped: its units as a node has them compiled for the length of a call, once looked up.
    """

    units: Units
    replaced: list[list[torch.nn.Module]]
    others: str | None
    is_mixed: bool
    outside: list[torch.nn.Module]
    swapped: Units | None = None


class Networks:
    """The networks of one run.

    Args:
        found: the layers of the model that samples.

    Attributes:
        compiled_units: where the network was compiled whole.
    """

    def __init__(self, found: ModelLayers) -> None:
        self.found = found
        self.compiled_units: CompiledUnits | None = None
        self._known: dict[torch.nn.Module, _Network] = {}

    def know(self, loaded: torch.nn.Module) -> None:
        """Look at a network, perhaps compiled, before a step, when no node has swapped its modules yet."""
        network = unwrapped(loaded)
        if network not in self._known:
            units = self.found.units(network)
            replaced = [other_forwards(unit, network) for unit in units.modules]
            inside = {part for unit in units.modules for part in parts_of(unit)}
            outside = [part for part in parts_of(network) if part not in inside]
            self._known[network] = _Network(units, replaced, others_in_network(loaded), other_code(network), outside)

    def first(self) -> tuple[torch.nn.Module, Units]:
        """The network that was loaded, and its units."""
        network, known = next(iter(self._known.items()))
        return network, known.units

    def units(self, network: torch.nn.Module) -> Units | None:
        """The units of a network that runs; None where it is not one that `know` has seen."""
        return self._known[network].units if network in self._known else None

    def places(self, layers: Iterable[LayerKey]) -> set[int]:
        """The indices of the units that hold these layers, by their keys; the same in every network."""
        places = self.first()[1].places
        return {places[layer] for layer in layers}

    def swapped_in(self, network: torch.nn.Module) -> Units:
        """The units as a node has them compiled in the network for the length of a call; looked up once a run."""
        known = self._known[network]
        known.swapped = known.swapped or swapped_in(network, known.units)
        return known.swapped

    def others(self) -> str | None:
        """Which code of another pack runs in the networks, or None."""
        return next(filter(None, (known.others for known in self._known.values())), None)

    def are_mixed(self) -> bool:
        """Whether another node has put code of its own into them, which may look at what goes from block to block."""
        return any(known.is_mixed for known in self._known.values())

    def others_act_outside(self, network: torch.nn.Module) -> bool:
        """Whether another node's code acts in a network, but not in its units."""
        return others_act_in(self._known[network].outside, network)

    def other_forwards(self, network: torch.nn.Module, units: Units, first: int) -> list[torch.nn.Module]:
        """The modules in the units before the `first` in which another node's forward runs. Where the units are
        compiled for this forward, their forwards are ours, and what was seen before the step counts."""
        found = (self._known[network].replaced if self.compiled_units is not None
                 else (other_forwards(unit, network) for unit in units.modules[:first]))
        return list(itertools.chain(*itertools.islice(found, first)))
