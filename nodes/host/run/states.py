"""What other nodes' wrappers remember from call to call, kept apart for the weak rows' calls.

Caches and step counters know calls for a conditional and an unconditional row. A third call in a step would count as a
step for them, or overwrite what they keep of the conditional row. So whatever such a call changes in a wrapper's
variables, in its attributes or in what it has put on the network is put back after it, and is there again for the next
weak call. A first weak call that is answered without the network, or fails, is made again with what was remembered
before the run.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

import comfy.model_management
import torch
from torch import nn

from ....pag_core.attention import PerturbationError

_OURS = __name__.partition(".nodes.")[0]
_NOT_STATE = ("torch", "comfy", "comfy_api", "builtins", "numpy", _OURS)  # objects of these classes are left alone
_DEPTH = 5
_ABSENT = object()

# {id of a container: (the container, {key: value})}; a container is a cell of a closure, a dict, a list, a set or the
# attributes of a network
Snapshot = dict[int, tuple[object, Mapping]]


# (whether a function wrapper runs the network by itself) -> (the prediction, whether anything altered ran for it)
Predict = Callable[[bool], "tuple[torch.Tensor, bool]"]


class NeighbourError(RuntimeError):
    """The perturbed rows cannot run beside another node."""


class Memory:
    """What others remember in the weak rows' calls of one run."""

    def __init__(self) -> None:
        self.wrappers: list[Callable] = []
        self.networks: list[nn.Module] = []
        self.start: Snapshot = {}  # before the first call of the run
        self.own: dict[tuple[int, object], tuple[object, object]] = {}  # {(container's id, key): (container, value)}
        self.is_tried = False
        self.is_past = False  # whether a function wrapper runs the network by itself

    def begin(self, wrappers: list[Callable], networks: list[nn.Module]) -> None:
        """Before a run beside these wrappers, and before a step, for more may have come."""
        more = [wrapper for wrapper in wrappers if wrapper not in self.wrappers]
        networks = [network for network in networks if network not in self.networks]
        if more or networks:
            self.start = {**_snapshot(more, networks), **self.start}
            self.wrappers += more
            self.networks += networks

    def call(self, predict: Predict) -> torch.Tensor:
        """The prediction of one call.

        Raises:
            NeighbourError: where the run's first call fails beside others.
        """
        if not self.networks:  # nothing of another node is there
            return predict(False)[0]
        if self.is_tried:
            return self._apart(predict)[0]
        self.is_tried = True
        with suppress(_Failed):
            prediction, has_run = self._tried(predict)
            if has_run:
                return prediction
        now = _snapshot(self.wrappers, self.networks)
        self.own = {(place, key): (container, content.get(key, _ABSENT))
                    for place, (container, content) in self.start.items() if place in now
                    for key in {*content, *now[place][1]}
                    if not _is_same(content.get(key, _ABSENT), now[place][1].get(key, _ABSENT))}
        start = dict(self.own)
        try:
            prediction, has_run = self._tried(predict)
            if has_run:
                return prediction
            self.own, self.is_past = start, True
            past, self.is_past = self._tried(predict)
            return past if self.is_past else prediction
        except _Failed as failed:
            names = ", ".join(sorted({f"{wrapper.__module__}.{wrapper.__qualname__}" for wrapper in self.wrappers
                                      if hasattr(wrapper, "__qualname__")})) or "one that changed the network"
            raise NeighbourError(
                f"PAG's perturbed rows cannot run beside another node on this model ({names}). The model's call went "
                f"well without them and fails for them: {failed.__cause__}. Such nodes count calls, keep results of "
                f"one call for the next, or know pairs of rows only. Remove that node, or PAG.") from failed.__cause__

    def _tried(self, predict: Predict) -> tuple[torch.Tensor, bool]:
        try:
            return self._apart(predict)
        except (comfy.model_management.InterruptProcessingException, comfy.model_management.OOM_EXCEPTION,
                PerturbationError):
            raise
        except Exception as error:
            raise _Failed from error

    def _apart(self, predict: Predict) -> tuple[torch.Tensor, bool]:
        """One call with the weak rows' own memory, after which others remember what they did before it."""
        others = _snapshot(self.wrappers, self.networks)
        for (_, key), (container, value) in self.own.items():
            _put(container, key, value)
        try:
            return predict(self.is_past)
        finally:
            for place, (container, content) in others.items():
                now = _content(container)
                for key in {*content, *now}:
                    value, before = now.get(key, _ABSENT), content.get(key, _ABSENT)
                    if (place, key) in self.own or not _is_same(value, before):
                        self.own[place, key] = container, value
                        _put(container, key, before)


class _Failed(Exception):
    """A call did, for the reason that is its cause."""


def _snapshot(wrappers: Iterable[Callable], networks: Iterable[nn.Module]) -> Snapshot:
    """What these remember now; tensors by reference."""
    found: Snapshot = {}
    for wrapper in wrappers:
        _visit(wrapper, found, _DEPTH)
    for network in networks:
        found[id(network)] = network, _content(network)
        for value in found[id(network)][1].values():
            _visit(value, found, _DEPTH)
    return found


def _content(container) -> Mapping:
    if isinstance(container, types.CellType):
        try:
            return {0: container.cell_contents}
        except ValueError:  # no value was given to it yet
            return {}
    if isinstance(container, nn.Module):
        return {name: value for name, value in vars(container).items() if not name.startswith("_")}
    return dict(container) if isinstance(container, dict) else {0: tuple(container)}


def _put(container, key, value) -> None:
    if isinstance(container, types.CellType):
        if value is _ABSENT:
            del container.cell_contents
        else:
            container.cell_contents = value
    elif isinstance(container, (list, set)):
        container.clear()
        (container.extend if isinstance(container, list) else container.update)(value)
    else:
        values = vars(container) if isinstance(container, nn.Module) else container
        if value is _ABSENT:
            values.pop(key, None)
        else:
            values[key] = value


def _is_same(a, b) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_is_same, a, b))
    return a is b or (type(a) is type(b) and isinstance(a, (bool, int, float, str)) and a == b)


def _visit(value, found: Snapshot, depth: int) -> None:
    """Every container in reach of a wrapper's closure and attributes."""
    if depth == 0 or id(value) in found:
        return
    if isinstance(value, types.MethodType):
        _visit(value.__func__, found, depth)
        _visit(value.__self__, found, depth)
    elif isinstance(value, types.FunctionType):
        for cell in value.__closure__ or ():
            _visit(cell, found, depth)
    elif isinstance(value, (types.CellType, dict, list, set)):
        found[id(value)] = value, _content(value)
        for item in found[id(value)][1].values():
            _visit(item, found, depth - 1)
    elif isinstance(value, tuple):
        for item in value:
            _visit(item, found, depth - 1)
    elif _holds_state(value):
        _visit(vars(value), found, depth)


def _holds_state(value) -> bool:
    name = type(value).__module__
    return (hasattr(value, "__dict__") and not isinstance(value, (type, types.ModuleType, nn.Module))
            and not any(name == other or name.startswith(f"{other}.") for other in _NOT_STATE))
