"""What other nodes' code remembers: the variables of its closures, and its objects' attributes.

Told by walking from a function to everything in its reach. Of a module it is what the function names, and only of its
own pack; the host's objects are left alone.
"""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import nn

from ..models.structure import parts_of

_OURS = __name__.partition(".nodes.")[0]
_NOT_STATE = ("torch", "comfy", "comfy_api", "server", "execution", "nodes", "folder_paths", "builtins", "numpy",
              "functools", "logging", "threading", "asyncio", _OURS)  # modules whose objects are left alone
_IMMUTABLE = frozenset((type(None), bool, int, float, str))
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
    walk = _Walk()
    for value in values:
        if isinstance(value, nn.Module):
            walk.of_module(value, _DEPTH)
        walk.visit(value, _DEPTH)
    for network in networks:
        for module in parts_of(network):
            hooks: list = []
            if module._forward_pre_hooks or module._forward_hooks:
                hooks += filter(is_others_hook, (*module._forward_pre_hooks.values(), *module._forward_hooks.values()))
            # Most are single layers, of which nobody's attributes are there.
            if module._modules or hooks or module is network or "forward" in vars(module):
                walk.found[id(module)] = module, _content_of(module)
                for value in (*walk.found[id(module)][1].values(), *hooks):
                    if type(value) not in _IMMUTABLE:  # most are
                        walk.visit(value, _DEPTH)
    walk.finish()
    return walk.found


def again(before: Snapshot) -> Snapshot:
    """What the containers of a snapshot hold now. Nothing new in their reach is looked for."""
    return {place: (container, _content_of(container)) for place, (container, _) in before.items()}


def compared(before: Snapshot, own: Collection[tuple[int, object]] = ()) -> list[Value]:
    """The values of these containers that have changed, and those of `own`, (what tells a container, key), then and
    now. All are read before the first may be put back, for what two functions name of a module is the same variable."""
    found = []
    for place, (container, content) in before.items():
        now = _content_of(container)
        for key in {**content, **now}:
            then, is_now = content.get(key, ABSENT), now.get(key, ABSENT)
            if (then is not is_now and not is_same(then, is_now)) or (place, key) in own:
                found.append(Value(place, container, key, then, is_now))
    return found


def changes(before: Snapshot) -> list[Change]:
    """What these containers have now that they did not have then."""
    return [(value.container, value.key, value.now) for value in compared(before)]


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
        for value in compared(before, own):
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
        values, has_parts = vars(container), bool(container._modules)
        if values.keys() <= _TORCHS:
            return {}
        return {name: value for name, value in values.items()
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
    # A method is another object each time that it is taken or bound.
    return a is b or (type(a) is type(b) and isinstance(a, (bool, int, float, str, types.MethodType)) and a == b)


class _Walk:
    """To every container in reach of a wrapper's closure and attributes. What is near comes first, so that it is not
    met at the end of another way."""

    def __init__(self) -> None:
        self.found: Snapshot = {}
        self._later: deque[tuple[object, int]] = deque()
        self._modules: set[nn.Module] = set()  # of which all is found that is in reach of their attributes

    def finish(self) -> None:
        while self._later:
            self.visit(*self._later.popleft())

    def visit(self, value, depth: int) -> None:
        if depth and isinstance(value, nn.Module) and is_others(type(value).__module__):
            self.of_module(value, depth)
            return
        if depth == 0 or isinstance(value, _NO_CONTAINERS) or id(value) in self.found:
            return
        if isinstance(value, types.MethodType):
            self.visit(value.__func__, depth)
            self.visit(value.__self__, depth)
            if isinstance(value.__self__, nn.Module) and is_others(value.__func__.__module__):
                self.of_module(value.__self__, depth)  # the host's, to which the pack has given a method of its own
        elif isinstance(value, types.FunctionType):
            defaults = (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values())
            for item in (*(value.__closure__ or ()), *defaults):
                self.visit(item, depth)
            self._of_globals(value, depth)
        elif isinstance(value, partial):
            for item in (value.func, *value.args, *value.keywords.values()):
                self.visit(item, depth)
        elif isinstance(value, type):
            if is_others(value.__module__):
                self._visit_later((item for item in self._find(value) if not callable(item)), depth)
        elif isinstance(value, (types.CellType, dict, list, set)):
            content = self._find(value)
            if isinstance(value, types.CellType):
                self._of_named_modules(content)
            self._visit_later(content, depth)
        elif isinstance(value, tuple):
            self._visit_later(value, depth)
        elif _holds_state(value):
            if _slots(type(value)):
                self._visit_later(self._find(value), depth)
            self._of_named_modules(getattr(value, "__dict__", {}).values())
            self.visit(getattr(value, "__dict__", None), depth)
            self.visit(type(value), depth)
            self.visit(vars(type(value)).get("__call__"), depth)

    def of_module(self, module: nn.Module, depth: int) -> None:
        """A network's module, and every container in reach of its attributes."""
        if module not in self._modules:
            self._modules.add(module)
            self._visit_later(self._find(module), depth)

    def _of_globals(self, function: types.FunctionType, depth: int) -> None:
        """What a function names of its module, and what is its own pack's, for a module holds much else."""
        code, pack = function.__code__, _pack(function.__module__)
        if not is_others(function.__module__) or id(code) in self.found:
            return
        names = _Globals(code, function.__globals__)
        self.found[id(code)] = names, _content_of(names)
        for item in self.found[id(code)][1].values():
            if isinstance(item, types.ModuleType):
                if _pack(item.__name__) == pack:
                    self._visit_later((vars(item).get(name) for name in code.co_names), depth)
                continue
            where = item if isinstance(item, (type, types.FunctionType)) else type(item)
            if isinstance(item, (dict, list, set)) or _pack(where.__module__) == pack:
                self._visit_later((item,), depth)

    def _of_named_modules(self, values: Iterable) -> None:
        """Of the modules that a pack's function or object names the attributes, for it may keep something there."""
        for value in values:
            if isinstance(value, nn.Module):
                self._find(value)

    def _find(self, container) -> Iterable:
        """Note what a container holds."""
        if id(container) not in self.found:
            self.found[id(container)] = container, _content_of(container)
        return self.found[id(container)][1].values()

    def _visit_later(self, values: Iterable, depth: int) -> None:
        self._later += ((value, depth - 1) for value in values)


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
