"""Compiled networks, unit by unit.

What happens between the units has to be seen and changed, and inside one graph of a whole network it cannot be. So for
the length of a forward a network that was compiled whole runs as it was written, with each unit compiled by the same
settings. Units that a node compiled singly stay as they are. The altered units alone run uncompiled, in the weak rows'
call, so no graph ever holds anything of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch

from ..models.structure import unwrapped
from ..models.units import Units


@contextmanager
def other_forward(module: torch.nn.Module, change: Callable[[Callable], Callable]) -> Iterator[None]:
    """Another forward for one module, while the context lasts; `change` makes it from the present one."""
    own = vars(module)  # past what torch.compile makes of setattr
    before = own.get("forward")
    own["forward"] = change(module.forward)
    try:
        yield
    finally:
        if before is None:
            del own["forward"]
        else:
            own["forward"] = before


def swapped_in(network: torch.nn.Module, units: Units) -> Units:
    """The units as they are in the network at present, some of them wrapped by torch.compile."""
    wrapped = {id(module._orig_mod): module for module in network.modules() if hasattr(module, "_orig_mod")}
    return replace(units, modules=tuple(wrapped.get(id(unit), unit) for unit in units.modules))


class CompiledUnits:
    """The units of networks that were compiled whole, compiled one by one. For one run; torch keeps the graphs.

    Args:
        settings: the arguments of torch.compile.
    """

    def __init__(self, settings: dict) -> None:
        self.settings = settings
        self.forwards: dict[torch.nn.Module, Callable] = {}

    @contextmanager
    def around(self, model: torch.nn.Module, units: Units, uncompiled: Collection[int] = ()) -> Iterator[None]:
        """For one forward: `model` runs its network as it was written, but for its units.

        Args:
            uncompiled: indices of units to leave as they were written.
        """
        config = torch._dynamo.config
        limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
        with ExitStack() as stack:
            # All units of a kind share one count, and a U-Net's come in more shapes than torch allows by itself.
            stack.enter_context(config.patch({limit: max(getattr(config, limit), 4 * len(units.modules))}))
            for index, unit in enumerate(units.modules):
                if index not in uncompiled:
                    stack.enter_context(other_forward(unit, lambda forward, unit=unit: self._compiled(unit, forward)))
            stack.enter_context(as_written(model))
            yield

    def _compiled(self, unit: torch.nn.Module, forward: Callable) -> Callable:
        if unit not in self.forwards:
            self.forwards[unit] = torch.compile(forward, **self.settings)
        return self.forwards[unit]


@contextmanager
def as_written(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """For one forward: a network that was compiled whole runs as it was written; this network, in any case."""
    compiled = model.diffusion_model
    model.diffusion_model = unwrapped(compiled)
    try:
        yield model.diffusion_model
    finally:
        model.diffusion_model = compiled


@contextmanager
def uncompiled(units: Units, altered: Collection[int]) -> Iterator[None]:
    """For one forward: these units run as they were written where a node compiled them singly."""
    with ExitStack() as stack:
        for index in altered:
            original = getattr(units.modules[index], "_orig_mod", None)
            if original is not None:
                stack.enter_context(other_forward(units.modules[index], lambda _, original=original: original.forward))
        yield
