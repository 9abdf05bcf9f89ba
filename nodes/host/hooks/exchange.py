"""Rows whose streams do not see each other: in them the attention from one stream to the other adds nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch

from ..models.families import Family, Group
from ..models.structure import selected_modules
from ..models.units import TransformerKey
from .attention import LayerPerturbation, flags
from .compiled import other_forward
from .module_calls import ModuleCall
from .rows import pick


class ExchangePatch:
    """Leaves out the selected attentions in one forward; see `transformers.TransformerPatch`.

    Args:
        family: one of `families.EXCHANGES`.
    """

    is_apart = False

    def __init__(self, family: Family, layers: dict[TransformerKey, LayerPerturbation]) -> None:
        self.family = family
        self.layers = layers

    @contextmanager
    def around(self, network: torch.nn.Module, options: dict, is_ours: Callable[[object], bool],
               skipped: Callable[[str], None], noise_key: tuple) -> Iterator[dict]:
        """For one forward of `network`; arguments as for `TransformerPatch.around`."""
        if not any(map(is_ours, options["uuids"])):
            yield options
            return
        with ExitStack() as stack:
            for group, module, layer in selected_modules(network, self.family, self.layers):
                def silent(forward: Callable, group=group, name=layer.name) -> Callable:
                    return _silent(forward, group, is_ours, lambda: skipped(name))

                stack.enter_context(other_forward(module, silent))
            yield options


def _silent(forward: Callable, group: Group, is_ours: Callable[[object], bool],
            skipped: Callable[[], None]) -> Callable:
    """An attention that is run for the plain rows alone, and returns 0 for the others."""
    def run(*args, **kwargs) -> torch.Tensor:
        call = ModuleCall(group, {}, args, kwargs)
        (x,) = call.streams
        # The rows of this very call: before the weak self's first layer its rows are left out.
        ours = flags(kwargs["transformer_options"]["uuids"], is_ours, x)
        if x.shape[0] % len(ours):
            skipped()
            return forward(*args, **kwargs)
        plain = [row for row, weak in enumerate(ours) if not weak]
        if len(plain) == len(ours):
            return forward(*args, **kwargs)
        out = torch.zeros_like(x)
        if plain:
            given = call.of_rows(plain, len(ours))
            attended = forward(*given.args, **given.kwargs)
            for place, row in enumerate(plain):
                pick(out, [row], len(ours)).copy_(pick(attended, [place], len(plain)))
        return out

    return run
