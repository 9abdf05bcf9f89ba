"""What other nodes' code remembers: the variables of its closures, and its objects' attributes.

Told by walking from a function to everything in its reach. Of a module it is what the function names, and only of its
own pack; the host's objects are left alone.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import torch
from torch import nn

_OURS = __name__.partition(".nodes.")[0]
_NOT_STATE = ("torch", "comfy", "comfy_api", "server", "execution", "nodes", "folder_paths", "builtins", "numpy",
              "functools", "logging", "threading", "asyncio", _OURS)  # modules whose objects are left alone
_NO_CONTAINERS = (type(None), bool, int, float, str, torch.Tensor, nn.Module)  # what most attributes are, told first
_DEPTH = 5
_TORCHS = frozenset(vars(nn.Module()))  # attributes that torch gives every module
ABSENT = object()

# {what tells a container: (the container, {key: value})}; a container is a cell of a closure, a dict, a list, a set,
# the attributes of a class, of a network's module or of an object with slots, or what a function names of its module
Snapshot = dict[int, tuple[object, Mapping]]
Change = tuple[object, object, object]  # container, key, value
Own = dict[tuple[int, object], tuple[object, object]]  # {(what tells a container, key): (container, value)}


class Value(NamedTuple):
    """What a container of a snapshot had for a key, and has now; ABSENT for nothing."""

    place: int
    container: object
    key: object
    then: object
    now: object

    @property
    def is_changed(self) -> bool:
        return not is_same(self.then, self.now)


class _Globals:
    """The variables of a module that one function names.

    Args:
        code: the function's.
        values: the module's.
    """

    def __init__(self, code: types.CodeType, values: dict) -> None:
        self.code, self.values = code, values

    def names(self) -> Iterator[str]:
        return (name for name in self.code.co_names if name in self.values)


def snapshot(values: Iterable, networks: Iterable[nn.Module] = ()) -> Snapshot:
    """What these remember now; tensors by reference. Of a module of the host's among them that is its attributes."""
    found: Snapshot = {}
    for value in values:
        if isinstance(value, nn.Module):
            _of_module(value, found, _DEPTH)
        _visit(value, found, _DEPTH)
    for network in networks:
        for module in network.modules():
            hooks = [hook for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
                     if is_others_hook(hook)]
            # Most are single layers, of which nobody's attributes are there.
            if module is network or hooks or "forward" in vars(module) or next(module.children(), None) is not None:
                found[id(module)] = module, _content_of(module)
                for value in (*found[id(module)][1].values(), *hooks):
                    _visit(value, found, _DEPTH)
    return found


def again(before: Snapshot) -> Snapshot:
    """What the containers of a snapshot hold now. Nothing new in their reach is looked for."""
    return {place: (container, _content_of(container)) for place, (container, _) in before.items()}


def compared(before: Snapshot) -> list[Value]:
    """Every value of these containers, then and now. All are read before the first may be put back, for what two
    functions name of a module is the same variable."""
    found = []
    for place, (container, content) in before.items():
        now = _content_of(container)
        found += [Value(place, container, key, content.get(key, ABSENT), now.get(key, ABSENT))
                  for key in {*content, *now}]
    return found


def changes(before: Snapshot) -> list[Change]:
    """What these containers have now that they did not have then."""
    return [(value.container, value.key, value.now) for value in compared(before) if value.is_changed]


def is_plain(value) -> bool:
    """Whether a value holds numbers and words only, such as a count."""
    return value is ABSENT or all(part is None or isinstance(part, (bool, int, float, str))
                                  for part in (value if isinstance(value, tuple) else (value,)))


@contextmanager
def apart(values: Iterable, own: Own, networks: Iterable[nn.Module] = ()) -> Iterator[None]:
    """What these remember inside is in `own`, which gets what they remember there; afterwards they remember what they
    did before."""
    before = snapshot(values, networks)
    before = {**{place: (container, _content_of(container)) for (place, _), (container, _) in own.items()
                 if place not in before}, **before}
    for (_, key), (container, value) in own.items():
        put(container, key, value)
    try:
        yield
    finally:
        for value in compared(before):
            if (value.place, value.key) in own or value.is_changed:
                own[value.place, value.key] = value.container, value.now
                put(value.container, value.key, value.then)


def _content_of(container) -> Mapping:
    """{key: value} of what a container holds now."""
    if isinstance(container, types.CellType):
        try:
            return {0: container.cell_contents}
        except ValueError:  # no value was given to it yet
            return {}
    if isinstance(container, _Globals):
        return {name: container.values[name] for name in container.names()}
    if isinstance(container, nn.Module):
        # Of single layers the host keeps notes under such names, on weights that it moves.
        has_parts = next(container.children(), None) is not None
        return {name: value for name, value in vars(container).items()
                if name not in _TORCHS and (has_parts or not name.startswith("_"))}
    if isinstance(container, type):
        return {name: value for name, value in vars(container).items() if not name.startswith("__")}
    if isinstance(container, dict):
        return dict(container)
    if isinstance(container, (list, set)):
        return {0: tuple(container)}
    return {name: getattr(container, name) for name in _slots(type(container)) if hasattr(container, name)}


