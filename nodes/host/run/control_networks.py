"""What the network of a ControlNet gave a conditional row, given to its weak row: its inputs are the same.

All else that a ControlNet does, it does for the weak rows as well: some leave what others' patches look for. Where
another node asks it inside its wrapper, for tiles, nothing says which rows these are; they are told by what enters the
network, as samples of a rearranged batch are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from uuid import UUID

import torch
from torch import nn

from ..hooks.compiled import other_forward
from ..hooks.entry import Entry
from ..hooks.kept import PrefixStore
from ..hooks.matched import Sampled, matched
from ..hooks.rows import map_tensors, merged, pick, tensors_in
from .control import Conds, asked_for, chained


@contextmanager
def noting_networks(conds: Conds, store: PrefixStore) -> Iterator[None]:
    """For the host's own call: `store` gets what the networks of these conditionings' ControlNets give."""
    with _other_forwards(conds, partial(_noted, store)):
        yield


@contextmanager
def keeping_networks(conds: Conds, store: PrefixStore, sources: Mapping[UUID, UUID]) -> Iterator[None]:
    """For the weak rows' call: the networks give again what they gave the conditional rows."""
    with _other_forwards(conds, partial(_kept, store, sources, Counter())):
        yield


@contextmanager
def _other_forwards(conds: Conds, forward: Callable) -> Iterator[None]:
    networks = {getattr(control, "control_model", None) for control in chained(conds)}
    networks |= {getattr(patcher, "model", None) for control in chained(conds) for patcher in control.get_models()}
    with ExitStack() as stack:
        for network in networks:
            if isinstance(network, nn.Module):
                stack.enter_context(other_forward(network, lambda own, network=network: partial(forward, network, own)))
        yield


def _noted(store: PrefixStore, network: nn.Module, forward: Callable, *args, **kwargs):
    rows, given = asked_for(), forward(*args, **kwargs)
    if rows:
        _note_rows(store, network, given, {place: uuid for place, (uuid, index) in enumerate(rows) if index == 0},
                   len(rows))
    elif store.asks_later and (entry := _entered(args, kwargs)):
        samples = _cut(given, range(entry.batch), entry.batch, store)
        if samples:
            with store.lock:
                store.asked[network].append((_settings(args, kwargs), Sampled(entry, samples)))
    return given


def _note_rows(store: PrefixStore, network: nn.Module, given, wanted: dict[int, UUID], rows: int) -> None:
    """Of the rows under index 0, as the weak ones are: a ControlNet may look at it."""
    parts = _cut(given, wanted, rows, store)
    with store.lock:
        for uuid, part in zip(wanted.values(), parts, strict=False):
            store.controls[network, uuid].append(part)


def _cut(given, places, of: int, store: PrefixStore) -> list:
    """Copies of the parts of what a network gives, for a ControlNet scales that in place; [] where it does not hold
    the rows, or where there is no room."""
    if any(t.shape[0] % of for t in tensors_in(given)):
        return []
    parts = [map_tensors(given, lambda t, place=place: pick(t, [place], of).clone()) for place in places]
    return parts if store.has_room(tensors_in(parts)) else []


def _kept(store: PrefixStore, sources: Mapping[UUID, UUID], used: Counter, network: nn.Module, forward: Callable,
          *args, **kwargs):
    parts = _of_rows(store, sources, used, network) if asked_for() else _of_samples(store, network, args, kwargs)
    return merged(parts, (torch.Tensor,), torch.cat) if parts else forward(*args, **kwargs)


def _of_rows(store: PrefixStore, sources: Mapping[UUID, UUID], used: Counter, network: nn.Module) -> list | None:
    keys = [(network, sources.get(uuid, uuid)) for uuid, _ in asked_for()]
    places = [used[key] for key in keys]
    used.update(keys)
    noted = [store.controls.get(key, ()) for key in keys]
    parts = [found[place] for found, place in zip(noted, places, strict=True) if place < len(found)]
    return parts if len(parts) == len(keys) else None


def _of_samples(store: PrefixStore, network: nn.Module, args: tuple, kwargs: dict) -> list | None:
    settings = _settings(args, kwargs)
    known = [sampled for others, sampled in store.asked[network] if others == settings]
    entry = _entered(args, kwargs) if known else None
    found = entry and matched(entry, known)
    return [one.kept[place] for one, place in found] if found else None


def _entered(args: tuple, kwargs: dict) -> Entry | None:
    """What enters a network; None where nothing does."""
    first = next((value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)), None)
    if first is None:
        return None
    entry = Entry(first.shape[0], first.shape[0])
    entry.note(first, *args, *(kwargs[name] for name in sorted(kwargs)))
    return entry


def _settings(args: tuple, kwargs: dict) -> list:
    """What else a network is told, such as the kind of its hint."""
    return [(name, value) for name, value in (*enumerate(args), *sorted(kwargs.items()))
            if not isinstance(value, dict) and not tensors_in(value)]
