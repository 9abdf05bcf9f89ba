"""A GPU for machines that have none: a device of torch whose tensors lie on the CPU, and say that they do not.

Code meets what it would meet on CUDA: its tensors' device is not the CPU's, and an operation on tensors of both raises.
Numbers are the CPU's own, so a run here must equal one on the CPU bit for bit. What crosses between the two, and what
makes the CPU wait for the device, is noted. It stands in for no kernel: speed, half precision and what CUDA's own
attention makes of its inputs take a real one.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "gpu"  # its type: torch.device("gpu", 0)
_COPIES = ("copy_", "_to_copy")
_INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")  # by tensors of either device
_JOINED = ("cat", "stack")
# Their result's shape or value is the CPU's to know.
_AWAITED = ("_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2", "unique_dim",
            "unique_consecutive")


class StandIn:
    """The device in use.

    Attributes:
        device: what tensors are to be moved to.
        crossings: how often the CPU and the device met: copies "to the device" and "to the CPU", and operations by
            name for which the CPU had to wait. May be cleared.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.crossings: Counter[str] = Counter()


_in_use: list[StandIn] = []


@contextmanager
def stand_in() -> Iterator[StandIn]:
    """The device, usable inside."""
    found = StandIn(register())
    _in_use.append(found)
    generator, torch.Generator = torch.Generator, _Generator
    try:
        with _Calls():
            yield found
    finally:
        torch.Generator = generator
        _in_use.remove(found)


@functools.cache
def register() -> torch.device:
    """Make the device known to torch; to be called before the first gradient, for autograd counts the devices then."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    _library.fallback(_run, "PrivateUse1")
    return torch.device(NAME, 0)


class _Module(_DummyBackendModule):
    """torch.gpu, as torch.cuda is CUDA's. Nothing runs beside the CPU, and memory is not followed."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]

    def synchronize(self) -> None:
        pass

    def reset_peak_memory_stats(self) -> None:
        pass

    def max_memory_allocated(self) -> int:
        return 0

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            self.seconds = 0.0

        def record(self) -> None:
            self.seconds = time.perf_counter()

        def elapsed_time(self, end) -> float:
            return 1000 * (end.seconds - self.seconds)


class _Generator(torch.Generator):
    """A generator of random numbers of either device; the device draws what the CPU would."""

    def __new__(cls, device: torch.device | str = "cpu") -> _Generator:
        return super().__new__(cls, "cpu")

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.kind = torch.device(device).type


class _Calls(TorchFunctionMode):
    """What has to be seen before torch takes a call apart: whose generator it was given, and the constructors that
    build on the CPU and move the result where no backend in Python can follow."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        where = args[0].device if args and isinstance(args[0], torch.Tensor) else kwargs.get("device") or "cpu"
        kind, generator = torch.device(where).type, kwargs.get("generator")
        if generator is not None and getattr(generator, "kind", "cpu") != kind:
            raise RuntimeError(f"{function.__name__}: expected a '{kind}' device type for generator")
        if kind != NAME or function not in (torch.tensor, torch.as_tensor):
            return function(*args, **kwargs)
        data, *others = args
        if isinstance(data, DeviceTensor):
            return data.detach().clone().to(**kwargs)
        values = tree_map_only(DeviceTensor, torch.Tensor.item, data)
        return function(values, *others, **{**kwargs, "device": "cpu"}).to(where)


_library = torch.library.Library("_", "IMPL")  # lives as long as what is registered with it


class DeviceTensor(torch.Tensor):
    """A tensor of the device.

    Attributes:
        raw: where its numbers really are.
    """

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> DeviceTensor:
        return torch.Tensor._make_wrapper_subclass(
            cls, raw.shape, strides=raw.stride(), storage_offset=raw.storage_offset(), dtype=raw.dtype,
            device=register())

    def __init__(self, raw: torch.Tensor) -> None:
        self.raw = raw

    def __repr__(self, **_) -> str:
        return f"{NAME}: {self.raw}"

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return _run(operation, *args, **(kwargs or {}))


def _run(operation, *args, **kwargs):
    """The operation on the CPU; its results lie on the device, unless they were asked for elsewhere."""
    name = operation._schema.name.removeprefix("aten::")
    if name in ("to", "type_as", "item", "is_nonzero"):
        return operation.decompose(*args, **kwargs)  # to a copy, whose device is told by name, or to a wait
    if name == "_fused_sdp_choice":
        return 0
    if name == "_has_compatible_shallow_copy_type":  # asked of a module's weights on their way to a device
        return False
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, DeviceTensor)]
    target = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else None
    on_device = target == NAME if target else bool(ours)
    _check(name, args, kwargs, tensors)
    _note(name, args, ours, target)
    if name == "copy_":
        _raw(args[0]).copy_(_raw(args[1]))
        return args[0]
    raw_args, raw_kwargs = tree_map(_raw, (args, kwargs))
    if target:
        raw_kwargs["device"] = torch.device("cpu")
    output = operation(*raw_args, **raw_kwargs)
    known = {id(tensor.raw): tensor for tensor in ours}  # what is changed in place is handed back as it is
    if not on_device:
        return output
    # A view of an ordinary tensor is an ordinary tensor, in inference mode too.
    is_view = any(result.alias_info is not None for result in operation._schema.returns)
    ordinary = is_view and not all(tensor.is_inference() for tensor in ours)
    with torch.inference_mode(torch.is_inference_mode_enabled() and not ordinary):
        return tree_map_only(torch.Tensor, lambda raw: known[id(raw)] if id(raw) in known else DeviceTensor(raw),
                             output)


def _raw(value):
    return value.raw if isinstance(value, DeviceTensor) else value


def _check(name: str, args: tuple, kwargs: dict, tensors: list[torch.Tensor]) -> None:
    """What CUDA refuses is refused.

    Raises:
        RuntimeError: for tensors of both devices.
    """
    # A number of the CPU's may stand beside tensors of the device, but is not joined to them.
    together = [tensor for tensor in tensors if tensor.ndim or name in _JOINED]
    if name in _COPIES or len({tensor.device.type for tensor in together}) < 2:
        return
    if name in _INDEXED and isinstance(args[0], DeviceTensor):
        others = [tensor for tensor in args[2:] if isinstance(tensor, torch.Tensor) and tensor.ndim]
        if all(isinstance(tensor, DeviceTensor) for tensor in others):
            return
    shapes = ", ".join(f"{tensor.device.type} {list(tensor.shape)}" for tensor in tensors)
    raise RuntimeError(f"{name}: expected all tensors to be on the same device, but got {shapes}")


def _note(name: str, args: tuple, ours: list[DeviceTensor], target: str | None) -> None:
    """Count what this operation brings over, or makes the CPU wait for."""
    found = []
    if name in _COPIES:
        source = args[1] if name == "copy_" else args[0]
        goal = args[0].device.type if name == "copy_" else target or source.device.type
        if goal != source.device.type:
            found.append("to the device" if goal == NAME else "to the CPU")
    elif name in _AWAITED and ours:
        found.append(name)
    elif name in _INDEXED and ours:
        indices = [index for index in tree_leaves(args[1]) if isinstance(index, torch.Tensor)]
        found += ["to the device" for index in indices if not isinstance(index, DeviceTensor)]
        found += ["nonzero" for index in indices if index.dtype in (torch.bool, torch.uint8)]
    for user in _in_use:
        user.crossings.update(found)