def put(container, key, value) -> None:
    """Give a container another value for one of its keys; ABSENT for none."""
    if isinstance(container, types.CellType):
        if value is ABSENT:
            del container.cell_contents
        else:
            container.cell_contents = value
    elif isinstance(container, (list, set)):
        container.clear()
        (container.extend if isinstance(container, list) else container.update)(value)
    elif isinstance(container, (nn.Module, _Globals, dict)):
        values = (vars(container) if isinstance(container, nn.Module) else
                  container.values if isinstance(container, _Globals) else container)
        if value is ABSENT:
            values.pop(key, None)
        else:
            values[key] = value
    elif value is ABSENT:
        delattr(container, key)
    else:
        setattr(container, key, value)


def is_same(a, b) -> bool:
    """Whether two such values are the same ones."""
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(is_same, a, b))
    return a is b or (type(a) is type(b) and isinstance(a, (bool, int, float, str)) and a == b)


def _visit(value, found: Snapshot, depth: int) -> None:
    """Every container in reach of a wrapper's closure and attributes."""
    if depth and isinstance(value, nn.Module) and is_others(type(value).__module__):
        _of_module(value, found, depth)
        return
    if depth == 0 or isinstance(value, _NO_CONTAINERS) or id(value) in found:
        return
    if isinstance(value, types.MethodType):
        _visit(value.__func__, found, depth)
        _visit(value.__self__, found, depth)
        if isinstance(value.__self__, nn.Module) and is_others(value.__func__.__module__):
            _of_module(value.__self__, found, depth)  # the host's, to which the pack has given a method of its own
    elif isinstance(value, types.FunctionType):
        for cell in value.__closure__ or ():
            _visit(cell, found, depth)
        if is_others(value.__module__) and id(value.__code__) not in found:
            # Only what the function names, and what is its own pack's, for a module holds much else.
            names = _Globals(value.__code__, value.__globals__)
            found[id(value.__code__)] = names, _content_of(names)
            pack = _pack(value.__module__)
            for item in found[id(value.__code__)][1].values():
                if isinstance(item, types.ModuleType):
                    if _pack(item.__name__) == pack:
                        for name in value.__code__.co_names:
                            _visit(vars(item).get(name), found, depth - 1)
                    continue
                where = item if isinstance(item, (type, types.FunctionType)) else type(item)
                if isinstance(item, (dict, list, set)) or _pack(where.__module__) == pack:
                    _visit(item, found, depth - 1)
    elif isinstance(value, type):
        if is_others(value.__module__):
            found[id(value)] = value, _content_of(value)
            for item in found[id(value)][1].values():
                if not callable(item):
                    _visit(item, found, depth - 1)
    elif isinstance(value, (types.CellType, dict, list, set)):
        found[id(value)] = value, _content_of(value)
        for item in found[id(value)][1].values():
            if isinstance(value, types.CellType):
                _of_host_module(item, found)
            _visit(item, found, depth - 1)
    elif isinstance(value, tuple):
        for item in value:
            _visit(item, found, depth - 1)
    elif _holds_state(value):
        if _slots(type(value)):
            found[id(value)] = value, _content_of(value)
            for item in found[id(value)][1].values():
                _visit(item, found, depth - 1)
        for item in vars(value).values() if hasattr(value, "__dict__") else ():
            _of_host_module(item, found)
        _visit(getattr(value, "__dict__", None), found, depth)
        _visit(type(value), found, depth)
        _visit(vars(type(value)).get("__call__"), found, depth)


def _of_module(module: nn.Module, found: Snapshot, depth: int) -> None:
    """A network's module, and every container in reach of its attributes."""
    if id(module) not in found:
        found[id(module)] = module, _content_of(module)
        for item in found[id(module)][1].values():
            _visit(item, found, depth - 1)


def _of_host_module(item, found: Snapshot) -> None:
    """The attributes of a module that another pack's function or object names, for it may keep something there."""
    if isinstance(item, nn.Module):
        found.setdefault(id(item), (item, _content_of(item)))


@cache
def _slots(kind: type) -> tuple[str, ...]:
    """The attributes of a class's objects that are no entries of their __dict__."""
    return tuple(name for cls in kind.__mro__ for name, member in vars(cls).items()
                 if isinstance(member, types.MemberDescriptorType))


def _holds_state(value) -> bool:
    return ((hasattr(value, "__dict__") or bool(_slots(type(value)))) and is_others(type(value).__module__)
            and not isinstance(value, (type, types.ModuleType, nn.Module)))


def _pack(module: str | None) -> str:
    return (module or "").partition(".")[0]


def is_others_hook(hook) -> bool:
    """Whether a hook of a network's module is another pack's."""
    function = getattr(hook, "func", hook)
    return is_others(getattr(function, "__module__", type(function).__module__))


@cache
def is_others(module: str | None) -> bool:
    """Whether a module of Python is another pack's, by its name."""
    return module is not None and not any(module == other or module.startswith(f"{other}.") for other in _NOT_STATE)
