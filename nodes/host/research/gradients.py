"""Gradients through the host's models, which it loads as inference tensors and runs under inference mode.

Autograd refuses to save inference tensors, but only the tensor is one, not its memory. So while a gradient is computed
the weights are replaced by ordinary tensors that share their memory: nothing is copied, and nothing changes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint


class GradientError(RuntimeError):
    """No gradient can be had; the message says why and what to do."""


class OverwritingError(GradientError):
    """Something wrote into a tensor that autograd needs; `gradient` with `overwriting` keeps copies of these."""


@contextmanager
def differentiable(networks: Iterable[nn.Module], device: torch.device, checkpointing: bool = False) -> Iterator[None]:
    """Inside, autograd runs through these networks; afterwards they are as before.

    Args:
        device: where they compute. Weights that the host keeps elsewhere are brought there, all at once.
        checkpointing: keep only what enters each block, and compute the rest again on the way back.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_training_flag())
        for network in networks:
            stack.enter_context(_ordinary_weights(network, device))
            if checkpointing:
                stack.enter_context(_checkpointed(network))
        yield


def gradient(energy: Callable[[Tensor], Tensor], x: Tensor, name: str, overwriting: bool = False) -> Tensor:
    """∇ₓ of the sum of energy(x), [B], for x [B, ...]. To be called inside `differentiable`.

    Args:
        name: of the model, for errors.
        overwriting: whether the model, or a patch of another node (FreeU), writes into its tensors. Then what autograd
            needs is copied, but for the weights, which takes a little longer and more memory.

    Raises:
        OverwritingError: where it does, and `overwriting` is False.
        GradientError: where the model gives none, or runs out of memory.
    """
    x = x.detach().clone().requires_grad_()
    # The norm of a picture of n values has a gradient of about 1 / √n in each, which half precision would lose.
    scale = x[0].numel() ** 0.5
    try:
        with saved_tensors_hooks(_copy if overwriting else _keep, _unchanged):
            (result,) = torch.autograd.grad(energy(x).sum() * scale, x)
    except comfy.model_management.OOM_EXCEPTION as error:
        raise GradientError(f"Not enough memory for the gradient through {name}: {error}. Turn checkpointing on, or "
                            f"use a smaller image.") from error
    except (RuntimeError, NotImplementedError) as error:
        kind = OverwritingError if "inplace operation" in str(error) else GradientError
        raise kind(f"{name} gives no gradient: {error}. This needs a differentiable model. Remove patches of other "
                   f"nodes (compiled or quantized layers, replaced attention), or use another model.") from error
    if not bool(torch.isfinite(result).all()):
        raise GradientError(f"The gradient through {name} is not finite. Use smaller steps, or load the model in a "
                            f"higher precision.")
    return result / scale


# Autograd alone would keep a tensor that is written into together with the graph of what was written, which holds the
# tensor: where the way back then fails, that circle is never freed.
def _keep(tensor: Tensor) -> tuple[Tensor, int]:
    return tensor.detach(), tensor._version


def _copy(tensor: Tensor) -> tuple[Tensor, int]:
    # torch's own allow_mutation_on_saved_tensors copies only what is overwritten, but may then take a new tensor at the
    # same address for the old one.
    is_weight = isinstance(tensor if tensor._base is None else tensor._base, nn.Parameter)
    return _keep(tensor if is_weight else tensor.clone())


def _unchanged(kept: tuple[Tensor, int]) -> Tensor:
    tensor, version = kept
    if tensor._version != version:
        raise RuntimeError("a tensor that the gradient needs was modified by an inplace operation")
    return tensor


@contextmanager
def loaded_for_gradients(patcher: ModelPatcher) -> Iterator[nn.Module]:
    """The patcher's model. Where the host pages weights in and out behind autograd's back, an ordinary copy of it."""
    copy_of = getattr(patcher, "get_non_dynamic_delegate", None)  # patchers that leave the weights alone have none
    if copy_of is None:
        yield patcher.model
        return
    delegate = copy_of()
    comfy.model_management.load_models_gpu([patcher, delegate])
    delegate.pre_run()
    try:
        yield delegate.model
    finally:
        delegate.cleanup()


