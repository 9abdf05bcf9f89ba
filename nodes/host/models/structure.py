"""What the families' table names in a loaded network: which family it is, its modules, their heads and tokens.

A network that the table does not hold gets a family by its structure: its lists of like blocks.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TypeVar

import torch
from torch import nn

from .families import BLOCKS_ONLY, EXCHANGES, FAMILIES, Family, Group

T = TypeVar("T")


def family_of(network: nn.Module) -> Family | None:
    """The family of a network, or None."""
    return _by_class(network, {family.network: family for family in (*FAMILIES, *BLOCKS_ONLY)})


def exchange_of(network: nn.Module) -> Family | None:
    """How a network's streams see each other, or None."""
    return _by_class(network, {family.network: family for family in EXCHANGES})


def family_by_structure(network: nn.Module) -> Family | None:
    """A family for a network that is not in the tables: its lists of like blocks, which can be skipped; None where it
    has none."""
    size = weights_of(network)
    lists: dict[str, list[nn.Module]] = defaultdict(list)  # {path: blocks}; like lists in the parts of another are one
    for path, module in network.named_modules():
        if isinstance(module, nn.ModuleList) and all(map(_runs, module)):
            lists[re.sub(r"\.\d+(?=\.|$)", ".*", path)].extend(module)
    groups: list[Group] = []
    for path, blocks in lists.items():
        weights = sum(map(weights_of, blocks))
        is_inside = any(path.startswith(group.path) for group in groups)
        if len(blocks) > 2 and len({type(block) for block in blocks}) == 1 and weights > size / 10 and not is_inside:
            groups.append(Group(path.rpartition(".")[2], f"{path}.*", by_shape=True))
    names = [group.name for group in groups]
    if not groups or len(set(names)) < len(names) or not all(re.fullmatch(r"[a-z][a-z_]*", name) for name in names):
        return None
    name = type(network).__name__
    if len(groups) == 1:
        groups = [replace(groups[0], name="")]
    return Family(name, "", tuple(groups), source="the middle of the network; not tuned", even=False, skips=True,
                  patch=None, packs_rows=True,
                  blocks_only=f"{name} is not known to Perturbed-Attention Guidance; its blocks were found by their "
                              f"structure")


def parts_of(network: nn.Module) -> Iterator[nn.Module]:
    """Those of `network.modules()`, in their order. Several steps of a run walk large networks, and torch's own way
    passes each module through one generator for every module around it."""
    seen, ahead = set(), [network]
    while ahead:
        module = ahead.pop()
        if module is not None and module not in seen:
            seen.add(module)
            yield module
            ahead += reversed(module._modules.values())


def weights_of(module: nn.Module) -> int:
    """How many numbers a module's weights are."""
    return sum(weight.numel() for weight in module.parameters())


def _runs(module: nn.Module) -> bool:
    """Whether a module is called, and does not only hold others."""
    return type(module).forward is not nn.Module.forward and not isinstance(module, nn.ModuleList)


def _by_class(network: nn.Module, table: dict):
    """By the name of the class or a base, so that no model code is imported that no one uses."""
    names = (f"{cls.__module__}.{cls.__qualname__}" for cls in type(network).__mro__)
    return next((table[name] for name in names if name in table), None)


def group_modules(network: nn.Module, group: Group) -> Iterator[nn.Module]:
    """The modules of a group, in the order in which the network runs them."""
    yield from filter(_has_map, matching(network, group.path))


def selected_modules(network: nn.Module, family: Family,
                     layers: Mapping[tuple[str, int], T]) -> Iterator[tuple[Group, nn.Module, T]]:
    """(group, module, what is given for it) of the modules named in `layers`, {(group, index): anything}."""
    for group in family.groups:
        for index, module in enumerate(group_modules(network, group)):
            if (group.name, index) in layers:
                yield group, module, layers[group.name, index]


def _has_map(module: nn.Module) -> bool:
    """Whether a module's attention has one map of its tokens by its tokens. Stable Audio 3 takes the difference of two,
    and PixArt's compressed keys and values stand for several tokens each: neither can become an identity."""
    return not getattr(module, "differential", False) and getattr(module, "sr_ratio", 1) == 1


def group_units(network: nn.Module, group: Group) -> Iterator[tuple[nn.Module, list[nn.Module]]]:
    """(a block, the group's modules in it) of all blocks of which some hold such modules, in the order of running."""
    block, _, inside = group.path.rpartition("*")
    for unit in matching(network, f"{block}*"):
        yield unit, list(filter(_has_map, _matching(unit, inside.strip(".").split(".") if inside else [])))


def token_grid(network: nn.Module, family: Family, latent: torch.Size) -> tuple[int, int] | None:
    """(h, w) of the image tokens of each frame of a latent [B, C, ..., H, W]; None where they lie in no picture."""
    patch = getattr(network, family.patch) if isinstance(family.patch, str) else family.patch
    if patch is None or len(latent) < 4:
        return None
    side = patch if isinstance(patch, int) else patch[-1]
    return -(-latent[-2] // side), -(-latent[-1] // side)  # the host fills up the last patch


def unwrapped(module: nn.Module) -> nn.Module:
    """What torch.compile wraps in a module of its own; any other module as it is."""
    return getattr(module, "_orig_mod", module)


def matching(module: nn.Module, path: str) -> Iterator[nn.Module]:
    """The modules at a path, "*" in which stands for any part of a name, in the order in which they are registered."""
    yield from _matching(module, path.split("."))


def _matching(module: nn.Module, path: list[str]) -> Iterator[nn.Module]:
    if not path:
        yield module
        return
    for name, child in unwrapped(module).named_children():
        if fnmatchcase(name, path[0]):
            yield from _matching(child, path[1:])


def num_heads(module: nn.Module, group: Group) -> int:
    """Number of attention heads of one of the group's modules; 1 where it counts as a whole."""
    if not group.heads:
        return 1
    value = module
    for name in group.heads.split("."):
        value = getattr(value, name)
    return int(value)
