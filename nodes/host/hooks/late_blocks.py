"""The shared prefix of transformers: `prefix` for networks that are a list of blocks.

Hooks on the blocks before the first perturbed layer leave the perturbed rows out of what enters a block, and put copies
of their conditional rows into what leaves it. So the network itself, with all that it keeps and does between its
blocks (modulation, positions, a ControlNet's residuals), has every row all the time. From the first perturbed block on
they do nothing, also where a network runs earlier blocks again (Stable Cascade). The hooks are there during one call of
the host.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass, fields, is_dataclass, replace
from uuid import UUID

import torch
from comfy.patcher_extension import WrappersMP

from ..models.families import RESULT, Family, group_blocks, group_modules
from .prefix import SPLIT_BATCH, RowPlan


@dataclass(frozen=True)
class _Forward:
    """One forward with rows left out of its first blocks.

    Attributes:
        full: the batch of all rows, the first axis of what the network is given.
        options: what "uuids" and "cond_or_uncond" say of the plain rows.
    """

    plan: RowPlan
    full: int
    options: dict

    @classmethod
    def of(cls, plan: RowPlan, options: dict, batch: int) -> _Forward:
        return cls(plan, batch, {key: [options[key][i] for i in plan.plain] for key in ("uuids", "cond_or_uncond")})

    def leave_out(self, value, axis: int | None = 0):
        """`value` with the plain rows only; `axis` as in `Family.axes`."""
        if isinstance(value, dict) and "uuids" in value:
            return {**value, **self.options}
        return _map(value, lambda t: self.plan.leave_out(t, axis) if self._has_rows(t, axis, self.full) else t)

    def put_back(self, value, axis: int | None = 0):
        """`value` with all rows, where it has the plain ones."""
        plain = self.full // len(self.plan.places) * len(self.plan.plain)
        return _map(value, lambda t: self.plan.put_back(t, axis) if self._has_rows(t, axis, plain) else t)

    @staticmethod
    def _has_rows(t: torch.Tensor, axis: int | None, batch: int) -> bool:
        # Further axes are only named where they hold rows; the first one may be anything, such as a 1.
        return axis is not None and t.ndim > axis and (t.shape[axis] % batch == 0 if axis else t.shape[0] == batch)


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
        before, perturbed = self._blocks(network)
        if not before:
            return
        yield network.register_forward_pre_hook(self._start, with_kwargs=True)
        yield network.register_forward_hook(self._finish, always_call=True)
        for block in before:
            yield block.register_forward_pre_hook(self._enter, with_kwargs=True)
            yield block.register_forward_hook(self._leave)
        yield perturbed.register_forward_pre_hook(self._finish)

    def _blocks(self, network: torch.nn.Module) -> tuple[list[torch.nn.Module], torch.nn.Module]:
        """The blocks before the one that holds the first perturbed layer, and that one."""
        name, index = self.first
        before: list[torch.nn.Module] = []
        for group in self.family.groups:
            layer = list(group_modules(network, group))[index] if group.name == name else None
            for block in group_blocks(network, group):
                if layer in block.modules():
                    return before, block
                before.append(block)
        raise KeyError(self.first)

    def _start(self, network, args, kwargs) -> None:
        self.thread.forward = None
        options = kwargs.get("transformer_options")
        if options is None or not any(row in self.sources for row in options["uuids"]):
            return
        plan = RowPlan.of(options["uuids"], options["cond_or_uncond"], self.sources)
        if plan is None:
            self.decline(SPLIT_BATCH)
            return
        latent = args[0] if isinstance(args[0], torch.Tensor) else args[0][0]  # several latents: video and sound
        self.thread.forward = _Forward.of(plan, options, latent.shape[0])

    def _enter(self, module, args, kwargs):
        forward = self.thread.forward
        if forward is None:
            return None
        axes = self.family.axes
        return (tuple(forward.leave_out(value, axes.get(place, 0)) for place, value in enumerate(args)),
                {name: forward.leave_out(value, axes.get(name, 0)) for name, value in kwargs.items()})

    def _leave(self, module, args, output):
        forward = self.thread.forward
        return None if forward is None else forward.put_back(output, self.family.axes.get(RESULT, 0))

    def _finish(self, *_) -> None:
        self.thread.forward = None


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


def _map(value, change: Callable[[torch.Tensor], torch.Tensor]):
    """`value` with every batched tensor in it changed, however deep in tuples, lists, dicts and dataclasses."""
    if isinstance(value, torch.Tensor):
        return change(value) if value.ndim else value
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        return type(value)(_map(item, change) for item in value)
    if isinstance(value, dict):
        return {key: _map(item, change) for key, item in value.items()}
    if isinstance(getattr(value, "data", None), torch.Tensor) and hasattr(value, "batch_size"):  # LTX-Video's timesteps
        value = copy(value)
        value.data = change(value.data)
        value.batch_size = value.data.shape[0]
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _map(getattr(value, field.name), change) for field in fields(value)})
    return value
