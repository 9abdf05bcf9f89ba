"""The shared prefix of transformers: `prefix` for networks that are a list of blocks.

Hooks on the blocks before the first perturbed layer leave the perturbed rows out of what enters them, and a hook on the
block that holds it puts them back. All that the network keeps beside its blocks (modulation, positions, masks) has
every row all the time. The hooks are there during one call of the host.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import fields, is_dataclass, replace
from uuid import UUID

import torch
from comfy.patcher_extension import WrappersMP

from .families import Family, group_blocks
from .prefix import SPLIT_BATCH, RowPlan


class _Forward:
    """One forward with rows left out."""

    def __init__(self, plan: RowPlan, options: dict, batch: int) -> None:
        self.plan = plan
        self.full = {key: options[key] for key in ("uuids", "cond_or_uncond")}
        self.plain = {key: [rows[i] for i in plan.plain] for key, rows in self.full.items()}
        self.full_batch = batch
        self.plain_batch = batch // len(plan.places) * len(plan.plain)
        self.grown = False

    def fit(self, value):
        """`value` with the rows that belong to this place of the network: the plain ones, or all."""
        if isinstance(value, dict) and "uuids" in value:
            return {**value, **(self.full if self.grown else self.plain)}
        return _map(value, self._put_back if self.grown else self._leave_out)

    def _leave_out(self, t: torch.Tensor) -> torch.Tensor:
        return self.plan.leave_out(t) if t.shape[0] == self.full_batch else t

    def _put_back(self, t: torch.Tensor) -> torch.Tensor:
        return self.plan.put_back(t) if t.shape[0] == self.plain_batch else t


class LateBlocks:
    """Leaves the perturbed rows out of the blocks before the first perturbed layer.

    Args:
        family: the transformer's family.
        first: (group, index) of the first perturbed layer.
        sources: {uuid of a perturbed row: uuid of the conditional row that it copies}.
        decline: called with a reason where the prefix cannot be shared.
    """

    def __init__(self, family: Family, first: tuple[str, int], sources: Mapping[UUID, UUID],
                 decline: Callable[[str], None]) -> None:
        self.family = family
        self.first = first
        self.sources = sources
        self.decline = decline
        self.thread = threading.local()  # MultiGPU runs one forward in each of several threads

    @contextmanager
    def watching(self, networks: list[torch.nn.Module], transformer_options: dict) -> Iterator[None]:
        """Hooks on the networks for as long as the context lasts; `transformer_options` as they are without ours."""
        reason = _obstacle(transformer_options)
        if reason:
            self.decline(reason)
            yield
            return
        with ExitStack() as stack:
            for network in networks:
                for handle in self._hooks(network):
                    stack.callback(handle.remove)
            yield

    def _hooks(self, network: torch.nn.Module) -> Iterator[torch.utils.hooks.RemovableHandle]:
        *before, first = self._blocks_to_the_first(network)
        if not before:
            return
        yield network.register_forward_pre_hook(self._start, with_kwargs=True)
        yield network.register_forward_hook(self._finish, always_call=True)
        for block in before:
            yield block.register_forward_pre_hook(self._enter, with_kwargs=True)
        yield first.register_forward_pre_hook(self._enter_first, with_kwargs=True)

    def _blocks_to_the_first(self, network: torch.nn.Module) -> list[torch.nn.Module]:
        """The blocks in the order in which they run, up to the one that holds the first perturbed layer."""
        blocks: list[torch.nn.Module] = []
        for group in self.family.groups:
            members = group_blocks(network, group)
            if group.name == self.first[0]:
                return blocks + members[:self.first[1] + 1]
            blocks += members
        raise KeyError(self.first)

    def _start(self, network, args, kwargs) -> None:
        self.thread.forward = None
        options = kwargs.get("transformer_options")
        if options is None or not any(row in self.sources for row in options["uuids"]):
            return
        plan = RowPlan.of(options["uuids"], options["cond_or_uncond"], self.sources)
        if plan is None or kwargs.get("control") is not None:
            self.decline(SPLIT_BATCH if plan is None else "a ControlNet acts on the blocks before the perturbed layer")
            return
        self.thread.forward = _Forward(plan, options, args[0].shape[0])

    def _enter_first(self, block, args, kwargs):
        if self.thread.forward is not None:
            self.thread.forward.grown = True
        return self._enter(block, args, kwargs)

    def _enter(self, module, args, kwargs):
        forward = self.thread.forward
        if forward is None:
            return None
        return forward.fit(args), {name: value if name in self.family.unbatched else forward.fit(value)
                                   for name, value in kwargs.items()}

    def _finish(self, network, args, output) -> None:
        forward, self.thread.forward = self.thread.forward, None
        if forward is not None and output is not None and not (
                forward.grown and _batches(output) <= {forward.full_batch}):
            raise RuntimeError("PAG: this version of the model's code does not fit the shared prefix; set share_prefix "
                               "to false in PAG Options, and please report it.")


def _obstacle(options: dict) -> str | None:
    """Why the rows cannot be left out, or None; on the options of a call, before ours are in them."""
    if any(options.get("patches", {}).values()):
        return "another node's patch acts on the blocks"
    if options.get("patches_replace", {}).get("dit"):
        return "another node replaces a block"
    if "optimized_attention_override" in options:
        return "another node overrides every attention"
    if any(options.get("wrappers", {}).get(WrappersMP.DIFFUSION_MODEL, {}).values()):
        return "another node wraps the network"
    return None


def _batches(value) -> set[int]:
    """The sizes of the first axis of every tensor in `value`."""
    found: set[int] = set()
    _map(value, lambda t: found.add(t.shape[0]))
    return found


def _map(value, change: Callable[[torch.Tensor], torch.Tensor]):
    """`value` with every batched tensor in it changed, however deep in tuples, lists, dicts and dataclasses."""
    if isinstance(value, torch.Tensor):
        return change(value) if value.ndim else value
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        return type(value)(_map(item, change) for item in value)
    if isinstance(value, dict):
        return {key: _map(item, change) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _map(getattr(value, field.name), change) for field in fields(value)})
    return value