def ordinary(value: Any) -> Any:
    """The same conditioning (tensors in dicts, lists and the host's COND objects) with no inference tensor in it."""
    if isinstance(value, Tensor):
        return value.clone() if value.is_inference() else value
    if isinstance(value, dict):
        return {key: ordinary(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(ordinary, value)) if type(value) in (list, tuple) else value
    if hasattr(value, "process_cond"):
        value = copy.copy(value)
        value.cond = ordinary(value.cond)
    return value


@contextmanager
def _training_flag() -> Iterator[None]:
    """The host's own switch, which keeps its models from in-place and fused operations; older hosts have none."""
    before = getattr(comfy.model_management, "in_training", None)
    if before is None:
        yield
        return
    comfy.model_management.in_training = True
    try:
        yield
    finally:
        comfy.model_management.in_training = before


@contextmanager
def _ordinary_weights(network: nn.Module, device: torch.device) -> Iterator[None]:
    replaced: list[tuple[dict, str, object, Tensor]] = []
    try:
        for module in network.modules():
            # The host moves the weights of these layers to where they compute.
            moves = device if hasattr(module, "comfy_cast_weights") else None
            for store in (module._parameters, module._buffers, vars(module)):
                for name, tensor in store.items():
                    # Others are the host's quantised tensors, which compute with ordinary ones.
                    if type(tensor) not in (Tensor, nn.Parameter) or tensor.is_meta:
                        continue
                    stand_in = _ordinary_tensor(tensor, moves)
                    if isinstance(tensor, nn.Parameter):
                        stand_in = nn.Parameter(stand_in, requires_grad=False)
                    replaced.append((store, name, tensor, stand_in))
        for store, name, _, stand_in in replaced:
            store[name] = stand_in
        yield
    finally:
        for store, name, tensor, stand_in in replaced:
            if store.get(name) is stand_in:  # else a LoRA hook has put a weight of its own there
                store[name] = tensor


def _ordinary_tensor(tensor: Tensor, device: torch.device | None) -> Tensor:
    if device is not None and tensor.device != device:
        return tensor.detach().to(device)
    alias = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return alias.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())


@contextmanager
def _checkpointed(network: nn.Module) -> Iterator[None]:
    replaced = [(module, vars(module).get("forward")) for module in blocks(network)]
    for module, _ in replaced:
        module.forward = _recomputed(module.forward)
    try:
        yield
    finally:
        for module, forward in replaced:
            del module.forward
            if forward is not None:
                module.forward = forward


_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


def blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The members of a network's outermost lists: its residual, attention and transformer blocks."""
    for child in network.children():
        # Containers are not necessarily called; the host's U-Net takes the layers out of its Sequentials.
        is_called = not isinstance(child, _CONTAINERS) and type(child).forward is not nn.Module.forward
        if isinstance(network, _CONTAINERS) and is_called:
            yield child
        else:
            yield from blocks(child)


def _recomputed(forward: Callable) -> Callable:
    def run(*args, **kwargs):
        values = [*args, *kwargs.values()]
        # Networks note in these dicts where they are. The second time the block is to read what it read the first time.
        held = (getattr(value, "options", value) for value in values)
        states = [(options, dict(options)) for options in held if isinstance(options, dict)]
        tensors = [value for value in values if isinstance(value, Tensor) and not value.is_inference()]
        versions = [tensor._version for tensor in tensors]

        def compute(*args, **kwargs):
            for options, state in states:
                options.clear()
                options.update(state)
            result = forward(*args, **kwargs)
            if [tensor._version for tensor in tensors] != versions:  # autograd itself would not notice, and be wrong
                raise RuntimeError("a block of this model writes into its own input (an inplace operation), which "
                                   "requires checkpointing to be off")
            return result

        return checkpoint(compute, *args, use_reentrant=False, **kwargs)

    return run
