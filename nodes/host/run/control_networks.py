"""ControlNets that another node asks inside its wrapper, where it has cut the images into tiles.

What such a ControlNet gives is told by what enters its network, as samples of a rearranged batch are: nothing says
which rows these are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import nn

from ..hooks.compiled import other_forward
from ..hooks.entry import Entry
from ..hooks.kept import PrefixStore
from ..hooks.matched import Sampled, matched
from ..hooks.rows import map_tensors, merged, pick, tensors_in
from .control import Conds


@contextmanager
def noting_networks(conds: Conds, store: PrefixStore) -> Iterator[None]:
    """For the host's own call: where another node asks these conditionings' ControlNets, `store` gets what their
    networks give each sample."""
    with _other_forwards(conds, partial(_noted, store)):
        yield


@contextmanager
def keeping_networks(conds: Conds, store: PrefixStore) -> Iterator[None]:
    """For the weak rows' call: a network gives again what it gave the samples that entered with the same."""
    with _other_forwards(conds if store.asks_later else [], partial(_kept, store)):
        yield


@contextmanager
def _other_forwards(conds: Conds, forward: Callable[..., torch.Tensor]) -> Iterator[None]:
    with ExitStack() as stack:
        for network in _networks(conds):
            stack.enter_context(other_forward(network, lambda own, network=network: partial(forward, network, own)))
        yield


def _networks(conds: Conds) -> set[nn.Module]:
    """Those of all ControlNets, also in chains."""
    found = set()
    for cond in (cond for rows in conds for cond in rows or ()):
        control = cond.get("control")
        while control is not None:
            found.add(getattr(control, "control_model", None))
            control = getattr(control, "previous_controlnet", None)
    return {network for network in found if isinstance(network, nn.Module)}


def _noted(store: PrefixStore, network: nn.Module, forward: Callable, *args, **kwargs):
    given = forward(*args, **kwargs)
    entry = _entered(args, kwargs) if store.asks_later else None
    parts = tensors_in(given)
    if entry and all(part.shape[0] == entry.batch for part in parts) and store.has_room(parts):
        copied, batch = map_tensors(given, torch.clone), entry.batch  # a ControlNet scales what it is given in place
        samples = [map_tensors(copied, lambda t, row=row: pick(t, [row], batch)) for row in range(batch)]
        with store.lock:
            store.of_networks[network].append((_settings(args, kwargs), Sampled(entry, samples)))
    return given


def _kept(store: PrefixStore, network: nn.Module, forward: Callable, *args, **kwargs):
    entry, settings = _entered(args, kwargs), _settings(args, kwargs)
    known = [sampled for others, sampled in store.of_networks[network] if others == settings]
    found = matched(entry, known) if entry and known else None
    if found is None:
        return forward(*args, **kwargs)
    return merged([one.kept[place] for one, place in found], (torch.Tensor,), torch.cat)


def _entered(args: tuple, kwargs: dict) -> Entry | None:
    """What enters a network; None where nothing does."""
    values = [*args, *(kwargs[name] for name in sorted(kwargs))]
    first = next((value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)), None)
    if first is None:
        return None
    entry = Entry(first.shape[0], first.shape[0])
    entry.note(first, *values)
    return entry


def _settings(args: tuple, kwargs: dict) -> list:
    """What else a network is told, such as the kind of its hint."""
    return [(name, value) for name, value in (*enumerate(args), *sorted(kwargs.items()))
            if not isinstance(value, dict) and not tensors_in(value)]
