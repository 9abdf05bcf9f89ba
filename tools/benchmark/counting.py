"""Counts memory and operations of a forward pass: exact, also on the meta device, where nothing is computed."""

from __future__ import annotations

import weakref

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Follows the memory of every tensor that is made inside.

    Attributes:
        peak: the most bytes at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak = 0, 0
        self._storages: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        place, size = storage._cdata, storage.nbytes()
        if place in self._storages:
            return

        def freed(_) -> None:
            self.live -= size
            del self._storages[place]

        self._storages[place] = weakref.ref(storage, freed)
        self.live += size
        self.peak = max(self.peak, self.live)


class Operations(TorchDispatchMode):
    """Counts the operations that compute or copy, about one kernel of a GPU each.

    Attributes:
        number: of those inside.
    """

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func._schema.returns
        is_view = any(result.alias_info is not None and not result.alias_info.is_write for result in results)
        self.number += bool(results) and not is_view
        return func(*args, **(kwargs or {}))


class FusedAttention(TorchFunctionMode):
    """Attention as GPUs have it, with no map in memory; the meta device has no other than with one. For counting only:
    the result is empty."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is not F.scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        q, _, v, *_ = args
        return q.new_empty(*q.shape[:-1], v.shape[-1])
